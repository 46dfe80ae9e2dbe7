//! A repository in memory: the reading half of an authority, and ways to damage it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use underlay_store::authority::{
    Authority, Marked, RepairOptions, RepairReport, SessionGrant, StoredDocument, Withdrawal, Withdrawn,
};
use underlay_store::catalog::{Location, Totals, Unverified};
use underlay_store::check::{CheckOptions, CheckReport};
use underlay_store::cut::{BLOCK, CutParameters, Cutter, Piece, REGION};
use underlay_store::gc::{GcOptions, GcReport};
use underlay_store::id::{ChunkId, NodeId, PackName, RepositoryId, Root, SessionId, SlotId, SnapshotId};
use underlay_store::key::RestoreKey;
use underlay_store::pack::{
    ChunkEncoder, FinishedPack, Frame, PackId, PackKind, PackWriter, parse, parse_frame,
};
use underlay_store::progress::Progress;
use underlay_store::tree::{Editor, Node, NodeSource, Run};
use underlay_store::{Error, Result};

use super::super::super::testing::Numbers;
use super::Environment;

/// Counts progress.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) advanced: AtomicU64,
}

impl Progress for Counted {
    fn phase(&self, _name: &'static str, _total: Option<u64>) {
        self.advanced.store(0, Ordering::Relaxed);
    }
    fn advance(&self, amount: u64) {
        self.advanced.fetch_add(amount, Ordering::Relaxed);
    }
    fn notice(&self, _text: &str) {}
}

/// Bytes of packs that were read and not yet dropped: now, and at most.
#[derive(Default)]
pub(super) struct Lent {
    now: AtomicU64,
    pub(super) most: AtomicU64,
}

struct Loan(Vec<u8>, Arc<Lent>);

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.1.now.fetch_sub(self.0.len() as u64, Ordering::Relaxed);
    }
}

impl Lent {
    fn lend(self: &Arc<Self>, bytes: &[u8]) -> Bytes {
        let now = self.now.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        self.most.fetch_max(now, Ordering::Relaxed);
        Bytes::from_owner(Loan(bytes.to_vec(), Arc::clone(self)))
    }
}

pub(super) struct Memory {
    pub(super) key: RestoreKey,
    pub(super) cancel: AtomicBool,
    pub(super) progress: Counted,
    pub(super) places: BTreeMap<ChunkId, Vec<Location>>,
    pub(super) nodes_read: AtomicU64,
    pub(super) lent: Arc<Lent>,
    repository: RepositoryId,
    packs: BTreeMap<PackName, Vec<u8>>,
    nodes: HashMap<NodeId, Vec<u8>>,
}

/// A disk with zeros, text-like and random data, and repeated parts.
pub(super) fn disk_of(numbers: &mut Numbers, size: u64) -> Vec<u8> {
    let mut disk = vec![0u8; size as usize];
    let mut at = 0;
    while at < disk.len() {
        let end = disk.len().min(at + (1 + numbers.below(300) as usize) * BLOCK);
        match numbers.below(5) {
            0 | 1 => {}
            2 => disk[at..end].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 97) as u8 | 1),
            3 if at > 1 << 20 => disk.copy_within(0..end.min(2 * at) - at, at),
            _ => disk[at..end].fill_with(|| numbers.next() as u8),
        }
        at = end;
    }
    if let Some(last) = disk.last_mut() {
        *last = 1;
    }
    disk
}

struct NoNodes;

