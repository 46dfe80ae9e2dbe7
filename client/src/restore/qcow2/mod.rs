//! A flattened qcow2 image, version 3, written from nothing.
//!
//! Clusters are handed out from the file's start without gaps, so every cluster below the end is used exactly once and all
//! reference counts are one:
//!
//! ```text
//!     header | level 1 table | data clusters and level 2 tables as they come | refcount table | refcount blocks
//! ```
//!
//! A cluster belongs to the first write that touches it; the bytes that no write reaches stay a hole in the file.

mod mapping;
mod streamed;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use mapping::{COPIED, L2_ENTRIES, Mapping};

use super::partial::PartialFile;
use super::{DiskOutput, Finished, RestoreError, check_bounds, data_runs};

pub use streamed::{Qcow2Plan, Qcow2Stream};

const CLUSTER_BITS: u32 = 16;
/// Bytes in a cluster.
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Readers take level 1 tables of at most 32 MiB.
const MAXIMUM_L1_ENTRIES: u64 = (32 << 20) / 8;
/// Clusters that one refcount block counts, 16 bits each.
const REFCOUNTS: u64 = CLUSTER / 2;
const SECTOR: u64 = 512;

/// A qcow2 image of 64 KiB clusters, without a backing file. Only clusters that hold data are allocated.
///
/// Memory stays small whatever the disk's size: 4 bytes for every 512 MiB of disk, and at most 8 MiB of recent tables.
#[derive(Debug)]
pub struct Qcow2File {
    partial: PartialFile,
    size: u64,
    mapping: Mutex<Mapping>,
    written: AtomicU64,
}

impl Qcow2File {
    /// Begins an image at `path` for a disk of `size` bytes. Its virtual size is that, rounded up to 512 bytes, as
    /// [`Finished::size`] reports. Without `force` the name must be free, now and at the end.
    ///
    /// # Errors
    /// [`RestoreError::TooLarge`] beyond 2 PiB, [`RestoreError::TargetExists`], [`RestoreError::NotATarget`] or
    /// [`RestoreError::File`].
    pub fn create(path: &Path, size: u64, force: bool) -> Result<Self, RestoreError> {
        let l1_entries = l1_entries(path, size)?;
        let partial = PartialFile::create(path, force)?;
        let first_free = 1 + (l1_entries * 8).div_ceil(CLUSTER);
        let mapping = Mutex::new(Mapping::new(l1_entries as usize, first_free as u32));
        Ok(Self { partial, size, mapping, written: AtomicU64::new(0) })
    }

    /// Writes data that holds no block of zeros.
    fn write_run(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let file = self.partial.file();
        let clusters = offset / CLUSTER..(offset + data.len() as u64).div_ceil(CLUSTER);
        let hosts = self.lock().allocate(clusters.clone(), file)?;
        // Neighbours that were allocated together are written together.
        let mut start = offset;
        let mut first = 0;
        for at in 1..=hosts.len() {
            if hosts.get(at).is_some_and(|&host| host == hosts[at - 1] + 1) {
                continue;
            }
            let end = ((clusters.start + at as u64) * CLUSTER).min(offset + data.len() as u64);
            let place = u64::from(hosts[first]) * CLUSTER + start % CLUSTER;
            file.write_all_at(&data[(start - offset) as usize..(end - offset) as usize], place)?;
            (start, first) = (end, at);
        }
        Ok(())
    }

