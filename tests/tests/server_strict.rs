//! Writers that do not trust each other: what one of them stores wrong does not touch another, before anybody has verified anything.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use underlay_client::restore::{
    Environment, RestoreError, RestoreOptions, StreamOutput, VouchReport, restore, vouch,
};
use underlay_server::tokens::Scope;
use underlay_store::Error;
use underlay_store::authority::{Authority, RepairOptions};
use underlay_store::check::CheckOptions;
use underlay_store::cut::{BLOCK, REGION_BLOCKS};
use underlay_store::gc::GcOptions;
use underlay_store::id::{ChunkId, NodeId, Root, SessionId};
use underlay_store::key::RestoreKey;
use underlay_store::pack::{ChunkEncoder, PackKind, PackWriter};
use underlay_store::progress::Silent;
use underlay_store::tree::{Node, Run};
use underlay_tests::conformance::{Ground, Stored};
use underlay_tests::server::Served;

const SIZE: u64 = 2 << 20;

/// Another writer each time.
fn writer(served: &Served) -> Ground {
    Ground {
        authority: served.authority(&served.token(&[Scope::Backup], "*")),
        key: served.key.clone(),
        descriptor: served.descriptor.clone(),
    }
}

fn chunk_of(key: &RestoreKey, fill: u8) -> ChunkId {
    key.backup().chunk_id(&[fill].repeat(4 * BLOCK))
}

fn leaf_of(chunk: ChunkId) -> Vec<u8> {
    Node::leaf([Run::Chunk(4, chunk), Run::Zero(REGION_BLOCKS - 4)]).unwrap().encode()
}

/// A pack that holds something else under the id of the chunk filled with `fill`.
fn poisoned(ground: &Ground, fill: u8) -> Bytes {
    let repository = ground.descriptor.repository;
    let liar = RestoreKey::generate();
    // Whoever encodes with another key gets frames that no holder of the right one opens.
    let (data_key, sealed) = liar.backup().seal_data_key(&repository).unwrap();
    let mut encoder = ChunkEncoder::new(liar.backup(), repository, 3).unwrap();
    let garbage = vec![0xee; 4 * BLOCK];
    let frame = encoder.encode(&data_key, liar.backup().chunk_id(&garbage), &garbage).unwrap();
    let mut pack = PackWriter::data(repository, vec![sealed]).unwrap();
    pack.add(&frame).unwrap();
    let bytes = pack.finish().unwrap().bytes.to_vec();
    let (old, new) = (liar.backup().chunk_id(&garbage), chunk_of(&ground.key, fill));
    renamed(&bytes, old.as_bytes(), new.as_bytes())
}

/// The pack with another id in its frame and its trailer, and the checksum over that.
fn renamed(pack: &[u8], old: &[u8; 32], new: &[u8; 32]) -> Bytes {
    let mut pack = pack.to_vec();
    while let Some(at) = pack.windows(32).position(|window| window == old) {
        pack[at..at + 32].copy_from_slice(new);
    }
    let footer = pack.len() - 64;
    let entries = u32::from_le_bytes(pack[footer + 8..footer + 12].try_into().unwrap()) as usize;
    let sum = blake3::hash(&pack[entries..footer + 16]);
    pack[footer + 16..footer + 48].copy_from_slice(sum.as_bytes());
    pack.into()
}

/// Stores a poisoned chunk and commits a snapshot that holds it.
async fn poison(thief: &Ground, vm: &str, fill: u8) -> Stored {
    let grant = thief.authority.open_session(vm).await.unwrap();
    let pack = thief.authority.put_pack(grant.session, PackKind::Data, poisoned(thief, fill)).await.unwrap();
    let chunk = chunk_of(&thief.key, fill);
    let (leaf, nodes) = thief.node_pack(chunk);
    thief.authority.put_pack(grant.session, PackKind::Nodes, nodes).await.unwrap();
    let root = Root { size: SIZE, node: Some(leaf) };
    let (_, document) = thief.snapshot(vm, grant, root);
    thief.authority.commit(grant.session, document).await.unwrap();
    Stored { chunk, pack, leaf, root }
}

