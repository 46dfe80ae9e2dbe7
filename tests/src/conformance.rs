//! What every [`Authority`] must do, wherever it is: one suite for those in this process and those behind a server.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use underlay_store::Error;
use underlay_store::authority::{Authority, RepairOptions, SessionGrant, Withdrawal};
use underlay_store::check::CheckOptions;
use underlay_store::cut::{BLOCK, REGION_BLOCKS};
use underlay_store::gc::GcOptions;
use underlay_store::id::{ChunkId, NodeId, PackName, RepositoryId, Root, SessionId, SnapshotId};
use underlay_store::key::slot::{Argon2id, Slot};
use underlay_store::key::{Key, RestoreKey};
use underlay_store::names;
use underlay_store::pack::{ChunkEncoder, PackKind, PackWriter, name_of};
use underlay_store::progress::{Progress, Silent};
use underlay_store::snapshot::{Consistency, Descriptor, Disk, Snapshot, Statistics, Timestamp};
use underlay_store::tree::{Node, Run};

/// A new repository, and its key.
#[allow(missing_debug_implementations)]
pub struct Ground {
    /// The repository as it is reached.
    pub authority: Arc<dyn Authority>,
    /// Opens everything.
    pub key: RestoreKey,
    /// What it is.
    pub descriptor: Descriptor,
}

/// One rule, and what tries it on a repository of its own.
pub type Case = (&'static str, fn(Ground) -> BoxFuture<'static, ()>);

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), |ground| $name(ground).boxed())),*] };
}

/// All of them.
pub const CASES: &[Case] = cases![
    a_session_makes_one_snapshot,
    what_is_stored_comes_back,
    answers_stand_in_the_order_of_questions,
    what_is_not_there_is_said_to_be_missing,
    packs_are_what_they_say,
    nothing_unproven_is_committed,
    what_has_ended_stays_so,
    roots_are_live_while_a_snapshot_holds_them,
    protection_holds_and_forgetting_repeats,
    slots_come_and_go,
    space_is_collected_and_the_rest_is_sound,
    damage_is_taken_out_of_use,
    many_ids_at_once,
];

/// One leaf with one chunk, as a client would store it.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its pack.
    pub pack: PackName,
    /// The tree's only node.
    pub leaf: NodeId,
    /// The tree.
    pub root: Root,
}

impl Ground {
    /// A data pack with these chunks of four blocks each, filled with a byte.
    ///
    /// # Panics
    /// If it cannot be encoded.
    pub fn data_pack(&self, repository: RepositoryId, fills: &[u8]) -> (Vec<ChunkId>, Bytes) {
        let backup = self.key.backup();
        let (data_key, sealed) = backup.seal_data_key(&repository).expect("a data key");
        let mut encoder = ChunkEncoder::new(backup, repository, 3).expect("an encoder");
        let mut pack = PackWriter::data(repository, vec![sealed]).expect("a pack");
        let mut ids = Vec::new();
        for fill in fills {
            let plain = vec![*fill; 4 * BLOCK];
            let id = backup.chunk_id(&plain);
            pack.add(&encoder.encode(&data_key, id, &plain).expect("a frame")).expect("room");
            ids.push(id);
        }
        (ids, pack.finish().expect("something in it").bytes)
    }

    /// A node pack with a leaf that names this chunk; the leaf is not stored yet.
    ///
    /// # Panics
    /// If it cannot be encoded.
    pub fn node_pack(&self, chunk: ChunkId) -> (NodeId, Bytes) {
        let leaf = Node::leaf([Run::Chunk(4, chunk), Run::Zero(REGION_BLOCKS - 4)]).expect("a leaf").encode();
        let id = self.key.backup().node_id(&leaf);
        let mut pack = PackWriter::nodes(self.descriptor.repository);
        pack.add_node(id, &leaf).expect("room");
        (id, pack.finish().expect("something in it").bytes)
    }

    /// A snapshot of one disk, sealed.
    ///
    /// # Panics
    /// If it is not valid.
    pub fn snapshot(&self, vm: &str, grant: SessionGrant, root: Root) -> (SnapshotId, Bytes) {
        self.snapshot_as(vm, grant, root, |_| {})
    }

