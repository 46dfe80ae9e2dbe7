//! The bytes of headers, frames, entries: written and read here and nowhere else.

use super::{MAXIMUM_KEYS, MAXIMUM_PLAIN_LENGTH, PackId, PackKind, VERSION};
use crate::id::{ChunkId, NodeId, RepositoryId};
use crate::key::SealedKey;
use crate::{Error, Result};

/// Bytes of a frame before its payload.
pub const FRAME_HEADER_LENGTH: u32 = 60;
pub(super) const HEADER_MAGIC: &[u8; 8] = b"UNDLPACK";
pub(super) const FRAME_MAGIC: &[u8; 4] = b"ulf1";
pub(super) const FOOTER_MAGIC: &[u8; 8] = b"UNDLTAIL";
pub(super) const HEADER_FIXED: usize = 48;
pub(super) const HASH_LENGTH: usize = 32;
/// Bytes of a trailer's line about a frame.
pub const ENTRY_LENGTH: usize = 48;
pub(super) const FOOTER_LENGTH: usize = 64;
pub(super) const NO_KEY: u16 = 0xffff;
const TAG_LENGTH: u32 = 16;

/// Reads fields one after another; `None` past the end.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
}

/// How a payload was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not at all.
    None,
    /// A Zstandard frame.
    Zstd,
}

impl Codec {
    /// As in packs.
    pub const fn as_byte(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Zstd => 1,
        }
    }

    /// Reads [`Codec::as_byte`] back.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::None),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Where a pack holds what: one line of its trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// A chunk's id or a node's, as the pack's kind says.
    pub id: [u8; 32],
    /// Offset of the frame in the pack, in bytes.
    pub offset: u32,
    /// Bytes of the frame after its header.
    pub payload_length: u32,
    /// Bytes of the chunk or node.
    pub plain_length: u32,
    /// How it was compressed.
    pub codec: Codec,
}

impl Entry {
    /// Bytes of the whole frame: what a ranged read asks for from [`Entry::offset`].
    pub const fn frame_length(&self) -> u32 {
        FRAME_HEADER_LENGTH + self.payload_length
    }

    /// The id, in a data pack.
    pub const fn chunk_id(&self) -> ChunkId {
        ChunkId::new(self.id)
    }

    /// The id, in a node pack.
    pub const fn node_id(&self) -> NodeId {
        NodeId::new(self.id)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.payload_length.to_le_bytes());
        out.extend_from_slice(&self.plain_length.to_le_bytes());
        out.extend_from_slice(&[self.codec.as_byte(), 0, 0, 0]);
    }

    /// Reads an entry; the error says what is wrong with it.
    pub(super) fn read(kind: PackKind, bytes: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "it is cut off";
        let mut fields = Fields(bytes);
        let entry = Self {
            id: fields.take().ok_or(SHORT)?,
            offset: fields.u32().ok_or(SHORT)?,
            payload_length: fields.u32().ok_or(SHORT)?,
            plain_length: fields.u32().ok_or(SHORT)?,
            codec: Codec::from_byte(fields.byte().ok_or(SHORT)?).ok_or("its codec is unknown")?,
        };
        if fields.take() != Some([0; 3]) {
            return Err("reserved bytes are not zero");
        }
        check_lengths(kind, entry.codec, entry.plain_length, entry.payload_length)?;
        Ok(entry)
    }
}

/// What codec and lengths may be together.
pub(super) fn check_lengths(
    kind: PackKind,
    codec: Codec,
    plain: u32,
    payload: u32,
) -> Result<(), &'static str> {
    if !(1..=MAXIMUM_PLAIN_LENGTH).contains(&plain) {
        return Err("its plain length is out of bounds");
    }
    let fits = match (kind, codec) {
        (PackKind::Nodes, Codec::None) => payload == plain,
        (PackKind::Nodes, Codec::Zstd) => return Err("nodes are not compressed"),
        (PackKind::Data, Codec::None) => payload == plain + TAG_LENGTH,
        (PackKind::Data, Codec::Zstd) => payload > TAG_LENGTH && payload < plain + TAG_LENGTH,
    };
    if fits { Ok(()) } else { Err("its payload length does not fit its plain length") }
}

/// A pack's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the pack holds.
    pub kind: PackKind,
    /// The repository it was written for.
    pub repository: RepositoryId,
    /// Random, so that no two packs that were ever written have the same name, whatever they hold.
    pub salt: [u8; 16],
    /// The keys that its frames name; empty in a node pack.
    pub sealed_keys: Vec<SealedKey>,
}

impl Header {
    /// Bytes of a header with this many keys.
    pub(super) const fn length_with(keys: usize) -> usize {
        HEADER_FIXED + keys * SealedKey::LENGTH + HASH_LENGTH
    }

