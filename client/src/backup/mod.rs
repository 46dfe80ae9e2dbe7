//! The backup pipeline: from layers of a chain to a committed snapshot.
//!
//! Each layer becomes a tree by applying what it allocates to the tree of the layer below. Layers that a memo vouches for are
//! not read. Regions are read, cut and hashed on all processors while the batch before is looked up, encoded and uploaded.

mod dirty;
mod disk;
mod effort;
mod encoders;
mod error;
mod layer;
mod nodes;
mod region;
mod source;
mod spot_check;
mod uploads;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;
use underlay_store::authority::{Authority, SessionGrant};
use underlay_store::cut::Cutter;
use underlay_store::id::{Root, SnapshotId};
use underlay_store::key::BackupKey;
use underlay_store::progress::Progress;
use underlay_store::snapshot::{
    Consistency, Descriptor, Disk, PrivateField, PrivateMetadata, Snapshot, Statistics,
};

use crate::state::Memos;

pub use effort::Compression;
pub use error::BackupError;
pub use source::{DiskContent, DiskSource, LiveDisk};

use disk::disks;
use nodes::NodeStore;
use uploads::Uploads;

/// What to back up.
#[derive(Debug)]
pub struct Job {
    /// The VM's name.
    pub vm: String,
    /// Its disks, all of the same moment.
    pub disks: Vec<DiskSource>,
    /// How consistent that moment is.
    pub consistency: Consistency,
    /// What only the holder of the restore key shall read.
    pub private: PrivateMetadata,
}

/// How to back up.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// How hard to compress.
    pub compression: Compression,
    /// Decode every chunk after encoding and compare, before it is uploaded.
    pub verify_encoding: bool,
    /// Packs in flight at once; each takes about 36 MiB of memory.
    pub uploads: usize,
    /// Believe what this host remembers of layers it has read. Without it every layer is read.
    pub use_memos: bool,
    /// Unchanged chunks to re-read and compare, where a memo is relied on.
    pub spot_checks: usize,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            compression: Compression::AUTO,
            verify_encoding: true,
            uploads: 2,
            use_memos: true,
            spot_checks: 4,
        }
    }
}

/// What a finished backup did.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The new snapshot.
    pub snapshot: SnapshotId,
    /// The VM.
    pub vm: String,
    /// Its time, by the repository's authority.
    pub time: String,
    /// Sum of the disks' sizes in bytes.
    pub disk_bytes: u64,
    /// Bytes read from the images, metadata not counted.
    pub bytes_read: u64,
    /// Plain bytes of chunks the repository lacked.
    pub bytes_new: u64,
    /// Bytes sent to the repository: packs and the snapshot.
    pub bytes_uploaded: u64,
    /// Layers whose content a memo vouched for.
    pub layers_known: usize,
    /// Layers read.
    pub layers_read: usize,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// What every layer of every disk was found to hold.
    #[serde(skip)]
    pub disks: Vec<CapturedDisk>,
}

/// A disk as it was backed up.
#[derive(Clone, Debug)]
pub struct CapturedDisk {
    /// Its name in the snapshot.
    pub name: String,
    /// What it holds.
    pub root: Root,
    /// Its layers, the base first; of a live disk none.
    pub layers: Vec<CapturedLayer>,
}

/// A layer as it was backed up.
#[derive(Clone, Debug)]
pub struct CapturedLayer {
    /// What its file was.
    pub identity: crate::image::LayerIdentity,
    /// What the disk holds as seen at this layer.
    pub root: Root,
}

/// Counts of one backup, in bytes.
#[derive(Debug, Default)]
struct Counters {
    new: AtomicU64,
    uploaded: AtomicU64,
}

/// Everything that the steps of one backup share.
struct Context<'a> {
    authority: Arc<dyn Authority>,
    runtime: tokio::runtime::Handle,
    grant: SessionGrant,
    descriptor: &'a Descriptor,
    key: &'a BackupKey,
    cutter: Cutter,
    options: &'a BackupOptions,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
    counters: Arc<Counters>,
}

impl Context<'_> {
    /// Waits for the authority. Never called from an asynchronous task.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    fn check_cancelled(&self) -> Result<(), BackupError> {
        if self.cancel.load(Ordering::Relaxed) {
            Err(underlay_store::Error::Interrupted.into())
        } else {
            Ok(())
        }
    }
}