    fn snapshot_as(
        &self,
        vm: &str,
        grant: SessionGrant,
        root: Root,
        change: impl FnOnce(&mut Snapshot),
    ) -> (SnapshotId, Bytes) {
        let mut snapshot = Snapshot {
            snapshot: SnapshotId::random(),
            repository: self.descriptor.repository,
            session: grant.session,
            vm: vm.to_owned(),
            time: grant.time,
            consistency: Consistency::Offline,
            disks: vec![Disk { name: "vda".into(), root, layers: Vec::new() }],
            statistics: Statistics::default(),
            client: "test".into(),
            private: None,
        };
        change(&mut snapshot);
        (snapshot.snapshot, snapshot.seal(self.key.backup()).expect("a valid snapshot").into())
    }

    /// Stores a chunk that is filled with a byte, and a tree that holds it.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn store(&self, session: SessionId, fill: u8) -> Stored {
        let (chunks, data) = self.data_pack(self.descriptor.repository, &[fill]);
        let pack = self.authority.put_pack(session, PackKind::Data, data).await.expect("a data pack");
        let (leaf, nodes) = self.node_pack(chunks[0]);
        self.authority.put_pack(session, PackKind::Nodes, nodes).await.expect("a node pack");
        Stored { chunk: chunks[0], pack, leaf, root: Root { size: 2 << 20, node: Some(leaf) } }
    }

    /// Backs up a machine whose disk holds one chunk.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn backup(&self, vm: &str, fill: u8) -> (SnapshotId, Stored) {
        let grant = self.authority.open_session(vm).await.expect("a session");
        let stored = self.store(grant.session, fill).await;
        let (id, document) = self.snapshot(vm, grant, stored.root);
        self.authority.commit(grant.session, document).await.expect("a commit");
        (id, stored)
    }
}

/// Records what it is told.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn phase(&self, name: &'static str, _total: Option<u64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    fn advance(&self, _amount: u64) {}

    fn notice(&self, _text: &str) {}
}

const ZEROS: Root = Root { size: 4096, node: None };

async fn a_session_makes_one_snapshot(ground: Ground) {
    let authority = &ground.authority;
    let bytes = authority.descriptor().await.expect("the descriptor");
    assert_eq!(Descriptor::open(&bytes, ground.key.backup()).expect("it verifies"), ground.descriptor);
    let (first, second) = (
        authority.open_session("vm").await.expect("a session"),
        authority.open_session("vm").await.expect("another session"),
    );
    assert!(first.session != second.session && first.time < second.time);
    let (id, document) = ground.snapshot("vm", second, ZEROS);
    authority.commit(second.session, document.clone()).await.expect("a commit");
    let listed = authority.snapshots().await.expect("snapshots");
    assert_eq!((&*listed[0].name, &listed[0].bytes), (&*names::snapshot(&id), &document));
    let (_, other) = ground.snapshot("vm", second, ZEROS);
    let again = authority.commit(second.session, other).await.expect_err("a session has one snapshot");
    assert!(matches!(again, Error::Session { .. }), "{again}");
    let (_, document) = ground.snapshot("vm", first, ZEROS);
    authority.commit(first.session, document).await.expect("a commit");
    assert_eq!(authority.snapshots().await.expect("snapshots").len(), 2);
    let totals = authority.totals().await.expect("totals");
    assert_eq!((totals.snapshots, totals.packs), (2, 0));
}

async fn what_is_stored_comes_back(ground: Ground) {
    let authority = &ground.authority;
    let grant = authority.open_session("vm").await.expect("a session");
    let (ids, bytes) = ground.data_pack(ground.descriptor.repository, &[1, 2, 3]);
    let name = authority.put_pack(grant.session, PackKind::Data, bytes.clone()).await.expect("a pack");
    assert_eq!(name, name_of(&bytes));
    let again = authority.put_pack(grant.session, PackKind::Data, bytes.clone()).await.expect("the same");
    assert_eq!(again, name, "repeating it changes nothing");
    let whole = authority.read_pack(name, 0..bytes.len() as u64).await.expect("the pack");
    assert_eq!(whole, bytes);
    let middle = authority.read_pack(name, 5..77).await.expect("a part");
    assert_eq!(middle, bytes.slice(5..77));
    for (id, places) in ids.iter().zip(authority.locate_chunks(&ids).await.expect("places")) {
        assert_eq!((places.len(), places[0].pack, places[0].retired), (1, name, false), "{id}");
        assert_eq!(places[0].plain_length as usize, 4 * BLOCK);
    }
    let (leaf, nodes) = ground.node_pack(ids[1]);
    authority.put_pack(grant.session, PackKind::Nodes, nodes).await.expect("a node pack");
    let read = authority.read_nodes(&[leaf]).await.expect("the leaf");
    assert_eq!(ground.key.backup().node_id(&read[0]), leaf);
    let (_, document) = ground.snapshot("vm", grant, Root { size: 2 << 20, node: Some(leaf) });
    authority.commit(grant.session, document).await.expect("a commit");
}

