//! Reads a qcow2 header and checks every field before anything trusts it.

use super::super::error::{ImageError, shown};
use super::super::file::ImageFile;
use super::decode::{Decoder, EntryRules, FixedFields, decode};

/// What the rest of the reader needs to know from a checked header. Sizes and offsets in bytes.
#[derive(Debug)]
pub(super) struct Header {
    pub cluster_bits: u32,
    /// Whole 512-byte sectors: QEMU ignores what the header's size has beyond them.
    pub virtual_size: u64,
    pub l1_offset: u64,
    /// L1 entries that the virtual size needs; the table may be longer, the rest means nothing.
    pub l1_entries: u64,
    pub extended: bool,
    pub compression: Compression,
    pub backing: Option<Vec<u8>>,
    pub backing_format: Option<Vec<u8>>,
    pub external_data: bool,
    pub data_file: Option<Vec<u8>>,
    pub decoder: Decoder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Zlib,
    Zstd,
}

const MAGIC: u32 = 0x5146_49fb;
const MAX_L1_BYTES: u64 = 32 << 20;

mod incompatible {
    pub const DIRTY: u64 = 1;
    pub const CORRUPT: u64 = 1 << 1;
    pub const DATA_FILE: u64 = 1 << 2;
    pub const COMPRESSION: u64 = 1 << 3;
    pub const EXTENDED_L2: u64 = 1 << 4;
    pub const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

mod extension {
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const DATA_FILE: u32 = 0x4441_5441;
}

/// The extensions that matter, still in bytes.
#[derive(Debug, Default)]
struct Extensions {
    backing_format: Option<Vec<u8>>,
    data_file: Option<Vec<u8>>,
    feature_names: Vec<u8>,
}

impl Header {
    /// Reads and checks the header of `file`. Reads at most one cluster.
    pub(super) fn read(file: &ImageFile) -> Result<Self, ImageError> {
        let mut first = [0; 112];
        let read = file.read_up_to(0, &mut first)?;
        if read < 4 || be32(&first, 0) != MAGIC {
            return Err(file.header("magic", format_args!("{:#010x}", be32(&first, 0)), "not a qcow2 image"));
        }
        let version = be32(&first, 4);
        if !(2..=3).contains(&version) {
            return Err(file.header("version", version, "only 2 and 3 are supported"));
        }
        let v3 = version == 3;
        if read < if v3 { 104 } else { 72 } {
            return Err(file.header("magic", "qcow2", format!("the file is truncated to {read} bytes")));
        }
        let cluster_bits = be32(&first, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(file.header("cluster_bits", cluster_bits, "must be 9 to 21"));
        }
        let length = if v3 { be32(&first, 100) } else { 72 };
        if v3 && (length < 104 || length % 8 != 0 || length > 1 << cluster_bits) {
            return Err(file.header("header_length", length, "must be 104 or more, and fit in a cluster"));
        }
        first[length.min(112) as usize..].fill(0);
        let refcount_order = if v3 { be32(&first, 96) } else { 4 };
        if refcount_order > 6 {
            return Err(file.header("refcount_order", refcount_order, "must be 0 to 6"));
        }
        let mut cluster = vec![0; usize::min(1 << cluster_bits, file.size() as usize)];
        let read = file.read_up_to(0, &mut cluster)?;
        cluster.truncate(read);
        let extensions = read_extensions(file, &cluster, length as usize)?;
        let features = if v3 { be64(&first, 72) } else { 0 };
        check_features(file, features, &extensions.feature_names)?;
        let rules = EntryRules {
            version,
            extended: features & incompatible::EXTENDED_L2 != 0,
            external_data: features & incompatible::DATA_FILE != 0,
        };
        if rules.extended && cluster_bits < 14 {
            return Err(file.header("cluster_bits", cluster_bits, "extended L2 entries need at least 14"));
        }
        let (fields, decoder) = decode(&first, cluster_bits, rules)
            .map_err(|problem| file.header("fixed fields", "unreadable", problem))?;
        let header = Self {
            cluster_bits,
            virtual_size: fields.size & !511,
            l1_offset: fields.l1_offset,
            l1_entries: 0,
            extended: rules.extended,
            compression: compression(file, features, fields.compression_type)?,
            backing: backing_name(file, &cluster)?,
            backing_format: extensions.backing_format,
            external_data: rules.external_data,
            data_file: extensions.data_file,
            decoder,
        };
        header.with_checked_offsets(file, fields)
    }

    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of one L2 entry.
    pub(super) fn l2_entry_size(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Bytes of guest address space that one L2 table maps.
    pub(super) fn l2_coverage(&self) -> u64 {
        (self.cluster_size() / self.l2_entry_size()) << self.cluster_bits
    }

    fn with_checked_offsets(mut self, file: &ImageFile, fields: FixedFields) -> Result<Self, ImageError> {
        if fields.crypt_method != 0 {
            let feature = match fields.crypt_method {
                1 => "AES encryption (header field crypt_method is 1)".into(),
                2 => "LUKS encryption (header field crypt_method is 2)".into(),
                other => format!("encryption (header field crypt_method is {other})"),
            };
            return Err(unsupported(
                file,
                feature,
                Some("back it up from a decrypted copy: qemu-img convert"),
            ));
        }
        if fields.size > i64::MAX as u64 {
            return Err(file.header("size", fields.size, "no disk is that large"));
        }
        let bytes = u64::from(fields.l1_entries) * 8;
        if bytes > MAX_L1_BYTES {
            return Err(file.header("l1_size", fields.l1_entries, "the L1 table is larger than 32 MiB"));
        }
        let needed = fields.size.div_ceil(self.l2_coverage());
        if needed > u64::from(fields.l1_entries) {
            return Err(file.header(
                "l1_size",
                fields.l1_entries,
                format!("a disk of {} bytes needs {needed} entries", fields.size),
            ));
        }
        if fields.l1_entries > 0 {
            self.check_offset(file, "l1_table_offset", fields.l1_offset, bytes)?;
        }
        self.check_offset(file, "refcount_table_offset", fields.refcount_table_offset, 1)?;
        if fields.snapshots > 0 {
            self.check_offset(file, "snapshots_offset", fields.snapshots_offset, 1)?;
        }
        self.l1_entries = needed;
        Ok(self)
    }

    fn check_offset(
        &self,
        file: &ImageFile,
        field: &'static str,
        offset: u64,
        length: u64,
    ) -> Result<(), ImageError> {
        let problem = if !offset.is_multiple_of(self.cluster_size()) {
            "not aligned to a cluster"
        } else if offset == 0 {
            "points to the header"
        } else if offset.checked_add(length).is_none_or(|end| end > file.size()) {
            "beyond the end of the file, which is truncated or damaged"
        } else {
            return Ok(());
        };
        Err(file.header(field, offset, problem))
    }
}

fn read_extensions(file: &ImageFile, cluster: &[u8], start: usize) -> Result<Extensions, ImageError> {
    let mut found = Extensions::default();
    let backing_offset = be64(cluster, 8) as usize;
    let end = if backing_offset == 0 { cluster.len() } else { backing_offset.min(cluster.len()) };
    let mut position = start;
    while position + 8 <= end {
        let (kind, length) = (be32(cluster, position), be32(cluster, position + 4) as usize);
        position += 8;
        if kind == 0 {
            break;
        }
        if length > end - position {
            let problem = "longer than the header cluster";
            return Err(file.header("extension length", format_args!("{length} (type {kind:#x})"), problem));
        }
        let data = &cluster[position..position + length];
        match kind {
            extension::BACKING_FORMAT => found.backing_format = Some(data.to_vec()),
            extension::DATA_FILE => found.data_file = Some(data.to_vec()),
            extension::FEATURE_NAMES => found.feature_names = data.to_vec(),
            _ => {}
        }
        position = position.saturating_add(length.next_multiple_of(8));
    }
    Ok(found)
}

fn check_features(file: &ImageFile, features: u64, names: &[u8]) -> Result<(), ImageError> {
    let unknown = features & !incompatible::KNOWN;
    if unknown != 0 {
        let bit = unknown.trailing_zeros() as u8;
        let name = names
            .chunks_exact(48)
            .find(|record| record[0] == 0 && record[1] == bit)
            .map(|record| shown(record[2..].split(|byte| *byte == 0).next().unwrap_or_default()))
            .map(|name| format!(", which the image calls {name:?}"))
            .unwrap_or_default();
        return Err(unsupported(file, format!("incompatible feature bit {bit}{name}"), None));
    }
    if features & incompatible::CORRUPT != 0 {
        let problem = "QEMU has marked this image as corrupt";
        return Err(file.header("incompatible_features", format_args!("{features:#x}"), problem));
    }
    Ok(())
}

fn compression(file: &ImageFile, features: u64, kind: u8) -> Result<Compression, ImageError> {
    match (features & incompatible::COMPRESSION != 0, kind) {
        (false, 0) => Ok(Compression::Zlib),
        (true, 1) => Ok(Compression::Zstd),
        (flagged, kind @ 0..=1) => {
            let problem =
                if flagged { "but the feature bit says otherwise" } else { "without its feature bit" };
            Err(file.header("compression_type", kind, problem))
        }
        (_, kind) => Err(unsupported(file, format!("compression type {kind}"), None)),
    }
}

fn backing_name(file: &ImageFile, cluster: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
    let (offset, length) = (be64(cluster, 8), be32(cluster, 16));
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > 1023 {
        return Err(file.header("backing_file_size", length, "must not exceed 1023"));
    }
    let name = usize::try_from(offset)
        .ok()
        .and_then(|start| Some(start..start.checked_add(length as usize)?))
        .and_then(|range| cluster.get(range));
    match name {
        Some(name) => Ok(Some(name.to_vec())),
        None => Err(file.header("backing_file_offset", offset, "the name is not in the header cluster")),
    }
}

fn unsupported(file: &ImageFile, feature: String, hint: Option<&'static str>) -> ImageError {
    ImageError::Unsupported { path: file.path.clone(), feature, hint }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