/// Commits a tree whose leaf has the id of the leaf over `fill` and names another chunk, which is there.
async fn lie(thief: &Ground, vm: &str, fill: u8, other: u8) {
    let grant = thief.authority.open_session(vm).await.unwrap();
    let (ids, data) = thief.data_pack(thief.descriptor.repository, &[other]);
    thief.authority.put_pack(grant.session, PackKind::Data, data).await.unwrap();
    let claimed = thief.key.backup().node_id(&leaf_of(chunk_of(&thief.key, fill)));
    let mut pack = PackWriter::nodes(thief.descriptor.repository);
    pack.add_node(claimed, &leaf_of(ids[0])).unwrap();
    thief.authority.put_pack(grant.session, PackKind::Nodes, pack.finish().unwrap().bytes).await.unwrap();
    let (_, document) = thief.snapshot(vm, grant, Root { size: SIZE, node: Some(claimed) });
    thief.authority.commit(grant.session, document).await.unwrap();
}

/// As a client backs up: it asks for what it needs, stores what is not offered, and commits. Returns the packs it stored.
async fn honest(ground: &Ground, vm: &str, fill: u8) -> (Root, usize) {
    let authority = &ground.authority;
    let grant = authority.open_session(vm).await.unwrap();
    let (chunk, mut stored) = (chunk_of(&ground.key, fill), 0);
    if authority.have_chunks(grant.session, &[chunk]).await.unwrap() == [false] {
        let (_, data) = ground.data_pack(ground.descriptor.repository, &[fill]);
        authority.put_pack(grant.session, PackKind::Data, data).await.unwrap();
        stored += 1;
    }
    let (leaf, nodes) = ground.node_pack(chunk);
    if authority.have_nodes(grant.session, &[leaf]).await.unwrap() == [false] {
        authority.put_pack(grant.session, PackKind::Nodes, nodes).await.unwrap();
        stored += 1;
    }
    let root = Root { size: SIZE, node: Some(leaf) };
    let (_, document) = ground.snapshot(vm, grant, root);
    authority.commit(grant.session, document).await.unwrap();
    (root, stored)
}

fn with_environment<T: Send + 'static>(
    served: &Served,
    work: impl FnOnce(&Environment<'_>) -> T + Send + 'static,
) -> impl Future<Output = T> {
    let authority: Arc<dyn Authority> = served.for_all();
    let (key, repository) = (served.key.clone(), served.descriptor.repository);
    let done = tokio::task::spawn_blocking(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cancel = AtomicBool::new(false);
        let (authority, progress) = (&*authority, &Silent);
        work(&Environment {
            authority,
            key: &key,
            repository,
            runtime: runtime.handle().clone(),
            progress,
            cancel: &cancel,
        })
    });
    async { done.await.unwrap() }
}

