//! What was promised: the oracle holds the store to it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use underlay_store::id::{Root, SnapshotId};

use crate::disk::Disk;
use crate::ledger::Id;

/// A snapshot that some client tried to commit.
#[derive(Clone, Debug)]
pub struct Record {
    pub disks: Vec<(Root, Disk)>,
    pub document: Bytes,
    /// Every node and chunk that it consists of.
    pub ids: BTreeSet<Id>,
    /// The step at which its commit began.
    pub made: u64,
    /// The commit was answered with success.
    pub acknowledged: bool,
    /// The step at which somebody first asked to drop it.
    pub forget_begun: Option<u64>,
    /// Dropping it was answered with success.
    pub forgotten: bool,
    /// The step at which it was last answered to be protected.
    pub protected: Option<u64>,
    /// Somebody has asked to lift that.
    pub unprotect_begun: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub snapshots: BTreeMap<SnapshotId, Record>,
}

impl Model {
    /// What must not go.
    pub fn owed_ids(&self) -> BTreeSet<Id> {
        self.owed().flat_map(|(_, record)| record.ids.iter().copied()).collect()
    }

    /// Acknowledged, and nobody has asked to drop them: these must be there.
    pub fn owed(&self) -> impl Iterator<Item = (SnapshotId, &Record)> {
        self.snapshots
            .iter()
            .filter(|(_, record)| record.acknowledged && record.forget_begun.is_none())
            .map(|(id, record)| (*id, record))
    }
}
