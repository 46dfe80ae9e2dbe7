//! Builds packs in memory.

use std::fmt;

use aws_lc_rs::digest;
use bytes::Bytes;

use super::layout::{
    Codec, ENTRY_LENGTH, Entry, FOOTER_LENGTH, FOOTER_MAGIC, FRAME_HEADER_LENGTH, FrameFields, FrameRef,
    Header, NO_KEY, check_lengths, keys_allowed, node_checksum,
};
use super::{MAXIMUM_LENGTH, PackId, PackKind, TARGET_LENGTH, VERSION};
use crate::id::{ChunkId, DataKeyId, NodeId, PackName, RepositoryId};
use crate::key::SealedKey;
use crate::{Error, Result};

/// A chunk, encoded: goes into any data pack that has its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// The data key it is encrypted with.
    pub key: DataKeyId,
    /// How it was compressed.
    pub codec: Codec,
    /// Bytes of the chunk.
    pub plain_length: u32,
    /// The chunk.
    pub id: ChunkId,
    /// Random.
    pub nonce: [u8; 12],
    /// Ciphertext and 16-byte tag.
    pub payload: Vec<u8>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("id", &self.id)
            .field("codec", &self.codec)
            .field("plain_length", &self.plain_length)
            .field("payload_length", &self.payload.len())
            .finish_non_exhaustive()
    }
}

impl Frame {
    /// A frame to copy from one data pack to another, as it is. `sealed_key` is the one it names there
    /// ([`Header::key_of`]); the other pack needs it too.
    pub fn copy_of(frame: &FrameRef<'_>, sealed_key: &SealedKey) -> Self {
        Self {
            key: sealed_key.id(),
            codec: frame.codec,
            plain_length: frame.plain_length,
            id: ChunkId::new(frame.id),
            nonce: frame.nonce,
            payload: frame.payload.to_vec(),
        }
    }

    pub(super) fn as_frame_ref(&self) -> FrameRef<'_> {
        FrameRef {
            offset: 0,
            codec: self.codec,
            key_index: 0,
            plain_length: self.plain_length,
            id: *self.id.as_bytes(),
            nonce: self.nonce,
            payload: &self.payload,
        }
    }
}

/// A pack to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedPack {
    /// Its name.
    pub id: PackId,
    /// The object.
    pub bytes: Bytes,
    /// What it holds where.
    pub entries: Vec<Entry>,
}

impl FinishedPack {
    /// SHA-256 of the object.
    pub fn name(&self) -> PackName {
        self.id.name
    }
}

