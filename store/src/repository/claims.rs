//! Claims, and what belongs to them, that cannot be read.

use std::path::Path;

use bytes::Bytes;

use super::{Repository, catalog_path, deletions, owner, sync};
use crate::backend::Backend;
use crate::id::OwnerId;
use crate::names::{self, CLAIMS};
use crate::snapshot::{Claim, Descriptor, Timestamp};
use crate::{Error, Result};

/// Whether an error is about a claim that is not what was written.
pub(super) fn is_damaged_claim(error: &Error) -> bool {
    matches!(error, Error::Damaged { object, .. } | Error::Missing { object } if object.starts_with(CLAIMS))
}

impl Repository {
    /// Makes the repository this host's if its newest claim cannot be read: nobody can tell whose it was. Or if it is this host's, and
    /// records of what earlier owners deleted cannot be read: the new owner does without those. Returns the new claim's name; `None` if there
    /// was nothing to do. What is damaged stays where it is.
    ///
    /// # Errors
    /// [`Error::OwnedElsewhere`] if it is for the owner to do; as [`Repository::open`].
    pub async fn repair_claim(backend: &Backend, state: &Path, dry_run: bool) -> Result<Option<String>> {
        let id = Descriptor::peek(&backend.get(names::DESCRIPTOR).await?)?.repository;
        let highest = owner::highest(backend).await?;
        let known = match owner::current(backend, &id).await {
            Err(error) if is_damaged_claim(&error) => None,
            Err(error) => return Err(error),
            Ok(_) if deletions::honoured(backend, &id, highest).await?.unreadable.is_empty() => {
                return Ok(None);
            }
            Ok(claim) => claim,
        };
        let path = catalog_path(backend, state, id);
        let owner: OwnerId = match sync::remembered_owner(state, id)? {
            Some(owner) => owner,
            None => sync::open_catalog(&path, state, id, backend).await?.owner(),
        };
        if let Some(claim) = known.filter(|claim| claim.owner != owner) {
            return Err(owner::elsewhere(&claim));
        }
        let generation = highest + 1;
        let name = names::claim(generation);
        if !dry_run {
            let created = Timestamp::now();
            let claim =
                Claim { repository: id, generation, owner, catalog: None, host: owner::host_name(), created };
            backend.put(&name, Bytes::from(claim.seal())).await?;
            let found = deletions::honoured(backend, &id, generation).await?;
            if !found.unreadable.is_empty() {
                let closing = found.closing(id, generation);
                backend.put(&names::closing(generation), Bytes::from(closing.seal())).await?;
            }
        }
        Ok(Some(name))
    }
}
