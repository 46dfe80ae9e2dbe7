//! Pages of trees: one encoding for one content.

use underlay_store::id::{ChunkId, NodeId};
use underlay_store::tree::{FAN_OUT, Node, Run};

use crate::{Seed, allocations};

/// A node as a node pack holds it.
///
/// # Panics
/// If something is accepted that is not the one encoding of its content.
pub fn node(bytes: &[u8]) {
    // A leaf of 512 runs takes 20 KiB, and may be claimed by four bytes.
    let node = match allocations::within((32 << 10) + 4 * bytes.len(), || Node::decode(bytes)) {
        Ok(node) => node,
        Err(reason) => return assert!(!reason.is_empty()),
    };
    assert_eq!(node.encode(), bytes);
    match &node {
        Node::Leaf(runs) => {
            let blocks: usize = runs.iter().map(Run::blocks).sum();
            assert!((1..=512).contains(&blocks) && runs.iter().all(|run| run.blocks() > 0), "{runs:?}");
            assert_eq!(Node::leaf(runs.iter().copied()).as_ref(), Some(&node), "not the leaf of its runs");
        }
        Node::Inner { level, children } => {
            assert!((1..=7).contains(level));
            assert_eq!(Node::inner(*level, children.clone()).as_ref(), Some(&node));
        }
    }
}

/// Leaves and inner nodes, full and nearly empty.
pub fn seeds() -> Vec<Seed> {
    let chunk = |blocks, id| Run::Chunk(blocks, ChunkId::new([id; 32]));
    let leaf = |runs: Vec<Run>| Node::leaf(runs).expect("a leaf with a chunk").encode();
    let inner = |level, present: &[usize]| {
        let mut children = Box::new([None; FAN_OUT]);
        present.iter().for_each(|at| children[*at] = Some(NodeId::new([*at as u8; 32])));
        Node::inner(level, children).expect("a child").encode()
    };
    let alternating = (0..8).flat_map(|at| [Run::Zero(1), chunk(1 + at, at as u8)]).collect();
    [
        ("leaf-one", leaf(vec![chunk(512, 1)])),
        ("leaf-short", leaf(vec![chunk(1, 1)])),
        ("leaf-holes", leaf(alternating)),
        ("leaf-late", leaf(vec![Run::Zero(511), chunk(1, 9)])),
        ("leaf-cut", leaf((0..12).map(|at| chunk(32, at)).collect())),
        ("inner-one", inner(1, &[0])),
        ("inner-ends", inner(2, &[0, 63])),
        ("inner-top", inner(7, &[5, 6, 7, 40])),
        ("inner-full", inner(1, &(0..FAN_OUT).collect::<Vec<_>>())),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .to_vec()
}
