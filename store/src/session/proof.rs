//! The commit proof: every reference of a snapshot leads to something that is stored and will stay.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;

use crate::Result;
use crate::id::{ChunkId, NodeId, Root};
use crate::tree::{FAN_OUT, Node, Run, root_level};

/// Nodes looked at together. Bounds memory: at most this many times the fan-out times the tree's height wait.
const BATCH: usize = 1024;

/// What the authority knows about a session's references.
#[async_trait]
pub(crate) trait Facts: Send + Sync {
    /// Which nodes are in this session's own packs.
    async fn own_nodes(&self, ids: &[NodeId]) -> Result<Vec<bool>>;
    /// Which nodes this session has pinned.
    async fn pinned_nodes(&self, ids: &[NodeId]) -> Result<Vec<bool>>;
    /// Which chunks are in this session's packs or pinned by it.
    async fn known_chunks(&self, ids: &[ChunkId]) -> Result<Vec<bool>>;
    /// Whether a promise says nothing of what hangs below a node: then that is proven, too.
    fn promises_are_shallow(&self) -> bool;
    /// The content of stored nodes.
    async fn read(&self, ids: &[NodeId]) -> Result<Vec<Node>>;
}

/// A node of a live tree at the same place of a disk as the one being proven, or above it.
type Candidate = (NodeId, u8);

/// A node still to be proven, with what live trees hold in its place.
struct Claim {
    id: NodeId,
    level: u8,
    candidates: Vec<Candidate>,
}

/// Checks that each child of each new node below `roots` is in this session's packs, pinned by it, or hangs at the same
/// place of a tree in `live`. Returns the new nodes that the walk
/// reached, or the first reference that fails, in words.
pub(crate) async fn prove(
    facts: &dyn Facts,
    roots: &[Root],
    live: &[Root],
) -> Result<Result<Vec<NodeId>, String>> {
    let mut live: Vec<Candidate> =
        live.iter().filter_map(|root| Some((root.node?, root_level(root.size)))).collect();
    let mut proven: HashSet<NodeId> = HashSet::new();
    for root in roots {
        let Some(id) = root.node else { continue };
        let level = root_level(root.size);
        let candidates = lowered(facts, &live, level).await?;
        let mut open = vec![Claim { id, level, candidates }];
        while !open.is_empty() {
            let batch = open.split_off(open.len().saturating_sub(BATCH));
            if let Err(reason) = prove_batch(facts, batch, &mut proven, &mut open).await? {
                return Ok(Err(reason));
            }
        }
        live.push((id, level));
    }
    Ok(Ok(proven.into_iter().collect()))
}

/// Candidates above `level` are followed down their first children: the same guest addresses.
async fn lowered(facts: &dyn Facts, live: &[Candidate], level: u8) -> Result<Vec<Candidate>> {
    let mut result = Vec::new();
    for &(mut id, mut at) in live {
        while at > level {
            match facts.read(&[id]).await?.into_iter().next() {
                Some(Node::Inner { children, .. }) if children[0].is_some() => {
                    id = children[0].unwrap_or(id);
                    at -= 1;
                }
                _ => break,
            }
        }
        if at <= level {
            result.push((id, at));
        }
    }
    Ok(result)
}

