//! Decodes qcow2's fixed header fields and table entries with `qcow2_rs`. The only file that names that crate.
//!
//! It is used as a decoder and nothing else: its reader is not safe on damaged images, and its header parser
//! panics on some. So it gets a copy of the header in which everything it would trip over is normalised.

use qcow2_rs::dev::{Qcow2DevParams, Qcow2Info};
use qcow2_rs::meta::{L1Entry, L2Entry, Qcow2Header, TableEntry};

/// The fixed-size fields of a header, unchecked, in the file's own units.
#[derive(Debug, Clone, Copy)]
pub(super) struct FixedFields {
    pub size: u64,
    pub crypt_method: u32,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub compression_type: u8,
}

/// What one L2 entry says about its cluster. Offsets are bytes in the data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    Unallocated,
    Zero,
    Data { host: u64 },
    Compressed { host: u64, length: u32 },
}

/// Decodes the table entries of one image.
#[derive(Debug)]
pub(super) struct Decoder {
    info: Qcow2Info,
    cluster_bits: u32,
    zero_flag: bool,
    extended: bool,
    external_data: bool,
}

/// Which rules the entries of an image follow.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryRules {
    pub version: u32,
    pub extended: bool,
    pub external_data: bool,
}

const FIXED: usize = 112;
const V2_FIXED: usize = 72;

/// Decodes the fixed fields and builds the decoder for the entries.
///
/// `fixed` are the file's first bytes, zero-padded to 112; `version`, `cluster_bits` (9..=21) and the refcount
/// order (0..=6) must have been checked.
pub(super) fn decode(
    fixed: &[u8; FIXED],
    cluster_bits: u32,
    rules: EntryRules,
) -> Result<(FixedFields, Decoder), String> {
    let mut plain = [0; FIXED + 8];
    plain[..FIXED].copy_from_slice(fixed);
    if rules.version == 2 {
        plain[V2_FIXED..].fill(0);
    }
    plain[8..20].fill(0); // the backing file's name
    plain[72..80].fill(0); // incompatible features
    plain[100..104].copy_from_slice(&(FIXED as u32).to_be_bytes());
    plain[FIXED..].fill(0); // the end of the extensions
    let header = Qcow2Header::from_buf(&plain).map_err(|error| error.to_string())?;
    // Its cache sizes matter to its own reader only, but make it subtract; these fit every cluster size.
    let parameters = Qcow2DevParams::new(9, Some((9, 4096)), Some((9, 4096)), true, false);
    let info = Qcow2Info::new(&header, &parameters).map_err(|error| error.to_string())?;
    let fields = FixedFields {
        size: header.size(),
        crypt_method: header.crypt_method(),
        l1_entries: u32::try_from(header.l1_table_entries()).map_err(|error| error.to_string())?,
        l1_offset: header.l1_table_offset(),
        refcount_table_offset: header.reftable_offset(),
        snapshots: header.nb_snapshots(),
        snapshots_offset: header.snapshots_offset(),
        compression_type: header.compression_type(),
    };
    let decoder = Decoder {
        info,
        cluster_bits,
        zero_flag: rules.version >= 3 && !rules.extended,
        extended: rules.extended,
        external_data: rules.external_data,
    };
    Ok((fields, decoder))
}

impl Decoder {
    /// The file offset of an L2 table, or `None` where the L1 entry maps nothing.
    pub(super) fn l1(&self, raw: u64) -> Result<Option<u64>, String> {
        let entry = L1Entry::try_from_plain(raw, &self.info).map_err(|error| error.to_string())?;
        Ok(Some(entry.l2_offset()).filter(|offset| *offset != 0))
    }

    /// What the first (or only) word of an L2 entry says.
    pub(super) fn l2(&self, raw: u64) -> Result<Cluster, String> {
        let entry = L2Entry::try_from_plain(raw, &self.info).map_err(|error| error.to_string())?;
        if let Some((host, length)) = entry.compressed_range(self.cluster_bits) {
            let offset_bits = 62 - (self.cluster_bits - 8);
            if entry.compressed_descriptor() & ((1 << offset_bits) - 1) != host {
                return Err(format!("compressed cluster entry {raw:#x} has an impossible offset"));
            }
            let length = u32::try_from(length).map_err(|error| error.to_string())?;
            return Ok(Cluster::Compressed { host, length });
        }
        if entry.is_zero() {
            if self.zero_flag {
                return Ok(Cluster::Zero);
            }
            let which = if self.extended { "extended L2 entries" } else { "version 2" };
            return Err(format!("L2 entry {raw:#x} has the zero flag, which {which} cannot have"));
        }
        match entry.cluster_offset() {
            0 if !entry.is_copied() => Ok(Cluster::Unallocated),
            0 if !self.external_data => Err(format!("L2 entry {raw:#x} points to the header")),
            host => Ok(Cluster::Data { host }),
        }
    }
}
