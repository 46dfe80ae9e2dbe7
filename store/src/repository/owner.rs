//! Who may write here: the claim of the highest generation.

use bytes::Bytes;

use crate::backend::Backend;
use crate::catalog::Catalog;
use crate::id::RepositoryId;
use crate::names::{self, ObjectName};
use crate::snapshot::{Claim, Timestamp};
use crate::{Error, Result};

/// What the caller is going to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read: works beside any owner.
    Read,
    /// Write: this host must own the repository, or nobody.
    Write,
    /// Write, and become the owner whoever was.
    TakeOver,
}

/// The claim of the highest generation; `None` before the first.
pub(super) async fn current(backend: &Backend, repository: &RepositoryId) -> Result<Option<Claim>> {
    let claims = backend.list(names::CLAIMS).await?;
    let generations = claims.iter().filter_map(|(name, _)| match ObjectName::parse(name) {
        Some(ObjectName::Claim(generation)) => Some(generation),
        _ => None,
    });
    let Some(generation) = generations.max() else { return Ok(None) };
    let bytes = backend.get(&names::claim(generation)).await?;
    Claim::open(generation, repository, &bytes).map(Some)
}

/// Finds out whose the repository is and makes it ours where `access` asks for that. True if it is ours.
pub(super) async fn settle(
    backend: &Backend,
    catalog: &Catalog,
    repository: RepositoryId,
    access: Access,
) -> Result<bool> {
    let claim = current(backend, &repository).await?;
    let owner = catalog.owner();
    match (&claim, access) {
        (Some(claim), _) if claim.owner == owner => return Ok(true),
        (Some(claim), Access::Write) => {
            return Err(Error::OwnedElsewhere { host: claim.host.clone(), generation: claim.generation });
        }
        (_, Access::Read) => return Ok(false),
        (None, Access::Write) | (_, Access::TakeOver) => {}
    }
    let generation = claim.as_ref().map_or(1, |claim| claim.generation + 1);
    let next = Claim { repository, generation, owner, host: host_name(), created: Timestamp::now() };
    if let Err(error) = backend.put(&names::claim(generation), Bytes::from(next.seal())).await {
        // Another process with the same catalog may have been a moment faster.
        return match current(backend, &repository).await? {
            Some(claim) if claim.owner == owner => Ok(true),
            _ => Err(error),
        };
    }
    // What another owner stored before is not in this catalog yet.
    Ok(claim.is_none())
}

/// Fails if somebody else has claimed the repository since it was opened.
pub(super) async fn still_ours(
    backend: &Backend,
    catalog: &Catalog,
    repository: &RepositoryId,
) -> Result<()> {
    match current(backend, repository).await? {
        Some(claim) if claim.owner != catalog.owner() => {
            Err(Error::OwnedElsewhere { host: claim.host, generation: claim.generation })
        }
        Some(_) => Ok(()),
        None => Err(Error::Missing { object: names::CLAIMS.to_owned() }),
    }
}

/// This host's name, for people; nothing is decided by it.
pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}
