//! Backups under way.

use std::io::Write;

use axum::response::Response;
use underlay_store::Error;
use underlay_store::authority::{Authority, SessionGrant};
use underlay_store::digest::Sha256;
use underlay_store::id::{ChunkId, NodeId, PackName, Root};
use underlay_store::pack::{PackId, PackKind};
use underlay_store::snapshot::validate::vm_name;
use underlay_store::wire::{OpenSession, OpenedSession, decode_ids, encode_bitmap};

use super::answer::{Refusal, binary, done, json};
use super::call::{Call, forbidden, malformed};

/// Roots asked about at once.
const ROOTS: usize = 4096;

pub(super) async fn open(mut call: Call) -> Result<Response, Refusal> {
    let OpenSession { vm } = call.json().await?;
    vm_name(&vm)?;
    if !call.token.covers_machine(&vm) {
        return Err(forbidden(format!("this token is not for the machine {vm:?}")).into());
    }
    let (repository, session) = call.session().await?;
    call.server.shares.opens(&call.share, session)?;
    let writer = Some(call.token.writer(repository.id()));
    let opened = async move { repository.open_session_as(writer, session, &vm).await };
    let opened = call.carry_through(opened).await;
    if opened.is_err() {
        call.share.ends(session);
    }
    let SessionGrant { session, time } = opened?;
    let direct = call.hosted()?.is_direct();
    Ok(json(&OpenedSession { session, time_ms: time.as_milliseconds(), direct }))
}

pub(super) async fn abandon(call: Call) -> Result<Response, Refusal> {
    let (repository, session) = call.session().await?;
    call.carry_through(async move { repository.abandon(session).await }).await?;
    call.ends(session)?;
    Ok(done())
}

pub(super) async fn have_chunks(mut call: Call) -> Result<Response, Refusal> {
    let (repository, session) = call.session().await?;
    let body = call.body().await?;
    let ids: Vec<ChunkId> = decode_ids(&body.bytes).map_err(malformed)?;
    let hosted = call.hosted()?;
    let circle = hosted.circle(call.token.writer(repository.id()));
    let have = hosted.coming.have_chunks(&repository, circle, session, &ids).await?;
    call.server.metrics.asked_for_chunks(&have);
    call.share.uses(session);
    Ok(binary(encode_bitmap(&have)))
}

pub(super) async fn have_nodes(mut call: Call) -> Result<Response, Refusal> {
    let (repository, session) = call.session().await?;
    let body = call.body().await?;
    let ids: Vec<NodeId> = decode_ids(&body.bytes).map_err(malformed)?;
    let have = repository.have_nodes(session, &ids).await?;
    call.share.uses(session);
    Ok(binary(encode_bitmap(&have)))
}

pub(super) async fn pin_roots(mut call: Call) -> Result<Response, Refusal> {
    let (repository, session) = call.session().await?;
    let roots: Vec<Root> = call.json().await?;
    if roots.len() > ROOTS {
        return Err(malformed(format!("at most {ROOTS} roots at once")).into());
    }
    Ok(json(&repository.pin_roots(session, &roots).await?))
}

/// A kind in a path.
pub(super) fn pack_kind(text: &str) -> Option<PackKind> {
    match text {
        "data" => Some(PackKind::Data),
        "nodes" => Some(PackKind::Nodes),
        _ => None,
    }
}

/// Hashed as it comes. What is not what its name says is not stored.
pub(super) async fn put_pack(mut call: Call) -> Result<Response, Refusal> {
    let name = call.parameter("name", PackName::from_hex)?;
    let kind = call.parameter("kind", pack_kind)?;
    let (repository, session) = call.session().await?;
    // Whoever has no session is told so before the pack has come.
    repository.have_chunks(session, &[]).await?;
    call.share.uses(session);
    let mut digest = Sha256::default();
    let body = call
        .body_seen(|part| {
            // A digest takes everything.
            let _ = digest.write_all(part);
        })
        .await?;
    if digest.finish() != name.to_string() {
        return Err(malformed("the pack is not what its name says").into());
    }
    let pack = PackId::new(kind, name);
    let stored = async move { repository.put_named_pack(session, pack, body.bytes.clone()).await };
    call.carry_through(stored).await.map_err(Refusal::of_sender)?;
    call.hosted()?.coming.has_arrived(session);
    call.server.metrics.stored_pack();
    Ok(done())
}

pub(super) async fn commit(mut call: Call) -> Result<Response, Refusal> {
    let (repository, session) = call.session().await?;
    let body = call.body().await?;
    let committed =
        call.carry_through(async move { repository.commit(session, body.bytes.clone()).await }).await;
    committed.map_err(|refusal| match is_about_the_document(&refusal) {
        true => refusal.of_sender(),
        false => refusal,
    })?;
    call.ends(session)?;
    tracing::info!(token = %call.token.id, %session, "committed");
    Ok(done())
}

/// As opposed to damage in what is stored, which the proof reads.
fn is_about_the_document(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Error(Error::Damaged { object, .. } | Error::Version { object, .. }) if object == "the new snapshot")
}
