//! The backup pipeline: from layers of a chain to a committed snapshot.
//!
//! Each layer becomes a tree by applying what it allocates to the tree of the layer below. Layers that a memo vouches for are
//! not read. Regions are read, cut and hashed on all processors while the batch before is looked up, encoded and uploaded.

mod dirty;
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

use crate::image::Chain;
use crate::state::{Memo, Memos};

pub use effort::Compression;
pub use error::BackupError;
pub use source::{DiskContent, DiskSource, LiveDisk};

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

/// A disk whose tree is complete.
struct Done {
    disk: Disk,
    captured: CapturedDisk,
    memos: Vec<Memo>,
    known: usize,
}

fn run(context: &Context<'_>, memos: &Memos, job: Job, started: Instant) -> Result<Outcome, BackupError> {
    let nodes = NodeStore::new(context);
    let mut uploads = Uploads::new(context)?;
    let mut done = Vec::new();
    for source in &job.disks {
        done.push(disk(context, memos, source, &nodes, &mut uploads)?);
    }
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

/// Makes the tree of one disk, starting from the highest layer that a memo vouches for.
fn disk(
    context: &Context<'_>,
    memos: &Memos,
    source: &DiskSource,
    nodes: &NodeStore<'_>,
    uploads: &mut Uploads<'_>,
) -> Result<Done, BackupError> {
    let read = |known: &[Root], uploads: &mut Uploads<'_>| match &source.content {
        DiskContent::Layers(chain) => layers(context, source, chain, known, nodes, uploads),
        DiskContent::Live(_) => live(context, source, known.first().copied(), nodes, uploads),
    };
    let known = match &source.content {
        DiskContent::Layers(chain) => known_layers(context, memos, chain)?,
        DiskContent::Live(live) => known_before(context, &source.name, live)?,
    };
    match read(&known, uploads) {
        Err(BackupError::MemoContradicted { disk, offset }) => {
            context.progress.notice(&format!(
                "disk {disk}: unchanged data at byte {offset} is not what the last backup stored; reading all of it again"
            ));
            read(&[], uploads)
        }
        other => other,
    }
}

/// Makes the tree of a live disk from what it held before, or from nothing.
fn live(
    context: &Context<'_>,
    source: &DiskSource,
    before: Option<Root>,
    nodes: &NodeStore<'_>,
    uploads: &mut Uploads<'_>,
) -> Result<Done, BackupError> {
    let root = layer::apply(context, source, 0, before, nodes, uploads)?;
    if let Some(before) = before {
        spot_check::spot_check(context, source, 0, before, nodes)?;
    }
    let name = source.name.clone();
    let captured = CapturedDisk { name: name.clone(), root, layers: Vec::new() };
    Ok(Done { disk: Disk { name, root, layers: Vec::new() }, captured, memos: Vec::new(), known: 0 })
}

/// What a live disk held before, if a snapshot still does.
fn known_before(context: &Context<'_>, name: &str, live: &LiveDisk) -> Result<Vec<Root>, BackupError> {
    let Some(root) = live.since().filter(|_| context.options.use_memos) else { return Ok(Vec::new()) };
    let pinned = context.wait(context.authority.pin_roots(context.grant.session, &[root]))?;
    if pinned.first() == Some(&true) {
        return Ok(vec![root]);
    }
    context
        .progress
        .notice(&format!("disk {name}: no snapshot holds any more what it held before; reading all of it"));
    Ok(Vec::new())
}

fn layers(
    context: &Context<'_>,
    source: &DiskSource,
    chain: &Chain,
    known: &[Root],
    nodes: &NodeStore<'_>,
    uploads: &mut Uploads<'_>,
) -> Result<Done, BackupError> {
    let mut roots = known.to_vec();
    let mut memos = Vec::new();
    for index in known.len()..chain.len() {
        let identity = chain.layer(index).identity()?;
        let below = roots.last().copied();
        let root = layer::apply(context, source, index, below, nodes, uploads)?;
        if let Some(below) = below.filter(|_| index == known.len()) {
            spot_check::spot_check(context, source, index, below, nodes)?;
        }
        memos.push(Memo { identity, below, root });
        roots.push(root);
    }
    let root = *roots.last().ok_or(BackupError::NoDisk)?;
    // The base alone is kept alive by itself: layers between base and top are superseded by what is committed into them.
    let layers = if roots.len() > 1 { vec![roots[0]] } else { Vec::new() };
    let captured = (0..chain.len())
        .zip(&roots)
        .map(|(index, root)| Ok(CapturedLayer { identity: chain.layer(index).identity()?, root: *root }));
    let captured = CapturedDisk {
        name: source.name.clone(),
        root,
        layers: captured.collect::<Result<_, BackupError>>()?,
    };
    Ok(Done { disk: Disk { name: source.name.clone(), root, layers }, captured, memos, known: known.len() })
}

/// Roots of the layers, from the base up, that need not be read: memoised, and still part of a live snapshot.
fn known_layers(context: &Context<'_>, memos: &Memos, chain: &Chain) -> Result<Vec<Root>, BackupError> {
    let mut roots: Vec<Root> = Vec::new();
    let believed = if context.options.use_memos { chain.len() } else { 0 };
    for index in 0..believed {
        let identity = chain.layer(index).identity()?;
        match memos.get(&identity, roots.last())? {
            Some(root) => roots.push(root),
            None => break,
        }
    }
    let live = context.wait(context.authority.pin_roots(context.grant.session, &roots))?;
    // A snapshot names its base's root too, so the base itself must be live for anything above it to count.
    let keep = if live.first() == Some(&true) {
        live.iter().rposition(|&live| live).map_or(0, |at| at + 1)
    } else {
        0
    };
    roots.truncate(keep);
    Ok(roots)
}