async fn answers_stand_in_the_order_of_questions(ground: Ground) {
    let authority = &ground.authority;
    let (_, a) = ground.backup("a", 1).await;
    let (_, b) = ground.backup("b", 2).await;
    let session = authority.open_session("c").await.expect("a session").session;
    let unknown = (ChunkId::new([0xff; 32]), NodeId::new([0; 32]));
    let chunks = [b.chunk, unknown.0, a.chunk, b.chunk];
    assert_eq!(authority.have_chunks(session, &chunks).await.expect("answers"), [true, false, true, true]);
    let nodes = [b.leaf, unknown.1, a.leaf, a.leaf, b.leaf];
    let have = authority.have_nodes(session, &nodes).await.expect("answers");
    assert_eq!(have, [true, false, true, true, true]);
    let read = authority.read_nodes(&[b.leaf, a.leaf, b.leaf]).await.expect("nodes");
    let ids: Vec<NodeId> = read.iter().map(|node| ground.key.backup().node_id(node)).collect();
    assert_eq!(ids, [b.leaf, a.leaf, b.leaf]);
    let places = authority.locate_chunks(&chunks).await.expect("places");
    let packs: Vec<Option<PackName>> = places.iter().map(|places| Some(places.first()?.pack)).collect();
    assert_eq!(packs, [Some(b.pack), None, Some(a.pack), Some(b.pack)]);
    assert!(authority.have_chunks(session, &[]).await.expect("no answers").is_empty());
    assert!(authority.read_nodes(&[]).await.expect("no nodes").is_empty());
    assert!(authority.locate_chunks(&[]).await.expect("no places").is_empty());
}

async fn what_is_not_there_is_said_to_be_missing(ground: Ground) {
    let authority = &ground.authority;
    let unknown = NodeId::new([9; 32]);
    let missing = authority.read_nodes(&[unknown]).await.expect_err("no such node");
    assert!(missing.to_string().contains("0909") && missing.is_damage(), "{missing}");
    let pack = PackName::new([9; 32]);
    let missing = authority.read_pack(pack, 0..10).await.expect_err("no such pack");
    assert!(matches!(&missing, Error::Missing { object } if object.contains("0909")), "{missing}");
    assert!(authority.read_pack(pack, 5..5).await.expect("nothing of it").is_empty());
    let (_, stored) = ground.backup("vm", 1).await;
    let short = authority.read_pack(stored.pack, 0..1 << 20).await.expect_err("it is shorter");
    assert!(matches!(&short, Error::Damaged { .. }), "{short}");
    assert!(authority.snapshots().await.expect("snapshots").len() == 1);
}

async fn packs_are_what_they_say(ground: Ground) {
    let authority = &ground.authority;
    let session = authority.open_session("vm").await.expect("a session").session;
    let (_, foreign) = ground.data_pack(RepositoryId::random(), &[1]);
    let refused = authority.put_pack(session, PackKind::Data, foreign).await.expect_err("another's");
    assert!(refused.to_string().contains("another repository"), "{refused}");
    let (_, good) = ground.data_pack(ground.descriptor.repository, &[1]);
    let mut bent = good.to_vec();
    bent[100] ^= 1;
    for (kind, bytes) in [
        (PackKind::Nodes, good),
        (PackKind::Data, Bytes::from(bent)),
        (PackKind::Data, Bytes::from_static(b"no pack")),
        (PackKind::Data, Bytes::new()),
    ] {
        let refused = authority.put_pack(session, kind, bytes).await.expect_err("no such pack");
        assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    }
    assert_eq!(authority.totals().await.expect("totals").packs, 0);
}

