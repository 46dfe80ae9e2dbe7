//! Who may write here: the claim of the highest generation.
//!
//! No store is trusted to refuse a second writer of one name, and no listing to be fresh: claims are found by asking for the
//! next generation until there is none, and read again after they were written.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::backend::Backend;
use crate::catalog::Catalog;
use crate::id::{CatalogId, OwnerId, RepositoryId};
use crate::names::{self, ObjectName};
use crate::sabotage::{Rule, broken};
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

/// Who claims: a host, with the catalog that it has.
#[derive(Clone, Copy, Debug)]
struct Claimant {
    owner: OwnerId,
    catalog: CatalogId,
}

impl Claimant {
    fn of(catalog: &Catalog) -> Result<Self> {
        Ok(Self { owner: catalog.owner(), catalog: catalog.instance()? })
    }

    fn made(&self, claim: &Claim) -> bool {
        claim.owner == self.owner && (claim.catalog == Some(self.catalog) || broken(Rule::ClaimAnew))
    }
}

/// Who this process acts for, and the claim it relies on.
#[derive(Debug)]
pub(super) struct Ownership {
    repository: RepositoryId,
    claimant: Claimant,
    /// Of the claim that made the repository ours; 0 if it is not.
    generation: u64,
    /// The newest claim cannot be read.
    unknown: bool,
    /// Host and generation of the claim that ended that. Whoever was shut out stays so until it opens the repository again.
    lost: OnceLock<(String, u64)>,
}

/// No repository changes hands that often. Whatever has a higher number was put there to be counted up to.
const MOST_GENERATIONS: u64 = 1 << 20;

/// The highest generation that anybody claimed; 0 before the first claim.
pub(super) async fn highest(backend: &Backend) -> Result<u64> {
    let claims = backend.list(names::CLAIMS).await?;
    let generations = claims.iter().filter_map(|(name, _)| match ObjectName::parse(name) {
        Some(ObjectName::Claim(generation)) => Some(generation),
        _ => None,
    });
    match highest_from(backend, generations.max().unwrap_or(0)).await? {
        generation if generation < MOST_GENERATIONS => Ok(generation),
        absurd => Err(Error::damaged(names::claim(absurd), "no repository changes hands that often")),
    }
}

/// The highest generation, from `known` on.
async fn highest_from(backend: &Backend, known: u64) -> Result<u64> {
    let mut generation = known;
    while let Some(next) = generation.checked_add(1)
        && backend.exists(&names::claim(next)).await?
    {
        generation = next;
    }
    Ok(generation)
}

/// The claim of that generation; `None` before the first.
async fn read(backend: &Backend, repository: &RepositoryId, generation: u64) -> Result<Option<Claim>> {
    if generation == 0 {
        return Ok(None);
    }
    let bytes = backend.get(&names::claim(generation)).await?;
    Claim::open(generation, repository, &bytes).map(Some)
}

/// The claim of the highest generation; `None` before the first.
pub(super) async fn current(backend: &Backend, repository: &RepositoryId) -> Result<Option<Claim>> {
    read(backend, repository, highest(backend).await?).await
}

/// The claim of the highest generation, from `known` on.
async fn newest(backend: &Backend, repository: &RepositoryId, known: u64) -> Result<Option<Claim>> {
    let generation = highest_from(backend, known).await?;
    read(backend, repository, generation).await
}

impl Ownership {
    /// Finds out whose the repository is and makes it the catalog's owner's where `access` asks for that.
    ///
    /// A claim that this owner made with another catalog is not relied on: somebody may still be using that one, and what is done with it
    /// would not be known here.
    pub(super) async fn settle(
        backend: &Backend,
        repository: RepositoryId,
        catalog: &Catalog,
        access: Access,
    ) -> Result<Self> {
        let claimant = Claimant::of(catalog)?;
        let highest = highest(backend).await?;
        let mut unknown = false;
        let claim = match read(backend, &repository, highest).await {
            // Whoever reads works beside any owner, and whoever takes over asks none.
            Err(error) if error.is_damage() && access != Access::Write => {
                tracing::warn!("{error}");
                unknown = true;
                None
            }
            found => found?,
        };
        let of = |generation| Self {
            repository,
            claimant,
            generation,
            unknown: unknown && generation == 0,
            lost: OnceLock::new(),
        };
        match (&claim, access) {
            (Some(claim), _) if claimant.made(claim) => return Ok(of(claim.generation)),
            (_, Access::Read) => return Ok(of(0)),
            (Some(claim), Access::Write) if claim.owner != claimant.owner => return Err(elsewhere(claim)),
            (_, Access::Write | Access::TakeOver) => {}
        }
        let generation = highest + 1;
        let Claimant { owner, catalog } = claimant;
        let (catalog, host, created) = (Some(catalog), host_name(), Timestamp::now());
        let next = Claim { repository, generation, owner, catalog, host, created };
        let put = backend.put(&names::claim(generation), Bytes::from(next.seal())).await;
        let lost = Error::Missing { object: names::claim(generation) };
        // Another process may have been a moment faster, on a store that does not tell.
        match newest(backend, &repository, generation - 1).await? {
            Some(now) if now.generation < generation => Err(put.err().unwrap_or(lost)),
            Some(now) if claimant.made(&now) => Ok(of(now.generation)),
            Some(now) => Err(elsewhere(&now)),
            None => Err(put.err().unwrap_or(lost)),
        }
    }

