//! A flattened qcow2 image for a pipe: everything that readers look up comes first, for it is known before any data is.
//!
//! ```text
//!     header | level 1 table | level 2 tables | refcount table | refcount blocks | data clusters in the disk's order
//! ```

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::mapping::L2_ENTRIES;
use super::{CLUSTER, Layout, RefcountLayout, l1_entries};
use crate::restore::allocation::Allocation;
use crate::restore::{
    DiskOutput, Environment, Finished, RestoreError, StreamOutput, check_bounds, data_runs,
};

use underlay_store::id::Root;

/// A qcow2 image of 64 KiB clusters, without a backing file, written from its first byte to its last. Data must come in ascending
/// order, and where the disk was said to hold some.
#[derive(Debug)]
pub struct Qcow2Stream<W> {
    name: PathBuf,
    allocation: Allocation,
    /// Takes the data clusters.
    stream: StreamOutput<W>,
}

/// What the image of a disk will be, before any of it is written.
#[derive(Debug)]
pub struct Qcow2Plan {
    allocation: Allocation,
    l1_entries: u64,
    /// Indices of the level 2 tables that there are.
    tables: Vec<u64>,
    refcounts: RefcountLayout,
}

impl Qcow2Plan {
    /// Reads from the disk's tree which clusters there will be. Blocks.
    ///
    /// # Errors
    /// [`RestoreError::TooLarge`] beyond 2 PiB, which names the image `name`; else as [`Allocation::read`].
    pub fn read(environment: &Environment<'_>, root: Root, name: &Path) -> Result<Self, RestoreError> {
        l1_entries(name, root.size)?;
        Self::new(Allocation::read(environment, root, CLUSTER)?, name)
    }

    fn new(allocation: Allocation, name: &Path) -> Result<Self, RestoreError> {
        let l1_entries = l1_entries(name, allocation.size())?;
        let span = L2_ENTRIES as u64;
        let tables: Vec<u64> =
            (0..l1_entries).filter(|table| allocation.any(table * span..(table + 1) * span)).collect();
        let used = first_table(l1_entries) + tables.len() as u64 + allocation.total();
        let refcounts = RefcountLayout::after(used);
        Ok(Self { allocation, l1_entries, tables, refcounts })
    }

    /// Bytes of the image.
    pub fn length(&self) -> u64 {
        self.refcounts.total * CLUSTER
    }

    /// Begins the image: writes all but the data to `writer`, which `name` stands for in errors.
    ///
    /// # Errors
    /// [`RestoreError::File`].
    pub fn begin<W: Write + Send>(
        self,
        mut writer: W,
        name: impl Into<PathBuf>,
    ) -> Result<Qcow2Stream<W>, RestoreError> {
        let name = name.into();
        let data_at = self.write_tables(&mut writer).map_err(RestoreError::file("write to", &name))?;
        let stream = StreamOutput::new(writer, name.clone(), self.length() - data_at);
        Ok(Qcow2Stream { name, allocation: self.allocation, stream })
    }

    /// Writes everything up to the data; how many bytes that were.
    fn write_tables(&self, writer: &mut impl Write) -> io::Result<u64> {
        let (first_table, tables) = (first_table(self.l1_entries), self.tables.len() as u64);
        let refcount_table = first_table + tables;
        let first_block = refcount_table + self.refcounts.table_clusters;
        let first_data = first_block + self.refcounts.blocks;
        let layout = Layout {
            size: self.allocation.size(),
            l1_entries: self.l1_entries,
            refcounts_at: refcount_table * CLUSTER,
            refcount_clusters: self.refcounts.table_clusters,
        };
        write_padded(writer, &layout.header())?;
        let mut l1 = vec![0; self.l1_entries as usize];
        for (at, table) in self.tables.iter().enumerate() {
            l1[*table as usize] = first_table + at as u64;
        }
        write_padded(writer, &entries(l1))?;
        for table in &self.tables {
            let clusters = table * L2_ENTRIES as u64..(table + 1) * L2_ENTRIES as u64;
            let hosts =
                clusters.map(|cluster| self.allocation.rank(cluster).map_or(0, |rank| first_data + rank));
            writer.write_all(&entries(hosts))?;
        }
        let blocks = (0..self.refcounts.blocks).map(|block| (first_block + block) * CLUSTER);
        write_padded(writer, &blocks.flat_map(u64::to_be_bytes).collect::<Vec<_>>())?;
        for block in 0..self.refcounts.blocks {
            write_padded(writer, &self.refcounts.block(block))?;
        }
        Ok(first_data * CLUSTER)
    }
}

