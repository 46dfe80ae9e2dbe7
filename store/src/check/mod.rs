//! Checking a repository without keys: catalog against bucket, trees against catalog, packs against their names.

mod documents;
mod loss;
mod packs;
mod structure;
mod trees;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::catalog::Catalog;
use crate::id::{RepositoryId, Root, SnapshotId};
use crate::repository::NodeReader;

pub(crate) use structure::{Checked, check};

/// What to check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CheckOptions {
    /// Also read packs and compare their SHA-256 with their names: first those under suspicion, then those read longest ago.
    pub scrub: bool,
    /// Read no more than this many bytes of packs, but at least one pack.
    pub budget: Option<u64>,
    /// Read the packs under suspicion, even without `scrub`.
    pub suspects: bool,
    /// Record nothing.
    pub dry_run: bool,
}

/// What a check works on.
pub(crate) struct Ground<'a> {
    pub backend: &'a Backend,
    pub catalog: &'a Arc<Catalog>,
    pub nodes: &'a NodeReader,
    pub repository: RepositoryId,
    /// The time, in milliseconds since 1970.
    pub now_ms: i64,
    /// What is found is recorded: this host owns the repository, and the catalog can be written.
    pub record: bool,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// The object, chunk or node.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// A disk whose snapshot refers to something missing or damaged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Affected {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its VM.
    pub vm: String,
    /// The disk.
    pub disk: String,
    /// Chunks it lost; 0 if they were not counted.
    pub chunks: u64,
    /// Tree nodes it lost, with all below them.
    pub nodes: u64,
}

/// How far the packs have been read and compared with their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Scrubbed {
    /// Packs read this time.
    pub packs: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Packs left for another time.
    pub left: u64,
    /// Of all packs that were ever read, when the one was read that was read longest ago, in milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Packs never read since they were stored.
    pub never: u64,
    /// The times were recorded, so that the next scrub goes on with others.
    pub recorded: bool,
}

/// What a check found. No finding and nothing affected means sound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// What was read of the packs, if that was asked for.
    pub scrub: Option<Scrubbed>,
    /// Places newly taken out of use.
    pub retired: u64,
    /// Packs found sound again, and in use again.
    pub reinstated: u64,
    /// Trees that lost something: those of disks, and of the layers below them.
    #[serde(skip)]
    pub roots: Vec<Root>,
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