async fn nothing_unproven_is_committed(ground: Ground) {
    let authority = &ground.authority;
    let (_, others) = ground.backup("other", 1).await;
    let grant = authority.open_session("vm").await.expect("a session");
    let dangling = ground.node_pack(ChunkId::new([7; 32]));
    authority.put_pack(grant.session, PackKind::Nodes, dangling.1).await.expect("a node pack");
    let lying = Root { size: 2 << 20, node: Some(dangling.0) };
    let earlier = Timestamp::from_milliseconds(grant.time.as_milliseconds() - 1000).expect("a time");
    let attempts = [
        (ground.snapshot("vm", grant, lying), "chunk 0707"),
        (ground.snapshot("vm", grant, others.root), "neither new, nor pinned"),
        (ground.snapshot_as("vm", grant, ZEROS, |snapshot| snapshot.time = earlier), "its time"),
        (ground.snapshot("other", grant, ZEROS), "its VM"),
        (
            ground.snapshot_as("vm", grant, ZEROS, |snapshot| snapshot.session = SessionId::random()),
            "another session",
        ),
        (
            ground.snapshot_as("vm", grant, ZEROS, |snapshot| snapshot.repository = RepositoryId::random()),
            "another session or repository",
        ),
    ];
    for ((id, document), reason) in attempts {
        let refused = authority.commit(grant.session, document).await.expect_err(reason);
        let text = refused.to_string();
        assert!(text.contains(reason) && text.contains(&id.to_string()), "{text}");
        assert!(matches!(refused, Error::Unproven { .. }), "{text}");
    }
    let refused = authority.commit(grant.session, Bytes::from_static(b"{}")).await.expect_err("no document");
    assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    assert_eq!(authority.snapshots().await.expect("snapshots").len(), 1);
}

async fn what_has_ended_stays_so(ground: Ground) {
    let authority = &ground.authority;
    let grant = authority.open_session("vm").await.expect("a session");
    authority.abandon(grant.session).await.expect("given up");
    let unknown = authority.have_chunks(SessionId::random(), &[]).await.expect_err("no such session");
    assert!(matches!(unknown, Error::Session { state: "unknown", .. }), "{unknown}");
    let (_, document) = ground.snapshot("vm", grant, ZEROS);
    let ended = authority.commit(grant.session, document).await.expect_err("it was given up");
    assert!(matches!(ended, Error::Session { .. }), "{ended}");
    let (_, pack) = ground.data_pack(ground.descriptor.repository, &[1]);
    let ended = authority.put_pack(grant.session, PackKind::Data, pack).await.expect_err("it was given up");
    assert!(matches!(ended, Error::Session { .. }), "{ended}");
    assert!(authority.snapshots().await.expect("snapshots").is_empty());
}

async fn roots_are_live_while_a_snapshot_holds_them(ground: Ground) {
    let authority = &ground.authority;
    let (id, stored) = ground.backup("vm", 1).await;
    let unknown = Root { size: 2 << 20, node: Some(NodeId::new([5; 32])) };
    let larger = Root { size: 4 << 20, ..stored.root };
    let session = authority.open_session("vm").await.expect("a session").session;
    let live = authority.pin_roots(session, &[unknown, stored.root, ZEROS, larger]).await.expect("answers");
    assert_eq!(live, [false, true, true, false]);
    authority.forget(id).await.expect("forgotten");
    let other = authority.open_session("vm").await.expect("a session").session;
    assert_eq!(authority.pin_roots(other, &[stored.root]).await.expect("an answer"), [false]);
    // Whoever was promised it still has it.
    authority.gc(&GcOptions::default(), &Silent).await.expect("a collection");
    assert_eq!(authority.read_nodes(&[stored.leaf]).await.expect("the leaf").len(), 1);
}

async fn protection_holds_and_forgetting_repeats(ground: Ground) {
    let authority = &ground.authority;
    let (id, _) = ground.backup("vm", 1).await;
    authority.protect(id, true).await.expect("protected");
    authority.protect(id, true).await.expect("again");
    assert_eq!(authority.protected().await.expect("the protected"), [id]);
    let refused = authority.forget(id).await.expect_err("it is protected");
    assert!(matches!(refused, Error::Protected { snapshot } if snapshot == id), "{refused}");
    authority.protect(id, false).await.expect("lifted");
    authority.forget(id).await.expect("forgotten");
    authority.forget(id).await.expect("again");
    assert!(authority.snapshots().await.expect("snapshots").is_empty());
    let unknown = authority.protect(id, true).await.expect_err("there is no such snapshot");
    assert!(matches!(unknown, Error::NoSnapshot { .. }), "{unknown}");
    assert!(authority.marked().await.expect("marks").is_empty());
}

