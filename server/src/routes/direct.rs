//! Packs that go between clients and the bucket: the server only signs, and looks at what came of it.

use axum::response::Response;
use underlay_store::id::PackName;
use underlay_store::pack::MAXIMUM_LENGTH;
use underlay_store::wire::{Problem, kind};

use super::answer::{Refusal, done, json};
use super::call::Call;
use super::sessions::pack_kind;

fn expect_direct(call: &Call) -> Result<(), Refusal> {
    match call.hosted()?.is_direct() {
        true => Ok(()),
        false => {
            Err(Problem::new(409, kind::NOT_DIRECT, "packs of this repository go through the server").into())
        }
    }
}

/// A request that stores this pack, whose SHA-256 is its name, and no other bytes.
pub(super) async fn upload(call: Call) -> Result<Response, Refusal> {
    let name = call.parameter("name", PackName::from_hex)?;
    let kind = call.parameter("kind", pack_kind)?;
    let (repository, session) = call.session().await?;
    expect_direct(&call)?;
    call.share.uses(session);
    let signed = call.carry_through(async move { repository.sign_put_pack(session, kind, name).await });
    Ok(json(&signed.await?))
}

/// It is there: it counts from here on.
pub(super) async fn stored(call: Call) -> Result<Response, Refusal> {
    let name = call.parameter("name", PackName::from_hex)?;
    let kind = call.parameter("kind", pack_kind)?;
    let (repository, session) = call.session().await?;
    expect_direct(&call)?;
    call.share.uses(session);
    // Its header and trailer can be almost all of a pack.
    let _reserved = call.server.shares.reserve(&call.share, u64::from(MAXIMUM_LENGTH)).await?;
    let stored = async move { repository.pack_is_stored(session, kind, name).await };
    call.carry_through(stored).await.map_err(Refusal::of_sender)?;
    call.hosted()?.coming.has_arrived(session);
    call.server.metrics.stored_pack();
    Ok(done())
}

/// A request that reads ranges of a data pack.
pub(super) async fn location(call: Call) -> Result<Response, Refusal> {
    let name = call.parameter("name", PackName::from_hex)?;
    let repository = call.repository().await?;
    expect_direct(&call)?;
    Ok(json(&repository.sign_read_pack(name).await?))
}
