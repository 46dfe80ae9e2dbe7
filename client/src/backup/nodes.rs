//! Tree nodes of the backup in progress: new ones until they are stored, old ones as they are asked for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use underlay_store::Error;
use underlay_store::authority::genuine_node;
use underlay_store::id::NodeId;
use underlay_store::tree::{Node, NodeSource};

use super::Context;

/// Shared by the step that reads old trees and the step that writes new ones.
pub(super) struct NodeStore<'a> {
    context: &'a Context<'a>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Encodings not yet durable.
    pending: HashMap<NodeId, Vec<u8>>,
    /// Those of them that nobody has taken for upload yet, in order.
    queue: Vec<NodeId>,
    queued_bytes: usize,
}

impl<'a> NodeStore<'a> {
    pub fn new(context: &'a Context<'a>) -> Self {
        Self { context, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names a new node and keeps it for upload.
    pub fn put(&self, node: &Node) -> NodeId {
        let encoding = node.encode();
        let id = self.context.key.node_id(&encoding);
        let mut state = self.state();
        if !state.pending.contains_key(&id) {
            state.queued_bytes += encoding.len();
            state.queue.push(id);
            state.pending.insert(id, encoding);
        }
        id
    }

    /// Bytes of nodes that wait for upload.
    pub fn queued_bytes(&self) -> usize {
        self.state().queued_bytes
    }

    /// Takes what waits for upload. The nodes stay readable until [`Self::stored`].
    pub fn take_queue(&self) -> Vec<(NodeId, Vec<u8>)> {
        let mut state = self.state();
        state.queued_bytes = 0;
        let queue = std::mem::take(&mut state.queue);
        queue.into_iter().filter_map(|id| Some((id, state.pending.get(&id)?.clone()))).collect()
    }

    /// These nodes can be had from the repository now.
    pub fn stored(&self, ids: impl IntoIterator<Item = NodeId>) {
        let mut state = self.state();
        for id in ids {
            state.pending.remove(&id);
        }
    }

    /// The nodes' contents, in order; their ids are verified.
    pub fn read(&self, ids: &[NodeId]) -> Result<Vec<Node>, Error> {
        let mut nodes: HashMap<NodeId, Node> = HashMap::with_capacity(ids.len());
        let mut missing = Vec::new();
        {
            let state = self.state();
            for id in ids {
                match state.pending.get(id) {
                    Some(encoding) => drop(nodes.insert(*id, decode(id, encoding)?)),
                    None => missing.push(*id),
                }
            }
        }
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            let encodings = self.context.wait(self.context.authority.read_nodes(&missing))?;
            for (id, encoding) in missing.iter().zip(&encodings) {
                if self.context.key.node_id(encoding) == *id {
                    nodes.insert(*id, decode(id, encoding)?);
                    continue;
                }
                let copy = genuine_node(&*self.context.authority, self.context.key, *id);
                let Some(copy) = self.context.wait(copy)? else {
                    return Err(Error::damaged(format!("node {id}"), "its content has another id"));
                };
                nodes.insert(*id, decode(id, &copy)?);
            }
        }
        ids.iter()
            .map(|id| nodes.get(id).cloned().ok_or_else(|| Error::Missing { object: format!("node {id}") }))
            .collect()
    }
}

fn decode(id: &NodeId, encoding: &[u8]) -> Result<Node, Error> {
    Node::decode(encoding).map_err(|what| Error::damaged(format!("node {id}"), what))
}

/// For tree walks: a node in a place where its level does not fit.
pub(super) fn misplaced(id: &NodeId) -> Error {
    Error::damaged(format!("node {id}"), "its level does not fit its place in the tree")
}

impl NodeSource for &NodeStore<'_> {
    type Error = Error;

    fn node(&mut self, id: &NodeId) -> Result<Node, Error> {
        let nodes = self.read(std::slice::from_ref(id))?;
        nodes.into_iter().next().ok_or_else(|| Error::Missing { object: format!("node {id}") })
    }
}
