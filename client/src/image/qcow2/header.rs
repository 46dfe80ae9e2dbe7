//! The qcow2 header: read field by field and checked before anything else is believed.

use std::path::Path;

use crate::image::ImageError;

const MAGIC: u32 = 0x5146_49fb;
/// No valid L1 table is longer, in bytes.
const L1_LIMIT: u64 = 32 << 20;
const KNOWN_BITS: [(u32, &str); 5] =
    [(0, "dirty"), (1, "corrupt"), (2, "external data file"), (3, "compression type"), (4, "extended L2")];
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What underlay needs of a qcow2 header, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of guest address space.
    pub size: u64,
    /// log2 of the cluster size: 9..=21.
    pub cluster_bits: u32,
    pub l1_offset: u64,
    /// Entries of the L1 table that cover the disk.
    pub l1_entries: usize,
    pub extended_l2: bool,
    /// Compressed clusters are zstd, not deflate.
    pub zstd: bool,
    pub has_data_file: bool,
    /// Name of the data file as written in the image.
    pub data_file: Option<String>,
    pub backing_file: Option<String>,
    pub backing_format: Option<String>,
}

/// The header's bytes, with the file's name for errors.
struct Fields<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn slice(&self, at: u64, length: u64, field: &'static str) -> Result<&'a [u8], ImageError> {
        let range = usize::try_from(at).ok().zip(at.checked_add(length).and_then(|end| usize::try_from(end).ok()));
        range
            .and_then(|(start, end)| self.bytes.get(start..end))
            .ok_or_else(|| ImageError::damaged(self.path, field, "lies past the end of the header's cluster or of the file"))
    }

    fn u32(&self, at: u64, field: &'static str) -> Result<u32, ImageError> {
        Ok(self.slice(at, 4, field)?.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn u64(&self, at: u64, field: &'static str) -> Result<u64, ImageError> {
        Ok(self.slice(at, 8, field)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn text(&self, at: u64, length: u64, field: &'static str) -> Result<String, ImageError> {
        let bytes = self.slice(at, length, field)?;
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
            _ => Err(self.damaged(field, "is not UTF-8 text")),
        }
    }

    fn damaged(&self, field: &'static str, what: impl Into<String>) -> ImageError {
        ImageError::damaged(self.path, field, what)
    }
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    /// Names of incompatible bits, as the image gives them.
    names: Vec<(u32, String)>,
}

impl Header {
    /// Reads the header. `bytes` is the start of the file: its first cluster, or all of a file that is shorter.
    pub fn parse(path: &Path, bytes: &[u8], file_length: u64) -> Result<Self, ImageError> {
        let fields = Fields { path, bytes };
        if fields.u32(0, "magic")? != MAGIC {
            return Err(fields.damaged("magic", "is not that of a qcow2 image"));
        }
        let version = fields.u32(4, "version")?;
        if version != 2 && version != 3 {
            let what = format!("{version} is not supported; this build reads 2 and 3");
            return Err(ImageError::unsupported(path, "version", what));
        }
        let cluster_bits = fields.u32(20, "cluster_bits")?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(fields.damaged("cluster_bits", format!("{cluster_bits} is not in 9..=21")));
        }
        // Nothing of the header lies past its first cluster.
        let fields = Fields { path, bytes: &bytes[..bytes.len().min(1 << cluster_bits)] };
        let (incompatible, header_length) = match version {
            2 => (0, 72),
            _ => (fields.u64(72, "incompatible_features")?, fields.u32(100, "header_length")?),
        };
        if version == 3 && (header_length < 104 || !header_length.is_multiple_of(8)) {
            return Err(fields.damaged("header_length", format!("{header_length} is not a multiple of 8 from 104 on")));
        }
        let crypt = fields.u32(32, "crypt_method")?;
        if crypt != 0 {
            return Err(ImageError::unsupported(path, "crypt_method", format!("is {crypt}: encrypted images cannot be read")));
        }
        let extensions = extensions(&fields, u64::from(header_length))?;
        refuse_bits(path, incompatible, &extensions)?;
        let compression = match header_length {
            0..=104 => 0,
            _ => fields.slice(104, 1, "compression_type")?[0],
        };
        if compression > 1 || (compression != 0) != (incompatible & 1 << 3 != 0) {
            return Err(fields.damaged("compression_type", format!("{compression} does not fit the feature bits")));
        }
        let backing_file = backing_name(&fields)?;
        let mut header = Self {
            size: fields.u64(24, "size")?,
            cluster_bits,
            l1_offset: fields.u64(40, "l1_table_offset")?,
            l1_entries: 0,
            extended_l2: incompatible & 1 << 4 != 0,
            zstd: compression == 1,
            has_data_file: incompatible & 1 << 2 != 0,
            data_file: extensions.data_file,
            backing_file,
            backing_format: extensions.backing_format,
        };
        header.check_l1(&fields, fields.u32(36, "l1_size")?, file_length)?;
        Ok(header)
    }

    /// Entries of one L2 table.
    pub fn l2_entries(&self) -> u64 {
        (1 << self.cluster_bits) / if self.extended_l2 { 16 } else { 8 }
    }

    fn check_l1(&mut self, fields: &Fields<'_>, l1_size: u32, file_length: u64) -> Result<(), ImageError> {
        if self.extended_l2 && self.cluster_bits < 14 {
            return Err(fields.damaged("cluster_bits", "is below 14 with extended L2 entries"));
        }
        let bytes = u64::from(l1_size) * 8;
        if bytes > L1_LIMIT {
            return Err(fields.damaged("l1_size", format!("{l1_size} is more than 32 MiB of entries")));
        }
        let span = self.l2_entries() << self.cluster_bits;
        let needed = self.size.div_ceil(span);
        if needed > u64::from(l1_size) {
            return Err(fields.damaged("l1_size", format!("{l1_size} does not cover the disk's {} bytes", self.size)));
        }
        let aligned = self.l1_offset.is_multiple_of(1 << self.cluster_bits);
        let end = self.l1_offset.checked_add(bytes);
        if needed > 0 && (!aligned || self.l1_offset == 0 || end.is_none_or(|end| end > file_length)) {
            let what = format!("{:#x} is not aligned or lies past the end of the file", self.l1_offset);
            return Err(fields.damaged("l1_table_offset", what));
        }
        self.l1_entries = needed as usize;
        Ok(())
    }
}

fn backing_name(fields: &Fields<'_>) -> Result<Option<String>, ImageError> {
    let field = "backing_file_name";
    let (at, length) = (fields.u64(8, "backing_file_offset")?, fields.u32(16, "backing_file_size")?);
    if at == 0 {
        return Ok(None);
    }
    if length == 0 || length > 1023 {
        return Err(fields.damaged("backing_file_size", format!("{length} is not in 1..=1023")));
    }
    fields.text(at, u64::from(length), field).map(Some)
}

fn extensions(fields: &Fields<'_>, mut at: u64) -> Result<Extensions, ImageError> {
    let field = "header extension";
    let mut found = Extensions::default();
    // A header that fills its cluster, or an old one that is followed by its backing name, has none.
    while let (Ok(kind), Ok(length)) = (fields.u32(at, field), fields.u32(at + 4, field)) {
        let (length, data) = (u64::from(length), at + 8);
        match kind {
            0 => break,
            EXTENSION_BACKING_FORMAT => found.backing_format = Some(fields.text(data, length, "backing format")?),
            EXTENSION_DATA_FILE => found.data_file = Some(fields.text(data, length, "data file name")?),
            EXTENSION_FEATURE_NAMES => {
                let rows = fields.slice(data, length, field)?.chunks_exact(48).filter(|row| row[0] == 0);
                found.names.extend(rows.map(|row| {
                    let name = row[2..].iter().take_while(|byte| (0x20..0x7f).contains(*byte));
                    (u32::from(row[1]), name.map(|&byte| char::from(byte)).collect())
                }));
            }
            _ => drop(fields.slice(data, length, field)?),
        }
        at = data + length.next_multiple_of(8);
    }
    Ok(found)
}

fn refuse_bits(path: &Path, incompatible: u64, extensions: &Extensions) -> Result<(), ImageError> {
    let field = "incompatible_features";
    if incompatible & 2 != 0 {
        return Err(ImageError::unsupported(path, field, "has the corrupt bit: repair the image first, with qemu-img check -r"));
    }
    for bit in (0..64).filter(|bit| incompatible & 1 << bit != 0) {
        if !KNOWN_BITS.iter().any(|(known, _)| *known == bit) {
            let name = extensions.names.iter().find(|(named, _)| *named == bit).map_or("no name given", |(_, name)| name);
            return Err(ImageError::unsupported(path, field, format!("has bit {bit} ({name}), which this build does not know")));
        }
    }
    Ok(())
}
