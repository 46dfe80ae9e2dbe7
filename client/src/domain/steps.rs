//! Everything that a backup of a domain changes goes through here, one step at a time.
//!
//! So the steps are enumerated, whoever wants to know when each begins and ends can listen, and a new way to change something
//! cannot be used around them: the rest of this room holds [`Hands`], never a hypervisor.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::hypervisor::{
    Backing, BlockJob, Domain, Hypervisor, HypervisorError, Overlay, PullRequest, Written,
};
use crate::image::LayerIdentity;
use crate::state::StateError;

use super::DomainError;
use super::record::{Content, DomainRecord, FileIdentity};

/// One thing that changes the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The journal is written.
    Record,
    /// All disks are frozen at one moment.
    Freeze,
    /// The guest's file systems are frozen.
    Quiesce,
    /// The guest's file systems are thawed.
    Thaw,
    /// The snapshot is committed to the repository.
    Capture,
    /// Overlays of a running domain are merged into a layer below.
    Commit,
    /// The active overlay is merged and the disk given back to the layer below.
    CommitActive,
    /// A merge that waits is told to give the disk back.
    Pivot,
    /// An overlay of a stopped domain is merged.
    CommitStopped,
    /// A checkpoint begins by itself.
    BeginCheckpoint,
    /// A pull begins, and with it a checkpoint.
    BeginPull,
    /// A pull is ended.
    EndPull,
    /// A guest that was paused for want of room is let go on.
    Resume,
    /// The hypervisor's record of a checkpoint is dropped.
    ForgetCheckpoint,
    /// The hypervisor is told of a checkpoint again.
    KnowCheckpoint,
    /// A checkpoint is removed with its bitmaps.
    RemoveCheckpoint,
    /// A bitmap in a file of a stopped domain is removed.
    RemoveBitmap,
    /// A definition is changed.
    Define,
    /// A memo of a merged layer is written.
    Remember,
    /// An overlay that nobody needs is removed.
    Remove,
    /// An overlay that nobody may use is renamed.
    SetAside,
}

/// Before or after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// Nothing of it has been done.
    Before,
    /// All of it has been done, or it failed.
    After,
}

/// Hears of steps.
pub trait Observer: Send + Sync {
    /// A step begins or has ended.
    fn reached(&self, step: Step, moment: Moment);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn reached(&self, _: Step, _: Moment) {}
}

/// Free space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSpace {
    /// Which file system.
    pub device: u64,
    /// Bytes that may still be written.
    pub bytes: u64,
}

/// Image files, as this host sees them beside the hypervisor.
pub trait Layers: Send + Sync {
    /// Whether there is such a file.
    fn exists(&self, path: &Path) -> Result<bool, DomainError>;
    /// Whether a virtual machine or an image tool has it open.
    fn is_open(&self, path: &Path) -> Result<bool, DomainError>;
    /// Room in the file system of a folder.
    fn free_space(&self, folder: &Path) -> Result<FreeSpace, DomainError>;
    /// What the layer's file is now.
    fn identity(&self, layer: &Backing, chain: &BTreeSet<PathBuf>) -> Result<LayerIdentity, DomainError>;
    /// Which file is at a path now.
    fn file(&self, path: &Path) -> Result<FileIdentity, DomainError>;
    /// Makes durable whatever was written to a file, by whomever.
    fn flush(&self, path: &Path) -> Result<(), DomainError>;
    /// Remembers that `layer` now holds what was read as `content`.
    fn remember(
        &self,
        layer: &Backing,
        chain: &BTreeSet<PathBuf>,
        content: &Content,
    ) -> Result<(), DomainError>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> Result<(), DomainError>;
    /// Renames a file so that nobody takes it for a layer; its new name.
    fn set_aside(&self, path: &Path) -> Result<PathBuf, DomainError>;
}

/// Keeps records durably, each replaced whole.
pub trait Journal: Send + Sync {
    /// All records; one that cannot be read hides no other, and its error's path is named by the domain's UUID.
    fn all(&self) -> Result<Vec<Result<DomainRecord, StateError>>, StateError>;
    /// The record of a domain.
    fn load(&self, uuid: &str) -> Result<Option<DomainRecord>, StateError>;
    /// Durable when it returns.
    fn store(&self, record: &DomainRecord) -> Result<(), StateError>;
    /// Keeps other processes from working on a domain until it is dropped; `None` if one is at it.
    fn lock(&self, uuid: &str) -> Result<Option<Box<dyn Send>>, StateError>;
}

