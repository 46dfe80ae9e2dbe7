//! Writing a new tree that shares everything unchanged with an old one.

use std::collections::HashMap;

use super::{FAN_OUT, Node, NodeSource, regions, root_level, slot, span};
use crate::id::{NodeId, Root};

type Children = Box<[Option<NodeId>; FAN_OUT]>;

/// An inner node being edited.
#[derive(Debug)]
struct Page {
    level: u8,
    first: u64,
    children: Children,
    /// The node as it was, if it existed.
    old: Option<NodeId>,
    changed: bool,
}

/// Replaces leaves of a tree, in ascending order of regions, holding only one path in memory.
///
/// Every new inner node goes to the sink as soon as it is complete, children before parents.
#[derive(Debug)]
pub struct Editor {
    size: u64,
    level: u8,
    root: Option<NodeId>,
    path: Vec<Page>,
    /// Inner nodes made when the tree was fitted to its new size: a few, which the source does not have yet.
    fitted: HashMap<NodeId, Node>,
}

/// Names a node and keeps its encoding: called for every new node.
pub trait NodeSink {
    /// Takes the node, returns its id.
    fn put(&mut self, node: &Node) -> NodeId;
}

impl<F: FnMut(&Node) -> NodeId> NodeSink for F {
    fn put(&mut self, node: &Node) -> NodeId {
        self(node)
    }
}

impl Editor {
    /// Starts from `base`, as a tree for a disk of `size` bytes. Regions past the new end are dropped; the caller re-cuts the
    /// region that holds the shorter of the two ends.
    ///
    /// # Errors
    /// What `source` reports, or `unexpected` for a node whose level does not fit its place.
    pub fn new<S: NodeSource>(
        base: Root,
        size: u64,
        source: &mut S,
        sink: &mut impl NodeSink,
        unexpected: impl Fn(&NodeId) -> S::Error + Copy,
    ) -> Result<Self, S::Error> {
        let (mut root, mut level) = (base.node, root_level(base.size));
        let mut fitted = HashMap::new();
        let mut sink = |node: &Node| {
            let id = sink.put(node);
            fitted.insert(id, node.clone());
            id
        };
        let target = root_level(size);
        while level > target {
            root = match root {
                Some(id) => children_of(&id, level, source, unexpected)?[0],
                None => None,
            };
            level -= 1;
        }
        if regions(size) < regions(base.size) {
            root = truncate(root, level, regions(size), source, &mut sink, unexpected)?;
        }
        while level < target {
            level += 1;
            if root.is_some() {
                let mut children = Box::new([None; FAN_OUT]);
                children[0] = root;
                root = Node::inner(level, children).map(|node| sink.put(&node));
            }
        }
        Ok(Self { size, level, root, path: Vec::new(), fitted })
    }

    /// Sets the leaf of `region`, which must be greater than every region set before.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn set<S: NodeSource>(
        &mut self,
        region: u64,
        leaf: Option<NodeId>,
        source: &mut S,
        sink: &mut impl NodeSink,
        unexpected: impl Fn(&NodeId) -> S::Error + Copy,
    ) -> Result<(), S::Error> {
        debug_assert!(region < regions(self.size));
        while self.path.last().is_some_and(|page| region - page.first >= span(page.level)) {
            self.close(sink);
        }
        loop {
            let (child, level) = match self.path.last() {
                None => (self.root, self.level),
                Some(page) => (page.children[slot(page.level, region)], page.level - 1),
            };
            if level == 0 {
                self.replace(region, child, leaf);
                return Ok(());
            }
            let children = match child {
                Some(id) => match self.fitted.get(&id) {
                    Some(Node::Inner { children, .. }) => children.clone(),
                    _ => children_of(&id, level, source, unexpected)?,
                },
                None => Box::new([None; FAN_OUT]),
            };
            let first = region / span(level) * span(level);
            self.path.push(Page { level, first, children, old: child, changed: false });
        }
    }

    /// Completes the tree.
    pub fn finish(mut self, sink: &mut impl NodeSink) -> Root {
        while !self.path.is_empty() {
            self.close(sink);
        }
        Root { size: self.size, node: self.root }
    }

    /// Completes the deepest open page and puts its id into the page above.
    fn close(&mut self, sink: &mut impl NodeSink) {
        let Some(page) = self.path.pop() else { return };
        if !page.changed {
            return;
        }
        let id = Node::inner(page.level, page.children).map(|node| sink.put(&node));
        self.replace(page.first, page.old, id);
    }

    fn replace(&mut self, region: u64, old: Option<NodeId>, new: Option<NodeId>) {
        if old == new {
            return;
        }
        match self.path.last_mut() {
            None => self.root = new,
            Some(page) => {
                page.children[slot(page.level, region)] = new;
                page.changed = true;
            }
        }
    }
}

