//! What a commit proves, and what it leaves behind when it does not happen.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use underlay_store::Error;
use underlay_store::authority::{Authority, SessionGrant};
use underlay_store::backend::{Backend, Options};
use underlay_store::cut::REGION_BLOCKS;
use underlay_store::id::{ChunkId, NodeId, Root, SnapshotId};
use underlay_store::names;
use underlay_store::pack::{PackKind, PackWriter};
use underlay_store::repository::{Access, Repository};
use underlay_store::snapshot::{Consistency, Disk, Snapshot, Statistics};
use underlay_store::tree::{Node, Run};
use underlay_tests::lab::Lab;

fn snapshot(lab: &Lab, grant: SessionGrant, root: Root) -> Snapshot {
    Snapshot {
        snapshot: SnapshotId::random(),
        repository: lab.descriptor.repository,
        session: grant.session,
        vm: "vm".into(),
        time: grant.time,
        consistency: Consistency::Offline,
        disks: vec![Disk { name: "vda".into(), root, layers: Vec::new() }],
        statistics: Statistics::default(),
        client: "test".into(),
        private: None,
    }
}

/// Stores a leaf whose only chunk is nowhere, as a faulty client might.
async fn store_dangling_leaf(lab: &Lab, grant: SessionGrant) -> NodeId {
    let leaf = Node::leaf([Run::Chunk(REGION_BLOCKS, ChunkId::new([7; 32]))]).unwrap().encode();
    let id = lab.key.backup().node_id(&leaf);
    let mut pack = PackWriter::nodes(lab.descriptor.repository);
    pack.add_node(id, &leaf).unwrap();
    lab.repository.put_pack(grant.session, PackKind::Nodes, pack.finish().unwrap().bytes).await.unwrap();
    id
}

#[test]
fn a_snapshot_with_a_missing_chunk_is_refused_however_it_is_asked_for() {
    let lab = Lab::in_memory();
    for ask_first in [false, true] {
        lab.runtime.block_on(async {
            let grant = lab.repository.open_session("vm").await.unwrap();
            let leaf = store_dangling_leaf(&lab, grant).await;
            if ask_first {
                lab.repository.have_nodes(grant.session, &[leaf]).await.unwrap();
            }
            let snapshot = snapshot(&lab, grant, Root { size: 2 << 20, node: Some(leaf) });
            let document = Bytes::from(snapshot.seal(lab.key.backup()).unwrap());
            let refused = lab.repository.commit(grant.session, document).await.unwrap_err();
            assert!(
                matches!(&refused, Error::Unproven { reason, .. } if reason.contains("chunk 0707")),
                "{refused}"
            );
            assert!(lab.repository.snapshots().await.unwrap().is_empty());
        });
    }
}

/// What it was promised may be missing because another owner deleted it.
#[test]
fn who_was_shut_out_is_told_that_and_not_that_its_snapshot_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    lab.runtime.block_on(async {
        let grant = lab.repository.open_session("vm").await.unwrap();
        let leaf = store_dangling_leaf(&lab, grant).await;
        Repository::open(backend, &folder.path().join("there"), Access::TakeOver).await.unwrap();
        let snapshot = snapshot(&lab, grant, Root { size: 2 << 20, node: Some(leaf) });
        let document = Bytes::from(snapshot.seal(lab.key.backup()).unwrap());
        let refused = lab.repository.commit(grant.session, document).await.unwrap_err();
        assert!(matches!(refused, Error::OwnedElsewhere { generation: 2, .. }), "{refused}");
    });
}

#[test]
fn an_abandoned_session_never_becomes_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::open(folder.path().to_str().unwrap(), Options { create: true }).unwrap();
    let lab = Lab::on(backend.clone());
    lab.runtime.block_on(async {
        let (given_up, finished) = (
            lab.repository.open_session("vm").await.unwrap(),
            lab.repository.open_session("vm").await.unwrap(),
        );
        lab.repository.abandon(given_up.session).await.unwrap();
        let nothing = Root { size: 4096, node: None };
        // As if it had been killed, or refused, after its snapshot was stored.
        let stray = snapshot(&lab, given_up, nothing);
        backend
            .put(&names::snapshot(&stray.snapshot), stray.seal(lab.key.backup()).unwrap().into())
            .await
            .unwrap();
        let whole = snapshot(&lab, finished, nothing);
        let document = Bytes::from(whole.seal(lab.key.backup()).unwrap());
        lab.repository.commit(finished.session, document.clone()).await.unwrap();
        let again = Repository::open(backend.clone(), &lab.path("state"), Access::Write).await.unwrap();
        let listed = again.snapshots().await.unwrap();
        assert_eq!(listed.iter().map(|document| &document.bytes).collect::<Vec<_>>(), [&document]);
        let refused =
            again.commit(given_up.session, stray.seal(lab.key.backup()).unwrap().into()).await.unwrap_err();
        assert!(matches!(refused, Error::Session { state: "abandoned", .. }), "{refused}");
    });
}

#[test]
fn a_lost_catalog_and_a_damaged_snapshot_cost_neither_the_rest_nor_the_ownership() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::open(folder.path().to_str().unwrap(), Options { create: true }).unwrap();
    let lab = Lab::on(backend.clone());
    let image = lab.path("vm.raw");
    std::fs::write(&image, vec![3; 1 << 20]).unwrap();
    let outcome = lab.backup("vm", &image, underlay_client::image::Format::Raw).unwrap();
    let damaged = SnapshotId::random();
    std::fs::write(folder.path().join(format!("snapshots/{damaged}.json")), "{}").unwrap();
    std::fs::remove_file(folder.path().join("catalog/catalog.sqlite")).unwrap();
    lab.runtime.block_on(async {
        let again = Repository::open(backend, &lab.path("state"), Access::Write).await.unwrap();
        let listed = again.snapshots().await.unwrap();
        let names: Vec<&str> = listed.iter().map(|document| document.name.as_str()).collect();
        let unreadable = format!("snapshots/{damaged}.json");
        assert_eq!(
            names,
            [&names::snapshot(&outcome.snapshot), &unreadable],
            "the damaged one is not hidden"
        );
        let report = again
            .check(&underlay_store::check::CheckOptions::default(), &underlay_store::progress::Silent)
            .await
            .unwrap();
        assert_eq!(report.findings.len(), 1, "{report:?}");
        assert!(report.affected.is_empty(), "{report:?}");
    });
}
