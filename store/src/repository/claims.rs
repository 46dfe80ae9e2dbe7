//! Claims that cannot be read.

use std::path::Path;

use bytes::Bytes;

use super::{Repository, catalog_path, owner, sync};
use crate::backend::Backend;
use crate::id::{OwnerId, RepositoryId};
use crate::names::{self, CLAIMS};
use crate::snapshot::{Claim, Descriptor, Timestamp};
use crate::{Error, Result};

/// Whether an error is about a claim that is not what was written.
pub(super) fn is_damaged_claim(error: &Error) -> bool {
    matches!(error, Error::Damaged { object, .. } | Error::Missing { object } if object.starts_with(CLAIMS))
}

/// The claim of the highest generation; `None` before the first.
pub(super) async fn current(backend: &Backend, repository: &RepositoryId) -> Result<Option<Claim>> {
    match owner::highest(backend).await? {
        0 => Ok(None),
        generation => {
            let bytes = backend.get(&names::claim(generation)).await?;
            Claim::open(generation, repository, &bytes).map(Some)
        }
    }
}

impl Repository {
    /// Makes the repository this host's if its newest claim cannot be read: nobody can tell whose it was. Returns the new claim's
    /// name; `None` if there was nothing to do. The damaged claim stays where it is.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub async fn repair_claim(backend: &Backend, state: &Path, dry_run: bool) -> Result<Option<String>> {
        let id = Descriptor::peek(&backend.get(names::DESCRIPTOR).await?)?.repository;
        match current(backend, &id).await {
            Err(error) if is_damaged_claim(&error) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(None),
        }
        let path = catalog_path(backend, state, id);
        let owner: OwnerId = match sync::remembered_owner(state, id)? {
            Some(owner) => owner,
            None => sync::open_catalog(&path, state, id, backend).await?.owner(),
        };
        let generation = owner::highest(backend).await? + 1;
        let name = names::claim(generation);
        if !dry_run {
            let created = Timestamp::now();
            let claim = Claim { repository: id, generation, owner, host: owner::host_name(), created };
            backend.put(&name, Bytes::from(claim.seal())).await?;
        }
        Ok(Some(name))
    }
}