async fn restored(served: &Served, root: Root) -> Result<Vec<u8>, RestoreError> {
    #[derive(Clone, Default)]
    struct Kept(Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    with_environment(served, move |environment| {
        let kept = Kept::default();
        let output = StreamOutput::new(kept.clone(), "the test", root.size);
        restore(environment, root, &output, &RestoreOptions::default())?;
        underlay_client::restore::DiskOutput::finish(Box::new(output))?;
        Ok(kept.0.lock().unwrap().clone())
    })
    .await
}

fn disk(fill: u8) -> Vec<u8> {
    let mut disk = vec![fill; 4 * BLOCK];
    disk.resize(SIZE as usize, 0);
    disk
}

/// What `underlay check --unverified` does.
async fn verified(served: &Served) -> VouchReport {
    let authority = served.for_all();
    let packs = authority.unverified().await.unwrap();
    let report = with_environment(served, move |environment| vouch(environment, &packs).unwrap()).await;
    authority.withdraw(&report.withdrawal).await.unwrap();
    authority.vouch(&report.sound).await.unwrap();
    report
}

async fn collected(served: &Served) {
    let options = GcOptions { max_unused: 0.0, ..GcOptions::default() };
    served.for_all().gc(&options, &Silent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_chunk_touches_nobody_else() {
    let served = Served::start_strict().await;
    let bad = poison(&writer(&served), "thief", 1).await;
    let victim = writer(&served);
    let (root, stored) = honest(&victim, "victim", 1).await;
    assert_eq!((root, stored), (bad.root, 2), "nothing of the thief's was offered");
    assert_eq!(restored(&served, root).await.unwrap(), disk(1));
    collected(&served).await;
    assert_eq!(restored(&served, root).await.unwrap(), disk(1), "a collection keeps what the victim stored");
    let found = verified(&served).await;
    assert_eq!(found.withdrawal.chunks, [(bad.chunk, bad.pack)]);
    collected(&served).await;
    assert_eq!(restored(&served, root).await.unwrap(), disk(1));
    let places = served.for_all().locate_chunks(&[bad.chunk]).await.unwrap();
    assert!(places[0].len() == 1 && places[0][0].pack != bad.pack, "the verified copy is the only one left");
    assert_eq!(honest(&writer(&served), "third", 1).await, (root, 0));
}

/// The same in an ordinary repository: the chunk is offered, and the restore says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_chunk_is_found_and_healed_where_writers_trust_each_other() {
    let served = Served::start("").await;
    let bad = poison(&writer(&served), "thief", 1).await;
    let (root, stored) = honest(&writer(&served), "victim", 1).await;
    assert_eq!(stored, 0, "the thief's was relied on");
    let lost = restored(&served, root).await.unwrap_err();
    assert!(matches!(&lost, RestoreError::Data { chunk, .. } if *chunk == bad.chunk), "{lost}");
    assert_eq!(verified(&served).await.withdrawal.chunks, [(bad.chunk, bad.pack)]);
    let (again, stored) = honest(&writer(&served), "victim", 1).await;
    assert_eq!((again, stored), (root, 1));
    assert_eq!(restored(&served, root).await.unwrap(), disk(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lies_touches_nobody_else() {
    for thief_first in [true, false] {
        let served = Served::start_strict().await;
        let victim = writer(&served);
        if thief_first {
            lie(&writer(&served), "thief", 1, 2).await;
        }
        let (root, stored) = honest(&victim, "victim", 1).await;
        assert_eq!(stored, 2);
        if !thief_first {
            lie(&writer(&served), "thief", 1, 2).await;
        }
        for _ in 0..2 {
            assert_eq!(restored(&served, root).await.unwrap(), disk(1), "thief first: {thief_first}");
            collected(&served).await;
        }
        // The victim goes on from its own snapshot.
        let session = victim.authority.open_session("victim").await.unwrap();
        assert_eq!(victim.authority.pin_roots(session.session, &[root]).await.unwrap(), [true]);
        let (_, document) = victim.snapshot("victim", session, root);
        victim.authority.commit(session.session, document).await.unwrap();
        let found = verified(&served).await;
        assert_eq!(found.withdrawal.node_copies.len(), 1);
        collected(&served).await;
        assert_eq!(restored(&served, root).await.unwrap(), disk(1));
        let checked = served.for_all().check(&CheckOptions::default(), &Silent).await.unwrap();
        assert!(checked.is_sound(), "{checked:?}");
        assert!(served.for_all().repair(&RepairOptions::default(), &Silent).await.unwrap().marked.is_empty());
    }
}

/// Roots, chunks and nodes of others are neither offered nor proven, until they are verified.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_unverified_of_others_is_offered_or_committed() {
    let served = Served::start_strict().await;
    let (_, theirs) = writer(&served).backup("a", 1).await;
    let other = writer(&served);
    let grant = other.authority.open_session("b").await.unwrap();
    let offered = async |session: SessionId| {
        (
            other.authority.have_chunks(session, &[theirs.chunk]).await.unwrap()[0],
            other.authority.have_nodes(session, &[theirs.leaf]).await.unwrap()[0],
            other.authority.pin_roots(session, &[theirs.root]).await.unwrap()[0],
        )
    };
    assert_eq!(offered(grant.session).await, (false, false, false));
    let refused = |error: Error| assert!(matches!(error, Error::Unproven { .. }), "{error}");
    let (_, document) = other.snapshot("b", grant, theirs.root);
    refused(other.authority.commit(grant.session, document).await.unwrap_err());
    // Its own leaf over their chunk.
    let (leaf, nodes) = other.node_pack(theirs.chunk);
    other.authority.put_pack(grant.session, PackKind::Nodes, nodes).await.unwrap();
    let (_, document) = other.snapshot("b", grant, Root { size: SIZE, node: Some(leaf) });
    refused(other.authority.commit(grant.session, document).await.unwrap_err());
    verified(&served).await;
    assert_eq!(offered(grant.session).await, (true, true, false), "a root is offered to its writer only");
    let (_, document) = other.snapshot("b", grant, theirs.root);
    other.authority.commit(grant.session, document).await.unwrap();
}

/// Whoever verified a node has not verified what it names: that is proven by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verified_node_vouches_for_nothing_below_it() {
    let served = Served::start_strict().await;
    let bad = poison(&writer(&served), "thief", 1).await;
    verified(&served).await;
    let other = writer(&served);
    let grant = other.authority.open_session("other").await.unwrap();
    assert_eq!(other.authority.have_nodes(grant.session, &[bad.leaf]).await.unwrap(), [true]);
    let (_, document) = other.snapshot("other", grant, bad.root);
    let refused = other.authority.commit(grant.session, document).await.unwrap_err();
    assert!(matches!(&refused, Error::Unproven { reason, .. } if reason.contains("chunk")), "{refused}");
    let (root, stored) = honest(&other, "other", 1).await;
    assert_eq!((root, stored), (bad.root, 1));
    assert_eq!(restored(&served, root).await.unwrap(), disk(1));
}

/// Two writers on one base store it twice; once it is verified, a third stores nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_is_stored_once_a_writer_until_it_is_verified() {
    let served = Served::start_strict().await;
    let all = served.for_all();
    let (a, b, c) = (writer(&served), writer(&served), writer(&served));
    assert_eq!(honest(&a, "a", 1).await.1, 2);
    assert_eq!(honest(&a, "a2", 1).await.1, 0, "its own is offered to it");
    assert_eq!(honest(&b, "b", 1).await.1, 2);
    assert_eq!(all.totals().await.unwrap().packs, 4);
    let report = verified(&served).await;
    assert_eq!((report.packs, report.damage.len()), (4, 0));
    assert!(all.unverified().await.unwrap().is_empty(), "the next verification is cheap");
    assert_eq!(honest(&c, "c", 1).await.1, 0);
    collected(&served).await;
    assert_eq!(all.totals().await.unwrap().packs, 2, "one verified copy serves all");
}

/// A collection copies what is alive; nothing becomes another's, or verified, by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copying_makes_nothing_trustworthy() {
    let served = Served::start_strict().await;
    let (thief, victim) = (writer(&served), writer(&served));
    // Both have a pack of which half dies.
    let mut snapshots = Vec::new();
    for (ground, vm) in [(&thief, "thief"), (&victim, "victim")] {
        let grant = ground.authority.open_session(vm).await.unwrap();
        let (chunks, data) = ground.data_pack(ground.descriptor.repository, &[1, 2]);
        ground.authority.put_pack(grant.session, PackKind::Data, data).await.unwrap();
        let mut nodes = PackWriter::nodes(ground.descriptor.repository);
        let ids: Vec<NodeId> = (chunks.iter())
            .map(|chunk| {
                let leaf = leaf_of(*chunk);
                let id = ground.key.backup().node_id(&leaf);
                nodes.add_node(id, &leaf).unwrap();
                id
            })
            .collect();
        ground
            .authority
            .put_pack(grant.session, PackKind::Nodes, nodes.finish().unwrap().bytes)
            .await
            .unwrap();
        let (_, document) = ground.snapshot(vm, grant, Root { size: SIZE, node: Some(ids[0]) });
        ground.authority.commit(grant.session, document).await.unwrap();
        snapshots.push(Root { size: SIZE, node: Some(ids[0]) });
    }
    let before = served.for_all().unverified().await.unwrap();
    collected(&served).await;
    let after = served.for_all().unverified().await.unwrap();
    assert_eq!((before.len(), after.len()), (4, 4), "one copy of each writer's, still unverified");
    assert!(after.iter().all(|pack| !before.contains(pack)), "all were copied");
    let third = writer(&served);
    assert_eq!(honest(&third, "third", 1).await.1, 2);
    assert_eq!(honest(&victim, "victim", 1).await.1, 0, "its own stays its own");
    assert_eq!(restored(&served, snapshots[1]).await.unwrap(), disk(1));
}