/// What a backup reads with and acts with.
#[derive(Clone, Copy)]
pub struct Hands<'a> {
    hypervisor: &'a dyn Hypervisor,
    layers: &'a dyn Layers,
    journal: &'a dyn Journal,
    observer: &'a dyn Observer,
}

impl std::fmt::Debug for Hands<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hands")
    }
}

/// Looking: changes nothing.
impl<'a> Hands<'a> {
    /// What acts, and who listens.
    pub fn new(
        hypervisor: &'a dyn Hypervisor,
        layers: &'a dyn Layers,
        journal: &'a dyn Journal,
        observer: &'a dyn Observer,
    ) -> Self {
        Self { hypervisor, layers, journal, observer }
    }

    pub(super) fn name_of(&self, uuid: &str) -> Result<Option<String>, HypervisorError> {
        self.hypervisor.name_of(uuid)
    }

    pub(super) fn domain(&self, name: &str) -> Result<Domain, HypervisorError> {
        self.hypervisor.domain(name)
    }

    pub(super) fn uri(&self) -> Result<String, HypervisorError> {
        self.hypervisor.uri()
    }

    pub(super) fn is_stuck(&self, domain: &str) -> Result<bool, HypervisorError> {
        self.hypervisor.is_stuck(domain)
    }

    pub(super) fn is_saved(&self, domain: &str) -> Result<bool, HypervisorError> {
        self.hypervisor.is_saved(domain)
    }

    pub(super) fn snapshots(&self, domain: &str) -> Result<Vec<String>, HypervisorError> {
        self.hypervisor.snapshots(domain)
    }

    pub(super) fn checkpoints(&self, domain: &str) -> Result<Vec<String>, HypervisorError> {
        self.hypervisor.checkpoints(domain)
    }

    pub(super) fn domain_job(&self, domain: &str) -> Result<Option<String>, HypervisorError> {
        self.hypervisor.domain_job(domain)
    }

    pub(super) fn block_job(&self, domain: &str, target: &str) -> Result<Option<BlockJob>, HypervisorError> {
        self.hypervisor.block_job(domain, target)
    }

    pub(super) fn agent_answers(&self, domain: &str, patience: Duration) -> Result<bool, HypervisorError> {
        self.hypervisor.agent_answers(domain, patience)
    }

    pub(super) fn exists(&self, path: &Path) -> Result<bool, DomainError> {
        self.layers.exists(path)
    }

    pub(super) fn is_open(&self, path: &Path) -> Result<bool, DomainError> {
        self.layers.is_open(path)
    }

    pub(super) fn free_space(&self, folder: &Path) -> Result<FreeSpace, DomainError> {
        self.layers.free_space(folder)
    }

    pub(super) fn unsound_bitmaps(&self, disk: &Path) -> Result<Vec<String>, HypervisorError> {
        self.hypervisor.unsound_bitmaps(disk)
    }

    pub(super) fn capacity(&self, domain: &str, target: &str) -> Result<u64, HypervisorError> {
        self.hypervisor.capacity(domain, target)
    }

    pub(super) fn identity(
        &self,
        layer: &Backing,
        chain: &BTreeSet<PathBuf>,
    ) -> Result<LayerIdentity, DomainError> {
        self.layers.identity(layer, chain)
    }

    pub(super) fn file(&self, path: &Path) -> Result<FileIdentity, DomainError> {
        self.layers.file(path)
    }

    pub(super) fn run_folder(&self, domain: &str) -> Result<Option<PathBuf>, HypervisorError> {
        self.hypervisor.run_folder(domain)
    }

    pub(super) fn pull_socket(&self, domain: &str) -> Result<Option<PathBuf>, HypervisorError> {
        self.hypervisor.pull_socket(domain)
    }

    pub(super) fn written_since(&self, domain: &str, checkpoint: &str) -> Result<Written, HypervisorError> {
        self.hypervisor.written_since(domain, checkpoint)
    }

    pub(super) fn flush(&self, path: &Path) -> Result<(), DomainError> {
        self.layers.flush(path)
    }

    pub(super) fn records(&self) -> Result<Vec<Result<DomainRecord, StateError>>, StateError> {
        self.journal.all()
    }

    pub(super) fn load(&self, uuid: &str) -> Result<Option<DomainRecord>, StateError> {
        self.journal.load(uuid)
    }

    pub(super) fn lock(&self, uuid: &str) -> Result<Option<Box<dyn Send>>, StateError> {
        self.journal.lock(uuid)
    }
}

