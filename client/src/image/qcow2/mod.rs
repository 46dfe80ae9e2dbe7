//! One qcow2 layer: where each guest byte of it lies.
//!
//! Tables are read in small blocks through the chain's bounded cache and every entry is checked each time it is
//! used, so that a file that changes under us, or lies, can give an error but never a wild read.

mod compressed;
mod decode;
mod header;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::Key;
use super::error::ImageError;
use super::file::ImageFile;
use super::layer::{Run, Shared, Source};
use decode::Cluster;
use header::Header;

/// Bytes of one cached piece of metadata.
const BLOCK: u64 = 16 << 10;
/// How many tables of nothing one run may cross, so that a single step stays short.
const EMPTY_TABLES: usize = 4096;

#[derive(Debug)]
pub(super) struct Qcow2 {
    pub file: ImageFile,
    /// The external data file, where the image has one.
    pub data: Option<ImageFile>,
    header: Header,
    layer: u32,
    shared: Arc<Shared>,
    /// The hole of the file that was found last.
    hole: Mutex<Range<u64>>,
}

/// What a header says about other files; opening them is the chain's business.
#[derive(Debug)]
pub(super) struct References {
    pub backing: Option<Vec<u8>>,
    pub backing_format: Option<Vec<u8>>,
}

/// The metadata block read last, so that neighbours need no look-up in the shared cache.
#[derive(Debug, Default)]
struct Cursor {
    held: Option<(u64, Arc<[u8]>)>,
    /// Read the file itself, whatever the cache remembers.
    fresh: bool,
}

impl Qcow2 {
    /// Checks the header and the L1 table. `open_data` opens the external data file under its recorded name.
    pub(super) fn open(
        file: ImageFile,
        layer: u32,
        shared: Arc<Shared>,
        open_data: impl FnOnce(&[u8]) -> Result<ImageFile, ImageError>,
    ) -> Result<(Self, References), ImageError> {
        let mut header = Header::read(&file)?;
        let data = match (header.external_data, header.data_file.take()) {
            (false, _) => None,
            (true, Some(name)) => Some(open_data(&name)?),
            (true, None) => {
                let problem = "an external data file is needed and none is named";
                return Err(file.header("data file name", "absent", problem));
            }
        };
        let references =
            References { backing: header.backing.take(), backing_format: header.backing_format.take() };
        Ok((Self { file, data, header, layer, shared, hole: Mutex::default() }, references))
    }

    pub(super) fn virtual_size(&self) -> u64 {
        self.header.virtual_size
    }

    /// The size of a cluster, which is also that of a decompressed one.
    pub(super) fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    /// The most bytes that extents of plain data can add up to unless clusters are shared, which no sound image
    /// has. `None` where the format itself rules sharing out.
    pub(super) fn data_limit(&self) -> Option<u64> {
        match self.data {
            Some(_) => None,
            None => Some(self.file.size().next_multiple_of(self.cluster_size())),
        }
    }

    fn data_file(&self) -> &ImageFile {
        self.data.as_ref().unwrap_or(&self.file)
    }

