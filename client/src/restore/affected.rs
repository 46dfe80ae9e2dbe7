//! Which disks a piece of damage touches. Content is shared, so it may be many.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use underlay_store::Error;
use underlay_store::authority::genuine_node;
use underlay_store::id::{ChunkId, NodeId, Root};
use underlay_store::tree::{Node, Run, root_level};

use super::Environment;

/// Nodes asked for at once.
const NODES: usize = 256;

/// Of these disks, those with a bad chunk or with a node that cannot be had. Reads every node once.
///
/// # Errors
/// A repository that cannot be read, or cancelling.
pub(super) async fn affected(
    environment: &Environment<'_>,
    roots: &[Root],
    bad: &HashSet<ChunkId>,
) -> Result<Vec<Root>, Error> {
    let mut open: Vec<(NodeId, u8)> =
        roots.iter().filter_map(|root| Some((root.node?, root_level(root.size)))).collect();
    let mut seen: HashSet<NodeId> = HashSet::new();
    let mut above: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
    let mut touched: Vec<NodeId> = Vec::new();
    while !open.is_empty() {
        if environment.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let mut batch = open.split_off(open.len().saturating_sub(NODES));
        batch.retain(|(id, _)| seen.insert(*id));
        let ids: Vec<NodeId> = batch.iter().map(|(id, _)| *id).collect();
        for ((id, level), bytes) in batch.into_iter().zip(read(environment, &ids).await?) {
            let mut found = bytes.as_deref().and_then(|bytes| node(environment, &id, level, bytes));
            if found.is_none() && bytes.is_some() {
                let copy = genuine_node(environment.authority, environment.key.backup(), id).await?;
                found = copy.and_then(|copy| node(environment, &id, level, &copy));
            }
            match found {
                None => touched.push(id),
                Some(Node::Inner { children, .. }) => {
                    for child in children.iter().flatten() {
                        above.entry(*child).or_default().push(id);
                        open.push((*child, level - 1));
                    }
                }
                Some(Node::Leaf(runs)) => {
                    let bad_run = |run: &Run| matches!(run, Run::Chunk(_, chunk) if bad.contains(chunk));
                    touched.extend(runs.iter().any(bad_run).then_some(id));
                }
            }
        }
    }
    let mut reached: HashSet<NodeId> = HashSet::new();
    while let Some(id) = touched.pop() {
        if reached.insert(id) {
            touched.extend(above.get(&id).into_iter().flatten());
        }
    }
    Ok(roots.iter().filter(|root| root.node.is_some_and(|node| reached.contains(&node))).copied().collect())
}

/// The nodes' encodings; `None` for those that are damaged or missing.
async fn read(environment: &Environment<'_>, ids: &[NodeId]) -> Result<Vec<Option<Bytes>>, Error> {
    if let Ok(found) = environment.authority.read_nodes(ids).await
        && found.len() == ids.len()
    {
        return Ok(found.into_iter().map(Some).collect());
    }
    let mut nodes = Vec::with_capacity(ids.len());
    for id in ids {
        nodes.push(match environment.authority.read_nodes(&[*id]).await {
            Ok(found) => found.into_iter().next(),
            Err(Error::Damaged { .. } | Error::Missing { .. } | Error::Version { .. }) => None,
            Err(error) => return Err(error),
        });
    }
    Ok(nodes)
}

fn node(environment: &Environment<'_>, id: &NodeId, level: u8, bytes: &[u8]) -> Option<Node> {
    let genuine = environment.key.backup().node_id(bytes) == *id;
    Node::decode(bytes).ok().filter(|node| genuine && node.level() == level)
}
