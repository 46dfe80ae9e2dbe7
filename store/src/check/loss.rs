//! What is lost, and which trees it is lost to. Content is shared, so it may be many.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::catalog::Retired;
use crate::id::{ChunkId, NodeId, PackName, Root};

/// What is lost right below a node, or with it.
#[derive(Debug, Default)]
pub(crate) struct Here {
    /// The node itself cannot be read.
    pub itself: bool,
    /// Chunks of this leaf that no sound pack holds.
    pub chunks: Vec<ChunkId>,
}

/// Everything that snapshots need and that cannot be had.
#[derive(Debug, Default)]
pub(crate) struct Loss {
    /// Nodes at which something is lost, or that lie in bad packs only and could still be read.
    pub touched: HashMap<NodeId, Here>,
    /// Of each node above one of those: the children through which they are reached.
    pub below: HashMap<NodeId, Vec<NodeId>>,
    /// Where the lost chunks lie, or should.
    pub chunk_places: HashMap<ChunkId, Vec<Retired>>,
    /// Where the lost nodes lie, or should.
    pub node_places: HashMap<NodeId, Vec<Retired>>,
    /// Bad packs with nodes that could still be read, and lie nowhere else.
    pub at_risk: HashSet<PackName>,
}

/// What one tree lost.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    pub chunks: BTreeSet<ChunkId>,
    pub nodes: BTreeSet<NodeId>,
}

impl Lost {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.nodes.is_empty()
    }
}

impl Loss {
    /// Whether the tree lost something, or is about to: it is to be stored anew.
    pub fn touches(&self, root: &Root) -> bool {
        root.node.is_some_and(|node| self.touched.contains_key(&node) || self.below.contains_key(&node))
    }

    /// What the tree lost.
    pub fn of(&self, root: &Root) -> Lost {
        let mut lost = Lost::default();
        let mut seen = HashSet::new();
        let mut open: Vec<NodeId> = root.node.into_iter().collect();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            if let Some(here) = self.touched.get(&id) {
                lost.chunks.extend(&here.chunks);
                lost.nodes.extend(here.itself.then_some(id));
            }
            open.extend(self.below.get(&id).into_iter().flatten());
        }
        lost
    }

    /// Chunks and nodes lost, each counted once.
    pub fn total(&self) -> Lost {
        let mut total = Lost::default();
        for (id, here) in &self.touched {
            total.chunks.extend(&here.chunks);
            total.nodes.extend(here.itself.then_some(*id));
        }
        total
    }

    /// Remembers by which way each touched node is reached, given the parents of every node.
    pub fn connect(&mut self, above: &HashMap<NodeId, Vec<NodeId>>) {
        let mut open: Vec<NodeId> = self.touched.keys().copied().collect();
        let mut reached: HashSet<NodeId> = HashSet::new();
        while let Some(id) = open.pop() {
            if !reached.insert(id) {
                continue;
            }
            for parent in above.get(&id).into_iter().flatten() {
                self.below.entry(*parent).or_default().push(id);
                open.push(*parent);
            }
        }
    }
}