    /// Feeds header cluster, active L1 and active L2 tables to `hasher`, and checks the L1 table on the way:
    /// every L2 table inside the file, none used twice, none over the header or the L1 table.
    pub(super) fn hash_metadata(&self, hasher: &mut blake3::Hasher) -> Result<(), ImageError> {
        let cluster_size = self.cluster_size();
        let mut buffer = vec![0; usize::min(cluster_size as usize, self.file.size() as usize)];
        let read = self.file.read_up_to(0, &mut buffer)?;
        hasher.update(&buffer[..read]);
        buffer.resize(cluster_size as usize, 0);
        let l1_end = self.header.l1_offset + self.header.l1_entries * 8;
        let mut cursor = Cursor { fresh: true, ..Cursor::default() };
        let mut tables = Vec::new();
        for index in 0..self.header.l1_entries {
            let Some(table) = self.l2_table(&mut cursor, index)? else { continue };
            if table < l1_end && table + cluster_size > self.header.l1_offset {
                return Err(self.damaged_table(index, "the L2 table overlaps the L1 table"));
            }
            hasher.update(&index.to_le_bytes());
            hasher.update(&table.to_le_bytes());
            tables.push((table, index));
        }
        // In file order, so that the disk reads ahead.
        tables.sort_unstable();
        if let Some(pair) = tables.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(self.damaged_table(pair[1].1, "two L1 entries use the same L2 table"));
        }
        let mut hole = 0..0;
        for (table, _) in tables {
            if self.in_a_hole(table, &mut hole)? {
                hasher.update(b"hole");
                continue;
            }
            self.file.read_exact(table, &mut buffer)?;
            self.shared.counters.metadata(buffer.len());
            hasher.update(&buffer);
        }
        Ok(())
    }

    /// What lies at `offset` and how far it goes the same way, at most to `limit`. `offset < limit <= virtual_size`.
    pub(super) fn run_at(&self, offset: u64, limit: u64) -> Result<Run, ImageError> {
        let coverage = self.header.l2_coverage();
        let mut cursor = Cursor::default();
        let mut index = offset / coverage;
        let Some(table) = self.l2_table(&mut cursor, index)? else {
            for _ in 0..EMPTY_TABLES {
                index += 1;
                if index * coverage >= limit || self.l2_table(&mut cursor, index)?.is_some() {
                    break;
                }
            }
            return Ok(Run { length: limit.min(index * coverage) - offset, source: Source::Unallocated });
        };
        let table_start = index * coverage;
        let limit = limit.min(table_start.saturating_add(coverage));
        if offset == table_start && self.in_known_hole(table)? {
            return Ok(Run { length: limit - offset, source: Source::Unallocated });
        }
        let mut run = self.piece(&mut cursor, table, table_start, offset, limit)?;
        while offset + run.length < limit {
            let next = self.piece(&mut cursor, table, table_start, offset + run.length, limit)?;
            if !run.source.continues_as(run.length, next.source) {
                break;
            }
            run.length += next.length;
        }
        Ok(run)
    }

    /// Fills `buf` from a run that `run_at(offset, ..)` returned; `buf` is not longer than the run.
    pub(super) fn read_run(&self, source: Source, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        match source {
            Source::Unallocated | Source::Zero => buf.fill(0),
            Source::Data { host } => {
                self.data_file().read_exact(host, buf).map_err(|error| error.at_guest(offset))?;
                self.shared.counters.data(buf.len());
            }
            Source::Compressed { host, length } => {
                let cluster = self.decompressed(offset, host, length)?;
                let start = (offset % self.cluster_size()) as usize;
                buf.copy_from_slice(&cluster[start..start + buf.len()]);
            }
        }
        Ok(())
    }

    fn decompressed(&self, offset: u64, host: u64, length: u32) -> Result<Arc<[u8]>, ImageError> {
        let key = Key { layer: self.layer, offset: host, length };
        if let Some(cluster) = self.shared.clusters.get(key) {
            return Ok(cluster);
        }
        // The length is rounded up to sectors, and the last one may be cut short by the end of the file.
        let stored = u64::from(length).min(self.file.size().saturating_sub(host));
        let mut input = vec![0; stored as usize];
        self.file.read_exact(host, &mut input).map_err(|error| error.at_guest(offset))?;
        self.shared.counters.data(input.len());
        let mut output = vec![0; self.cluster_size() as usize];
        compressed::decompress(self.header.compression, &input, &mut output).map_err(|problem| {
            self.file.damaged(offset, format!("the compressed cluster at file offset {host}: {problem}"))
        })?;
        let cluster: Arc<[u8]> = output.into();
        self.shared.clusters.put(key, Arc::clone(&cluster));
        Ok(cluster)
    }

    /// The part of one cluster from `offset` that has one source: up to the cluster's end, or to the end of
    /// equal subclusters.
    fn piece(
        &self,
        cursor: &mut Cursor,
        table: u64,
        table_start: u64,
        offset: u64,
        limit: u64,
    ) -> Result<Run, ImageError> {
        let damaged = |problem| self.file.damaged(offset, problem);
        let cluster_size = self.cluster_size();
        let entry =
            table + ((offset - table_start) >> self.header.cluster_bits) * self.header.l2_entry_size();
        let within = offset % cluster_size;
        let start = offset - within;
        let cluster = self.header.decoder.l2(self.word(cursor, entry)?).map_err(damaged)?;
        let (source, end) = if self.header.extended {
            let bitmap = self.word(cursor, entry + 8)?;
            subclusters(cluster, bitmap, within, cluster_size).map_err(damaged)?
        } else {
            (source_of(cluster, within), cluster_size)
        };
        let run = Run { length: (end - within).min(limit - offset), source };
        match source {
            // The rest of the subcluster must be there too, unless the disk ends before it.
            Source::Data { host } => self.check_data(host, start, within, end, offset)?,
            Source::Compressed { .. } if self.data.is_some() => {
                return Err(damaged("a compressed cluster in an image with an external data file".into()));
            }
            Source::Compressed { host, .. } if host < cluster_size || host >= self.file.size() => {
                let problem = format!("a compressed cluster at file offset {host}, outside the file's data");
                return Err(damaged(problem));
            }
            _ => {}
        }
        Ok(run)
    }

    fn check_data(
        &self,
        host: u64,
        start: u64,
        within: u64,
        end: u64,
        offset: u64,
    ) -> Result<(), ImageError> {
        let file = self.data_file();
        let needed = end.min(self.virtual_size() - start) - within;
        if host + needed > file.size() {
            let problem = format!(
                "its data at file offset {host} lies beyond the end of {} ({} bytes)",
                file.path.display(),
                file.size()
            );
            return Err(self.file.damaged(offset, problem));
        }
        if self.data.is_some() && host != offset {
            let problem =
                format!("its place in the external data file is {host}, it must be the guest offset");
            return Err(self.file.damaged(offset, problem));
        }
        Ok(())
    }

    /// The offset of the L2 table that L1 entry `index` names, checked.
    fn l2_table(&self, cursor: &mut Cursor, index: u64) -> Result<Option<u64>, ImageError> {
        let raw = self.word(cursor, self.header.l1_offset + index * 8)?;
        let table = self.header.decoder.l1(raw).map_err(|problem| self.damaged_table(index, problem))?;
        match table {
            Some(offset) if offset + self.cluster_size() > self.file.size() => {
                let problem = format!("its L2 table at file offset {offset} lies beyond the end of the file");
                Err(self.damaged_table(index, problem))
            }
            table => Ok(table),
        }
    }

    fn damaged_table(&self, index: u64, problem: impl Into<String>) -> ImageError {
        self.file.damaged(index.saturating_mul(self.header.l2_coverage()), problem)
    }

    /// Whether the whole table is a hole of the file: all zero, nothing to read. `hole` is the hole found last: a
    /// sparse file that claims millions of tables must not cost a system call for each.
    fn in_a_hole(&self, table: u64, hole: &mut Range<u64>) -> Result<bool, ImageError> {
        let end = table + self.cluster_size();
        if !(hole.start <= table && end <= hole.end) {
            *hole = table..self.file.next_data(table)?.unwrap_or(u64::MAX);
        }
        Ok(end <= hole.end)
    }

    fn in_known_hole(&self, table: u64) -> Result<bool, ImageError> {
        self.in_a_hole(table, &mut self.hole.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One big-endian word of metadata at a file offset that is a multiple of 8.
    fn word(&self, cursor: &mut Cursor, offset: u64) -> Result<u64, ImageError> {
        let start = offset - offset % BLOCK;
        if cursor.held.as_ref().is_none_or(|(held, _)| *held != start) {
            cursor.held = Some((start, self.block(start, cursor.fresh)?));
        }
        let at = (offset - start) as usize;
        let word = cursor.held.as_ref().and_then(|(_, block)| block.get(at..at + 8)?.try_into().ok());
        word.map(u64::from_be_bytes).ok_or_else(|| ImageError::Changed {
            path: self.file.path.clone(),
            what: "it became shorter than its tables",
        })
    }

    fn block(&self, start: u64, fresh: bool) -> Result<Arc<[u8]>, ImageError> {
        let key = Key { layer: self.layer, offset: start, length: 0 };
        if let Some(block) = self.shared.metadata.get(key).filter(|_| !fresh) {
            return Ok(block);
        }
        let mut bytes = vec![0; BLOCK as usize];
        let read = self.file.read_up_to(start, &mut bytes)?;
        self.shared.counters.metadata(read);
        bytes.truncate(read);
        let block: Arc<[u8]> = bytes.into();
        self.shared.metadata.put(key, Arc::clone(&block));
        Ok(block)
    }
}

fn source_of(cluster: Cluster, within: u64) -> Source {
    match cluster {
        Cluster::Unallocated => Source::Unallocated,
        Cluster::Zero => Source::Zero,
        Cluster::Data { host } => Source::Data { host: host + within },
        Cluster::Compressed { host, length } => Source::Compressed { host, length },
    }
}

/// Finds which of a cluster's 32 subclusters from `within` on are alike; returns their source and where they end.
///
/// The bitmap's low half says which are allocated, its high half which read as zeros.
fn subclusters(
    cluster: Cluster,
    bitmap: u64,
    within: u64,
    cluster_size: u64,
) -> Result<(Source, u64), String> {
    let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
    let host = match cluster {
        Cluster::Compressed { .. } if bitmap != 0 => {
            return Err(format!("a compressed cluster has the subcluster bitmap {bitmap:#x}"));
        }
        Cluster::Compressed { .. } => return Ok((source_of(cluster, within), cluster_size)),
        Cluster::Data { host } => Some(host),
        Cluster::Zero | Cluster::Unallocated => None,
    };
    if allocated & zero != 0 || (host.is_none() && allocated != 0) {
        return Err(format!("the subcluster bitmap {bitmap:#x} contradicts itself or its cluster"));
    }
    let kind = |index: u64| (allocated >> index & 1, zero >> index & 1);
    let size = cluster_size / 32;
    let first = within / size;
    let count = (first..32).take_while(|index| kind(*index) == kind(first)).count() as u64;
    let source = match (kind(first), host) {
        ((_, 1), _) => Source::Zero,
        ((1, _), Some(host)) => Source::Data { host: host + within },
        _ => Source::Unallocated,
    };
    Ok((source, (first + count) * size))
}
