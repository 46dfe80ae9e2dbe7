//! One qcow2 layer: from guest addresses to places in its file.

mod compressed;
mod decode;
mod header;

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::identity::{LayerIdentity, stat};
use super::paths::{Allowed, Opened};
use super::{ImageError, Place};
use compressed::Decompressed;
use decode::{Decoder, Entry};
use header::Header;

/// Bytes of L2 tables kept of one layer, at most twice.
const L2_CACHE: usize = 1 << 20;
/// A header's cluster is at most this long.
const HEADER_LIMIT: u64 = 2 << 20;
/// Subclusters of a cluster with extended L2 entries.
const SUBCLUSTERS: u64 = 32;

/// Recently used L2 tables, in two generations.
#[derive(Debug, Default)]
struct Tables {
    young: HashMap<u64, Arc<[u64]>>,
    old: HashMap<u64, Arc<[u64]>>,
    bytes: usize,
}

/// An open qcow2 image.
#[derive(Debug)]
pub(super) struct Qcow2Layer {
    pub opened: Opened,
    header: Header,
    decoder: Decoder,
    /// Offsets of L2 tables; 0 is none.
    l1: Vec<u64>,
    data_file: Option<Opened>,
    tables: Mutex<Tables>,
    decompressed: Decompressed,
    metadata_bytes: AtomicU64,
}

impl Qcow2Layer {
    /// Reads header and L1 table and checks them.
    pub fn open(opened: Opened) -> Result<Self, ImageError> {
        let mut start = vec![0; opened.length.min(HEADER_LIMIT) as usize];
        let path = opened.path.clone();
        opened.file.read_exact_at(&mut start, 0).map_err(ImageError::io(&path, "read the header of"))?;
        let header = Header::parse(&path, &start, opened.length)?;
        let decoder = Decoder::new(&path, &header)?;
        let mut layer = Self {
            decompressed: Decompressed::new(header.cluster_bits, header.zstd),
            opened,
            header,
            decoder,
            l1: Vec::new(),
            data_file: None,
            tables: Mutex::default(),
            metadata_bytes: AtomicU64::new(0),
        };
        layer.read_l1()?;
        Ok(layer)
    }

    /// Opens the external data file, if the image has one.
    pub fn open_data_file(&mut self, allowed: &Allowed) -> Result<(), ImageError> {
        if self.header.has_data_file {
            let named = self.header.data_file.as_deref().ok_or_else(|| {
                ImageError::damaged(&self.opened.path, "data file name", "is missing, though the image has an external data file")
            })?;
            self.data_file = Some(allowed.open(&self.opened.path, named)?);
        }
        Ok(())
    }

    /// Name and format of the layer below, as the image records them.
    pub fn backing(&self) -> Option<(&str, Option<&str>)> {
        Some((self.header.backing_file.as_deref()?, self.header.backing_format.as_deref()))
    }

    pub fn virtual_size(&self) -> u64 {
        self.header.size
    }

    pub fn metadata_bytes(&self) -> u64 {
        self.metadata_bytes.load(Ordering::Relaxed)
    }

    /// The file that holds plain clusters.
    pub fn data(&self) -> &Opened {
        self.data_file.as_ref().unwrap_or(&self.opened)
    }

