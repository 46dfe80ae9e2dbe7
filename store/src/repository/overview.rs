//! What a server shows of a repository, and what its policies rely on.

use super::Repository;
use crate::Result;
use crate::catalog::{Catalog, Overview, SnapshotHead};
use crate::id::SnapshotId;

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
    pub async fn committed_here(&self) -> Result<Vec<SnapshotHead>> {
        self.with_catalog(Catalog::committed_snapshots).await
    }

    /// All snapshots, oldest first: as [`Catalog::snapshot_heads`].
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub async fn snapshot_heads(&self) -> Result<Vec<SnapshotHead>> {
        self.with_catalog(Catalog::snapshot_heads).await
    }

    /// As [`Catalog::newest_of`].
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub async fn newest_of(&self, vm: String, most: u32) -> Result<Vec<(SnapshotId, Vec<u8>)>> {
        self.with_catalog(move |catalog| catalog.newest_of(&vm, most)).await
    }

    /// As [`Catalog::newest_of_each`].
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub async fn newest_of_each(&self) -> Result<Vec<(SnapshotId, Vec<u8>)>> {
        self.with_catalog(Catalog::newest_of_each).await
    }

    /// As [`Catalog::disk_bytes`].
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub async fn disk_bytes(&self) -> Result<u64> {
        self.with_catalog(Catalog::disk_bytes).await
    }

    /// Whether another host has taken the repository over, as far as this process has noticed.
    pub fn is_lost(&self) -> bool {
        self.ownership.not_lost().is_err()
    }
}