    /// Writes everything but the data: tables, reference counts, and last the header.
    fn write_metadata(&self, file: &File) -> io::Result<()> {
        let mut mapping = self.lock();
        mapping.flush(file)?;
        let l1: Vec<u8> =
            mapping.l1().iter().flat_map(|&table| entry(u64::from(table)).to_be_bytes()).collect();
        file.write_all_at(&l1, CLUSTER)?;

        let refcounts = RefcountLayout::after(u64::from(mapping.used()));
        let table_at = u64::from(mapping.used()) * CLUSTER;
        let blocks_at = table_at + refcounts.table_clusters * CLUSTER;
        let blocks = (0..refcounts.blocks).map(|block| blocks_at + block * CLUSTER);
        let table: Vec<u8> = blocks.clone().flat_map(u64::to_be_bytes).collect();
        file.write_all_at(&table, table_at)?;
        for (block, at) in blocks.enumerate() {
            file.write_all_at(&refcounts.block(block as u64), at)?;
        }
        file.set_len(refcounts.total * CLUSTER)?;
        let layout = Layout {
            size: self.size,
            l1_entries: mapping.l1().len() as u64,
            refcounts_at: table_at,
            refcount_clusters: refcounts.table_clusters,
        };
        file.write_all_at(&layout.header(), 0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Mapping> {
        self.mapping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskOutput for Qcow2File {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), RestoreError> {
        let path = self.partial.path();
        check_bounds(path, self.size, offset, data.len() as u64)?;
        for (offset, run) in data_runs(offset, data) {
            self.write_run(offset, run).map_err(RestoreError::file("write", path))?;
            self.written.fetch_add(run.len() as u64, Ordering::Relaxed);
            self.partial.wrote(run.len() as u64);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Finished, RestoreError> {
        self.write_metadata(self.partial.file())
            .map_err(RestoreError::file("write the tables of", self.partial.path()))?;
        let size = virtual_size(self.size);
        self.partial.finish()?;
        Ok(Finished { size, written: self.written.into_inner() })
    }
}

/// What the header says.
struct Layout {
    /// Bytes of the disk.
    size: u64,
    l1_entries: u64,
    /// Where the refcount table lies, in bytes of the file.
    refcounts_at: u64,
    refcount_clusters: u64,
}

impl Layout {
    fn header(&self) -> Vec<u8> {
        let mut header = b"QFI\xfb".to_vec();
        let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
        put(&3u32.to_be_bytes()); // version
        put(&[0; 12]); // no backing file
        put(&CLUSTER_BITS.to_be_bytes());
        put(&virtual_size(self.size).to_be_bytes());
        put(&0u32.to_be_bytes()); // not encrypted
        put(&(self.l1_entries as u32).to_be_bytes());
        put(&CLUSTER.to_be_bytes()); // the level 1 table follows the header's cluster
        put(&self.refcounts_at.to_be_bytes());
        put(&(self.refcount_clusters as u32).to_be_bytes());
        put(&[0; 12]); // no internal snapshots
        put(&[0; 24]); // no incompatible, compatible or auto-clear features
        put(&4u32.to_be_bytes()); // reference counts of 2^4 bits
        put(&104u32.to_be_bytes()); // length of this header
        put(&[0; 8]); // end of the header extensions
        header
    }
}

/// Bytes of the disk as readers of the image see it.
fn virtual_size(size: u64) -> u64 {
    size.div_ceil(SECTOR) * SECTOR
}

/// Entries of the level 1 table for a disk of `size` bytes.
fn l1_entries(path: &Path, size: u64) -> Result<u64, RestoreError> {
    let entries = size.div_ceil(CLUSTER * L2_ENTRIES as u64).max(1);
    if entries > MAXIMUM_L1_ENTRIES {
        let limit = MAXIMUM_L1_ENTRIES * CLUSTER * L2_ENTRIES as u64;
        return Err(RestoreError::TooLarge { path: path.to_owned(), limit, size });
    }
    Ok(entries)
}

/// An entry of either table: the cluster's place in the file and the flag that it is used once; 0 for none.
fn entry(cluster: u64) -> u64 {
    if cluster == 0 { 0 } else { cluster << CLUSTER_BITS | COPIED }
}

/// How many clusters the reference counts take, which they count themselves too.
#[derive(Debug, PartialEq, Eq)]
struct RefcountLayout {
    table_clusters: u64,
    blocks: u64,
    /// Clusters of the whole file.
    total: u64,
}

impl RefcountLayout {
    /// The smallest layout behind `used` clusters.
    fn after(used: u64) -> Self {
        let mut blocks: u64 = 1;
        loop {
            let table_clusters = (blocks * 8).div_ceil(CLUSTER);
            let total = used + table_clusters + blocks;
            let needed = total.div_ceil(REFCOUNTS);
            if needed <= blocks {
                return Self { table_clusters, blocks, total };
            }
            blocks = needed;
        }
    }

    /// The bytes of a block: every cluster of the file is used once. The last block may be short.
    fn block(&self, block: u64) -> Vec<u8> {
        let counted = (self.total - block * REFCOUNTS).min(REFCOUNTS);
        1u16.to_be_bytes().repeat(counted as usize)
    }
}

#[cfg(test)]
mod tests;
