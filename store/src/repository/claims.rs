//! Claims that cannot be read.

use std::path::Path;

use bytes::Bytes;

use super::{Repository, catalog_path, owner, sync};
use crate::backend::Backend;
use crate::id::OwnerId;
use crate::names::{self, CLAIMS, ObjectName};
use crate::snapshot::{Claim, Descriptor, Timestamp};
use crate::{Error, Result};

/// Whether an error is about a claim that is not what was written.
pub(super) fn is_damaged_claim(error: &Error) -> bool {
    matches!(error, Error::Damaged { object, .. } | Error::Missing { object } if object.starts_with(CLAIMS))
}

/// The highest generation that a claim is named after, whatever it says; 0 if there is none.
pub(super) async fn newest_name(backend: &Backend) -> Result<u64> {
    let listed = backend.list(CLAIMS).await?;
    let generations = listed.iter().filter_map(|(name, _)| match ObjectName::parse(name) {
        Some(ObjectName::Claim(generation)) => Some(generation),
        _ => None,
    });
    let mut generation = generations.max().unwrap_or(0);
    while backend.exists(&names::claim(generation + 1)).await? {
        generation += 1;
    }
    Ok(generation)
}

impl Repository {
    /// Makes the repository this host's if its newest claim cannot be read: nobody can tell whose it was. Returns the new claim's
    /// name; `None` if there was nothing to do. The damaged claim stays where it is.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub async fn repair_claim(backend: &Backend, state: &Path, dry_run: bool) -> Result<Option<String>> {
        let id = Descriptor::peek(&backend.get(names::DESCRIPTOR).await?)?.repository;
        match owner::current(backend, &id).await {
            Err(error) if is_damaged_claim(&error) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(None),
        }
        let path = catalog_path(backend, state, id);
        let owner: OwnerId = match sync::remembered_owner(state, id)? {
            Some(owner) => owner,
            None => sync::open_catalog(&path, state, id, backend).await?.owner(),
        };
        let generation = newest_name(backend).await? + 1;
        let name = names::claim(generation);
        if !dry_run {
            let created = Timestamp::now();
            let claim = Claim { repository: id, generation, owner, host: owner::host_name(), created };
            backend.put(&name, Bytes::from(claim.seal())).await?;
        }
        Ok(Some(name))
    }
}
