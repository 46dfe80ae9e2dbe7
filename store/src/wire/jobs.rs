//! Work that goes on without its client: collection, check, repair.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Problem, Wrong};
use crate::authority::{RepairOptions, RepairReport};
use crate::check::{CheckOptions, CheckReport};
use crate::gc::{GcOptions, GcReport};
use crate::id::SnapshotId;

/// What to do, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", content = "options", rename_all = "kebab-case", deny_unknown_fields)]
pub enum JobRequest {
    /// Collect.
    Gc(GcRequest),
    /// Check.
    Check(CheckOptions),
    /// Repair.
    Repair(RepairOptions),
}

impl JobRequest {
    /// What it is called: one of a kind runs at a time.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Gc(_) => "a collection",
            Self::Check(_) => "a check",
            Self::Repair(_) => "a repair",
        }
    }
}

/// How to collect: [`GcOptions`] with a length of time that JSON has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Only say what would be done.
    pub dry_run: bool,
    /// The share of the kept bytes that may stay unused, from 0 to 1.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 1.0)))]
    pub max_unused: f64,
    /// Sessions that were not heard of for so many milliseconds are shut out.
    pub lease_ms: u64,
}

impl GcRequest {
    /// Whether its numbers mean something.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn validate(&self) -> Result<(), Wrong> {
        match (0.0..=1.0).contains(&self.max_unused) {
            true => Ok(()),
            false => Err(format!("`max_unused` {}: a share from 0 to 1", self.max_unused)),
        }
    }
}

impl From<&GcOptions> for GcRequest {
    fn from(options: &GcOptions) -> Self {
        let GcOptions { dry_run, max_unused, lease } = *options;
        // More than JSON's exact integers hold is more than anybody waits.
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).min(1 << 53);
        Self { dry_run, max_unused, lease_ms }
    }
}

impl From<&GcRequest> for GcOptions {
    fn from(request: &GcRequest) -> Self {
        let GcRequest { dry_run, max_unused, lease_ms } = *request;
        Self { dry_run, max_unused, lease: Duration::from_millis(lease_ms) }
    }
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobStatus {
    /// Grows with whatever happens.
    pub version: u64,
    /// What it is at.
    pub phase: Option<Phase>,
    /// What a person should know, all of it from the beginning; the first 1,000.
    pub notices: Vec<String>,
    /// Whether it has ended.
    pub state: JobState,
}

/// What a job is at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Phase {
    /// As [`crate::progress::Progress::phase`] has it.
    pub name: String,
    /// The expected amount of work, if known.
    pub total: Option<u64>,
    /// The amount done.
    pub done: u64,
    /// Which phase this is, from 1 on: two in a row may have the same name.
    pub number: u64,
}

/// Whether a job has ended, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "state", content = "outcome", rename_all = "kebab-case")]
pub enum JobState {
    /// It goes on.
    Running,
    /// A collection ended.
    Collected(GcReport),
    /// A check ended.
    Checked(CheckReport),
    /// A repair ended.
    Repaired(RepairReport),
    /// A policy of the server was applied. No client asks for that.
    Forgotten(ForgetReport),
    /// It failed.
    Failed(Problem),
}

/// What a policy of the server dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ForgetReport {
    /// Snapshots that are gone.
    pub dropped: Vec<SnapshotId>,
    /// Snapshots that the policy keeps.
    pub kept: u64,
    /// Snapshots that it neither counted nor dropped: the server did not commit them itself.
    pub passed_over: u64,
}
