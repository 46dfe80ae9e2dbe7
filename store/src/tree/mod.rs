//! Trees: a disk's content as pages of ids. Pure: nodes come from a [`NodeSource`] and go to a sink.

mod codec;
mod cursor;
mod editor;

pub use codec::{Node, Run};
pub use cursor::Cursor;
pub use editor::{Editor, NodeSink};

use crate::cut::REGION;
use crate::id::NodeId;

/// Children of an inner node.
pub const FAN_OUT: usize = 64;

/// Where the pages of existing trees come from.
pub trait NodeSource {
    /// Why a node cannot be had.
    type Error;

    /// The node's content.
    ///
    /// # Errors
    /// Whatever the source reports for a node that is missing or damaged.
    fn node(&mut self, id: &NodeId) -> Result<Node, Self::Error>;
}

/// Regions of a disk of `size` bytes.
pub fn regions(size: u64) -> u64 {
    size.div_ceil(REGION as u64)
}

/// Level of the root of a disk of `size` bytes: 0 is a leaf.
pub fn root_level(size: u64) -> u8 {
    let regions = regions(size);
    (0..8).find(|&level| span(level) >= regions).unwrap_or(7)
}

/// Regions below a node of `level`; saturates beyond what any disk has.
pub fn span(level: u8) -> u64 {
    1u64.checked_shl(6 * u32::from(level)).unwrap_or(u64::MAX)
}

/// Which child of a node of `level` leads to `region`.
pub(crate) fn slot(level: u8, region: u64) -> usize {
    (region / span(level - 1) % FAN_OUT as u64) as usize
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn levels_follow_the_size() {
        assert_eq!(root_level(0), 0);
        assert_eq!(root_level(1), 0);
        assert_eq!(root_level(2 << 20), 0);
        assert_eq!(root_level((2 << 20) + 1), 1);
        assert_eq!(root_level(64 * (2 << 20)), 1);
        assert_eq!(root_level(64 * (2 << 20) + 1), 2);
        assert_eq!(root_level(8 << 40), 4);
        assert_eq!(root_level(u64::MAX), 8 - 1);
    }
}
