//! Collection of space: what is alive, what goes, what is copied out of packs with little life. `repository/collect.rs` runs it.

mod forward;
mod marks;
mod plan;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use forward::Forward;
pub(crate) use marks::Marks;
pub(crate) use plan::{Plan, groups, plan};

/// Unless said otherwise, at most this share of the kept bytes stays unused.
pub const DEFAULT_MAX_UNUSED: f64 = 0.05;
/// Unless said otherwise, a session that was not heard of for so long is shut out.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// How to collect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GcOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Packs are copied forward until at most this share of the kept bytes is unused; 0.05 is 5 %.
    pub max_unused: f64,
    /// Sessions that were not heard of for so long are shut out: what only they hold can go. Safety never depends on it.
    pub lease: Duration,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { dry_run: false, max_unused: DEFAULT_MAX_UNUSED, lease: DEFAULT_LEASE }
    }
}

/// Some packs and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Count {
    /// How many.
    pub packs: u64,
    /// Bytes of those objects.
    pub bytes: u64,
}

impl Count {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// What a collection did; with [`GcOptions::dry_run`], what it would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GcReport {
    /// Nodes that snapshots and open sessions need.
    pub live_nodes: u64,
    /// Chunks that they need.
    pub live_chunks: u64,
    /// Packs with nothing alive in them, deleted.
    pub dropped: Count,
    /// Packs with little alive in them, deleted after that was copied.
    pub copied_from: Count,
    /// New packs made of that.
    pub copied_to: Count,
    /// Packs that an earlier collection had decided to delete, deleted now.
    pub finished: Count,
    /// Packs that stay.
    pub kept: Count,
    /// Bytes in those that nothing needs: too little to be worth copying, or of open sessions.
    pub unused: u64,
    /// Of the kept packs, those that open sessions wrote.
    pub held: Count,
    /// Packs that were read because they hold another copy of what goes.
    pub keepers: u64,
    /// Packs that something came to need while this collection looked: kept.
    pub resurrected: u64,
    /// Sessions that are open.
    pub open_sessions: u64,
    /// Sessions that were shut out because nothing was heard of them.
    pub fenced_sessions: u64,
    /// Chunks and nodes that snapshots need and that are in no pack.
    pub missing: u64,
    /// Packs that were to be copied, or relied on instead of another copy, and are damaged: left as they are.
    pub damaged: Vec<String>,
}

impl GcReport {
    /// Bytes that were freed, less those that were written.
    pub fn freed(&self) -> u64 {
        let gone = self.dropped.bytes + self.copied_from.bytes + self.finished.bytes;
        gone.saturating_sub(self.copied_to.bytes)
    }
}
