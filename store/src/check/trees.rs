//! Trees: whether every node can be read, and every chunk lies somewhere.

use std::collections::{HashMap, HashSet};

use super::loss::Loss;
use super::packs::Packs;
use super::{CheckReport, Ground};
use crate::Result;
use crate::catalog::{Location, Retired};
use crate::id::{ChunkId, NodeId, Root};
use crate::pack::PackKind;
use crate::tree::{Node, Run, root_level};

/// Nodes or chunks looked at together.
const BATCH: usize = 1024;
/// Chunks and nodes named one by one; the others are counted.
const NAMED: usize = 1000;

/// A walk over many trees that share most of their nodes.
pub(super) struct Trees<'a> {
    ground: &'a Ground<'a>,
    packs: &'a Packs,
    seen: HashSet<NodeId>,
    chunks: u64,
    named: usize,
    unnamed: u64,
    loss: Loss,
}

impl<'a> Trees<'a> {
    pub fn new(ground: &'a Ground<'a>, packs: &'a Packs) -> Self {
        let (seen, loss) = (HashSet::new(), Loss::default());
        Self { ground, packs, seen, chunks: 0, named: 0, unnamed: 0, loss }
    }

    /// Looks at everything below `root` that no tree before had.
    pub async fn walk(&mut self, root: &Root, report: &mut CheckReport) -> Result<()> {
        let mut open: Vec<_> = root.node.map(|id| (id, root_level(root.size))).into_iter().collect();
        while !open.is_empty() {
            let mut batch = open.split_off(open.len().saturating_sub(BATCH));
            batch.retain(|(id, _)| self.seen.insert(*id));
            let found = self.read(&batch, report).await?;
            self.look_for_risks(&batch)?;
            let mut chunks = Vec::new();
            for ((id, level), node) in batch.into_iter().zip(found) {
                match node {
                    None => {}
                    Some(node) if node.level() != level => {
                        let what = format!("level {} in a place of level {level}", node.level());
                        self.node_is_lost(id, what, report);
                    }
                    Some(Node::Inner { children, .. }) => {
                        open.extend(children.iter().flatten().map(|child| (*child, level - 1)));
                    }
                    Some(Node::Leaf(runs)) => chunks.extend(runs.iter().filter_map(|run| match run {
                        Run::Chunk(_, chunk) => Some((*chunk, id)),
                        Run::Zero(_) => None,
                    })),
                }
            }
            self.look_up(chunks, report)?;
        }
        Ok(())
    }

    /// What is lost, once all of `roots` were walked. Costs another walk if there is anything.
    pub async fn finish(mut self, roots: &[Root], report: &mut CheckReport) -> Result<Loss> {
        report.nodes = (self.seen.len() - self.loss.total().nodes.len()) as u64;
        report.chunks = self.chunks;
        if self.unnamed > 0 {
            report.find("trees", format!("{} chunks and nodes more are lost", self.unnamed));
        }
        self.find_places()?;
        if !self.loss.touched.is_empty() {
            let above = self.parents(roots).await?;
            self.loss.connect(&above);
        }
        Ok(self.loss)
    }

    async fn read(&mut self, batch: &[(NodeId, u8)], report: &mut CheckReport) -> Result<Vec<Option<Node>>> {
        let ids: Vec<NodeId> = batch.iter().map(|(id, _)| *id).collect();
        let whole = self.ground.nodes.read(&ids).await.ok();
        let mut nodes = Vec::with_capacity(ids.len());
        for (at, id) in ids.into_iter().enumerate() {
            let bytes = match &whole {
                Some(encodings) => Ok(encodings[at].clone()),
                None => self.ground.nodes.read(&[id]).await.map(|mut one| one.remove(0)),
            };
            let node = match bytes {
                Ok(bytes) => Node::decode(&bytes),
                Err(error) if error.is_damage() => Err(error.to_string()),
                Err(error) => return Err(error),
            };
            nodes.push(match node {
                Ok(node) => Some(node),
                Err(what) => {
                    self.node_is_lost(id, what, report);
                    None
                }
            });
        }
        Ok(nodes)
    }

    /// Nodes that can still be read and lie in bad packs only are to be stored anew.
    fn look_for_risks(&mut self, batch: &[(NodeId, u8)]) -> Result<()> {
        if self.packs.bad.values().all(|pack| pack.id.kind != PackKind::Nodes) {
            return Ok(());
        }
        let ids: Vec<NodeId> = batch.iter().map(|(id, _)| *id).collect();
        for (id, places) in ids.iter().zip(self.ground.catalog.locate_nodes(&ids)?) {
            if self.is_lost(&places) {
                self.loss.touched.entry(*id).or_default();
                self.loss.at_risk.extend(places.iter().map(|place| place.pack));
            }
        }
        Ok(())
    }

