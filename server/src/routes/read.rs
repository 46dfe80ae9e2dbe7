//! Reading: trees, places, packs.

use axum::response::Response;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::id::{ChunkId, NodeId, PackName};
use underlay_store::pack::MAXIMUM_LENGTH;
use underlay_store::wire::{decode_ids, encode_nodes, encode_places};

use super::answer::{self, Refusal};
use super::call::{Call, malformed};

/// Bytes of nodes in one answer, unless the first alone is longer.
const NODES: usize = 8 << 20;
/// Bytes that the places of one chunk take, here and in the answer.
const PLACES: u64 = 160;
/// Nodes read together before anything is known of their lengths.
const FIRST: usize = 256;

pub(super) async fn descriptor(call: Call) -> Result<Response, Refusal> {
    Ok(answer::document(call.repository().await?.descriptor().await?))
}

pub(super) async fn totals(call: Call) -> Result<Response, Refusal> {
    Ok(answer::json(&call.repository().await?.totals().await?))
}

/// As many nodes as fit, from the first on.
pub(super) async fn nodes(mut call: Call) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    let ids: Vec<NodeId> = decode_ids(&call.body().await?.bytes).map_err(malformed)?;
    let reserved = call.server.shares.reserve(&call.share, 2 * NODES as u64).await?;
    let (mut nodes, mut bytes) = (Vec::new(), 0);
    let mut together = FIRST;
    while nodes.len() < ids.len() {
        let rest = &ids[nodes.len()..];
        let read = repository.read_nodes(&rest[..together.min(rest.len())]).await?;
        let read_bytes: usize = read.iter().map(|node| node.len() + 4).sum();
        let fits = read.iter().scan(bytes, |sum, node| {
            *sum += node.len() + 4;
            Some(*sum)
        });
        let fitting = fits.take_while(|sum| *sum <= NODES).count();
        let whole = fitting == read.len();
        nodes.extend(read.into_iter().take(fitting.max(usize::from(nodes.is_empty()))));
        bytes += read_bytes;
        if !whole || bytes >= NODES {
            break;
        }
        // As many as are likely to fit.
        together = ((NODES - bytes) / (bytes / nodes.len()).max(1)).clamp(1, 4096);
    }
    Ok(answer::reserved(encode_nodes(&nodes).into(), reserved))
}

pub(super) async fn locate(mut call: Call) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    // The body's memory is given back first: nobody holds some while waiting for more.
    let ids: Vec<ChunkId> = decode_ids(&call.body().await?.bytes).map_err(malformed)?;
    let reserved = call.server.shares.reserve(&call.share, PLACES * ids.len() as u64).await?;
    Ok(answer::reserved(encode_places(&repository.locate_chunks(&ids).await?).into(), reserved))
}

pub(super) async fn pack(call: Call) -> Result<Response, Refusal> {
    let name = call.parameter("name", PackName::from_hex)?;
    let (offset, length) = (call.number("offset")?, call.number("length")?);
    let (Some(offset), Some(length)) = (offset, length) else {
        return Err(malformed("`offset` and `length` belong into the query").into());
    };
    let end = offset.checked_add(length).filter(|_| length <= u64::from(MAXIMUM_LENGTH));
    let end = end.ok_or_else(|| malformed(format!("no pack has more than {MAXIMUM_LENGTH} bytes")))?;
    let repository = call.repository().await?;
    let reserved = call.server.shares.reserve(&call.share, length).await?;
    match repository.read_pack(name, offset..end).await {
        Ok(bytes) => Ok(answer::reserved(bytes, reserved)),
        // Nothing is lost of a pack that never had so many bytes.
        Err(error @ Error::Damaged { .. })
            if repository.pack_size(name).await?.is_some_and(|size| size < end) =>
        {
            Err(Refusal::from(error).of_sender())
        }
        Err(error) => Err(error.into()),
    }
}
