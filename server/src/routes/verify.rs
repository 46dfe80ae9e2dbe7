//! What holders of the keys verify for writers that do not trust each other.

use axum::response::Response;
use underlay_store::authority::Authority;
use underlay_store::id::{NodeId, PackName};
use underlay_store::pack::{MAXIMUM_LENGTH, PackId};
use underlay_store::wire::{ListedPack, encode_nodes};

use super::answer::{self, Refusal, json};
use super::call::{Call, malformed};
use super::sessions::pack_kind;

/// Bytes of all that is read as one node.
const MOST_COPIES: u64 = 16 << 20;
/// Packs vouched for at once.
const PACKS: usize = 4096;

/// All that is stored as this node.
pub(super) async fn copies(call: Call) -> Result<Response, Refusal> {
    let node = call.parameter("node", NodeId::from_hex)?;
    let repository = call.repository().await?;
    let reserved = call.server.shares.reserve(&call.share, MOST_COPIES).await?;
    let copies = repository.node_copies(node).await?;
    Ok(answer::reserved(encode_nodes(&copies).into(), reserved))
}

/// A whole pack of either kind.
pub(super) async fn whole(call: Call) -> Result<Response, Refusal> {
    let kind = call.parameter("kind", pack_kind)?;
    let name = call.parameter("name", PackName::from_hex)?;
    let repository = call.repository().await?;
    let reserved = call.server.shares.reserve(&call.share, u64::from(MAXIMUM_LENGTH)).await?;
    Ok(answer::reserved(repository.read_whole(PackId::new(kind, name)).await?, reserved))
}

pub(super) async fn unverified(call: Call) -> Result<Response, Refusal> {
    let packs = call.repository().await?.unverified().await?;
    Ok(json(&packs.into_iter().map(ListedPack::from).collect::<Vec<_>>()))
}

pub(super) async fn vouch(mut call: Call) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    let packs: Vec<PackName> = call.json().await?;
    if packs.len() > PACKS {
        return Err(malformed(format!("at most {PACKS} packs at once")).into());
    }
    let count = packs.len();
    let new = call.carry_through(async move { repository.vouch(&packs).await }).await?;
    tracing::info!(token = %call.token.id, packs = count, new, "vouched for");
    Ok(json(&new))
}