impl NodeSource for NoNodes {
    type Error = String;
    fn node(&mut self, id: &NodeId) -> std::result::Result<Node, String> {
        Err(id.to_string())
    }
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            key: RestoreKey::generate(),
            cancel: AtomicBool::new(false),
            progress: Counted::default(),
            places: BTreeMap::new(),
            nodes_read: AtomicU64::new(0),
            lent: Arc::default(),
            repository: RepositoryId::random(),
            packs: BTreeMap::new(),
            nodes: HashMap::new(),
        }
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&Environment<'_>) -> T) -> T {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        work(&Environment {
            authority: self,
            key: &self.key,
            repository: self.repository,
            runtime: runtime.handle().clone(),
            progress: &self.progress,
            cancel: &self.cancel,
        })
    }

    /// Backs a disk up.
    pub(super) fn store(&mut self, disk: &[u8]) -> Root {
        let regions: Vec<_> = disk
            .chunks(REGION)
            .enumerate()
            .map(|(at, region)| ((at * REGION) as u64, region.to_vec()))
            .collect();
        self.store_sparse(disk.len() as u64, &regions)
    }

    /// Backs up a disk that holds only these data, each part within one region.
    pub(super) fn store_sparse(&mut self, size: u64, parts: &[(u64, Vec<u8>)]) -> Root {
        let backup = self.key.backup().clone();
        let cutter = Cutter::new(&CutParameters::default(), backup.cut_secret());
        let mut nodes = HashMap::new();
        let mut sink = |node: &Node| {
            let bytes = node.encode();
            let id = backup.node_id(&bytes);
            nodes.insert(id, bytes);
            id
        };
        let unexpected = |id: &NodeId| id.to_string();
        let empty = Root { size: 0, node: None };
        let mut editor = Editor::new(empty, size, &mut NoNodes, &mut sink, unexpected).unwrap();
        let mut fresh = BTreeMap::new();
        for (offset, part) in parts {
            let within = *offset as usize % REGION;
            let region = [vec![0; within], part.clone()].concat();
            let (mut runs, mut at) = (Vec::new(), 0);
            for piece in cutter.cut(&region) {
                let (Piece::Zero(blocks) | Piece::Chunk(blocks)) = piece;
                let bytes = &region[at..region.len().min(at + blocks * BLOCK)];
                at += blocks * BLOCK;
                runs.push(match piece {
                    Piece::Zero(_) => Run::Zero(blocks),
                    Piece::Chunk(_) => {
                        let id = backup.chunk_id(bytes);
                        fresh.insert(id, bytes.to_vec());
                        Run::Chunk(blocks, id)
                    }
                });
            }
            let leaf = Node::leaf(runs).map(|node| sink(&node));
            editor.set(offset / REGION as u64, leaf, &mut NoNodes, &mut sink, unexpected).unwrap();
        }
        let root = editor.finish(&mut sink);
        self.nodes.extend(nodes);
        fresh.retain(|id, _| !self.places.contains_key(id));
        self.put_chunks(&fresh);
        root
    }

    fn put_chunks(&mut self, chunks: &BTreeMap<ChunkId, Vec<u8>>) {
        let backup = self.key.backup().clone();
        let mut encoder = ChunkEncoder::new(&backup, self.repository, 1).unwrap();
        let chunks: Vec<_> = chunks.iter().collect();
        // No pack of a single chunk: copied alone, in reverse order, it would get the same name.
        let together = if chunks.len() % 60 == 1 { 59 } else { 60 };
        for some in chunks.chunks(together) {
            let (key, sealed) = backup.seal_data_key(&self.repository).unwrap();
            let mut writer = PackWriter::data(self.repository, vec![sealed]).unwrap();
            for (id, plain) in some {
                writer.add(&encoder.encode(&key, **id, plain).unwrap()).unwrap();
            }
            self.put_pack_bytes(&writer.finish().unwrap());
        }
    }

    fn put_pack_bytes(&mut self, pack: &FinishedPack) {
        for entry in &pack.entries {
            self.places.entry(entry.chunk_id()).or_default().push(Location {
                pack: pack.name(),
                offset: entry.offset,
                payload_length: entry.payload_length,
                plain_length: entry.plain_length,
                codec: entry.codec,
                retired: false,
            });
        }
        self.packs.insert(pack.name(), pack.bytes.to_vec());
    }

    /// Copies every frame, as a collection would: two old packs into each new one, with both their keys. In another order,
    /// so that a pack copied alone gets another name.
    pub(super) fn copy_packs(&mut self) {
        let packs: Vec<_> = self.packs.clone().into_iter().collect();
        for pair in packs.chunks(2) {
            let sources = pair.iter().map(|(name, bytes)| {
                let id = underlay_store::pack::PackId::new(PackKind::Data, *name);
                (id, parse(&id, bytes).unwrap(), bytes)
            });
            let sources: Vec<_> = sources.collect();
            let keys = sources.iter().flat_map(|(_, index, _)| index.header.sealed_keys.clone()).collect();
            let mut writer = PackWriter::data(self.repository, keys).unwrap();
            for (id, index, bytes) in &sources {
                for entry in index.entries.iter().rev() {
                    let range = entry.offset as usize..(entry.offset + entry.frame_length()) as usize;
                    let frame = parse_frame(id, &bytes[range], entry).unwrap();
                    writer.add(&Frame::copy_of(&frame, index.header.key_of(id, &frame).unwrap())).unwrap();
                }
            }
            self.put_pack_bytes(&writer.finish().unwrap());
        }
    }

    pub(super) fn pack_names(&self) -> Vec<PackName> {
        self.packs.keys().copied().collect()
    }

    /// Bytes of the longest pack.
    pub(super) fn longest_pack(&self) -> u64 {
        self.packs.values().map(Vec::len).max().unwrap_or_default() as u64
    }

    /// Bytes of all packs.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.packs.values().map(Vec::len).sum::<usize>() as u64
    }

    pub(super) fn some_chunk(&self) -> (ChunkId, Location) {
        self.places.iter().next().map(|(id, places)| (*id, places[0])).unwrap()
    }

    pub(super) fn flip(&mut self, pack: &PackName, at: usize) {
        self.packs.get_mut(pack).unwrap()[at] ^= 1;
    }

    pub(super) fn flip_header(&mut self, pack: &PackName) {
        self.flip(pack, 40);
    }

    pub(super) fn flip_every_frame(&mut self, pack: &PackName) {
        let places: Vec<_> = self.places.values().flatten().filter(|at| at.pack == *pack).copied().collect();
        for location in places {
            self.flip(pack, location.offset as usize + 61);
        }
    }

    /// Cuts a pack in half.
    pub(super) fn truncate(&mut self, pack: &PackName) {
        let bytes = self.packs.get_mut(pack).unwrap();
        bytes.truncate(bytes.len() / 2);
    }

    pub(super) fn remove(&mut self, pack: &PackName) {
        self.packs.remove(pack);
    }

    pub(super) fn flip_node(&mut self, id: &NodeId) {
        self.nodes.get_mut(id).unwrap()[5] ^= 1;
    }
}

