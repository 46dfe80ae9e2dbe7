//! Packs: objects that hold many chunks or many tree nodes.

mod codec;
mod layout;
mod reader;
mod walk;
mod writer;

use std::fmt;

pub use codec::{ChunkDecoder, ChunkEncoder, DEFAULT_LEVEL};
pub use layout::{Codec, ENTRY_LENGTH, Entry, FRAME_HEADER_LENGTH, FrameRef, Header};
pub use reader::{
    Footer, PackIndex, Parsed, parse, parse_footer, parse_frame, parse_header, parse_trailer, verify_name,
};
pub use walk::{Walk, walk_frames};
pub use writer::{FinishedPack, Frame, PackWriter, name_of};

use crate::id::PackName;
use crate::names::{self, ObjectName};

/// The pack version this build writes and reads.
pub const VERSION: u16 = 1;
/// No pack is longer, in bytes.
pub const MAXIMUM_LENGTH: u32 = 64 << 20;
/// When a pack is full, in bytes.
pub const TARGET_LENGTH: u32 = 36 << 20;
/// No chunk or node is longer, in bytes.
pub const MAXIMUM_PLAIN_LENGTH: u32 = 2 << 20;
/// No data pack has more keys.
pub const MAXIMUM_KEYS: usize = 4096;

/// What a pack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PackKind {
    /// Encrypted chunks; below `packs/`.
    Data,
    /// Readable tree nodes; below `nodes/`.
    Nodes,
}

impl PackKind {
    /// The folder of such packs, with its slash.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Data => names::PACKS,
            Self::Nodes => names::NODES,
        }
    }
}

/// Names a pack object. Displays as its name in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// What it holds.
    pub kind: PackKind,
    /// SHA-256 of the object.
    pub name: PackName,
}

impl PackId {
    /// A pack of this kind and name.
    pub const fn new(kind: PackKind, name: PackName) -> Self {
        Self { kind, name }
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&ObjectName::Pack(self.kind, self.name), f)
    }
}

#[cfg(test)]
mod tests;