/// The cluster after header and level 1 table.
fn first_table(l1_entries: u64) -> u64 {
    1 + (l1_entries * 8).div_ceil(CLUSTER)
}

/// The entries of a table, which name these clusters of the file; 0 is none.
fn entries(clusters: impl IntoIterator<Item = u64>) -> Vec<u8> {
    clusters.into_iter().flat_map(|cluster| super::entry(cluster).to_be_bytes()).collect()
}

/// Fills whole clusters.
fn write_padded(writer: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes)?;
    let missing = bytes.len().next_multiple_of(CLUSTER as usize) - bytes.len();
    writer.write_all(&vec![0; missing])
}

impl<W: Write + Send> DiskOutput for Qcow2Stream<W> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), RestoreError> {
        check_bounds(&self.name, self.allocation.size(), offset, data.len() as u64)?;
        for (offset, run) in data_runs(offset, data) {
            let (mut at, mut rest) = (offset, run);
            while !rest.is_empty() {
                let within = at % CLUSTER;
                let (piece, after) = rest.split_at(rest.len().min((CLUSTER - within) as usize));
                let Some(rank) = self.allocation.rank(at / CLUSTER) else {
                    let source =
                        io::Error::other(format!("data at {at} bytes where the disk was said to have none"));
                    return Err(RestoreError::file("write to", &self.name)(source));
                };
                self.stream.write_at(rank * CLUSTER + within, piece)?;
                (at, rest) = (at + piece.len() as u64, after);
            }
        }
        Ok(())
    }

    fn ascending(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>) -> Result<Finished, RestoreError> {
        let size = super::virtual_size(self.allocation.size());
        let Finished { written, .. } = Box::new(self.stream).finish()?;
        Ok(Finished { size, written })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Image;
    use super::*;
    use crate::restore::testing::Disk;

    fn stream(disk: &Disk, size: u64) -> Vec<u8> {
        let pieces = disk.sorted_pieces();
        let data = pieces.iter().flat_map(|&(offset, length)| {
            data_runs(offset, disk.piece(offset, length)).map(|(at, run)| at..at + run.len() as u64)
        });
        let plan = Qcow2Plan::new(Allocation::new(size, CLUSTER, data), Path::new("pipe")).unwrap();
        let (length, mut bytes) = (plan.length(), Vec::new());
        let output = plan.begin(&mut bytes, "pipe").unwrap();
        for &(offset, length) in &pieces {
            output.write_at(offset, disk.piece(offset, length)).unwrap();
        }
        assert_eq!(Box::new(output).finish().unwrap().size, size.next_multiple_of(512));
        assert_eq!(bytes.len() as u64, length);
        bytes
    }

    #[test]
    fn a_stream_is_an_image_of_the_disk() {
        for (seed, size) in [(1, 512), (2, 4097), (3, 3 << 20), (4, (1 << 20) + 70_001), (5, 9 << 20)] {
            let disk = Disk::random(seed, size);
            let mut expected = disk.bytes.clone();
            expected.resize(size.next_multiple_of(512) as usize, 0);
            assert!(Image { bytes: stream(&disk, size) }.flatten() == expected, "seed {seed}");
        }
    }

    #[test]
    fn a_large_empty_disk_is_its_tables() {
        let plan = Qcow2Plan::new(Allocation::new(1 << 40, CLUSTER, []), Path::new("pipe")).unwrap();
        // Header, one cluster of level 1, and a table and a block of reference counts.
        assert_eq!(plan.length(), 4 * CLUSTER);
        let one = Allocation::new(1 << 40, CLUSTER, std::iter::once((1 << 39)..(1 << 39) + 1));
        assert_eq!(Qcow2Plan::new(one, Path::new("pipe")).unwrap().length(), 6 * CLUSTER);
    }

    #[test]
    fn data_where_none_was_said_to_be_is_refused() {
        let plan =
            Qcow2Plan::new(Allocation::new(1 << 20, CLUSTER, std::iter::once(0..10)), Path::new("pipe"))
                .unwrap();
        let output = plan.begin(io::sink(), "pipe").unwrap();
        output.write_at(0, b"x").unwrap();
        assert!(matches!(output.write_at(CLUSTER, b"y"), Err(RestoreError::File { .. })));
    }
}