    fn path(&self) -> &Path {
        &self.opened.path
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// Bytes of guest address space below one L2 table.
    fn span(&self) -> u64 {
        self.header.l2_entries() << self.header.cluster_bits
    }

    fn read_words(&self, at: u64, words: usize, field: &'static str) -> Result<Vec<u8>, ImageError> {
        let mut bytes = vec![0; words * 8];
        self.opened.file.read_exact_at(&mut bytes, at).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                ImageError::damaged(self.path(), field, format!("at {at:#x} lies past the end of the file"))
            }
            _ => ImageError::io(self.path(), "read")(source),
        })?;
        self.metadata_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    fn read_l1(&mut self) -> Result<(), ImageError> {
        let field = "L1 entry";
        let bytes = self.read_words(self.header.l1_offset, self.header.l1_entries, field)?;
        let l1 = words(&bytes)
            .map(|word| Ok(self.decoder.l1(word).map_err(|what| ImageError::damaged(self.path(), field, what))?.unwrap_or(0)))
            .collect::<Result<Vec<u64>, ImageError>>()?;
        let mut sorted: Vec<u64> = l1.iter().copied().filter(|&at| at != 0).collect();
        sorted.sort_unstable();
        if let Some(last) = sorted.last().filter(|&&at| at > self.opened.length.saturating_sub(self.cluster_size())) {
            return Err(ImageError::damaged(self.path(), field, format!("{last:#x} points past the end of the file")));
        }
        // Two entries for one table would let a small file claim a disk of any size.
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ImageError::damaged(self.path(), field, format!("{:#x} is used twice", pair[0])));
        }
        self.l1 = l1;
        Ok(())
    }

    fn table(&self, at: u64) -> Result<Arc<[u64]>, ImageError> {
        {
            let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(table) = tables.young.get(&at).or_else(|| tables.old.get(&at)) {
                return Ok(Arc::clone(table));
            }
        }
        let bytes = self.read_words(at, self.cluster_size() as usize / 8, "L2 table")?;
        let table: Arc<[u64]> = words(&bytes).collect();
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if tables.bytes >= L2_CACHE {
            tables.old = std::mem::take(&mut tables.young);
            tables.bytes = 0;
        }
        tables.bytes += bytes.len();
        tables.young.insert(at, Arc::clone(&table));
        Ok(table)
    }

    /// Where the run at `offset` lies, and how long it is, at most `limit`. `offset` is below the virtual size.
    pub fn place(&self, offset: u64, limit: u64) -> Result<(Place, u64), ImageError> {
        let table_at = self.l1.get((offset / self.span()) as usize).copied().unwrap_or(0);
        let rest_of_table = self.span() - offset % self.span();
        if table_at == 0 {
            return Ok((Place::Below, rest_of_table.min(limit)));
        }
        let table = self.table(table_at)?;
        let limit = limit.min(rest_of_table);
        let (place, mut length) = self.entry(&table, offset)?;
        // Join what follows on, so that one read serves many clusters.
        while length < limit && !matches!(place, Place::Compressed { .. }) {
            let (next, more) = self.entry(&table, offset + length)?;
            if next != place.advanced(length) {
                break;
            }
            length += more;
        }
        Ok((place, length.min(limit)))
    }

    /// The run at `offset` within one cluster, or one run of its subclusters.
    fn entry(&self, table: &[u64], offset: u64) -> Result<(Place, u64), ImageError> {
        let cluster = self.cluster_size();
        let (index, within) = ((offset / cluster % self.header.l2_entries()) as usize, offset % cluster);
        let damaged = |what: String| ImageError::damaged(self.path(), "L2 entry", format!("for byte {offset}: {what}"));
        let extended = self.header.extended_l2;
        let word = table[if extended { 2 * index } else { index }];
        let (host, zero, copied) = match self.decoder.l2(word, extended).map_err(damaged)? {
            Entry::Compressed { host, length } => {
                if self.data_file.is_some() || host >= self.opened.length {
                    return Err(damaged(format!("compressed data at {host:#x} lies past the end of the file")));
                }
                return Ok((Place::Compressed { host, length, within }, cluster - within));
            }
            Entry::Standard { host, zero, copied } => (host, zero, copied),
        };
        let allocated = host != 0 || (self.data_file.is_some() && copied);
        if extended {
            return self.subclusters(table[2 * index + 1], host, allocated, within).map_err(damaged);
        }
        let place = match (zero, allocated) {
            (true, _) => Place::Zero,
            (false, false) => Place::Below,
            (false, true) => Place::Data(self.checked(host).map_err(damaged)? + within),
        };
        Ok((place, cluster - within))
    }

    /// An allocated cluster must begin inside its file; only the file's last one may be cut short.
    fn checked(&self, host: u64) -> Result<u64, String> {
        if host < self.data().length { Ok(host) } else { Err(format!("cluster {host:#x} lies past the end of the file")) }
    }

    fn subclusters(&self, bitmap: u64, host: u64, allocated: bool, within: u64) -> Result<(Place, u64), String> {
        let (present, zero) = (bitmap as u32, (bitmap >> 32) as u32);
        if present & zero != 0 {
            return Err("a subcluster is both allocated and zero".into());
        }
        if present != 0 && !allocated {
            return Err("subclusters are allocated in no cluster".into());
        }
        let size = self.cluster_size() / SUBCLUSTERS;
        let first = within / size;
        let kind = |at: u64| (present >> at & 1, zero >> at & 1);
        let end = (first..SUBCLUSTERS).find(|&at| kind(at) != kind(first)).unwrap_or(SUBCLUSTERS);
        let place = match kind(first) {
            (1, _) => Place::Data(self.checked(host)? + within),
            (_, 1) => Place::Zero,
            _ => Place::Below,
        };
        Ok((place, end * size - within))
    }

    /// Reads part of a compressed cluster.
    pub fn read_compressed(&self, host: u64, length: u64, within: u64, buffer: &mut [u8]) -> Result<u64, ImageError> {
        self.decompressed.read(&self.opened, host, length, within as usize, buffer)
    }

    /// The first byte at or after `offset` that an L2 table covers; `None` past the last.
    pub fn next_table(&self, offset: u64) -> Option<u64> {
        let first = (offset / self.span()) as usize;
        let found = first + self.l1.get(first..)?.iter().position(|&at| at != 0)?;
        Some(offset.max(found as u64 * self.span()))
    }

    /// Bytes of plain data and number of compressed clusters that the files can hold at most.
    pub fn limits(&self) -> (u64, u64) {
        (self.data().length.next_multiple_of(self.cluster_size()), self.opened.length / 16 + 1)
    }

    /// The file as it is now, with everything that maps the disk to it.
    pub fn identity(&self) -> Result<LayerIdentity, ImageError> {
        let mut hasher = blake3::Hasher::new();
        let length = if self.opened.is_block_device {
            self.opened.length
        } else {
            self.opened.file.metadata().map_err(ImageError::io(self.path(), "look at"))?.len()
        };
        let mut start = vec![0; length.min(self.cluster_size()) as usize];
        self.opened.file.read_exact_at(&mut start, 0).map_err(ImageError::io(self.path(), "read"))?;
        hasher.update(&start);
        hasher.update(&self.read_words(self.header.l1_offset, self.header.l1_entries, "L1 table")?);
        for &at in self.l1.iter().filter(|&&at| at != 0) {
            hasher.update(&self.read_words(at, self.cluster_size() as usize / 8, "L2 table")?);
        }
        if let Some(data) = &self.data_file {
            let state = stat(&data.path, &data.file, data.length, [0; 32])?;
            hasher.update(format!("{state:?}").as_bytes());
        }
        stat(self.path(), &self.opened.file, length, *hasher.finalize().as_bytes())
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word))
}
