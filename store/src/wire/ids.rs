//! Batches of ids, and one bit of answer for each.

use super::Wrong;
use super::head::{Reader, begin};
use crate::id::{ChunkId, NodeId};

/// Ids in one batch: 2 MiB of them.
pub const MAXIMUM_IDS: usize = (1 << 16) - 1;

const IDS: [u8; 4] = *b"ULid";
const BITMAP: [u8; 4] = *b"ULbm";

/// What a batch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdKind {
    /// Chunks.
    Chunks = 1,
    /// Nodes.
    Nodes = 2,
}

/// An id that goes in batches.
pub trait WireId: Copy + Ord {
    /// What such a batch is about.
    const KIND: IdKind;
    /// As on the wire.
    fn to_wire(&self) -> &[u8; 32];
    /// Reads [`WireId::to_wire`] back.
    fn from_wire(bytes: [u8; 32]) -> Self;
}

impl WireId for ChunkId {
    const KIND: IdKind = IdKind::Chunks;

    fn to_wire(&self) -> &[u8; 32] {
        self.as_bytes()
    }

    fn from_wire(bytes: [u8; 32]) -> Self {
        Self::new(bytes)
    }
}

impl WireId for NodeId {
    const KIND: IdKind = IdKind::Nodes;

    fn to_wire(&self) -> &[u8; 32] {
        self.as_bytes()
    }

    fn from_wire(bytes: [u8; 32]) -> Self {
        Self::new(bytes)
    }
}

/// Writes a batch. The ids are strictly ascending, and at most [`MAXIMUM_IDS`].
pub fn encode_ids<I: WireId>(ids: &[I]) -> Vec<u8> {
    debug_assert!(ids.len() <= MAXIMUM_IDS && ids.is_sorted_by(|a, b| a < b));
    let mut out = begin(IDS, I::KIND as u8, ids.len(), ids.len() * 32);
    ids.iter().for_each(|id| out.extend_from_slice(id.to_wire()));
    out
}

/// Reads a batch.
///
/// # Errors
/// What is wrong with it.
pub fn decode_ids<I: WireId>(bytes: &[u8]) -> Result<Vec<I>, Wrong> {
    let (mut reader, kind, count) = Reader::open_kinds("ids", IDS, bytes)?;
    if kind != I::KIND as u8 {
        return Err("these ids are not of the kind that is asked about here".to_owned());
    }
    if count > MAXIMUM_IDS {
        return Err(format!("{count} ids at once; at most {MAXIMUM_IDS} are answered"));
    }
    reader.expect_at_least(count, 32)?;
    let mut ids: Vec<I> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = I::from_wire(reader.take()?);
        if ids.last().is_some_and(|last| *last >= id) {
            return Err("the ids are not strictly ascending".to_owned());
        }
        ids.push(id);
    }
    reader.finish()?;
    Ok(ids)
}

/// Writes one bit for each answer.
pub fn encode_bitmap(answers: &[bool]) -> Vec<u8> {
    let mut out = begin(BITMAP, 0, answers.len(), answers.len().div_ceil(8));
    out.extend(answers.chunks(8).map(|eight| {
        eight.iter().enumerate().fold(0, |byte, (bit, &answer)| byte | u8::from(answer) << bit)
    }));
    out
}

/// Reads the answers to `expected` ids.
///
/// # Errors
/// What is wrong with it.
pub fn decode_bitmap(bytes: &[u8], expected: usize) -> Result<Vec<bool>, Wrong> {
    let (mut reader, count) = Reader::open("answers", BITMAP, bytes)?;
    if count != expected {
        return Err(format!("{count} answers came for {expected} ids"));
    }
    let bits = reader.slice(count.div_ceil(8))?;
    reader.finish()?;
    let answers = (0..count).map(|at| bits[at / 8] >> (at % 8) & 1 == 1).collect();
    match ends_clean(bits, count) {
        true => Ok(answers),
        false => Err("unused bits of the answers are set".to_owned()),
    }
}

/// Whether the bits after the last answer are zero.
fn ends_clean(bits: &[u8], count: usize) -> bool {
    count.is_multiple_of(8) || bits.last().is_none_or(|last| last >> (count % 8) == 0)
}
