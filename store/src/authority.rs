//! The one trait through which a client reaches a repository, in process or over a network.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::catalog::{Location, Totals, Unverified};
use crate::check::{CheckOptions, CheckReport};
use crate::gc::{GcOptions, GcReport};
use crate::id::{ChunkId, NodeId, PackName, Root, SessionId, SlotId, SnapshotId};
use crate::key::BackupKey;
use crate::pack::{PackId, PackKind};
use crate::progress::Progress;
use crate::snapshot::{DamageMark, Timestamp};

/// What a client gets when it opens a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionGrant {
    /// Names the session in every later call.
    pub session: SessionId,
    /// The snapshot's time, by the authority's clock; later than every time granted before.
    pub time: Timestamp,
}

/// An object and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDocument {
    /// The object's name.
    pub name: String,
    /// The document's text.
    pub bytes: Bytes,
}

/// Damage that somebody with keys found. It can only take things out of use: whoever lies causes an upload, never a loss.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    /// Copies of chunks that are not what their ids say, with the packs they lie in.
    pub chunks: Vec<(ChunkId, PackName)>,
    /// Nodes of which no copy is what its id says.
    pub nodes: Vec<NodeId>,
    /// Copies of nodes that are not what their ids say, with the packs they lie in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_copies: Vec<(NodeId, PackName)>,
    /// Trees that lost something by that.
    pub roots: Vec<Root>,
}

/// What came of a [`Withdrawal`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Withdrawn {
    /// It was recorded. If not, this host is not the owner.
    pub recorded: bool,
    /// Places newly taken out of use.
    pub retired: u64,
    /// The packs are sound and hold something else than the catalog says: it is the catalog that is damaged.
    pub catalog_differs: bool,
}

/// A mark that says of a snapshot that it lost data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Marked {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// What the mark says; `None` if it cannot be read.
    pub mark: Option<DamageMark>,
}

/// How to repair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RepairOptions {
    /// Find out and change nothing.
    pub dry_run: bool,
    /// Snapshots whose documents, as [`Authority::snapshots`] gave them, verify: those may be put back into the bucket.
    pub verified: Vec<SnapshotId>,
}

/// What a repair found and did. Nothing is ever dropped by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RepairReport {
    /// What the check found.
    pub check: CheckReport,
    /// Snapshots whose documents were put back into the bucket.
    pub put_back: Vec<SnapshotId>,
    /// Snapshots newly marked as damaged, or marked with something else than before.
    pub marked: Vec<SnapshotId>,
    /// Snapshots found whole again, whose marks were removed.
    pub unmarked: Vec<SnapshotId>,
    /// Marks that cannot be read, of snapshots that are protected: written anew.
    pub protections: Vec<SnapshotId>,
    /// Lost chunks and nodes that the newest snapshot of some machine needs: its next backup stores again what its disks still hold.
    pub may_heal: u64,
    /// Lost chunks and nodes that only older snapshots need: gone, unless some disk still holds the same.
    pub gone: u64,
    /// The catalog contradicts the packs: it has to be built anew before anything else.
    pub catalog_is_damaged: bool,
}

/// The authority over one repository: says what is stored, takes packs, commits snapshots. It holds no keys.
///
/// Every method fails with the error of the object concerned; none turns a failed read into an empty answer.
#[async_trait]
pub trait Authority: Send + Sync {
    /// The text of `underlay.json`.
    async fn descriptor(&self) -> Result<Bytes>;

    /// All passphrase slots.
    async fn key_slots(&self) -> Result<Vec<StoredDocument>>;

    /// Stores a new passphrase slot.
    async fn put_key_slot(&self, slot: SlotId, document: Bytes) -> Result<()>;

    /// Removes a passphrase slot. Whoever kept a copy of it can still open it.
    async fn delete_key_slot(&self, slot: SlotId) -> Result<()>;

    /// Begins a backup of `vm`.
    async fn open_session(&self, vm: &str) -> Result<SessionGrant>;

    /// Which of these chunks are stored and may be relied on. Every `true` is pinned for this session.
    async fn have_chunks(&self, session: SessionId, ids: &[ChunkId]) -> Result<Vec<bool>>;