fn children_of<S: NodeSource>(
    id: &NodeId,
    level: u8,
    source: &mut S,
    unexpected: impl Fn(&NodeId) -> S::Error,
) -> Result<Children, S::Error> {
    match source.node(id)? {
        Node::Inner { level: found, children } if found == level => Ok(children),
        _ => Err(unexpected(id)),
    }
}

/// The same tree without the regions from `keep` on.
fn truncate<S: NodeSource>(
    node: Option<NodeId>,
    level: u8,
    keep: u64,
    source: &mut S,
    sink: &mut impl NodeSink,
    unexpected: impl Fn(&NodeId) -> S::Error + Copy,
) -> Result<Option<NodeId>, S::Error> {
    let Some(id) = node.filter(|_| keep > 0) else { return Ok(None) };
    if level == 0 || keep >= span(level) {
        return Ok(Some(id));
    }
    let mut children = children_of(&id, level, source, unexpected)?;
    let step = span(level - 1);
    for (at, child) in children.iter_mut().enumerate() {
        let first = at as u64 * step;
        if first >= keep {
            *child = None;
        } else if first + step > keep {
            *child = truncate(*child, level - 1, keep - first, source, sink, unexpected)?;
        }
    }
    Ok(Node::inner(level, children).map(|node| sink.put(&node)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Cursor;
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Nodes(HashMap<NodeId, Node>);

    impl NodeSource for Nodes {
        type Error = String;
        fn node(&mut self, id: &NodeId) -> Result<Node, String> {
            self.0.get(id).cloned().ok_or_else(|| format!("{id} is missing"))
        }
    }

    fn unexpected(id: &NodeId) -> String {
        format!("{id} has the wrong level")
    }

    fn leaf(seed: u64) -> NodeId {
        NodeId::new(*blake3::hash(&seed.to_le_bytes()).as_bytes())
    }

    fn edit(nodes: &mut Nodes, base: Root, size: u64, leaves: &BTreeMap<u64, Option<NodeId>>) -> Root {
        let mut new = HashMap::new();
        let mut sink = |node: &Node| {
            let id = NodeId::new(*blake3::hash(&node.encode()).as_bytes());
            new.insert(id, node.clone());
            id
        };
        let mut editor = Editor::new(base, size, nodes, &mut sink, unexpected).unwrap();
        for (&region, &leaf) in leaves.range(..regions(size)) {
            editor.set(region, leaf, nodes, &mut sink, unexpected).unwrap();
        }
        let root = editor.finish(&mut sink);
        nodes.0.extend(new);
        root
    }

    const EMPTY: Root = Root { size: 0, node: None };
    const REGION: u64 = crate::cut::REGION as u64;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
        #[test]
        fn editing_equals_building_afresh(
            steps in proptest::collection::vec((1u64..9000, proptest::collection::btree_map(0u64..9000, proptest::option::of(0u64..50), 0..40)), 1..5),
        ) {
            let mut nodes = Nodes::default();
            let (mut root, mut model) = (EMPTY, BTreeMap::new());
            for (count, changes) in steps {
                let size = count * REGION - 5;
                let changes: BTreeMap<u64, Option<NodeId>> =
                    changes.into_iter().map(|(region, seed)| (region, seed.map(leaf))).collect();
                root = edit(&mut nodes, root, size, &changes);
                model.extend(changes);
                model.retain(|region, id: &mut Option<NodeId>| *region < count && id.is_some());
                prop_assert_eq!(root, edit(&mut nodes, EMPTY, size, &model));
                let mut cursor = Cursor::new(root);
                let (mut found, mut at) = (BTreeMap::new(), 0);
                while let Some((region, id)) = cursor.next_leaf(at, &mut nodes, unexpected).unwrap() {
                    found.insert(region, Some(id));
                    at = region + 1;
                }
                prop_assert_eq!(&found, &model);
            }
        }
    }

    #[test]
    fn an_isolated_change_writes_one_path() {
        let mut nodes = Nodes::default();
        let all = (0..5000).map(|region| (region, Some(leaf(region)))).collect();
        let base = edit(&mut nodes, EMPTY, 5000 * REGION, &all);
        let before = nodes.0.len();
        edit(&mut nodes, base, 5000 * REGION, &BTreeMap::from([(4000, Some(leaf(1_000_000)))]));
        assert_eq!(nodes.0.len() - before, 3);
        let same = edit(&mut nodes, base, 5000 * REGION, &BTreeMap::from([(17, Some(leaf(17)))]));
        assert_eq!(same, base);
    }
}
