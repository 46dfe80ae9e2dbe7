//! Messages between a client and a server: pure, bounded encodings. `docs/server.md` draws them.
//!
//! Whatever arrives is hostile until it is decoded: a wrong message is an error in words, never a panic, and no decoder allocates
//! more than a small multiple of what it was given.

mod documents;
mod head;
mod ids;
mod jobs;
mod nodes;
mod places;
mod problem;
#[cfg(test)]
mod tests;
mod words;

use serde::{Deserialize, Serialize};

pub use crate::backend::SignedRequest;
use crate::catalog::Unverified;
use crate::id::{PackName, SessionId, SlotId};
use crate::pack::{PackId, PackKind};

pub use documents::{decode_documents, encode_documents};
pub use ids::{IdKind, MAXIMUM_IDS, WireId, decode_bitmap, decode_ids, encode_bitmap, encode_ids};
pub use jobs::{ForgetReport, GcRequest, JobRequest, JobState, JobStatus, Phase};
pub use nodes::{decode_nodes, encode_nodes};
pub use places::{decode_places, encode_places};
pub use problem::{Problem, kind};
pub use words::word;

/// The version of the wire that this build speaks: the first part of every path but those of health.
pub const VERSION: &str = "v1";

/// Asks for a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// The VM to back up: 1 to 128 bytes, no control characters, no `@` or `/`, not starting with `-` or `.`.
    #[cfg_attr(
        feature = "schema",
        schemars(regex(pattern = r"^[^@/.\x00-\x1f\x7f-\x9f-][^@/\x00-\x1f\x7f-\x9f]{0,127}$"))
    )]
    pub vm: String,
}

/// A session that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OpenedSession {
    /// Its id, as the snapshot will name it.
    pub session: SessionId,
    /// The snapshot's time, in milliseconds since 1970.
    pub time_ms: i64,
    /// Packs are to be stored in the bucket itself, with signed requests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
}

/// A pack that nobody with keys has verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListedPack {
    /// It holds tree nodes.
    pub nodes: bool,
    /// SHA-256 of the object.
    pub name: PackName,
    /// Bytes of the object.
    pub size: u64,
}

impl From<ListedPack> for Unverified {
    fn from(listed: ListedPack) -> Self {
        let kind = if listed.nodes { PackKind::Nodes } else { PackKind::Data };
        Self { pack: PackId::new(kind, listed.name), size: listed.size }
    }
}

impl From<Unverified> for ListedPack {
    fn from(Unverified { pack, size }: Unverified) -> Self {
        Self { nodes: pack.kind == PackKind::Nodes, name: pack.name, size }
    }
}

/// The documents of a repository to be made. They are texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NewRepository {
    /// The text of `underlay.json`.
    pub descriptor: String,
    /// Passphrase slots.
    pub slots: Vec<NewSlot>,
}

/// A passphrase slot of a repository to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NewSlot {
    /// Its name.
    pub slot: SlotId,
    /// The text of its document.
    pub document: String,
}

/// Why a message means nothing, in words.
pub type Wrong = String;
