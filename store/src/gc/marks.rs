//! What is alive: everything that can be reached from snapshots and from what open sessions hold.

use std::collections::HashSet;

use crate::catalog::{Held, Marked};
use crate::id::{ChunkId, NodeId};
use crate::pack::PackKind;
use crate::progress::Progress;
use crate::repository::{NodeReader, Whose};
use crate::tree::{Node, Run};
use crate::{Error, Result};

/// Nodes read together. Bounds memory: at most this many times the fan-out times a tree's height wait.
const BATCH: usize = 1024;

/// Marked nodes, and marked chunks by the first eight bytes of their ids.
///
/// Two chunks with the same beginning cost space if one of them is dead: it is kept too. Nodes decide what is walked, so they
/// are remembered whole.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    nodes: HashSet<NodeId>,
    chunks: Prefixes,
    /// Chunks marked since [`Marks::start_recording`]; `None` before.
    late: Option<Vec<ChunkId>>,
    late_nodes: Vec<NodeId>,
    /// Nodes that only such are known to name of which there are several contents.
    doubtful: HashSet<NodeId>,
    open: Vec<NodeId>,
}

impl Marks {
    /// Takes in what the catalog says is held. Trees are to be walked ([`Marks::walk`]).
    pub(crate) fn hold(&mut self, held: &Held) {
        match held {
            Held::Tree(node) => {
                if !self.nodes.contains(node) {
                    self.open.push(*node);
                }
            }
            Held::Chunk(chunk) => self.mark_chunk(chunk),
        }
    }

    /// From here on remembers by name what is marked anew.
    pub(crate) fn start_recording(&mut self) {
        self.late = Some(Vec::new());
    }

    /// Chunks and nodes marked since recording began.
    pub(crate) fn late(&self) -> (&[ChunkId], &[NodeId]) {
        (self.late.as_deref().unwrap_or_default(), &self.late_nodes)
    }

    /// Marks everything below the trees that wait. A node already marked has been walked.
    pub(crate) async fn walk(&mut self, nodes: &NodeReader, progress: &dyn Progress) -> Result<()> {
        while !self.open.is_empty() {
            let mut batch = self.open.split_off(self.open.len().saturating_sub(BATCH));
            batch.retain(|id| self.nodes.insert(*id));
            if self.late.is_some() {
                self.late_nodes.extend(&batch);
            }
            if nodes.are_doubtful() {
                self.walk_copies(nodes, &batch).await?;
            } else {
                for (bytes, id) in nodes.read(&batch).await?.iter().zip(&batch) {
                    self.mark_below(decoded(id, bytes)?, false);
                }
            }
            progress.advance(batch.len() as u64);
        }
        self.chunks.settle();
        Ok(())
    }

    /// Writers do not trust each other: what one stored as a node is not what another relies on. All that any of them relies on is alive.
    /// What only a node with several contents names need not exist.
    async fn walk_copies(&mut self, nodes: &NodeReader, batch: &[NodeId]) -> Result<()> {
        for (id, copies) in batch.iter().zip(nodes.copies(batch, Whose::Anybody).await?) {
            let doubtful = self.doubtful.contains(id);
            let mut read: Vec<Node> = Vec::new();
            let mut failed = None;
            for bytes in &copies {
                match decoded(id, bytes) {
                    Ok(node) => read.push(node),
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                Some(error) if read.is_empty() && !doubtful => return Err(error),
                None if copies.is_empty() && !doubtful => {
                    return Err(Error::Missing { object: format!("node {id}") });
                }
                _ if read.is_empty() => drop(self.nodes.remove(id)),
                _ => {}
            }
            let doubtful = doubtful || copies.len() > 1;
            read.into_iter().for_each(|node| self.mark_below(node, doubtful));
        }
        Ok(())
    }

    fn mark_below(&mut self, node: Node, doubtful: bool) {
        match node {
            Node::Inner { children, .. } => {
                for child in children.iter().flatten() {
                    match doubtful {
                        true if !self.nodes.contains(child) => drop(self.doubtful.insert(*child)),
                        true => {}
                        false => drop(self.doubtful.remove(child)),
                    }
                    self.open.push(*child);
                }
            }
            Node::Leaf(runs) => runs.iter().for_each(|run| {
                if let Run::Chunk(_, id) = run {
                    self.mark_chunk(id);
                }
            }),
        }
    }

    fn mark_chunk(&mut self, id: &ChunkId) {
        if let Some(late) = &mut self.late
            && !self.chunks.contains(id)
        {
            late.push(*id);
        }
        self.chunks.insert(id);
    }

    /// How many nodes are alive.
    pub(crate) fn nodes(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// How many chunks are alive.
    pub(crate) fn chunks(&self) -> u64 {
        self.chunks.sorted.len() as u64
    }
}

impl Marks {
    /// Whether the chunk or node is alive.
    pub(crate) fn has(&self, kind: PackKind, id: &[u8; 32]) -> bool {
        match kind {
            PackKind::Data => self.has_chunk(&ChunkId::new(*id)),
            PackKind::Nodes => self.has_node(&NodeId::new(*id)),
        }
    }
}

fn decoded(id: &NodeId, bytes: &[u8]) -> Result<Node> {
    Node::decode(bytes).map_err(|what| Error::damaged(format!("node {id}"), what))
}

impl Marked for Marks {
    fn has_node(&self, id: &NodeId) -> bool {
        self.nodes.contains(id)
    }

    fn has_chunk(&self, id: &ChunkId) -> bool {
        self.chunks.contains(id)
    }
}

/// A set of 64-bit prefixes in sorted runs: eight bytes a member, where a hash set takes twice as much.
#[derive(Debug, Default)]
struct Prefixes {
    sorted: Vec<u64>,
    fresh: HashSet<u64>,
}

impl Prefixes {
    /// Fresh ones are merged when there are so many, or a quarter of the sorted ones.
    const FRESH: usize = 1 << 16;

    fn of(id: &ChunkId) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    fn insert(&mut self, id: &ChunkId) {
        self.fresh.insert(Self::of(id));
        if self.fresh.len() >= Self::FRESH.max(self.sorted.len() / 4) {
            self.settle();
        }
    }

    fn contains(&self, id: &ChunkId) -> bool {
        let prefix = Self::of(id);
        self.fresh.contains(&prefix) || self.sorted.binary_search(&prefix).is_ok()
    }

    fn settle(&mut self) {
        self.sorted.extend(self.fresh.drain());
        // Two sorted runs and a short unsorted one: the sort finds the runs.
        self.sorted.sort();
        self.sorted.dedup();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(prefix: u64) -> ChunkId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&prefix.to_be_bytes());
        ChunkId::new(bytes)
    }

    proptest! {
        #[test]
        fn prefixes_are_a_set(members in prop::collection::vec(0..500_u64, 0..400), settle_at in 0..400_usize) {
            let mut prefixes = Prefixes::default();
            for (at, member) in members.iter().enumerate() {
                prefixes.insert(&id(*member));
                if at % (settle_at + 1) == settle_at {
                    prefixes.settle();
                }
            }
            for candidate in 0..500 {
                prop_assert_eq!(prefixes.contains(&id(candidate)), members.contains(&candidate));
            }
            prefixes.settle();
            let expected: std::collections::BTreeSet<u64> = members.into_iter().collect();
            prop_assert!(prefixes.sorted.iter().copied().eq(expected));
        }
    }
}
