//! Table entries, decoded by qcow2-rs. The only file that names it: its reader is not used, its decoders are.

use std::path::Path;

use qcow2_rs::dev::{Qcow2DevParams, Qcow2Info};
use qcow2_rs::meta::{L1Entry, L2Entry, Qcow2Header, TableEntry};

use super::header::Header;
use crate::image::ImageError;

/// Decodes the entries of one image.
pub(super) struct Decoder {
    info: Qcow2Info,
    cluster_bits: u32,
}

/// A decoded L2 entry; for extended L2, its first word.
pub(super) enum Entry {
    /// A cluster in the file, or none if `host` is 0. `copied` tells apart cluster 0 of an external data file.
    Standard { host: u64, zero: bool, copied: bool },
    /// At most `length` bytes from `host` on decompress to the cluster.
    Compressed { host: u64, length: u64 },
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("cluster_bits", &self.cluster_bits).finish()
    }
}

impl Decoder {
    /// Makes a decoder for images of this geometry. The library sees a clean header, not the file's own: it has been known
    /// to panic on others.
    pub fn new(path: &Path, header: &Header) -> Result<Self, ImageError> {
        let mut clean = vec![0u8; 4096];
        let mut put = |at: usize, bytes: &[u8]| clean[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &0x5146_49fbu32.to_be_bytes());
        put(4, &3u32.to_be_bytes());
        put(20, &header.cluster_bits.to_be_bytes());
        put(24, &(1u64 << 30).to_be_bytes());
        put(96, &4u32.to_be_bytes());
        put(100, &112u32.to_be_bytes());
        let failed = |what: String| ImageError::unsupported(path, "header", what);
        let parsed = Qcow2Header::from_buf(&clean).map_err(|error| failed(error.to_string()))?;
        // Its defaults assume clusters of 4 KiB or more; these caches are never used.
        let slice = Some((9, 1024));
        let info = Qcow2Info::new(&parsed, &Qcow2DevParams::new(9, slice, slice, true, false))
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { info, cluster_bits: header.cluster_bits })
    }

    /// The L2 table an L1 entry points to; `None` if there is none.
    pub fn l1(&self, word: u64) -> Result<Option<u64>, String> {
        let entry = L1Entry::try_from_plain(word, &self.info).map_err(|error| error.to_string())?;
        Ok((!entry.is_zero()).then(|| entry.l2_offset()))
    }

    /// Decodes an L2 entry. With extended L2, bit 0 of the first word means nothing and must not be set.
    pub fn l2(&self, word: u64, extended: bool) -> Result<Entry, String> {
        let entry = L2Entry::try_from_plain(word, &self.info).map_err(|error| error.to_string())?;
        if let Some((host, length)) = entry.compressed_range(self.cluster_bits) {
            return Ok(Entry::Compressed { host, length: length as u64 });
        }
        if extended && entry.is_zero() {
            return Err(format!("{word:#x} has the zero bit, which extended entries do not have"));
        }
        Ok(Entry::Standard { host: entry.cluster_offset(), zero: entry.is_zero(), copied: entry.is_copied() })
    }
}