    fn is_bad(&self, place: &Location) -> bool {
        self.packs.bad.contains_key(&place.pack)
    }

    fn is_going(&self, place: &Location) -> bool {
        self.packs.going.contains(&place.pack)
    }

    /// Whether no copy is one to rely on. A copy that goes is none; but what lies in such packs only is still there, as far as is known.
    fn is_lost(&self, places: &[Location]) -> bool {
        let bad = |place: &Location| place.retired || self.is_bad(place);
        places.iter().all(|place| bad(place) || self.is_going(place))
            && (places.is_empty() || places.iter().any(bad))
    }

    /// Places that stay and are not to be relied on: with their whole packs, or by themselves.
    fn retired(&self, places: &[Location], id: [u8; 32]) -> Vec<Retired> {
        let place = |at: &Location| match self.is_bad(at) {
            true => Retired::Pack(at.pack),
            false => Retired::Place { pack: at.pack, id, wrong: false },
        };
        places.iter().filter(|at| !self.is_going(at)).map(place).collect()
    }

    fn node_is_lost(&mut self, id: NodeId, what: String, report: &mut CheckReport) {
        self.loss.touched.entry(id).or_default().itself = true;
        self.name(format!("node {id}"), what, report);
    }

    fn name(&mut self, object: String, what: impl Into<String>, report: &mut CheckReport) {
        if self.named < NAMED {
            self.named += 1;
            report.find(object, what);
        } else {
            self.unnamed += 1;
        }
    }

    /// Looks chunks up, each with the leaf that names it.
    fn look_up(&mut self, mut chunks: Vec<(ChunkId, NodeId)>, report: &mut CheckReport) -> Result<()> {
        chunks.sort_unstable();
        let mut ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
        ids.dedup();
        self.chunks += ids.len() as u64;
        for (id, places) in ids.iter().zip(self.ground.catalog.locate_chunks(&ids)?) {
            if !self.is_lost(&places) {
                continue;
            }
            let first = chunks.partition_point(|(chunk, _)| chunk < id);
            for (_, leaf) in chunks[first..].iter().take_while(|(chunk, _)| chunk == id) {
                self.loss.touched.entry(*leaf).or_default().chunks.push(*id);
            }
            let what = match places.is_empty() {
                true => "it is in no pack",
                false => "every copy of it is damaged",
            };
            let rest = self.retired(&places, *id.as_bytes());
            let known = self.loss.chunk_places.insert(*id, rest);
            // Where it is the packs that are bad, they are named.
            if known.is_none() && (places.is_empty() || !places.iter().all(|place| self.is_bad(place))) {
                self.name(format!("chunk {id}"), what, report);
            }
        }
        Ok(())
    }

    /// Where lost nodes lie. Nobody relies on those places any more.
    fn find_places(&mut self) -> Result<()> {
        let nodes: Vec<NodeId> = self.loss.total().nodes.into_iter().collect();
        for (id, places) in nodes.iter().zip(self.ground.catalog.locate_nodes(&nodes)?) {
            self.loss.node_places.insert(*id, self.retired(&places, *id.as_bytes()));
        }
        Ok(())
    }

    /// Of every inner node and every touched leaf: the nodes right above it.
    async fn parents(&self, roots: &[Root]) -> Result<HashMap<NodeId, Vec<NodeId>>> {
        let mut above: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        let mut seen: HashSet<NodeId> = HashSet::new();
        let mut open: Vec<(NodeId, u8)> =
            roots.iter().filter_map(|root| Some((root.node?, root_level(root.size)))).collect();
        while !open.is_empty() {
            let mut batch = open.split_off(open.len().saturating_sub(BATCH));
            batch.retain(|(id, level)| {
                *level > 0 && !self.loss.touched.get(id).is_some_and(|here| here.itself) && seen.insert(*id)
            });
            let ids: Vec<NodeId> = batch.iter().map(|(id, _)| *id).collect();
            for ((id, level), bytes) in batch.into_iter().zip(self.ground.nodes.read(&ids).await?) {
                let Ok(Node::Inner { children, .. }) = Node::decode(&bytes) else { continue };
                for child in children.iter().flatten() {
                    if level > 1 || self.loss.touched.contains_key(child) {
                        above.entry(*child).or_default().push(id);
                        open.push((*child, level - 1));
                    }
                }
            }
        }
        Ok(above)
    }
}
