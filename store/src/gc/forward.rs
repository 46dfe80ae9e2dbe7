//! Copying what is alive out of packs, as ciphertext: no data key is needed.

use std::collections::HashSet;

use bytes::Bytes;

use crate::id::{NodeId, RepositoryId};
use crate::key::SealedKey;
use crate::pack::{self, FinishedPack, Frame, FrameRef, MAXIMUM_KEYS, PackId, PackKind, PackWriter};
use crate::{Error, Result};

/// Collects the living frames of some packs of one kind.
#[derive(Debug)]
pub(crate) struct Forward {
    kind: PackKind,
    repository: RepositoryId,
    keys: Vec<SealedKey>,
    chunks: Vec<Frame>,
    nodes: Vec<(NodeId, Vec<u8>)>,
    copied: HashSet<[u8; 32]>,
}

impl Forward {
    pub(crate) fn new(kind: PackKind, repository: RepositoryId) -> Self {
        let (keys, chunks, nodes) = (Vec::new(), Vec::new(), Vec::new());
        Self { kind, repository, keys, chunks, nodes, copied: HashSet::new() }
    }

    /// The ids in a pack, after all that can be verified without keys was: nothing damaged gets a new name.
    pub(crate) fn ids(pack: &PackId, bytes: &[u8]) -> Result<Vec<[u8; 32]>> {
        pack::verify_name(pack, bytes)?;
        Ok(pack::parse(pack, bytes)?.entries.into_iter().map(|entry| entry.id).collect())
    }

    /// Whether one more pack's keys fit.
    pub(crate) fn has_room(&self, pack: &PackId, bytes: &[u8]) -> Result<bool> {
        Ok(self.keys.len() + header(pack, bytes)?.sealed_keys.len() <= MAXIMUM_KEYS)
    }

    /// Takes the frames with these ids out of a pack.
    pub(crate) fn take(&mut self, pack: &PackId, bytes: &Bytes, alive: &HashSet<[u8; 32]>) -> Result<()> {
        let header = header(pack, bytes)?;
        for entry in pack::parse(pack, bytes)?.entries {
            if !alive.contains(&entry.id) || !self.copied.insert(entry.id) {
                continue;
            }
            let start = entry.offset as usize;
            let frame = &bytes[start..start + entry.frame_length() as usize];
            let frame = pack::parse_frame(pack, frame, &entry)?;
            self.add(pack, &header, &frame)?;
        }
        Ok(())
    }

    fn add(&mut self, pack: &PackId, header: &pack::Header, frame: &FrameRef<'_>) -> Result<()> {
        if self.kind == PackKind::Nodes {
            self.nodes.push((NodeId::new(frame.id), frame.payload.to_vec()));
            return Ok(());
        }
        let key = header.key_of(pack, frame)?;
        if !self.keys.iter().any(|known| known.id() == key.id()) {
            self.keys.push(*key);
        }
        self.chunks.push(Frame::copy_of(frame, key));
        Ok(())
    }

    /// The new packs.
    pub(crate) fn finish(self) -> Result<Vec<FinishedPack>> {
        if self.copied.is_empty() {
            return Ok(Vec::new());
        }
        let new = || PackWriter::new(self.kind, self.repository, self.keys.clone());
        let (mut packs, mut writer) = (Vec::new(), new()?);
        for chunk in &self.chunks {
            packs.extend(make_room(&mut writer, &new)?);
            writer.add(chunk)?;
        }
        for (id, node) in &self.nodes {
            packs.extend(make_room(&mut writer, &new)?);
            writer.add_node(*id, node)?;
        }
        packs.extend(writer.finish());
        Ok(packs)
    }
}

/// Begins another pack if this one is full, and returns the full one.
fn make_room(writer: &mut PackWriter, new: &dyn Fn() -> Result<PackWriter>) -> Result<Option<FinishedPack>> {
    if !writer.is_full() {
        return Ok(None);
    }
    Ok(std::mem::replace(writer, new()?).finish())
}

fn header(pack: &PackId, bytes: &[u8]) -> Result<pack::Header> {
    match pack::parse_header(pack, bytes)? {
        pack::Parsed::Whole(header) => Ok(header),
        pack::Parsed::Needs(_) => Err(Error::damaged(pack.to_string(), "it is cut off")),
    }
}
