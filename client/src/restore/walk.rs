//! From a root to windows of its chunks, left to right.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use underlay_store::Error;
use underlay_store::authority::{Authority, genuine_node};
use underlay_store::cut::{BLOCK, REGION};
use underlay_store::id::{ChunkId, NodeId, Root};
use underlay_store::key::BackupKey;
use underlay_store::tree::{Node, Run, regions, root_level, span};

use super::RestoreError;
use super::damage::Damage;
use super::verify::Seen;

/// Nodes asked for at once. A leaf has about 2.5 KB, 18 KB at most.
const NODES: usize = 256;

/// A chunk at one place of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) id: ChunkId,
    /// Bytes of guest address space.
    pub(super) offset: u64,
    /// Bytes of the chunk's plaintext.
    pub(super) length: u32,
}

/// A part of the disk: what its chunks are, and where it has zeros.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// By chunk, then by offset.
    pub(super) places: Vec<Place>,
    /// Ascending. The first may begin before the window's first chunk, however far.
    pub(super) zeros: Vec<Range<u64>>,
}

impl Window {
    /// The distinct chunks, ascending.
    pub(super) fn chunks(&self) -> Vec<ChunkId> {
        let mut ids: Vec<_> = self.places.iter().map(|place| place.id).collect();
        ids.dedup();
        ids
    }

    /// Where this chunk goes. Ascending.
    pub(super) fn places_of(&self, id: &ChunkId) -> &[Place] {
        let start = self.places.partition_point(|place| place.id < *id);
        let end = self.places.partition_point(|place| place.id <= *id);
        &self.places[start..end]
    }
}

/// How much a window may hold; it ends with the leaf that reaches either.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowLimits {
    /// Leaves that are not all zeros.
    pub(super) leaves: usize,
    /// Places.
    pub(super) places: usize,
}

/// Reads a tree level by level in batches, and yields it in windows. Memory does not grow with the disk.
pub(super) struct Windows<'a> {
    authority: &'a dyn Authority,
    key: &'a BackupKey,
    size: u64,
    /// Nodes not yet read; the last is the leftmost. Those read together span less than what lies right of them.
    stack: Vec<Pending>,
    leaves: VecDeque<(u64, Vec<Run>)>,
    /// Where the last chunk ended.
    position: u64,
    limits: WindowLimits,
    seen: Option<&'a Seen>,
    damage: &'a Damage,
}

struct Pending {
    region: u64,
    level: u8,
    id: NodeId,
}

impl<'a> Windows<'a> {
    /// Begins at the disk's start. Nodes that `seen` knows are left out, with all below them.
    pub(super) fn new(
        authority: &'a dyn Authority,
        key: &'a BackupKey,
        root: Root,
        limits: WindowLimits,
        seen: Option<&'a Seen>,
        damage: &'a Damage,
    ) -> Self {
        let top = root.node.map(|id| Pending { region: 0, level: root_level(root.size), id });
        let stack = top.into_iter().collect();
        let leaves = VecDeque::new();
        Self { authority, key, size: root.size, stack, leaves, position: 0, limits, seen, damage }
    }

    /// The next window; `None` after the disk's end.
    pub(super) async fn next(&mut self) -> Result<Option<Window>, RestoreError> {
        let mut window = Window::default();
        for _ in 0..self.limits.leaves {
            if window.places.len() >= self.limits.places {
                break;
            }
            while self.leaves.is_empty() && !self.stack.is_empty() {
                self.descend().await?;
            }
            let Some((region, runs)) = self.leaves.pop_front() else { break };
            self.add_leaf(&mut window, region, &runs);
        }
        if self.leaves.is_empty() && self.stack.is_empty() {
            self.add_zeros(&mut window, self.size);
        }
        window.places.sort_unstable();
        if let Some(seen) = self.seen {
            window.places.dedup_by_key(|place| place.id);
            window.places.retain(|place| seen.wants(&place.id));
            // What was left out is not known to be zero.
            window.zeros.clear();
        }
        let end = window.places.is_empty()
            && window.zeros.is_empty()
            && self.leaves.is_empty()
            && self.stack.is_empty();
        Ok((!end).then_some(window))
    }

    /// Reads the next nodes of one level.
    async fn descend(&mut self) -> Result<(), RestoreError> {
        let Some(level) = self.stack.last().map(|node| node.level) else { return Ok(()) };
        let mut batch = Vec::with_capacity(NODES);
        while batch.len() < NODES
            && let Some(node) = self.stack.pop_if(|node| node.level == level)
        {
            if self.seen.is_none_or(|seen| seen.visits(&node.id)) {
                batch.push(node);
            }
        }
        let mut below = Vec::new();
        for (pending, node) in self.read(batch).await? {
            match node {
                Node::Leaf(runs) => self.leaves.push_back((pending.region, runs)),
                Node::Inner { level, children } => {
                    let present = children.iter().enumerate();
                    below.extend(present.filter_map(|(at, id)| {
                        let region = pending.region + at as u64 * span(level - 1);
                        id.map(|id| Pending { region, level: level - 1, id })
                    }));
                }
            }
        }
        self.stack.extend(below.into_iter().rev());
        Ok(())
    }

