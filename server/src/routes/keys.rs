//! Passphrase slots, and the repository to be made.

use axum::response::Response;
use bytes::Bytes;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::id::{RepositoryId, SlotId};
use underlay_store::key::Holds;
use underlay_store::key::slot::Slot;
use underlay_store::names;
use underlay_store::snapshot::Descriptor;
use underlay_store::wire::{NewRepository, Problem, encode_documents};

use super::answer::{Refusal, binary, done};
use super::call::{Call, malformed};
use crate::tokens::Scope;

/// Slots of a repository to be made.
const SLOTS: usize = 64;

/// Makes the repository in the place that the configuration names, of documents that the client made: keys never come here.
pub(super) async fn make_repository(mut call: Call) -> Result<Response, Refusal> {
    let new: NewRepository = call.json().await?;
    let missing =
        || Problem::new(404, "no-repository", "the server's configuration names no such repository");
    let hosted = call.hosted().map_err(|_| missing())?.clone();
    let descriptor = Bytes::from(new.descriptor);
    let id = Descriptor::peek(&descriptor).map_err(|error| Refusal::from(error).of_sender())?.repository;
    if new.slots.len() > SLOTS {
        return Err(malformed(format!("at most {SLOTS} slots")).into());
    }
    let mut slots = Vec::new();
    for slot in new.slots {
        let document = Bytes::from(slot.document);
        check_slot(&id, slot.slot, &document)?;
        slots.push((slot.slot, document));
    }
    call.carry_through(async move { hosted.make(descriptor, slots).await }).await?;
    Ok(done())
}

/// Who only backs up sees nothing to guess the restore key's passphrase with.
pub(super) async fn list(call: Call) -> Result<Response, Refusal> {
    let repository = call.repository().await?;
    let mut slots = repository.key_slots().await?;
    if !call.token.has_any(&[Scope::Restore, Scope::Maintain, Scope::Admin]) {
        let id = repository.id();
        slots.retain(|slot| {
            Slot::read(&id, &slot.name, &slot.bytes).is_ok_and(|slot| slot.holds == Holds::Backup)
        });
    }
    Ok(binary(encode_documents(&slots)))
}

pub(super) async fn put(mut call: Call) -> Result<Response, Refusal> {
    let slot = call.parameter("slot", SlotId::from_hex)?;
    let repository = call.repository().await?;
    let body = call.body().await?;
    check_slot(&repository.id(), slot, &body.bytes)?;
    call.carry_through(async move { repository.put_key_slot(slot, body.bytes).await }).await?;
    Ok(done())
}

pub(super) async fn delete(call: Call) -> Result<Response, Refusal> {
    let slot = call.parameter("slot", SlotId::from_hex)?;
    let repository = call.repository().await?;
    call.carry_through(async move { repository.delete_key_slot(slot).await }).await?;
    Ok(done())
}

fn check_slot(repository: &RepositoryId, slot: SlotId, document: &[u8]) -> Result<(), Refusal> {
    match Slot::read(repository, &names::slot(&slot), document) {
        Ok(_) => Ok(()),
        Err(Error::Damaged { what, .. }) => Err(malformed(format!("the slot: {what}")).into()),
        Err(error) => Err(Refusal::from(error).of_sender()),
    }
}