    /// Fails if the repository was claimed since it was opened; two requests. A claim of this very host counts too: between the two
    /// there was another owner's, who may have deleted what was promised here.
    pub(super) async fn still_ours(&self, backend: &Backend) -> Result<()> {
        self.not_lost()?;
        match newest(backend, &self.repository, self.generation).await? {
            Some(claim) if claim.generation == self.generation && self.claimant.made(&claim) => Ok(()),
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

    /// Whether nobody can tell whose the repository is.
    pub(super) fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// Generation of the claim that made the repository ours; 0 if it is not.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }
}

pub(super) fn elsewhere(claim: &Claim) -> Error {
    Error::OwnedElsewhere { host: claim.host.clone(), generation: claim.generation }
}

/// This host's name, for people; nothing is decided by it.
pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(repository: RepositoryId) -> Catalog {
        Catalog::in_memory(repository).unwrap()
    }

    #[tokio::test]
    async fn a_new_catalog_claims_anew() {
        let backend = Backend::memory();
        let repository = RepositoryId::random();
        let settle = |catalog, access| Ownership::settle(&backend, repository, catalog, access);
        let first = catalog(repository);
        assert_eq!(settle(&first, Access::Write).await.unwrap().generation(), 1);
        let held = settle(&first, Access::Write).await.unwrap();
        held.still_ours(&backend).await.unwrap();
        let mut second = catalog(repository);
        second.set_owner(first.owner()).unwrap();
        assert_eq!(settle(&second, Access::Read).await.unwrap().generation(), 0);
        assert_eq!(settle(&second, Access::Write).await.unwrap().generation(), 2);
        assert_eq!(settle(&second, Access::Write).await.unwrap().generation(), 2);
        assert!(matches!(held.still_ours(&backend).await, Err(Error::OwnedElsewhere { generation: 2, .. })));
    }

    /// Whoever still uses the catalog that was there before may claim once more, after the new one was made.
    #[tokio::test]
    async fn a_claim_that_another_catalog_of_this_host_made_is_not_relied_on() {
        let backend = Backend::memory();
        let repository = RepositoryId::random();
        let settle = |catalog, access| Ownership::settle(&backend, repository, catalog, access);
        let (lost, mut new) = (catalog(repository), catalog(repository));
        new.set_owner(lost.owner()).unwrap();
        assert_eq!(settle(&new, Access::Read).await.unwrap().generation(), 0);
        let held = settle(&lost, Access::Write).await.unwrap();
        assert_eq!(held.generation(), 1);
        assert_eq!(settle(&new, Access::Write).await.unwrap().generation(), 2);
        assert!(held.still_ours(&backend).await.is_err());
    }

    #[tokio::test]
    async fn a_claim_that_cannot_be_read_keeps_out_only_those_who_write() {
        let backend = Backend::memory();
        let repository = RepositoryId::random();
        let (ours, theirs) = (catalog(repository), catalog(repository));
        let settle = |catalog, access| Ownership::settle(&backend, repository, catalog, access);
        settle(&ours, Access::Write).await.unwrap();
        backend.put(&names::claim(2), Bytes::from_static(b"{}")).await.unwrap();
        let refused = settle(&ours, Access::Write).await.unwrap_err();
        assert!(refused.to_string().contains("claims/0000000000000002.json"), "{refused}");
        assert_eq!(settle(&ours, Access::Read).await.unwrap().generation(), 0);
        let taken = settle(&theirs, Access::TakeOver).await.unwrap();
        assert_eq!(taken.generation(), 3);
        assert!(matches!(
            settle(&ours, Access::Write).await,
            Err(Error::OwnedElsewhere { generation: 3, .. })
        ));
    }

    #[tokio::test]
    async fn an_absurd_generation_is_an_error() {
        let backend = Backend::memory();
        backend.put(&names::claim(u64::MAX), Bytes::from_static(b"{}")).await.unwrap();
        for access in [Access::Read, Access::Write, Access::TakeOver] {
            let repository = RepositoryId::new([1; 16]);
            let settled = Ownership::settle(&backend, repository, &catalog(repository), access).await;
            assert!(settled.unwrap_err().to_string().contains("claims/ffffffffffffffff.json"));
        }
    }
}