/// Builds one pack.
#[derive(Debug)]
pub struct PackWriter {
    header: Header,
    target: u32,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl PackWriter {
    /// An empty data pack whose frames may name these keys: 1 to 4096, no two of the same id.
    ///
    /// # Errors
    /// [`Error::Invalid`] for any other number of keys.
    pub fn data(repository: RepositoryId, sealed_keys: Vec<SealedKey>) -> Result<Self> {
        Self::new(PackKind::Data, repository, sealed_keys)
    }

    /// As [`PackWriter::data`], in memory that another pack needs no more; what it held is forgotten.
    ///
    /// # Errors
    /// As there.
    pub fn data_in(
        mut buffer: Vec<u8>,
        repository: RepositoryId,
        sealed_keys: Vec<SealedKey>,
    ) -> Result<Self> {
        let mut writer = Self::data(repository, sealed_keys)?;
        buffer.clear();
        buffer.append(&mut writer.bytes);
        Ok(Self { bytes: buffer, ..writer })
    }

    /// An empty node pack.
    pub fn nodes(repository: RepositoryId) -> Self {
        Self::empty(PackKind::Nodes, repository, Vec::new())
    }

    /// An empty pack of this kind.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this kind cannot have so many keys.
    pub fn new(kind: PackKind, repository: RepositoryId, sealed_keys: Vec<SealedKey>) -> Result<Self> {
        if !keys_allowed(kind, sealed_keys.len()) {
            return Err(Error::Invalid {
                what: "number of data keys",
                value: sealed_keys.len().to_string(),
                rule: "1 to 4096 in a data pack, none in a node pack".into(),
            });
        }
        Ok(Self::empty(kind, repository, sealed_keys))
    }

    fn empty(kind: PackKind, repository: RepositoryId, sealed_keys: Vec<SealedKey>) -> Self {
        let header = Header { kind, repository, salt: crate::key::random_bytes(), sealed_keys };
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        Self { header, target: TARGET_LENGTH, bytes, entries: Vec::new() }
    }

    /// Sets the length (bytes) at which the pack is full; at most 60 MiB counts, so that one more frame always fits.
    #[must_use]
    pub fn with_target(mut self, target: u32) -> Self {
        self.target = target.min(MAXIMUM_LENGTH - (4 << 20));
        self
    }

    /// Appends a chunk.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this is no data pack, the pack lacks the frame's key, its lengths do not fit, or the pack
    /// would be longer than 64 MiB (which cannot happen if it was not full).
    pub fn add(&mut self, frame: &Frame) -> Result<()> {
        let key = self.header.sealed_keys.iter().position(|key| key.id() == frame.key);
        let key_index = key
            .and_then(|index| u16::try_from(index).ok())
            .ok_or_else(|| refused(frame.id, "the pack has its data key"))?;
        self.append(&FrameFields {
            codec: frame.codec,
            key_index,
            plain_length: frame.plain_length,
            id: frame.id.as_bytes(),
            nonce: &frame.nonce,
            payload: &frame.payload,
        })
    }

    /// Appends a node.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this is no node pack, the node is empty or longer than 2 MiB, or the pack would be longer
    /// than 64 MiB (which cannot happen if it was not full).
    pub fn add_node(&mut self, id: NodeId, bytes: &[u8]) -> Result<()> {
        if self.header.kind != PackKind::Nodes {
            return Err(refused(id, "nodes go into node packs"));
        }
        self.append(&FrameFields {
            codec: Codec::None,
            key_index: NO_KEY,
            plain_length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            id: id.as_bytes(),
            nonce: &node_checksum(bytes),
            payload: bytes,
        })
    }

    fn append(&mut self, frame: &FrameFields<'_>) -> Result<()> {
        let id = ChunkId::new(*frame.id);
        let payload_length = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
        check_lengths(self.header.kind, frame.codec, frame.plain_length, payload_length)
            .map_err(|_| refused(id, "its lengths fit one another"))?;
        let added = FRAME_HEADER_LENGTH as usize + frame.payload.len() + ENTRY_LENGTH;
        if self.len() + added > MAXIMUM_LENGTH as usize {
            return Err(refused(id, "a pack is at most 64 MiB"));
        }
        if self.entries.is_empty() {
            // Untouched pages cost nothing; growing by doubling would copy and hold twice as much.
            self.bytes.reserve(self.target as usize + (4 << 20));
        }
        self.entries.push(Entry {
            id: *frame.id,
            offset: u32::try_from(self.bytes.len()).unwrap_or(u32::MAX),
            payload_length,
            plain_length: frame.plain_length,
            codec: frame.codec,
        });
        frame.write(&mut self.bytes);
        Ok(())
    }

    /// Bytes the pack would have if it were finished now.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.entries.len() * ENTRY_LENGTH + FOOTER_LENGTH
    }

    /// Whether nothing was added yet. An empty pack cannot be finished.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the pack has reached its target length.
    pub fn is_full(&self) -> bool {
        self.len() >= self.target as usize
    }

    /// What was added so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Writes the trailer and names the pack; `None` if nothing was added.
    pub fn finish(self) -> Option<FinishedPack> {
        let kind = self.header.kind;
        let (bytes, entries) = self.sealed()?;
        let name = name_of(&bytes);
        Some(FinishedPack { id: PackId::new(kind, name), bytes, entries })
    }

    /// Writes the trailer; `None` if nothing was added. Whoever stores the pack names it, which takes as long as reading it once.
    pub fn finish_unnamed(self) -> Option<Bytes> {
        self.sealed().map(|(bytes, _)| bytes)
    }

    fn sealed(mut self) -> Option<(Bytes, Vec<Entry>)> {
        if self.entries.is_empty() {
            return None;
        }
        let first_entry = self.bytes.len();
        self.bytes.reserve_exact(self.entries.len() * ENTRY_LENGTH + FOOTER_LENGTH);
        self.entries.iter().for_each(|entry| entry.write(&mut self.bytes));
        // All three are below 64 MiB: `append` saw to it.
        for value in [self.entries.len(), self.header.length(), first_entry, 0] {
            self.bytes.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
        }
        let hash = blake3::hash(&self.bytes[first_entry..]);
        self.bytes.extend_from_slice(hash.as_bytes());
        self.bytes.extend_from_slice(&VERSION.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 6]);
        self.bytes.extend_from_slice(FOOTER_MAGIC);
        Some((Bytes::from(self.bytes), self.entries))
    }
}

/// SHA-256 of an object.
pub fn name_of(bytes: &[u8]) -> PackName {
    let digest = digest::digest(&digest::SHA256, bytes);
    PackName::from_slice(digest.as_ref()).expect("SHA-256 has 32 bytes")
}

fn refused(id: impl fmt::Display, rule: &str) -> Error {
    Error::Invalid { what: "frame", value: id.to_string(), rule: rule.into() }
}
