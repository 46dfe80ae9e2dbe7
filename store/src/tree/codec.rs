//! The bytes of a node, as `docs/format.md` draws them.

use super::FAN_OUT;
use crate::cut::REGION_BLOCKS;
use crate::id::{ChunkId, NodeId};

const VERSION: u8 = 1;
const CHUNK_BIT: u16 = 1 << 15;
/// The highest level a tree can have.
const TOP_LEVEL: u8 = 7;

/// A run of blocks in a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// This many blocks of zeros.
    Zero(usize),
    /// A chunk of this many blocks.
    Chunk(usize, ChunkId),
}

impl Run {
    /// Its length in blocks.
    pub fn blocks(&self) -> usize {
        match *self {
            Self::Zero(blocks) | Self::Chunk(blocks, _) => blocks,
        }
    }

    /// The same run with another length.
    pub(crate) fn with_blocks(self, blocks: usize) -> Self {
        match self {
            Self::Zero(_) => Self::Zero(blocks),
            Self::Chunk(_, id) => Self::Chunk(blocks, id),
        }
    }
}

/// One page of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// One region's runs, in order. No two zero runs in a row, none at the end, at least one chunk.
    Leaf(Vec<Run>),
    /// Children of a node at `level` (1 is above the leaves); `None` is all zeros. At least one is present.
    Inner {
        /// Height above the leaves.
        level: u8,
        /// One id for each 64th of the node's span.
        children: Box<[Option<NodeId>; FAN_OUT]>,
    },
}

impl Node {
    /// Makes the leaf for these runs, merging zero runs; `None` if all is zero.
    pub fn leaf(runs: impl IntoIterator<Item = Run>) -> Option<Self> {
        let mut merged: Vec<Run> = Vec::new();
        for run in runs.into_iter().filter(|run| run.blocks() > 0) {
            match (merged.last_mut(), run) {
                (Some(Run::Zero(last)), Run::Zero(more)) => *last += more,
                _ => merged.push(run),
            }
        }
        merged.pop_if(|run| matches!(run, Run::Zero(_)));
        (!merged.is_empty()).then_some(Self::Leaf(merged))
    }

    /// Makes an inner node; `None` if no child is present.
    pub fn inner(level: u8, children: Box<[Option<NodeId>; FAN_OUT]>) -> Option<Self> {
        children.iter().any(Option::is_some).then_some(Self::Inner { level, children })
    }

    /// Height above the leaves.
    pub fn level(&self) -> u8 {
        match self {
            Self::Leaf(_) => 0,
            Self::Inner { level, .. } => *level,
        }
    }

    /// The canonical encoding; its keyed hash is the node's id.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.level()];
        match self {
            Self::Leaf(runs) => {
                bytes.extend((runs.len() as u16).to_le_bytes());
                for run in runs {
                    match run {
                        Run::Zero(blocks) => bytes.extend((*blocks as u16).to_le_bytes()),
                        Run::Chunk(blocks, id) => {
                            bytes.extend((*blocks as u16 | CHUNK_BIT).to_le_bytes());
                            bytes.extend(id.as_bytes());
                        }
                    }
                }
            }
            Self::Inner { children, .. } => {
                let present = (0..FAN_OUT).filter(|&at| children[at].is_some());
                let bitmap = present.fold(0u64, |bitmap, at| bitmap | 1 << at);
                bytes.extend([0, 0]);
                bytes.extend(bitmap.to_le_bytes());
                children.iter().flatten().for_each(|id| bytes.extend(id.as_bytes()));
            }
        }
        bytes
    }

    /// Reads an encoding, refusing everything that is not canonical.
    ///
    /// # Errors
    /// The rule that the bytes break.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(bytes);
        let [version, level] = reader.take::<2>()?;
        if version != VERSION {
            return Err(format!("node version {version}; this build reads version {VERSION}"));
        }
        let node = match level {
            0 => decode_leaf(&mut reader)?,
            1..=TOP_LEVEL => decode_inner(&mut reader, level)?,
            _ => return Err(format!("node level {level} is above {TOP_LEVEL}")),
        };
        if reader.0.is_empty() {
            Ok(node)
        } else {
            Err(format!("{} bytes after the node's end", reader.0.len()))
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or("node ends early")?;
        self.0 = rest;
        Ok(*head)
    }
}

fn decode_leaf(reader: &mut Reader<'_>) -> Result<Node, String> {
    let count = usize::from(u16::from_le_bytes(reader.take()?));
    if count == 0 || count > REGION_BLOCKS {
        return Err(format!("a leaf of {count} runs"));
    }
    let (mut runs, mut total, mut after_zero) = (Vec::with_capacity(count), 0, false);
    for _ in 0..count {
        let word = u16::from_le_bytes(reader.take()?);
        let blocks = usize::from(word & !CHUNK_BIT);
        total += blocks;
        if blocks == 0 || total > REGION_BLOCKS {
            return Err(format!("a run of {blocks} blocks, {total} in all"));
        }
        let zero = word & CHUNK_BIT == 0;
        if zero && after_zero {
            return Err("two zero runs in a row".into());
        }
        after_zero = zero;
        runs.push(if zero { Run::Zero(blocks) } else { Run::Chunk(blocks, ChunkId::new(reader.take()?)) });
    }
    if after_zero { Err("a zero run at the leaf's end".into()) } else { Ok(Node::Leaf(runs)) }
}

fn decode_inner(reader: &mut Reader<'_>, level: u8) -> Result<Node, String> {
    if reader.take::<2>()? != [0, 0] {
        return Err("reserved bytes are not zero".into());
    }
    let bitmap = u64::from_le_bytes(reader.take()?);
    let mut children = Box::new([None; FAN_OUT]);
    for (at, child) in children.iter_mut().enumerate() {
        if bitmap >> at & 1 == 1 {
            *child = Some(NodeId::new(reader.take()?));
        }
    }
    Node::inner(level, children).ok_or_else(|| "an inner node without children".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_accepts_only_what_encoding_makes(bytes in proptest::collection::vec(any::<u8>(), 0..200), level in 0u8..3) {
            let mut bytes = bytes;
            bytes.splice(0..0, [VERSION, level]);
            if let Ok(node) = Node::decode(&bytes) {
                prop_assert_eq!(node.encode(), bytes);
            }
        }

        #[test]
        fn leaves_survive(runs in proptest::collection::vec((1usize..8, any::<bool>(), any::<[u8; 32]>()), 0..60)) {
            let runs = runs.into_iter().map(|(blocks, zero, id)| {
                if zero { Run::Zero(blocks) } else { Run::Chunk(blocks, ChunkId::new(id)) }
            });
            if let Some(node) = Node::leaf(runs) {
                prop_assert_eq!(Node::decode(&node.encode()).unwrap(), node);
            }
        }

        #[test]
        fn inner_nodes_survive(ids in proptest::collection::vec(proptest::option::of(any::<[u8; 32]>()), 64), level in 1u8..8) {
            let mut children = Box::new([None; FAN_OUT]);
            children.iter_mut().zip(ids).for_each(|(child, id)| *child = id.map(NodeId::new));
            if let Some(node) = Node::inner(level, children) {
                prop_assert_eq!(Node::decode(&node.encode()).unwrap(), node);
            }
        }
    }
}