/// Acting: each of these is a [`Step`].
impl Hands<'_> {
    /// Does one step.
    pub(super) fn step<T>(&self, step: Step, act: impl FnOnce() -> T) -> T {
        self.observer.reached(step, Moment::Before);
        let result = act();
        self.observer.reached(step, Moment::After);
        result
    }

    pub(super) fn store(&self, record: &DomainRecord) -> Result<(), StateError> {
        self.step(Step::Record, || self.journal.store(record))
    }

    pub(super) fn freeze(
        &self,
        domain: &str,
        overlays: &[Overlay],
        quiesce: Option<Duration>,
    ) -> Result<(), HypervisorError> {
        self.step(Step::Freeze, || self.hypervisor.freeze(domain, overlays, quiesce))
    }

    pub(super) fn quiesce(&self, domain: &str, patience: Duration) -> Result<(), HypervisorError> {
        self.step(Step::Quiesce, || self.hypervisor.quiesce(domain, patience))
    }

    pub(super) fn begin_checkpoint(
        &self,
        domain: &str,
        checkpoint: &str,
        targets: &[&str],
    ) -> Result<(), HypervisorError> {
        self.step(Step::BeginCheckpoint, || self.hypervisor.begin_checkpoint(domain, checkpoint, targets))
    }

    pub(super) fn begin_pull(&self, domain: &str, request: &PullRequest) -> Result<(), HypervisorError> {
        self.step(Step::BeginPull, || self.hypervisor.begin_pull(domain, request))
    }

    pub(super) fn end_pull(&self, domain: &str) -> Result<(), HypervisorError> {
        self.step(Step::EndPull, || self.hypervisor.end_pull(domain))
    }

    pub(super) fn resume(&self, domain: &str) -> Result<(), HypervisorError> {
        self.step(Step::Resume, || self.hypervisor.resume(domain))
    }

    pub(super) fn forget_checkpoint(&self, domain: &str, checkpoint: &str) -> Result<(), HypervisorError> {
        self.step(Step::ForgetCheckpoint, || self.hypervisor.forget_checkpoint(domain, checkpoint))
    }

    pub(super) fn know_checkpoint(
        &self,
        domain: &str,
        checkpoint: &str,
        targets: &[&str],
    ) -> Result<(), HypervisorError> {
        self.step(Step::KnowCheckpoint, || self.hypervisor.know_checkpoint(domain, checkpoint, targets))
    }

    pub(super) fn remove_checkpoint(
        &self,
        domain: &str,
        checkpoint: &str,
        targets: &[&str],
    ) -> Result<(), HypervisorError> {
        self.step(Step::RemoveCheckpoint, || self.hypervisor.remove_checkpoint(domain, checkpoint, targets))
    }

    pub(super) fn remove_bitmap(&self, disk: &Path, bitmap: &str) -> Result<(), HypervisorError> {
        self.step(Step::RemoveBitmap, || self.hypervisor.remove_bitmap(disk, bitmap))
    }

    pub(super) fn thaw(&self, domain: &str, patience: Duration) -> Result<(), HypervisorError> {
        self.step(Step::Thaw, || self.hypervisor.thaw(domain, patience))
    }

    pub(super) fn commit(
        &self,
        domain: &str,
        target: &str,
        base: &Path,
        top: &Path,
    ) -> Result<(), HypervisorError> {
        self.step(Step::Commit, || self.hypervisor.commit(domain, target, base, top))
    }

    pub(super) fn commit_active(
        &self,
        domain: &str,
        target: &str,
        base: &Path,
    ) -> Result<(), HypervisorError> {
        self.step(Step::CommitActive, || self.hypervisor.commit_active(domain, target, base))
    }

    pub(super) fn pivot(&self, domain: &str, target: &str) -> Result<(), HypervisorError> {
        self.step(Step::Pivot, || self.hypervisor.pivot(domain, target))
    }

    pub(super) fn commit_stopped(&self, overlay: &Path, base: &Backing) -> Result<(), HypervisorError> {
        self.step(Step::CommitStopped, || self.hypervisor.commit_stopped(overlay, base))
    }

    pub(super) fn define(&self, xml: &str) -> Result<(), HypervisorError> {
        self.step(Step::Define, || self.hypervisor.define(xml))
    }

    pub(super) fn remember(
        &self,
        layer: &Backing,
        chain: &BTreeSet<PathBuf>,
        content: &Content,
    ) -> Result<(), DomainError> {
        self.step(Step::Remember, || self.layers.remember(layer, chain, content))
    }

    pub(super) fn remove(&self, path: &Path) -> Result<(), DomainError> {
        self.step(Step::Remove, || self.layers.remove(path))
    }

    pub(super) fn set_aside(&self, path: &Path) -> Result<PathBuf, DomainError> {
        self.step(Step::SetAside, || self.layers.set_aside(path))
    }
}
