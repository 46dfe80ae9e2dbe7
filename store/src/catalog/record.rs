//! What the catalog takes and gives.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::{PackName, Root, SessionId, SnapshotId, WriterId};
use crate::pack::{Codec, Entry, PackKind};

/// A pack as its trailer describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRecord {
    /// SHA-256 of the object.
    pub name: PackName,
    /// What it holds.
    pub kind: PackKind,
    /// Bytes of the object.
    pub size: u64,
    /// Its frames, in any order. Of two with the same id the first counts.
    pub entries: Vec<Entry>,
}

/// One place where a chunk or node lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// The pack.
    pub pack: PackName,
    /// Where the frame begins in the pack, in bytes.
    pub offset: u32,
    /// Stored bytes after the frame's header.
    pub payload_length: u32,
    /// Bytes once decoded.
    pub plain_length: u32,
    /// How it was compressed.
    pub codec: Codec,
    /// A check found it damaged or missing: to be tried last.
    pub retired: bool,
}

/// A place that is not to be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Retired {
    /// All of a pack: it is missing, or not what its name says.
    Pack(PackName),
    /// One chunk or node in it, by its id.
    Place {
        /// The pack.
        pack: PackName,
        /// What lies there.
        id: [u8; 32],
        /// The pack is what was stored, and this in it is wrong all the same: reading the pack does not lift that.
        wrong: bool,
    },
}

impl Location {
    /// The pack's trailer line for `id` here.
    pub const fn entry(&self, id: [u8; 32]) -> Entry {
        let Self { offset, payload_length, plain_length, codec, .. } = *self;
        Entry { id, offset, payload_length, plain_length, codec }
    }
}

/// A snapshot as the catalog keeps it.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotRecord<'a> {
    /// Its id.
    pub snapshot: SnapshotId,
    /// Its VM.
    pub vm: &'a str,
    /// Its time, in milliseconds since 1970.
    pub time_ms: i64,
    /// The object, byte for byte.
    pub document: &'a [u8],
    /// Roots of its disks and layers.
    pub roots: &'a [Root],
}

/// Whether a pack may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackState {
    /// In use.
    Live,
    /// Found unused by gc: no longer offered to backups, still readable.
    Condemned,
    /// May be gone from the bucket at any moment.
    Deleting,
}

impl PackState {
    pub(super) const fn from_code(code: i64) -> Option<Self> {
        match code {
            0 => Some(Self::Live),
            1 => Some(Self::Condemned),
            2 => Some(Self::Deleting),
            _ => None,
        }
    }
}

/// A pack without its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackSummary {
    /// SHA-256 of the object.
    pub name: PackName,
    /// What it holds.
    pub kind: PackKind,
    /// Bytes of the object.
    pub size: u64,
    /// Chunks or nodes in it.
    pub entries: u64,
    /// Bytes of those once decoded.
    pub plain_bytes: u64,
    /// The session that wrote it; `None` if it was found in the bucket.
    pub session: Option<SessionId>,
    /// A commit has proven all that its nodes refer to.
    pub proven: bool,
    /// Whether it may be used.
    pub state: PackState,
    /// When it was last read whole and compared with its name, in milliseconds since 1970; 0: never.
    pub checked: i64,
    /// A check found it damaged or missing.
    pub retired: bool,
}

/// How far what lies in a pack is to be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A holder of the keys has verified it.
    Verified,
    /// This writer stored it.
    Writer(WriterId),
    /// It is not known who stored it.
    Unknown,
}

/// Sums over the catalog. A chunk stored twice counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Totals {
    /// Packs of both kinds.
    pub packs: u64,
    /// Bytes of those objects.
    pub pack_bytes: u64,
    /// Stored chunks.
    pub chunks: u64,
    /// Stored tree nodes.
    pub nodes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Bytes of the stored chunks once decoded.
    pub plain_bytes: u64,
}

/// Where a session stands. Only an open one may change anything; the others are for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionState {
    /// In progress.
    Open,
    /// Proven; its snapshot is being stored. It can no longer be given up or shut out: it is known to whoever finds the object.
    Committing,
    /// Ended with a snapshot.
    Committed,
    /// Given up by its writer.
    Abandoned,
    /// Shut out, so that gc need not wait for it.
    Fenced,
}

impl SessionState {
    pub(super) const fn code(self) -> i64 {
        match self {
            Self::Open => 0,
            Self::Committed => 1,
            Self::Abandoned => 2,
            Self::Fenced => 3,
            Self::Committing => 4,
        }
    }

    pub(super) const fn from_code(code: i64) -> Option<Self> {
        match code {
            0 => Some(Self::Open),
            1 => Some(Self::Committed),
            2 => Some(Self::Abandoned),
            3 => Some(Self::Fenced),
            4 => Some(Self::Committing),
            _ => None,
        }
    }

    /// As [`Error::Session`] says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Committing => "committing",
            Self::Committed => "committed",
            Self::Abandoned => "abandoned",
            Self::Fenced => "fenced",
        }
    }

    pub(super) fn refuse(self, session: SessionId) -> Error {
        Error::Session { session, state: self.name() }
    }
}