async fn prove_batch(
    facts: &dyn Facts,
    mut batch: Vec<Claim>,
    proven: &mut HashSet<NodeId>,
    open: &mut Vec<Claim>,
) -> Result<Result<(), String>> {
    batch.retain(|claim| !proven.contains(&claim.id) && !claim.candidates.contains(&(claim.id, claim.level)));
    let ids: Vec<NodeId> = batch.iter().map(|claim| claim.id).collect();
    let (own, pinned) = (facts.own_nodes(&ids).await?, facts.pinned_nodes(&ids).await?);
    let mut new = Vec::new();
    for ((claim, own), pinned) in batch.into_iter().zip(own).zip(pinned) {
        match (own, pinned) {
            // Its own nodes are walked even if they were promised back to it: nobody has proven them yet.
            (true, _) => new.push(claim),
            (false, true) if facts.promises_are_shallow() => new.push(claim),
            (false, true) => {}
            (false, false) => {
                return Ok(Err(format!(
                    "node {} is neither new, nor pinned, nor part of a live snapshot",
                    claim.id
                )));
            }
        }
    }
    let nodes = facts.read(&new.iter().map(|claim| claim.id).collect::<Vec<_>>()).await?;
    let live = read_candidates(facts, &new).await?;
    let mut chunks = Vec::new();
    for (claim, node) in new.into_iter().zip(nodes) {
        if node.level() != claim.level {
            return Ok(Err(format!(
                "node {} has level {} in a place of level {}",
                claim.id,
                node.level(),
                claim.level
            )));
        }
        let below = beside(&claim, &live);
        // What is below it is on the list: if one reference fails, so does the whole proof.
        proven.insert(claim.id);
        match node {
            Node::Inner { children, .. } => {
                for (at, child) in children.iter().enumerate() {
                    let Some(id) = *child else { continue };
                    let candidates =
                        below.iter().filter_map(|candidate| candidate.child(at, claim.level)).collect();
                    open.push(Claim { id, level: claim.level - 1, candidates });
                }
            }
            Node::Leaf(runs) => {
                let old: HashSet<ChunkId> = below.iter().flat_map(|beside| beside.chunks()).collect();
                chunks.extend(runs.iter().filter_map(|run| match run {
                    Run::Chunk(_, id) if !old.contains(id) => Some(*id),
                    _ => None,
                }));
            }
        }
    }
    chunks.sort_unstable();
    chunks.dedup();
    let known = facts.known_chunks(&chunks).await?;
    Ok(match chunks.iter().zip(known).find(|(_, known)| !known) {
        Some((id, _)) => Err(format!("chunk {id} is neither new, nor pinned, nor part of a live snapshot")),
        None => Ok(()),
    })
}

/// What a live tree has where a new node stands.
enum Beside<'a> {
    /// The live tree's root is lower than this: it covers only the first child's place.
    Below(Candidate),
    /// A node of the same level.
    Same(&'a Node),
}

impl Beside<'_> {
    fn child(&self, at: usize, level: u8) -> Option<Candidate> {
        debug_assert!(at < FAN_OUT);
        match self {
            Self::Below(candidate) => (at == 0).then_some(*candidate),
            Self::Same(Node::Inner { children, .. }) => children[at].map(|id| (id, level - 1)),
            Self::Same(Node::Leaf(_)) => None,
        }
    }

    fn chunks(&self) -> Vec<ChunkId> {
        match self {
            Self::Same(Node::Leaf(runs)) => runs
                .iter()
                .filter_map(|run| match run {
                    Run::Chunk(_, id) => Some(*id),
                    Run::Zero(_) => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// The live nodes that stand in the places of `claims`, read together.
async fn read_candidates(facts: &dyn Facts, claims: &[Claim]) -> Result<HashMap<NodeId, Node>> {
    let same = |claim: &Claim| {
        let level = claim.level;
        claim
            .candidates
            .iter()
            .filter(move |candidate| candidate.1 == level)
            .map(|candidate| candidate.0)
            .collect::<Vec<_>>()
    };
    let mut ids: Vec<NodeId> = claims.iter().flat_map(same).collect();
    ids.sort_unstable();
    ids.dedup();
    let nodes = facts.read(&ids).await?;
    Ok(ids.into_iter().zip(nodes).collect())
}

fn beside<'a>(claim: &Claim, live: &'a HashMap<NodeId, Node>) -> Vec<Beside<'a>> {
    let place = |candidate: &Candidate| match candidate.1 == claim.level {
        true => live.get(&candidate.0).map(Beside::Same),
        false => Some(Beside::Below(*candidate)),
    };
    claim.candidates.iter().filter_map(place).collect()
}
