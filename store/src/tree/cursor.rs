//! Reading a tree from left to right.

use super::{FAN_OUT, Node, NodeSource, regions, root_level, slot, span};
use crate::id::{NodeId, Root};

/// Finds leaves by region. Asked in ascending order it reads each inner node once and keeps only the path to the last.
#[derive(Debug)]
pub struct Cursor {
    root: Root,
    /// Inner nodes from the root down.
    path: Vec<Page>,
}

/// An inner node: the first region it spans, its level, its children.
type Page = (u64, u8, Box<[Option<NodeId>; FAN_OUT]>);

impl Cursor {
    /// A cursor over the tree of `root`.
    pub fn new(root: Root) -> Self {
        Self { root, path: Vec::new() }
    }

    /// The leaf of `region`; `None` if it is all zeros or past the disk's end.
    ///
    /// # Errors
    /// What `source` reports, or `unexpected` for a node whose level does not fit its place.
    pub fn leaf<S: NodeSource>(
        &mut self,
        region: u64,
        source: &mut S,
        unexpected: impl Fn(&NodeId) -> S::Error,
    ) -> Result<Option<NodeId>, S::Error> {
        if region >= regions(self.root.size) {
            return Ok(None);
        }
        while self
            .path
            .pop_if(|(first, level, _)| region < *first || region - *first >= span(*level))
            .is_some()
        {}
        loop {
            let (child, level) = match self.path.last() {
                None => (self.root.node, root_level(self.root.size)),
                Some((_, level, children)) => (children[slot(*level, region)], level - 1),
            };
            let Some(id) = child else { return Ok(None) };
            if level == 0 {
                return Ok(Some(id));
            }
            match source.node(&id)? {
                Node::Inner { level: found, children } if found == level => {
                    self.path.push((region / span(level) * span(level), level, children));
                }
                _ => return Err(unexpected(&id)),
            }
        }
    }

    /// The first region at or after `region` that has a leaf, and that leaf.
    ///
    /// # Errors
    /// As for [`Self::leaf`].
    pub fn next_leaf<S: NodeSource>(
        &mut self,
        mut region: u64,
        source: &mut S,
        unexpected: impl Fn(&NodeId) -> S::Error + Copy,
    ) -> Result<Option<(u64, NodeId)>, S::Error> {
        while region < regions(self.root.size) {
            if let Some(id) = self.leaf(region, source, unexpected)? {
                return Ok(Some((region, id)));
            }
            // The deepest node on the path has no child here: skip that child's whole span.
            let Some((_, level, _)) = self.path.last() else { return Ok(None) };
            let step = span(level - 1);
            region = (region / step + 1) * step;
        }
        Ok(None)
    }
}