    /// Which of these nodes are stored with everything below them. Every `true` is pinned for this session.
    async fn have_nodes(&self, session: SessionId, ids: &[NodeId]) -> Result<Vec<bool>>;

    /// Which of these trees hang from a live snapshot. Every `true` is pinned for this session.
    async fn pin_roots(&self, session: SessionId, roots: &[Root]) -> Result<Vec<bool>>;

    /// Stores a pack; durable and known to the catalog when it returns. Repeating it changes nothing.
    async fn put_pack(&self, session: SessionId, kind: PackKind, bytes: Bytes) -> Result<PackName>;

    /// Proves every reference of the snapshot, stores it and makes it visible. Before this returns `Ok`, nothing is promised.
    async fn commit(&self, session: SessionId, document: Bytes) -> Result<()>;

    /// Gives a session up. What it stored stays usable until a collection.
    async fn abandon(&self, session: SessionId) -> Result<()>;

    /// All snapshots, as stored. The caller holds the key that verifies them.
    async fn snapshots(&self) -> Result<Vec<StoredDocument>>;

    /// Snapshots that must not be dropped, in ascending order.
    async fn protected(&self) -> Result<Vec<SnapshotId>>;

    /// Protects a snapshot, or lifts that.
    async fn protect(&self, snapshot: SnapshotId, on: bool) -> Result<()>;

    /// Drops a snapshot for good, unless it is protected. What only it needed stays until a collection. Repeating it is safe.
    async fn forget(&self, snapshot: SnapshotId) -> Result<()>;

    /// The encodings of these nodes, in order. The caller verifies their ids.
    async fn read_nodes(&self, ids: &[NodeId]) -> Result<Vec<Bytes>>;

    /// Different contents that are stored as this node, the likelier ones first, at least one: where writers do not trust each other, one
    /// of them can have stored something else. For whoever read another than the id says.
    async fn node_copies(&self, id: NodeId) -> Result<Vec<Bytes>>;

    /// Every place where each chunk is stored.
    async fn locate_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>>;

    /// Bytes of a data pack.
    async fn read_pack(&self, name: PackName, range: Range<u64>) -> Result<Bytes>;

    /// How much the catalog knows of.
    async fn totals(&self) -> Result<Totals>;

    /// Collects the space of what no snapshot and no open session needs.
    async fn gc(&self, options: &GcOptions, progress: &dyn Progress) -> Result<GcReport>;

    /// Compares catalog, bucket and trees, without any key. What is found damaged is taken out of use, if this is the owner.
    async fn check(&self, options: &CheckOptions, progress: &dyn Progress) -> Result<CheckReport>;

    /// Takes out of use what somebody with keys found damaged.
    async fn withdraw(&self, damage: &Withdrawal) -> Result<Withdrawn>;

    /// Packs that no holder of the keys has verified, the oldest first.
    async fn unverified(&self) -> Result<Vec<Unverified>>;

    /// A whole pack, of either kind.
    async fn read_whole(&self, pack: PackId) -> Result<Bytes>;

    /// Says that everything in these packs is what its id says: the caller holds the keys and has read all of it. How many were not known as
    /// such.
    async fn vouch(&self, packs: &[PackName]) -> Result<u64>;

    /// Snapshots that are marked as damaged, in ascending order.
    async fn marked(&self) -> Result<Vec<Marked>>;

    /// Checks, reads what is under suspicion, and marks the snapshots that lost data in the bucket.
    async fn repair(&self, options: &RepairOptions, progress: &dyn Progress) -> Result<RepairReport>;
}

/// Looks for a copy of a node that is what its id says, after [`Authority::read_nodes`] gave another. `None` if there is none.
///
/// # Errors
/// What the repository reports. Damage is none.
pub async fn genuine_node(authority: &dyn Authority, key: &BackupKey, id: NodeId) -> Result<Option<Bytes>> {
    match authority.node_copies(id).await {
        Ok(copies) => Ok(copies.into_iter().find(|copy| key.node_id(copy) == id)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}