    /// Reads and verifies nodes. What is damaged and only to be reported is left out.
    async fn read(&self, batch: Vec<Pending>) -> Result<Vec<(Pending, Node)>, RestoreError> {
        let ids: Vec<NodeId> = batch.iter().map(|node| node.id).collect();
        let mut results = match self.read_bytes(&ids).await {
            Ok(nodes) => nodes.into_iter().map(Ok).collect(),
            Err(error) if ids.len() == 1 => vec![Err(error)],
            Err(error) if !self.damage.collects(&error) => return Err(error.into()),
            // One of them is damaged, the others are to be looked at all the same.
            Err(_) => {
                let mut results = Vec::with_capacity(ids.len());
                for id in &ids {
                    results.push(self.read_bytes(&[*id]).await.map(|mut nodes| nodes.remove(0)));
                }
                results
            }
        };
        let mut nodes = Vec::with_capacity(batch.len());
        for (pending, bytes) in batch.into_iter().zip(results.drain(..)) {
            let bytes = match bytes {
                Ok(bytes) => Ok(self.genuine(pending.id, bytes).await?),
                Err(error) => Err(error),
            };
            match bytes.and_then(|bytes| self.verify(&pending, &bytes)) {
                Ok(node) => nodes.push((pending, node)),
                Err(error) => {
                    let start = pending.region.saturating_mul(REGION as u64).min(self.size);
                    let length = span(pending.level).saturating_mul(REGION as u64);
                    let end = start.saturating_add(length).min(self.size);
                    self.damage.node_is_lost(pending.id, error, start..end)?;
                }
            }
        }
        Ok(nodes)
    }

    /// What came, or another copy if that is another node's and the other one is not.
    async fn genuine(&self, id: NodeId, bytes: Bytes) -> Result<Bytes, Error> {
        if self.key.node_id(&bytes) == id {
            return Ok(bytes);
        }
        Ok(genuine_node(self.authority, self.key, id).await?.unwrap_or(bytes))
    }

    async fn read_bytes(&self, ids: &[NodeId]) -> Result<Vec<Bytes>, Error> {
        let nodes = self.authority.read_nodes(ids).await?;
        if nodes.len() == ids.len() {
            return Ok(nodes);
        }
        let first = ids.first().map(ToString::to_string).unwrap_or_default();
        Err(Error::damaged(
            format!("the answer for node {first}"),
            format!("{} of {} nodes came", nodes.len(), ids.len()),
        ))
    }

    /// Checks that these bytes are this node, and that it fits its place in a disk of this size.
    fn verify(&self, pending: &Pending, bytes: &[u8]) -> Result<Node, Error> {
        let damaged = |what: String| Error::damaged(format!("node {}", pending.id), what);
        if self.key.node_id(bytes) != pending.id {
            return Err(damaged("its bytes have another id".into()));
        }
        let node = Node::decode(bytes).map_err(damaged)?;
        if node.level() != pending.level {
            let (found, expected) = (node.level(), pending.level);
            return Err(damaged(format!("it is of level {found} in a place of level {expected}")));
        }
        let past_end = match &node {
            Node::Leaf(runs) => {
                let blocks: usize = runs.iter().map(Run::blocks).sum();
                let start = pending.region * REGION as u64;
                start + (blocks as u64 - 1) * BLOCK as u64 >= self.size
            }
            Node::Inner { level, children } => {
                let last = children.iter().rposition(Option::is_some).unwrap_or_default() as u64;
                pending.region.saturating_add(last.saturating_mul(span(level - 1))) >= regions(self.size)
            }
        };
        if past_end { Err(damaged("it goes on past the disk's end".into())) } else { Ok(node) }
    }

    fn add_leaf(&mut self, window: &mut Window, region: u64, runs: &[Run]) {
        let mut offset = region * REGION as u64;
        for run in runs {
            let length = ((run.blocks() * BLOCK) as u64).min(self.size - offset);
            if let Run::Chunk(_, id) = *run {
                self.add_zeros(window, offset);
                // A run has at most a region's bytes.
                window.places.push(Place { id, offset, length: length as u32 });
                self.position = offset + length;
            }
            offset += length;
        }
    }

    fn add_zeros(&mut self, window: &mut Window, end: u64) {
        if self.position < end {
            window.zeros.push(self.position..end);
            self.position = end;
        }
    }
}