#[async_trait]
impl Authority for Memory {
    async fn read_nodes(&self, ids: &[NodeId]) -> Result<Vec<Bytes>> {
        self.nodes_read.fetch_add(ids.len() as u64, Ordering::Relaxed);
        let missing = |id: &NodeId| Error::Missing { object: format!("node {id}") };
        ids.iter().map(|id| self.nodes.get(id).cloned().map(Bytes::from).ok_or_else(|| missing(id))).collect()
    }

    async fn locate_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        assert!(ids.is_sorted());
        Ok(ids.iter().map(|id| self.places.get(id).cloned().unwrap_or_default()).collect())
    }

    async fn read_pack(&self, name: PackName, range: Range<u64>) -> Result<Bytes> {
        tokio::task::yield_now().await;
        let pack = self.packs.get(&name).ok_or_else(|| Error::Missing { object: format!("pack {name}") })?;
        let bytes = pack.get(range.start as usize..range.end as usize);
        bytes
            .map(|bytes| self.lent.lend(bytes))
            .ok_or_else(|| Error::damaged(format!("pack {name}"), "it is cut off"))
    }

    async fn node_copies(&self, id: NodeId) -> Result<Vec<Bytes>> {
        Ok(self.nodes.get(&id).cloned().map(Bytes::from).into_iter().collect())
    }

    async fn unverified(&self) -> Result<Vec<Unverified>> {
        unreachable!()
    }
    async fn read_whole(&self, _: PackId) -> Result<Bytes> {
        unreachable!()
    }
    async fn vouch(&self, _: &[PackName]) -> Result<u64> {
        unreachable!()
    }
    async fn descriptor(&self) -> Result<Bytes> {
        unreachable!()
    }
    async fn key_slots(&self) -> Result<Vec<StoredDocument>> {
        unreachable!()
    }
    async fn put_key_slot(&self, _: SlotId, _: Bytes) -> Result<()> {
        unreachable!()
    }
    async fn delete_key_slot(&self, _: SlotId) -> Result<()> {
        unreachable!()
    }
    async fn open_session(&self, _: &str) -> Result<SessionGrant> {
        unreachable!()
    }
    async fn have_chunks(&self, _: SessionId, _: &[ChunkId]) -> Result<Vec<bool>> {
        unreachable!()
    }
    async fn have_nodes(&self, _: SessionId, _: &[NodeId]) -> Result<Vec<bool>> {
        unreachable!()
    }
    async fn pin_roots(&self, _: SessionId, _: &[Root]) -> Result<Vec<bool>> {
        unreachable!()
    }
    async fn put_pack(&self, _: SessionId, _: PackKind, _: Bytes) -> Result<PackName> {
        unreachable!()
    }
    async fn commit(&self, _: SessionId, _: Bytes) -> Result<()> {
        unreachable!()
    }
    async fn abandon(&self, _: SessionId) -> Result<()> {
        unreachable!()
    }
    async fn snapshots(&self) -> Result<Vec<StoredDocument>> {
        unreachable!()
    }
    async fn protected(&self) -> Result<Vec<SnapshotId>> {
        unreachable!()
    }
    async fn protect(&self, _: SnapshotId, _: bool) -> Result<()> {
        unreachable!()
    }
    async fn forget(&self, _: SnapshotId) -> Result<()> {
        unreachable!()
    }
    async fn withdraw(&self, _: &Withdrawal) -> Result<Withdrawn> {
        unreachable!()
    }
    async fn marked(&self) -> Result<Vec<Marked>> {
        unreachable!()
    }
    async fn repair(&self, _: &RepairOptions, _: &dyn Progress) -> Result<RepairReport> {
        unreachable!()
    }
    async fn totals(&self) -> Result<Totals> {
        unreachable!()
    }
    async fn gc(&self, _: &GcOptions, _: &dyn Progress) -> Result<GcReport> {
        unreachable!()
    }
    async fn check(&self, _: &CheckOptions, _: &dyn Progress) -> Result<CheckReport> {
        unreachable!()
    }
}
