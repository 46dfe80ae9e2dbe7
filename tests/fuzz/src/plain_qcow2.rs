//! A second reader of qcow2, written from QEMU's `docs/interop/qcow2.txt` and as plain as can be: one sector at a time, whole
//! files in memory, nothing checked but that what is read lies in the file. Only for images that the real reader opened.

use std::fs;
use std::path::Path;

use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use underlay_client::image::Format;

/// Bits of an L1 or L2 entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const DATA_FILE: u64 = 1 << 2;
const ZSTD: u64 = 1 << 3;
const EXTENDED: u64 = 1 << 4;

/// 512 bytes.
pub type Sector = [u8; 512];

/// One file of a chain.
#[derive(Debug)]
pub struct Layer {
    bytes: Vec<u8>,
    data: Option<Vec<u8>>,
    qcow2: bool,
    features: u64,
    /// The compressed cluster that was read last.
    held: Option<(u64, Vec<u8>)>,
}

impl Layer {
    /// Reads a file whole, and the data file it names.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    pub fn open(path: &Path, format: Format) -> Self {
        let bytes = fs::read(path).expect("an open file can be read");
        let qcow2 = format == Format::Qcow2;
        let features = if qcow2 && be(&bytes, 4, 4) == Some(3) { be(&bytes, 72, 8).unwrap_or(0) } else { 0 };
        let mut layer = Self { bytes, data: None, qcow2, features, held: None };
        if features & DATA_FILE != 0 {
            let name = layer.extension(0x4441_5441).expect("a data file has a name");
            let name = str::from_utf8(name).expect("names are text here");
            let name = name.strip_prefix("file:").unwrap_or(name);
            let path = path.parent().expect("a file lies in a folder").join(name);
            layer.data = Some(fs::read(path).expect("an open file can be read"));
        }
        layer
    }

    /// Bytes of the disk, whole sectors.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        match self.qcow2 {
            true => be(&self.bytes, 24, 8).unwrap_or(0) & !511,
            false => (self.bytes.len() as u64).next_multiple_of(512),
        }
    }

    /// The sector at a multiple of 512: `None` if the file does not hold what its tables name, `Some(None)` if the layer
    /// below shows.
    pub fn sector(&mut self, offset: u64) -> Option<Option<Sector>> {
        if !self.qcow2 {
            return sector_of(&self.bytes, offset).map(Some);
        }
        let bits = be(&self.bytes, 20, 4)?;
        let (cluster, width) = (1 << bits, self.entry_width());
        let within = offset % cluster;
        let Some(at) = self.place_of_entry(offset)? else { return Some(None) };
        let entry = be(&self.bytes, at, 8)?;
        if entry >> 62 & 1 == 1 {
            return self.compressed(entry, bits, within).map(Some);
        }
        let host = entry & OFFSET;
        // The first cluster of a data file is known by the bit that says it is used once.
        let mut allocated = host != 0 || (entry >> 63 == 1 && self.data.is_some());
        if width == 16 {
            let bitmap = be(&self.bytes, at + 8, 8)?;
            let bit = within / (cluster / 32);
            if bitmap >> (32 + bit) & 1 == 1 {
                return Some(Some([0; 512]));
            }
            allocated = bitmap >> bit & 1 == 1;
        } else if entry & 1 == 1 {
            return Some(Some([0; 512]));
        }
        if !allocated {
            return Some(None);
        }
        let file = self.data.as_ref().unwrap_or(&self.bytes);
        (host + within < file.len() as u64).then(|| sector_of(file, host + within)).flatten().map(Some)
    }

    /// Whether the sector lies in a compressed cluster.
    #[must_use]
    pub fn is_compressed(&self, offset: u64) -> bool {
        let entry = self.place_of_entry(offset).flatten().and_then(|at| be(&self.bytes, at, 8));
        self.qcow2 && entry.is_some_and(|entry| entry >> 62 & 1 == 1)
    }

    fn entry_width(&self) -> u64 {
        if self.features & EXTENDED != 0 { 16 } else { 8 }
    }

    /// Where the L2 entry of a guest offset lies; `Some(None)` if there is no L2 table for it.
    fn place_of_entry(&self, offset: u64) -> Option<Option<u64>> {
        let cluster = 1 << be(&self.bytes, 20, 4)?;
        let (index, entries) = (offset / cluster, cluster / self.entry_width());
        let l2 = be(&self.bytes, be(&self.bytes, 40, 8)? + index / entries * 8, 8)? & OFFSET;
        Some((l2 != 0).then(|| l2 + index % entries * self.entry_width()))
    }

    fn compressed(&mut self, entry: u64, cluster_bits: u64, within: u64) -> Option<Sector> {
        if self.held.as_ref().is_none_or(|(held, _)| *held != entry) {
            let offset_bits = 62 - (cluster_bits - 8);
            let host = entry & ((1 << offset_bits) - 1);
            let sectors = (entry >> offset_bits & ((1 << (cluster_bits - 8)) - 1)) + 1;
            let end = (host / 512 * 512 + sectors * 512).min(self.bytes.len() as u64);
            let stored = self.bytes.get(host as usize..end as usize)?;
            let mut plain = vec![0; 1 << cluster_bits];
            if self.features & ZSTD == 0 {
                let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                let mut state = Box::<DecompressorOxide>::default();
                let (_, _, length) = decompress(&mut state, stored, &mut plain, 0, flags);
                (length == plain.len()).then_some(())?;
            } else {
                let mut reader = zstd::Decoder::new(stored).ok()?.single_frame();
                std::io::Read::read_exact(&mut reader, &mut plain).ok()?;
            }
            self.held = Some((entry, plain));
        }
        let (_, plain) = self.held.as_ref()?;
        plain.get(within as usize..)?.first_chunk().copied()
    }

    /// The data of a header extension.
    fn extension(&self, wanted: u64) -> Option<&[u8]> {
        let mut at = be(&self.bytes, 100, 4)?;
        loop {
            let (kind, length) = (be(&self.bytes, at, 4)?, be(&self.bytes, at + 4, 4)?);
            if kind == 0 {
                return None;
            }
            if kind == wanted {
                return self.bytes.get(at as usize + 8..(at + 8 + length) as usize);
            }
            at += 8 + length.next_multiple_of(8);
        }
    }
}

/// The disk that these layers show, the base first. `offset` is a multiple of 512.
pub fn read(layers: &mut [Layer], offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length + 512);
    while bytes.len() < length {
        bytes.extend(sector(layers, offset + bytes.len() as u64)?);
    }
    bytes.truncate(length);
    Some(bytes)
}

/// What lies deeper than a layer that is too short does not show again.
fn sector(layers: &mut [Layer], offset: u64) -> Option<Sector> {
    let Some((top, below)) = layers.split_last_mut() else { return Some([0; 512]) };
    if offset >= top.virtual_size() {
        return Some([0; 512]);
    }
    match top.sector(offset)? {
        Some(sector) => Some(sector),
        None => sector(below, offset),
    }
}

/// 512 bytes of a file; those after its end are zero.
fn sector_of(file: &[u8], offset: u64) -> Option<Sector> {
    let rest = file.get(usize::try_from(offset).ok()?..)?;
    let mut sector = [0; 512];
    sector.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    Some(sector)
}

fn be(bytes: &[u8], at: u64, width: usize) -> Option<u64> {
    let field = bytes.get(usize::try_from(at).ok()?..)?.get(..width)?;
    Some(field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}
