//! What a server shows of a repository, and what its policies rely on.

use super::Repository;
use crate::Result;
use crate::catalog::{Catalog, CommittedSnapshot, Overview};
use crate::id::PackName;

impl Repository {
    /// What is under way, and what was not read for long.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub async fn overview(&self) -> Result<Overview> {
        self.with_catalog(Catalog::overview).await
    }

    /// Snapshots that this authority committed itself: as [`Catalog::committed_snapshots`].
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub async fn committed_here(&self) -> Result<Vec<CommittedSnapshot>> {
        self.with_catalog(Catalog::committed_snapshots).await
    }

    /// Bytes of a pack, as the catalog has it; `None` if it is not known there.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub async fn pack_size(&self, pack: PackName) -> Result<Option<u64>> {
        self.with_catalog(move |catalog| catalog.pack_size(&pack)).await
    }

    /// Whether another host has taken the repository over, as far as this process has noticed.
    pub fn is_lost(&self) -> bool {
        self.ownership.not_lost().is_err()
    }
}
