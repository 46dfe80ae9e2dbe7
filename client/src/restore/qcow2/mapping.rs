//! Which cluster of the file holds which cluster of the disk.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{CLUSTER, CLUSTER_BITS, entry};

/// Marks a cluster that is used once, as all are here.
pub(super) const COPIED: u64 = 1 << 63;
/// Entries of a level 2 table, which fills a cluster.
pub(super) const L2_ENTRIES: usize = CLUSTER as usize / 8;
/// Level 2 tables kept in memory, 32 KiB each; together they span 128 GiB of disk.
const TABLES: usize = 256;

/// The tables of an image that grows. Clusters are numbered in 32 bits, 256 TiB of file; 0 is the header and so means none.
///
/// Level 2 tables come to life when a cluster of theirs is first allocated. The ones not used lately are written to their
/// place in the file and read back when they are needed again.
#[derive(Debug)]
pub(super) struct Mapping {
    l1: Vec<u32>,
    recent: HashMap<usize, Table>,
    capacity: usize,
    next: u32,
    clock: u64,
}

#[derive(Debug)]
struct Table {
    clusters: Box<[u32]>,
    last_use: u64,
}

impl Mapping {
    /// Tables for `l1_entries` times 512 MiB; the first cluster to hand out is `first_free`.
    pub(super) fn new(l1_entries: usize, first_free: u32) -> Self {
        Self { l1: vec![0; l1_entries], recent: HashMap::new(), capacity: TABLES, next: first_free, clock: 0 }
    }

    /// The level 1 table.
    pub(super) fn l1(&self) -> &[u32] {
        &self.l1
    }

    /// Clusters handed out so far, header and level 1 table among them.
    pub(super) fn used(&self) -> u32 {
        self.next
    }

    /// The file's clusters for these clusters of the disk, allocating those it has none for.
    ///
    /// # Errors
    /// If a table cannot be written to or read from `file`, or there are no numbers left.
    pub(super) fn allocate(&mut self, clusters: Range<u64>, file: &File) -> io::Result<Vec<u32>> {
        let mut hosts = Vec::with_capacity((clusters.end - clusters.start) as usize);
        for cluster in clusters {
            let (table, slot) = (cluster as usize / L2_ENTRIES, cluster as usize % L2_ENTRIES);
            self.load(table, file)?;
            let Self { recent, next, clock, .. } = self;
            let Some(table) = recent.get_mut(&table) else { continue };
            *clock += 1;
            table.last_use = *clock;
            if table.clusters[slot] == 0 {
                table.clusters[slot] = take(next)?;
            }
            hosts.push(table.clusters[slot]);
        }
        Ok(hosts)
    }

    /// Writes every table to its place.
    ///
    /// # Errors
    /// If one cannot be written.
    pub(super) fn flush(&mut self, file: &File) -> io::Result<()> {
        for (index, table) in self.recent.drain() {
            store(&table, self.l1[index], file)?;
        }
        Ok(())
    }

    /// Brings a table into memory.
    fn load(&mut self, index: usize, file: &File) -> io::Result<()> {
        if self.recent.contains_key(&index) {
            return Ok(());
        }
        if self.recent.len() >= self.capacity
            && let Some(oldest) =
                self.recent.iter().min_by_key(|(_, table)| table.last_use).map(|(&at, _)| at)
            && let Some(table) = self.recent.remove(&oldest)
        {
            store(&table, self.l1[oldest], file)?;
        }
        let mut clusters = vec![0; L2_ENTRIES].into_boxed_slice();
        if self.l1[index] == 0 {
            self.l1[index] = take(&mut self.next)?;
        } else {
            let mut bytes = vec![0; CLUSTER as usize];
            file.read_exact_at(&mut bytes, u64::from(self.l1[index]) * CLUSTER)?;
            for (cluster, bytes) in clusters.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *cluster = ((u64::from_be_bytes(*bytes) & !COPIED) >> CLUSTER_BITS) as u32;
            }
        }
        self.recent.insert(index, Table { clusters, last_use: self.clock });
        Ok(())
    }
}

fn take(next: &mut u32) -> io::Result<u32> {
    let taken = *next;
    *next = taken.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
    Ok(taken)
}

fn store(table: &Table, at: u32, file: &File) -> io::Result<()> {
    let bytes: Vec<u8> =
        table.clusters.iter().flat_map(|&cluster| entry(u64::from(cluster)).to_be_bytes()).collect();
    file.write_all_at(&bytes, u64::from(at) * CLUSTER)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Numbers;
    use super::*;

    #[test]
    fn tables_survive_leaving_memory() {
        let file = tempfile::tempfile().unwrap();
        let mut mapping = Mapping { capacity: 3, ..Mapping::new(20, 2) };
        let (mut numbers, mut model) = (Numbers(1), HashMap::new());
        for _ in 0..3000 {
            let first = numbers.below(20 * L2_ENTRIES as u64 - 4);
            let clusters = first..first + 1 + numbers.below(4);
            let hosts = mapping.allocate(clusters.clone(), &file).unwrap();
            for (cluster, host) in clusters.zip(hosts) {
                assert_eq!(*model.entry(cluster).or_insert(host), host, "cluster {cluster}");
            }
            assert!(mapping.recent.len() <= 3);
        }
        let mut used: Vec<u32> = model.into_values().chain(mapping.l1().iter().copied()).collect();
        used.sort_unstable();
        assert_eq!(used, (2..mapping.used()).collect::<Vec<_>>(), "every cluster is used once");
    }
}
