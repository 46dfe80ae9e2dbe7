//! Reads packs: whole ones, or by ranges. Nothing in them is trusted.

use super::layout::{
    ENTRY_LENGTH, Entry, FOOTER_LENGTH, FOOTER_MAGIC, FRAME_HEADER_LENGTH, Fields, FrameRef, HASH_LENGTH,
    HEADER_FIXED, HEADER_MAGIC, Header, frame_damaged, keys_allowed, kind_byte,
};
use super::writer::name_of;
use super::{MAXIMUM_LENGTH, PackId, PackKind, VERSION};
use crate::id::RepositoryId;
use crate::key::SealedKey;
use crate::{Error, Result};

const CUT_OFF: &str = "it is cut off";

/// What a part of a pack gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// Everything.
    Whole(T),
    /// Nothing yet: this many bytes are needed, counted from the same end of the pack.
    Needs(usize),
}

/// What a pack says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackIndex {
    /// Its header.
    pub header: Header,
    /// Its trailer.
    pub entries: Vec<Entry>,
}

/// A pack's last 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Number of entries.
    pub entries: u32,
    /// Bytes of the header.
    pub header_length: u32,
    /// Offset of the first entry in the pack, in bytes.
    pub first_entry: u32,
    hash: [u8; 32],
}

impl Footer {
    /// Bytes of the trailer, entries and footer: the end of the pack to read.
    pub fn trailer_length(&self) -> usize {
        self.entries as usize * ENTRY_LENGTH + FOOTER_LENGTH
    }

    /// Bytes of the whole pack.
    pub fn pack_length(&self) -> usize {
        self.first_entry as usize + self.trailer_length()
    }
}

/// Checks that an object has the SHA-256 that it is called.
///
/// # Errors
/// [`Error::Damaged`] if not.
pub fn verify_name(pack: &PackId, bytes: &[u8]) -> Result<()> {
    let found = name_of(bytes);
    if found == pack.name {
        return Ok(());
    }
    Err(Error::damaged(pack.to_string(), format!("its SHA-256 is {found}")))
}

/// Checks a whole pack, all that can be checked without keys, and returns what it holds. The name is
/// [`verify_name`]'s business.
///
/// # Errors
/// [`Error::Damaged`] if header, frames and trailer are not exactly as the format draws them or do not agree;
/// [`Error::Version`] if another version wrote the pack.
pub fn parse(pack: &PackId, bytes: &[u8]) -> Result<PackIndex> {
    let damaged = |what: &str| Error::damaged(pack.to_string(), what);
    let Parsed::Whole(header) = parse_header(pack, bytes)? else {
        return Err(damaged(CUT_OFF));
    };
    let Parsed::Whole((footer, entries)) = parse_trailer(pack, bytes.len() as u64, bytes)? else {
        return Err(damaged(CUT_OFF));
    };
    if footer.header_length as usize != header.length() {
        return Err(damaged("header and trailer disagree"));
    }
    for entry in &entries {
        let start = entry.offset as usize;
        let frame =
            bytes.get(start..start + entry.frame_length() as usize).ok_or_else(|| damaged(CUT_OFF))?;
        let frame = parse_frame(pack, frame, entry)?;
        if header.kind == PackKind::Data {
            header.key_of(pack, &frame)?;
        }
    }
    Ok(PackIndex { header, entries })
}

/// Reads the header from a pack's first bytes. 48 are enough to learn how many are needed.
///
/// # Errors
/// [`Error::Damaged`] if it is not a header of this kind of pack, [`Error::Version`] if another version wrote it.
pub fn parse_header(pack: &PackId, prefix: &[u8]) -> Result<Parsed<Header>> {
    let damaged = |what: &str| Error::damaged(format!("header of {pack}"), what);
    let mut fields = Fields(prefix);
    let Some(fixed) = prefix.get(..HEADER_FIXED) else {
        return Ok(Parsed::Needs(HEADER_FIXED));
    };
    let cut_off = || damaged(CUT_OFF);
    if fields.take().ok_or_else(cut_off)? != *HEADER_MAGIC {
        return Err(damaged("no pack begins here"));
    }
    check_version(pack, fields.u16().ok_or_else(cut_off)?)?;
    if fields.byte() != Some(kind_byte(pack.kind)) {
        return Err(damaged("it is of another kind than its name says"));
    }
    if fields.byte() != Some(0) {
        return Err(damaged("a reserved byte is not zero"));
    }
    let keys = fields.u32().ok_or_else(cut_off)? as usize;
    if !keys_allowed(pack.kind, keys) {
        return Err(damaged("its number of keys is out of bounds"));
    }
    let repository = RepositoryId::new(fields.take().ok_or_else(cut_off)?);
    let salt = fields.take().ok_or_else(cut_off)?;
    let length = Header::length_with(keys);
    let Some(whole) = prefix.get(fixed.len()..length) else {
        return Ok(Parsed::Needs(length));
    };
    let (table, hash) = whole.split_at(whole.len() - HASH_LENGTH);
    if blake3::hash(&prefix[..length - HASH_LENGTH]).as_bytes() != hash {
        return Err(damaged("it does not have its checksum"));
    }
    let (sealed_keys, _) = table.as_chunks::<{ SealedKey::LENGTH }>();
    let sealed_keys = sealed_keys.iter().map(|key| SealedKey::new(*key)).collect();
    Ok(Parsed::Whole(Header { kind: pack.kind, repository, salt, sealed_keys }))
}

