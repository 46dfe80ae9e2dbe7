//! The executor's entry: what a restore needs and what it tells.

use std::sync::atomic::AtomicBool;

use serde::Serialize;
use tokio::runtime::Handle;
use underlay_store::authority::Authority;
use underlay_store::id::{RepositoryId, Root};
use underlay_store::key::RestoreKey;
use underlay_store::progress::Progress;

use super::damage::{Damage, Hole, joined};
use super::fetch::Engine;
use super::{DiskOutput, RestoreError};

/// Where a restore reads, with what key, and who watches.
pub struct Environment<'a> {
    /// The repository.
    pub authority: &'a dyn Authority,
    /// Opens what the repository holds.
    pub key: &'a RestoreKey,
    /// The repository's id, from its verified descriptor.
    pub repository: RepositoryId,
    /// Runs the reads: a runtime with threads of its own, none of which is the caller's.
    pub runtime: Handle,
    /// Hears of progress, in bytes.
    pub progress: &'a dyn Progress,
    /// Set by another thread to stop.
    pub cancel: &'a AtomicBool,
}

impl std::fmt::Debug for Environment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("repository", &self.repository).finish_non_exhaustive()
    }
}

/// How to read.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Reads of packs in flight at once; each takes up to 8 MiB of memory.
    pub reads: usize,
    /// Threads that decrypt, decompress, verify and write.
    pub workers: usize,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { reads: 8, workers: std::thread::available_parallelism().map_or(2, Into::into) }
    }
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RestoreStatistics {
    /// Bytes given to the output, zeros left out.
    pub data_bytes: u64,
    /// Chunks decoded. One that a disk repeats far apart counts again.
    pub chunks: u64,
    /// Bytes of plaintext of those chunks.
    pub chunk_bytes: u64,
    /// Reads of packs, headers not counted.
    pub reads: u64,
    /// Bytes that those reads gave.
    pub bytes_read: u64,
    /// Bad copies of chunks for which another copy was read.
    pub recovered: u64,
}

impl std::ops::AddAssign for RestoreStatistics {
    fn add_assign(&mut self, more: Self) {
        self.data_bytes += more.data_bytes;
        self.chunks += more.chunks;
        self.chunk_bytes += more.chunk_bytes;
        self.reads += more.reads;
        self.bytes_read += more.bytes_read;
        self.recovered += more.recovered;
    }
}

/// Gives the disk with this root to `output`, which the caller then finishes. Every node and chunk is verified on the way.
///
/// Blocks, and must not be called from an asynchronous task. Memory does not grow with the disk: 8 MiB for each of
/// [`RestoreOptions::reads`], for an output that needs ascending order six windows of 16 MiB, and a few MiB for maps.
///
/// # Errors
/// [`RestoreError::Data`] for the first chunk of which no copy is good, [`RestoreError::Store`] for a damaged tree, a
/// repository that cannot be read, or a cancelled restore, and what the output reports. The output is incomplete then: drop it.
pub fn restore(
    environment: &Environment<'_>,
    root: Root,
    output: &dyn DiskOutput,
    options: &RestoreOptions,
) -> Result<RestoreStatistics, RestoreError> {
    environment.progress.phase("restore", Some(root.size));
    let engine = Engine::new(environment, options, Damage::Stop);
    engine.run(root, output, None)?;
    Ok(engine.finish().0)
}

/// Gives what is left of the disk to `output`, zeros where nothing is. Says where those holes are, in ascending order; none if the disk is
/// whole. Otherwise as [`restore`].
///
/// # Errors
/// As [`restore`], but for damage.
pub fn restore_with_holes(
    environment: &Environment<'_>,
    root: Root,
    output: &dyn DiskOutput,
    options: &RestoreOptions,
) -> Result<(RestoreStatistics, Vec<Hole>), RestoreError> {
    environment.progress.phase("restore", Some(root.size));
    let engine = Engine::new(environment, options, Damage::skip());
    engine.run(root, output, None)?;
    let (statistics, found) = engine.finish();
    let holes = joined(found.holes);
    // An output that held something before must not keep it.
    for hole in &holes {
        output.zero_range(hole.offset, hole.length)?;
    }
    Ok((statistics, holes))
}

#[cfg(test)]
mod tests;