/// Where and with what a backup works.
pub struct Environment<'a> {
    /// The repository.
    pub authority: Arc<dyn Authority>,
    /// Its verified descriptor.
    pub descriptor: &'a Descriptor,
    /// The key.
    pub key: &'a BackupKey,
    /// What is known of layers already read.
    pub memos: &'a Memos,
    /// Runs the uploads. Must not be the caller's own executor thread.
    pub runtime: tokio::runtime::Handle,
    /// Hears of progress.
    pub progress: &'a dyn Progress,
    /// Set by another thread to stop the backup.
    pub cancel: &'a AtomicBool,
}

impl std::fmt::Debug for Environment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

/// Backs up one VM. Blocks; must not be called from an asynchronous task.
///
/// # Errors
/// Nothing is committed on any error. What had been stored is found again by the next backup.
pub fn backup(
    environment: &Environment<'_>,
    job: Job,
    options: &BackupOptions,
) -> Result<Outcome, BackupError> {
    let started = Instant::now();
    let grant = environment.runtime.block_on(environment.authority.open_session(&job.vm))?;
    let context = Context {
        authority: Arc::clone(&environment.authority),
        runtime: environment.runtime.clone(),
        grant,
        descriptor: environment.descriptor,
        key: environment.key,
        cutter: Cutter::new(&environment.descriptor.cut, environment.key.cut_secret()),
        options,
        progress: environment.progress,
        cancel: environment.cancel,
        counters: Arc::default(),
    };
    let result = run(&context, environment.memos, job, started);
    if result.is_err() {
        // Whoever was shut out finds things gone that it was promised: that is no damage.
        let still_open = context.wait(context.authority.have_chunks(grant.session, &[]));
        if let Err(error @ underlay_store::Error::Session { state: "fenced", .. }) = still_open {
            return Err(error.into());
        }
        // The first error is what matters; a session that cannot be given up now is given up by the authority later.
        let _ = context.wait(context.authority.abandon(grant.session));
    }
    result
}

fn run(context: &Context<'_>, memos: &Memos, job: Job, started: Instant) -> Result<Outcome, BackupError> {
    let nodes = NodeStore::new(context);
    let mut uploads = Uploads::new(context)?;
    let done = disks(context, memos, &job.disks, &nodes, &mut uploads)?;
    uploads.finish(&nodes)?;
    for source in &job.disks {
        source.content.verify_unchanged()?;
    }
    let known = done.iter().map(|done| done.known).sum();
    let layers: usize = job.disks.iter().map(|source| source.content.layers()).sum();
    let disks: Vec<Disk> = done.iter().map(|done| done.disk.clone()).collect();
    let statistics = Statistics {
        disk_bytes: disks.iter().map(|disk| disk.root.size).sum(),
        bytes_read: job.disks.iter().map(|source| source.content.bytes_read()).sum(),
        bytes_new: context.counters.new.load(Ordering::Relaxed),
        bytes_uploaded: context.counters.uploaded.load(Ordering::Relaxed),
    };
    let id = SnapshotId::random();
    let repository = context.descriptor.repository;
    let snapshot = Snapshot {
        snapshot: id,
        repository,
        session: context.grant.session,
        vm: job.vm,
        time: context.grant.time,
        consistency: job.consistency,
        disks,
        statistics,
        client: env!("CARGO_PKG_VERSION").to_owned(),
        private: Some(PrivateField::seal(context.key, &repository, &id, &job.private)?),
    };
    let text = snapshot.seal(context.key)?;
    let uploaded = statistics.bytes_uploaded + text.len() as u64;
    context.check_cancelled()?;
    context.wait(context.authority.commit(context.grant.session, Bytes::from(text)))?;
    // Only now: a memo must never vouch for a tree that was not committed.
    for memo in done.iter().flat_map(|done| &done.memos) {
        if let Err(error) = memos.put(memo) {
            context.progress.notice(&format!("{error}: the next backup reads that layer again"));
        }
    }
    Ok(Outcome {
        snapshot: id,
        vm: snapshot.vm,
        time: snapshot.time.to_string(),
        disk_bytes: statistics.disk_bytes,
        bytes_read: statistics.bytes_read,
        bytes_new: statistics.bytes_new,
        bytes_uploaded: uploaded,
        layers_known: known,
        layers_read: layers - known,
        seconds: started.elapsed().as_secs_f64(),
        disks: done.into_iter().map(|done| done.captured).collect(),
    })
}
