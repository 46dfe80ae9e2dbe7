//! Who may write here: the claim of the highest generation.
//!
//! No store is trusted to refuse a second writer of one name, and no listing to be fresh: claims are found by asking for the
//! next generation until there is none, and read again after they were written.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::backend::Backend;
use crate::id::{OwnerId, RepositoryId};
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

/// Who this process acts for, and the claim it relies on.
#[derive(Debug)]
pub(super) struct Ownership {
    repository: RepositoryId,
    owner: OwnerId,
    /// Of the claim that made the repository ours; 0 if it is not.
    generation: u64,
    /// Host and generation of the claim that ended that. Whoever was shut out stays so until it opens the repository again.
    lost: OnceLock<(String, u64)>,
}

/// The claim of the highest generation; `None` before the first.
pub(super) async fn current(backend: &Backend, repository: &RepositoryId) -> Result<Option<Claim>> {
    let claims = backend.list(names::CLAIMS).await?;
    let generations = claims.iter().filter_map(|(name, _)| match ObjectName::parse(name) {
        Some(ObjectName::Claim(generation)) => Some(generation),
        _ => None,
    });
    newest(backend, repository, generations.max().unwrap_or(0)).await
}

/// The claim of the highest generation, from `known` on.
async fn newest(backend: &Backend, repository: &RepositoryId, known: u64) -> Result<Option<Claim>> {
    let mut generation = known;
    while backend.exists(&names::claim(generation + 1)).await? {
        generation += 1;
    }
    if generation == 0 {
        return Ok(None);
    }
    let bytes = backend.get(&names::claim(generation)).await?;
    Claim::open(generation, repository, &bytes).map(Some)
}

impl Ownership {
    /// Finds out whose the repository is and makes it `owner`'s where `access` asks for that.
    pub(super) async fn settle(
        backend: &Backend,
        repository: RepositoryId,
        owner: OwnerId,
        access: Access,
    ) -> Result<Self> {
        let claim = current(backend, &repository).await?;
        let of = |generation| Self { repository, owner, generation, lost: OnceLock::new() };
        match (&claim, access) {
            (Some(claim), _) if claim.owner == owner => return Ok(of(claim.generation)),
            (Some(claim), Access::Write) => return Err(elsewhere(claim)),
            (_, Access::Read) => return Ok(of(0)),
            (None, Access::Write) | (_, Access::TakeOver) => {}
        }
        let generation = claim.as_ref().map_or(1, |claim| claim.generation + 1);
        let next = Claim { repository, generation, owner, host: host_name(), created: Timestamp::now() };
        let put = backend.put(&names::claim(generation), Bytes::from(next.seal())).await;
        let lost = Error::Missing { object: names::claim(generation) };
        // Another process may have been a moment faster, on a store that does not tell.
        match newest(backend, &repository, generation - 1).await? {
            Some(now) if now.generation < generation => Err(put.err().unwrap_or(lost)),
            Some(now) if now.owner == owner => Ok(of(now.generation)),
            Some(now) => Err(elsewhere(&now)),
            None => Err(put.err().unwrap_or(lost)),
        }
    }

    /// Fails if the repository was claimed since it was opened; two requests. A claim of this very host counts too: between the two
    /// there was another owner's, who may have deleted what was promised here.
    pub(super) async fn still_ours(&self, backend: &Backend) -> Result<()> {
        self.not_lost()?;
        match newest(backend, &self.repository, self.generation).await? {
            Some(claim) if (claim.owner, claim.generation) == (self.owner, self.generation) => Ok(()),
            Some(claim) => {
                let _ = self.lost.set((claim.host.clone(), claim.generation));
                Err(elsewhere(&claim))
            }
            None => Err(Error::Missing { object: names::CLAIMS.to_owned() }),
        }
    }

    /// Fails if [`Ownership::still_ours`] has failed for good before.
    pub(super) fn not_lost(&self) -> Result<()> {
        match self.lost.get() {
            Some((host, generation)) => {
                Err(Error::OwnedElsewhere { host: host.clone(), generation: *generation })
            }
            None => Ok(()),
        }
    }

    /// Generation of the claim that made the repository ours; 0 if it is not.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }
}

fn elsewhere(claim: &Claim) -> Error {
    Error::OwnedElsewhere { host: claim.host.clone(), generation: claim.generation }
}

/// This host's name, for people; nothing is decided by it.
pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}
