//! Backing up the disks of libvirt domains, running or not, and leaving them as they were found.
//!
//! A running domain's disks are frozen at one moment by giving each a new overlay. What was frozen is backed up; then, by the
//! [`Strategy`], the layers are brought together again:
//!
//! ```text
//! rotate   base <- A <- B(active)      freeze      base <- A <- B <- C(active)      merge B into A     base <- A <- C(active)
//! pivot    base <- A(active)           freeze      base <- A <- O(active)           merge O into A     base <- A(active)
//! bitmap   base <- A(active)           pull        base <- A(active)                nothing            base <- A(active)
//! ```
//!
//! What is about to be done is recorded durably before it is ([`record`]); whatever interrupts it, [`Lifecycle::recover`]
//! finds out from the definitions and the files how far it came. Everything that changes something is a [`Step`].

mod capture;
mod error;
mod freeze;
mod guards;
mod intent;
pub mod kept;
mod layers;
mod merge;
mod plan;
mod pull;
pub mod record;
mod recover;
mod run;
mod steps;
mod tracking;
mod unsound;
mod watch;

use std::time::Duration;

use underlay_store::progress::Progress;

pub use capture::{CaptureImages, ImageAccess};
pub use error::DomainError;
pub use freeze::Quiesce;
pub use intent::Intent;
pub use layers::LocalLayers;
pub use plan::{Approach, Wishes};
pub use record::Strategy;
pub use recover::Recovered;
pub use run::{Capture, DomainOutcome, Frozen, FrozenChain, LiveExport};
pub use steps::{FreeSpace, Hands, Journal, Layers, Moment, Observer, Step, Unobserved};

use crate::hypervisor::Domain;
use record::DomainRecord;

/// How long to wait for others.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a guest's agent to answer a simple question.
    pub agent: Duration,
    /// For it to flush and freeze the file systems.
    pub quiesce: Duration,
    /// For it to have thawed them, all attempts together.
    pub thaw: Duration,
    /// For a merge that an interrupted run began.
    pub job: Duration,
    /// For a file that was merged to be closed.
    pub close: Duration,
    /// Between two looks.
    pub poll: Duration,
    /// Between two looks at a guest whose disks are shown.
    pub watch: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            agent: Duration::from_secs(5),
            quiesce: Duration::from_secs(30),
            thaw: Duration::from_secs(120),
            job: Duration::from_secs(24 * 3600),
            close: Duration::from_secs(10),
            poll: Duration::from_millis(200),
            watch: Duration::from_secs(2),
        }
    }
}

/// Backs up domains and brings them in order.
pub struct Lifecycle<'a> {
    /// What it acts with.
    pub hands: Hands<'a>,
    /// Hears what the user should know.
    pub progress: &'a dyn Progress,
    /// How long it waits.
    pub patience: Patience,
}

impl std::fmt::Debug for Lifecycle<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lifecycle").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Lifecycle<'_> {
    fn notice(&self, domain: &str, text: &str) {
        self.progress.notice(&format!("{domain}: {text}"));
    }

    fn lock(&self, domain: &Domain) -> Result<Box<dyn Send>, DomainError> {
        self.hands.lock(&domain.uuid)?.ok_or_else(|| DomainError::Busy { domain: domain.name.clone() })
    }

    /// What is known of a domain, under the name it has now.
    fn record(&self, domain: &Domain) -> Result<DomainRecord, DomainError> {
        let known = self.hands.load(&domain.uuid)?;
        let mut record = known.unwrap_or_else(|| DomainRecord::new(&domain.name, &domain.uuid, ""));
        record.hypervisor = self.hands.uri()?;
        record.name.clone_from(&domain.name);
        Ok(record)
    }
}

#[cfg(test)]
mod tests;