    /// Bytes of this header; the first frame follows.
    pub fn length(&self) -> usize {
        Self::length_with(self.sealed_keys.len())
    }

    /// The key that a frame names.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the frame names none of the table.
    pub fn key_of(&self, pack: &PackId, frame: &FrameRef<'_>) -> Result<&SealedKey> {
        self.sealed_keys
            .get(usize::from(frame.key_index))
            .ok_or_else(|| frame_damaged(pack, frame.offset, "it names a key that the pack's header lacks"))
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(HEADER_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[kind_byte(self.kind), 0]);
        let keys = u32::try_from(self.sealed_keys.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&keys.to_le_bytes());
        out.extend_from_slice(self.repository.as_bytes());
        out.extend_from_slice(&self.salt);
        self.sealed_keys.iter().for_each(|key| out.extend_from_slice(key.as_bytes()));
        let hash = blake3::hash(&out[start..]);
        out.extend_from_slice(hash.as_bytes());
    }
}

pub(super) const fn kind_byte(kind: PackKind) -> u8 {
    match kind {
        PackKind::Data => 1,
        PackKind::Nodes => 2,
    }
}

pub(super) const fn keys_allowed(kind: PackKind, keys: usize) -> bool {
    match kind {
        PackKind::Data => 1 <= keys && keys <= MAXIMUM_KEYS,
        PackKind::Nodes => keys == 0,
    }
}

/// A frame as it lies in a pack, its header checked, its payload not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRef<'a> {
    /// Where it lies in its pack, in bytes.
    pub offset: u32,
    /// How the payload was compressed.
    pub codec: Codec,
    /// Which key of the header's table; 0xffff in a node pack.
    pub key_index: u16,
    /// Bytes of the chunk or node.
    pub plain_length: u32,
    /// A chunk's id or a node's.
    pub id: [u8; 32],
    /// Nonce, or the node's checksum.
    pub nonce: [u8; 12],
    /// Ciphertext and tag, or the node.
    pub payload: &'a [u8],
}

impl<'a> FrameRef<'a> {
    /// The trailer's line about this frame.
    pub fn entry(&self) -> Entry {
        Entry {
            id: self.id,
            offset: self.offset,
            // The payload was measured by a 32-bit field.
            payload_length: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
            plain_length: self.plain_length,
            codec: self.codec,
        }
    }

    /// Reads the frame at the start of `bytes`, which may go on after it.
    pub(super) fn read(kind: PackKind, offset: u32, bytes: &'a [u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "it is cut off";
        let mut fields = Fields(bytes);
        if fields.take().ok_or(SHORT)? != *FRAME_MAGIC {
            return Err("no frame begins here");
        }
        let codec = Codec::from_byte(fields.byte().ok_or(SHORT)?).ok_or("its codec is unknown")?;
        if fields.byte().ok_or(SHORT)? != 0 {
            return Err("a reserved byte is not zero");
        }
        let key_index = fields.u16().ok_or(SHORT)?;
        if (kind == PackKind::Nodes) != (key_index == NO_KEY) {
            return Err("it names a key in a node pack, or none in a data pack");
        }
        let plain_length = fields.u32().ok_or(SHORT)?;
        let payload_length = fields.u32().ok_or(SHORT)?;
        check_lengths(kind, codec, plain_length, payload_length)?;
        let id = fields.take().ok_or(SHORT)?;
        let nonce = fields.take().ok_or(SHORT)?;
        let payload = fields.0.get(..payload_length as usize).ok_or(SHORT)?;
        if kind == PackKind::Nodes && node_checksum(payload) != nonce {
            return Err("the node does not have its checksum");
        }
        Ok(Self { offset, codec, key_index, plain_length, id, nonce, payload })
    }
}

pub(super) struct FrameFields<'a> {
    pub codec: Codec,
    pub key_index: u16,
    pub plain_length: u32,
    pub id: &'a [u8; 32],
    pub nonce: &'a [u8; 12],
    pub payload: &'a [u8],
}

impl FrameFields<'_> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(FRAME_MAGIC);
        out.extend_from_slice(&[self.codec.as_byte(), 0]);
        out.extend_from_slice(&self.key_index.to_le_bytes());
        out.extend_from_slice(&self.plain_length.to_le_bytes());
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(self.id);
        out.extend_from_slice(self.nonce);
        out.extend_from_slice(self.payload);
    }
}

pub(super) fn node_checksum(node: &[u8]) -> [u8; 12] {
    let mut checksum = [0; 12];
    checksum.copy_from_slice(&blake3::hash(node).as_bytes()[..12]);
    checksum
}

pub(super) fn frame_damaged(pack: &PackId, offset: u32, what: &str) -> Error {
    Error::damaged(format!("the frame at offset {offset} bytes of {pack}"), what)
}
