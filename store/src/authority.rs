//! The one trait through which a client reaches a repository, in process or over a network.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Result;
use crate::catalog::{Location, Totals};
use crate::check::{CheckOptions, CheckReport};
use crate::gc::{GcOptions, GcReport};
use crate::id::{ChunkId, NodeId, PackName, Root, SessionId, SlotId, SnapshotId};
use crate::pack::PackKind;
use crate::progress::Progress;
use crate::snapshot::Timestamp;

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

    /// Every place where each chunk is stored.
    async fn locate_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>>;

    /// Bytes of a data pack.
    async fn read_pack(&self, name: PackName, range: Range<u64>) -> Result<Bytes>;

    /// How much the catalog knows of.
    async fn totals(&self) -> Result<Totals>;

    /// Collects the space of what no snapshot and no open session needs.
    async fn gc(&self, options: &GcOptions, progress: &dyn Progress) -> Result<GcReport>;

    /// Compares catalog, bucket and trees, without any key.
    async fn check(&self, options: &CheckOptions, progress: &dyn Progress) -> Result<CheckReport>;
}