async fn slots_come_and_go(ground: Ground) {
    let authority = &ground.authority;
    let key = Key::Restore(ground.key.clone());
    let repository = ground.descriptor.repository;
    let slot = Slot::create(repository, &key, "x", "office", Timestamp::now(), Argon2id::CHEAPEST);
    let slot = slot.expect("a slot");
    authority.put_key_slot(slot.slot, slot.seal().into()).await.expect("stored");
    let listed = authority.key_slots().await.expect("slots");
    assert_eq!(listed.len(), 1);
    let read = Slot::read(&repository, &listed[0].name, &listed[0].bytes).expect("a slot");
    assert_eq!(read, slot);
    authority.delete_key_slot(slot.slot).await.expect("removed");
    assert!(authority.key_slots().await.expect("slots").is_empty());
}

async fn space_is_collected_and_the_rest_is_sound(ground: Ground) {
    let authority = &ground.authority;
    let (gone, lost) = ground.backup("a", 1).await;
    let (_, kept) = ground.backup("b", 2).await;
    authority.forget(gone).await.expect("forgotten");
    let dry = GcOptions { dry_run: true, ..GcOptions::default() };
    let would = authority.gc(&dry, &Silent).await.expect("a plan");
    let heard = Heard::default();
    let report = authority.gc(&GcOptions::default(), &heard).await.expect("a collection");
    assert_eq!((report.dropped, report.kept.packs), (would.dropped, 2));
    assert_eq!(report.dropped.packs, 2);
    let phases = heard.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // Over a network the quick ones may pass unseen.
    assert!(phases.iter().any(|phase| phase == "deleting"), "{phases:?}");
    let missing = authority.read_pack(lost.pack, 0..10).await.expect_err("it is gone");
    assert!(matches!(missing, Error::Missing { .. }), "{missing}");
    let options = CheckOptions { scrub: true, ..CheckOptions::default() };
    let checked = authority.check(&options, &Silent).await.expect("a check");
    assert!(checked.is_sound(), "{checked:?}");
    assert_eq!((checked.packs, checked.snapshots), (2, 1));
    assert_eq!(checked.scrub.expect("a scrub").packs, 2);
    let repaired = authority.repair(&RepairOptions::default(), &Silent).await.expect("a repair");
    assert!(repaired.check.is_sound() && repaired.marked.is_empty());
    assert_eq!(authority.locate_chunks(&[kept.chunk]).await.expect("places")[0].len(), 1);
}

async fn damage_is_taken_out_of_use(ground: Ground) {
    let authority = &ground.authority;
    let (_, stored) = ground.backup("vm", 1).await;
    let session = authority.open_session("vm").await.expect("a session").session;
    assert_eq!(authority.have_chunks(session, &[stored.chunk]).await.expect("an answer"), [true]);
    let damage = Withdrawal {
        chunks: vec![(stored.chunk, stored.pack)],
        roots: vec![stored.root],
        ..Withdrawal::default()
    };
    let withdrawn = authority.withdraw(&damage).await.expect("withdrawn");
    assert_eq!((withdrawn.recorded, withdrawn.retired, withdrawn.catalog_differs), (true, 1, false));
    assert_eq!(authority.have_chunks(session, &[stored.chunk]).await.expect("an answer"), [false]);
    assert_eq!(authority.pin_roots(session, &[stored.root]).await.expect("an answer"), [false]);
    assert!(authority.locate_chunks(&[stored.chunk]).await.expect("places")[0][0].retired);
}

async fn many_ids_at_once(ground: Ground) {
    let authority = &ground.authority;
    let (_, stored) = ground.backup("vm", 1).await;
    let session = authority.open_session("vm").await.expect("a session").session;
    let mut ids: Vec<ChunkId> = (0..70_000_u32)
        .map(|number| {
            let mut id = [0x55; 32];
            id[..4].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_le_bytes());
            ChunkId::new(id)
        })
        .collect();
    ids.insert(40_000, stored.chunk);
    let have = authority.have_chunks(session, &ids).await.expect("answers");
    assert_eq!(have.len(), ids.len());
    assert!(have.iter().enumerate().all(|(at, have)| *have == (at == 40_000)));
    let places = authority.locate_chunks(&ids).await.expect("places");
    assert!(places.iter().enumerate().all(|(at, places)| places.is_empty() == (at != 40_000)));
}