/// Reads the footer: a pack's last 64 bytes. Its checksum covers the entries too, so only [`parse_trailer`] checks it.
///
/// # Errors
/// [`Error::Damaged`] if it is not a footer, [`Error::Version`] if another version wrote it.
pub fn parse_footer(pack: &PackId, tail: &[u8]) -> Result<Footer> {
    let damaged = |what: &str| Error::damaged(format!("trailer of {pack}"), what);
    let cut_off = || damaged(CUT_OFF);
    let footer = tail.last_chunk::<FOOTER_LENGTH>().ok_or_else(cut_off)?;
    let mut fields = Fields(footer);
    let entries = fields.u32().ok_or_else(cut_off)?;
    let header_length = fields.u32().ok_or_else(cut_off)?;
    let first_entry = fields.u32().ok_or_else(cut_off)?;
    let reserved = fields.u32();
    let hash = fields.take().ok_or_else(cut_off)?;
    let version = fields.u16().ok_or_else(cut_off)?;
    let more_reserved = fields.take();
    if fields.take() != Some(*FOOTER_MAGIC) {
        return Err(damaged("no pack ends here"));
    }
    check_version(pack, version)?;
    if reserved != Some(0) || more_reserved != Some([0; 6]) {
        return Err(damaged("reserved bytes are not zero"));
    }
    // A frame has a byte of payload at least; this also bounds the sum below.
    if entries == 0 || u64::from(entries) * u64::from(FRAME_HEADER_LENGTH + 1) > u64::from(first_entry) {
        return Err(damaged("its number of entries is out of bounds"));
    }
    let footer = Footer { entries, header_length, first_entry, hash };
    let length = u64::from(first_entry) + u64::from(entries) * ENTRY_LENGTH as u64 + FOOTER_LENGTH as u64;
    if length > u64::from(MAXIMUM_LENGTH) || header_length >= first_entry {
        return Err(damaged("its lengths are out of bounds"));
    }
    Ok(footer)
}

/// Reads the trailer from a pack's last bytes; 64 are enough to learn how many are needed. `pack_length` is the length of
/// the object in bytes.
///
/// # Errors
/// [`Error::Damaged`] if it is not a trailer, or not of a pack of this length and kind; [`Error::Version`] if another
/// version wrote it.
pub fn parse_trailer(pack: &PackId, pack_length: u64, tail: &[u8]) -> Result<Parsed<(Footer, Vec<Entry>)>> {
    let damaged = |what: &str| Error::damaged(format!("trailer of {pack}"), what);
    if tail.len() < FOOTER_LENGTH && (tail.len() as u64) < pack_length {
        return Ok(Parsed::Needs(FOOTER_LENGTH));
    }
    let footer = parse_footer(pack, tail)?;
    if footer.pack_length() as u64 != pack_length {
        return Err(damaged("it belongs to a pack of another length"));
    }
    let Some(start) = tail.len().checked_sub(footer.trailer_length()) else {
        return Ok(Parsed::Needs(footer.trailer_length()));
    };
    let trailer = &tail[start..];
    let (entries, rest) = trailer.split_at(trailer.len() - FOOTER_LENGTH);
    let hash = blake3::Hasher::new().update(entries).update(&rest[..16]).finalize();
    if *hash.as_bytes() != footer.hash {
        return Err(damaged("it does not have its checksum"));
    }
    let keys = (footer.header_length as usize)
        .checked_sub(Header::length_with(0))
        .filter(|table| table.is_multiple_of(SealedKey::LENGTH))
        .map(|table| table / SealedKey::LENGTH);
    if !keys.is_some_and(|keys| keys_allowed(pack.kind, keys)) {
        return Err(damaged("its header's length is out of bounds"));
    }
    let mut expected = footer.header_length;
    let mut read = Vec::with_capacity(footer.entries as usize);
    for (index, entry) in entries.as_chunks::<ENTRY_LENGTH>().0.iter().enumerate() {
        let entry =
            Entry::read(pack.kind, entry).map_err(|what| damaged(&format!("entry {index}: {what}")))?;
        if entry.offset != expected {
            return Err(damaged(&format!("entry {index} leaves a gap")));
        }
        // Lengths are at most 2 MiB and offsets below 64 MiB, or the next entry is refused.
        expected = expected.saturating_add(entry.frame_length());
        read.push(entry);
    }
    if expected != footer.first_entry {
        return Err(damaged("its frames do not end where it begins"));
    }
    Ok(Parsed::Whole((footer, read)))
}

/// Reads the one frame that a ranged read of `entry` gave.
///
/// # Errors
/// [`Error::Damaged`] if it is not exactly a frame of this pack's kind, or not the one that `entry` promises, or a node
/// without its checksum. A chunk's payload is checked by decoding it.
pub fn parse_frame<'a>(pack: &PackId, bytes: &'a [u8], entry: &Entry) -> Result<FrameRef<'a>> {
    let damaged = |what: &str| frame_damaged(pack, entry.offset, what);
    let frame = FrameRef::read(pack.kind, entry.offset, bytes).map_err(damaged)?;
    if frame.entry() != *entry || bytes.len() != entry.frame_length() as usize {
        return Err(damaged("it is not the one that the pack's trailer or the catalog promises"));
    }
    Ok(frame)
}

fn check_version(pack: &PackId, found: u16) -> Result<()> {
    if found == VERSION {
        return Ok(());
    }
    Err(Error::Version { object: pack.to_string(), found: found.into(), known: VERSION.into() })
}
