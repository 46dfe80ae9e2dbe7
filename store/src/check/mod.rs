//! Checking a repository without keys: catalog against bucket, trees against catalog.

mod structure;

use serde::Serialize;

use crate::id::SnapshotId;

pub(crate) use structure::structure;

/// What to check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Also read every pack and compare its SHA-256 with its name.
    pub scrub: bool,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The object, chunk or node.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// A disk whose snapshot refers to something missing or damaged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Affected {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its VM.
    pub vm: String,
    /// The disk.
    pub disk: String,
}

/// What a check found. No finding and nothing affected means sound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Packs compared with the catalog.
    pub packs: u64,
    /// Bytes in those packs.
    pub pack_bytes: u64,
    /// Snapshots whose trees were walked.
    pub snapshots: u64,
    /// Distinct nodes walked.
    pub nodes: u64,
    /// Distinct references to chunks looked up.
    pub chunks: u64,
    /// Damage.
    pub findings: Vec<Finding>,
    /// Snapshots and disks that the damage touches.
    pub affected: Vec<Affected>,
    /// Things worth knowing that are no damage.
    pub notices: Vec<String>,
}

impl CheckReport {
    /// Whether anything is damaged or missing.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.affected.is_empty()
    }

    /// Adds a finding.
    pub fn find(&mut self, object: impl Into<String>, what: impl Into<String>) {
        self.findings.push(Finding { object: object.into(), what: what.into() });
    }
}
