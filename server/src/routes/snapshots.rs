//! Snapshots and what is said of them. A token that is for certain machines sees and changes only theirs.

use std::collections::BTreeSet;

use axum::response::Response;
use underlay_store::Error;
use underlay_store::authority::{Authority, StoredDocument, Withdrawal};
use underlay_store::id::{RepositoryId, SnapshotId};
use underlay_store::names::ObjectName;
use underlay_store::repository::Repository;
use underlay_store::snapshot::Snapshot;
use underlay_store::wire::encode_documents;

use super::answer::{self, Refusal, done, json};
use super::call::Call;
use crate::tokens::Token;

/// The snapshot and its machine; `None` if the document cannot be read: then it is nobody's.
fn owner(repository: RepositoryId, document: &StoredDocument) -> Option<(SnapshotId, String)> {
    let Some(ObjectName::Snapshot(id)) = ObjectName::parse(&document.name) else { return None };
    let snapshot = Snapshot::peek(&id, &repository, &document.bytes).ok()?;
    Some((id, snapshot.vm))
}

/// Documents of the token's machines.
async fn own(repository: &Repository, token: &Token) -> Result<Vec<StoredDocument>, Error> {
    let mut documents = repository.snapshots().await?;
    if !token.covers_all_machines() {
        documents.retain(|document| {
            owner(repository.id(), document).is_some_and(|(_, vm)| token.covers_machine(&vm))
        });
    }
    Ok(documents)
}

/// Ids of the token's snapshots; `None` if they are all its own.
async fn own_ids(repository: &Repository, token: &Token) -> Result<Option<BTreeSet<SnapshotId>>, Error> {
    if token.covers_all_machines() {
        return Ok(None);
    }
    let documents = own(repository, token).await?;
    Ok(Some(documents.iter().filter_map(|document| Some(owner(repository.id(), document)?.0)).collect()))
}

/// The snapshot that the path names, if the token is for its machine. To others it does not exist.
async fn own_snapshot(call: &Call, repository: &Repository) -> Result<SnapshotId, Refusal> {
    let snapshot = call.parameter("snapshot", SnapshotId::from_hex)?;
    match own_ids(repository, &call.token).await? {
        Some(own) if !own.contains(&snapshot) => {
            Err(Error::NoSnapshot { wanted: snapshot.to_string() }.into())
        }
        _ => Ok(snapshot),
    }
}

pub(super) async fn list(call: Call) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    let documents = own(&repository, &call.token).await?;
    let length: u64 = documents.iter().map(|document| document.bytes.len() as u64).sum();
    let reserved = call.server.shares.reserve(&call.share, 2 * length).await?;
    Ok(answer::reserved(encode_documents(&documents).into(), reserved))
}

pub(super) async fn forget(call: Call) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    let snapshot = own_snapshot(&call, &repository).await?;
    call.carry_through(async move { repository.forget(snapshot).await }).await?;
    tracing::info!(token = %call.token.id, %snapshot, "forgotten");
    Ok(done())
}

pub(super) async fn protected(call: Call) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    let own = own_ids(&repository, &call.token).await?;
    let mut protected = repository.protected().await?;
    protected.retain(|snapshot| own.as_ref().is_none_or(|own| own.contains(snapshot)));
    Ok(json(&protected))
}

pub(super) async fn protect(call: Call) -> Result<Response, Refusal> {
    set_protection(call, true).await
}

pub(super) async fn unprotect(call: Call) -> Result<Response, Refusal> {
    set_protection(call, false).await
}

async fn set_protection(call: Call, on: bool) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    let snapshot = own_snapshot(&call, &repository).await?;
    call.carry_through(async move { repository.protect(snapshot, on).await }).await?;
    Ok(done())
}

pub(super) async fn marked(call: Call) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    let own = own_ids(&repository, &call.token).await?;
    let mut marked = repository.marked().await?;
    marked.retain(|marked| own.as_ref().is_none_or(|own| own.contains(&marked.snapshot)));
    Ok(json(&marked))
}

pub(super) async fn withdraw(mut call: Call) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    let damage: Withdrawal = call.json().await?;
    Ok(json(&call.carry_through(async move { repository.withdraw(&damage).await }).await?))
}
