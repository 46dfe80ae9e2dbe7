use proptest::prelude::*;

use super::*;
use crate::cut::parameters::CutParameters;
use crate::id::{CatalogId, NodeId, OwnerId};
use crate::key::RestoreKey;

const REPOSITORY: RepositoryId = RepositoryId::new([3; 16]);

fn key() -> RestoreKey {
    RestoreKey::new(&[1; 32], &[2; 32])
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn snapshot() -> Snapshot {
    let base = Root { size: 1 << 20, node: Some(NodeId::new([7; 32])) };
    let root = Root { size: 1 << 21, node: Some(NodeId::new([8; 32])) };
    Snapshot {
        snapshot: SnapshotId::new([4; 16]),
        repository: REPOSITORY,
        session: SessionId::new([5; 16]),
        vm: "web".into(),
        time: at("2026-11-23T17:05:09.120Z"),
        consistency: Consistency::Filesystem,
        disks: vec![
            Disk { name: "vda".into(), root, layers: vec![base] },
            Disk { name: "vdb".into(), root: Root { size: 512, node: None }, layers: vec![] },
        ],
        statistics: Statistics {
            disk_bytes: 2_097_664,
            bytes_read: 4096,
            bytes_new: 4096,
            bytes_uploaded: 999,
        },
        client: "0.1.0".into(),
        private: None,
    }
}

fn is_damaged<T: std::fmt::Debug>(result: Result<T>, what: &str) {
    match result.unwrap_err() {
        Error::Damaged { what: found, .. } => assert!(found.contains(what), "{found}"),
        other => panic!("{other}"),
    }
}

#[test]
fn golden_snapshot() {
    let bytes = snapshot().seal(key().backup()).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), include_str!("golden_snapshot.json"));
}

#[test]
fn golden_descriptor() {
    let bytes = descriptor().seal(key().backup()).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), include_str!("golden_descriptor.json"));
}

#[test]
fn snapshots_open_under_their_own_name_only() {
    let snapshot = snapshot();
    let bytes = snapshot.seal(key().backup()).unwrap();
    let open = |id, repository, key: &RestoreKey| Snapshot::open(&id, &repository, &bytes, key.backup());
    assert_eq!(open(snapshot.snapshot, REPOSITORY, &key()).unwrap(), snapshot);
    assert_eq!(Snapshot::peek(&snapshot.snapshot, &REPOSITORY, &bytes).unwrap(), snapshot);
    assert_eq!(snapshot.roots().count(), 3);
    is_damaged(open(SnapshotId::new([9; 16]), REPOSITORY, &key()), "it holds snapshot 0404");
    is_damaged(open(snapshot.snapshot, RepositoryId::new([9; 16]), &key()), "it is of repository 0303");
    is_damaged(open(snapshot.snapshot, REPOSITORY, &RestoreKey::generate()), "mac");
}

#[test]
fn bad_names_are_neither_written_nor_read() {
    let changes: [fn(&mut Snapshot); 5] = [
        |snapshot| snapshot.vm = "a@b".into(),
        |snapshot| snapshot.disks[0].name = "../x".into(),
        |snapshot| snapshot.disks[1].name = "vda".into(),
        |snapshot| snapshot.disks[0].root.size = u64::MAX,
        |snapshot| snapshot.disks[0].layers[0].size = 0,
    ];
    for change in changes {
        let mut bad = snapshot();
        change(&mut bad);
        assert!(matches!(bad.seal(key().backup()), Err(Error::Invalid { .. })), "{bad:?}");
        let bytes = document::seal(KIND, &bad, &key().backup().document_key(KIND));
        is_damaged(Snapshot::open(&bad.snapshot, &REPOSITORY, &bytes, key().backup()), "is not valid");
        is_damaged(Snapshot::peek(&bad.snapshot, &REPOSITORY, &bytes), "is not valid");
    }
}

#[test]
fn private_metadata_belongs_to_its_snapshot() {
    let key = key();
    let id = SnapshotId::new([4; 16]);
    let metadata = PrivateMetadata {
        host: "hv1".into(),
        images: vec![PrivateImage { disk: "vda".into(), path: "/x".into(), format: "qcow2".into() }],
        extra: [("domain_xml".to_owned(), serde_json::json!("<domain/>"))].into(),
    };
    let field = PrivateField::seal(key.backup(), &REPOSITORY, &id, &metadata).unwrap();
    assert_eq!(field.open(&key, &REPOSITORY, &id).unwrap(), metadata);
    is_damaged(field.open(&key, &REPOSITORY, &SnapshotId::new([5; 16])), "decrypt");
    is_damaged(field.open(&key, &RepositoryId::new([5; 16]), &id), "its key does not open");
    is_damaged(field.open(&RestoreKey::generate(), &REPOSITORY, &id), "its key does not open");

    let mut snapshot = snapshot();
    snapshot.private = Some(field);
    let bytes = snapshot.seal(key.backup()).unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("hv1"));
    let back = Snapshot::open(&id, &REPOSITORY, &bytes, key.backup()).unwrap();
    assert_eq!(back.private.unwrap().open(&key, &REPOSITORY, &id).unwrap(), metadata);
}

fn descriptor() -> Descriptor {
    Descriptor {
        repository: REPOSITORY,
        created: at("2026-11-23T17:05:09.120Z"),
        public_key: key().backup().public_key(),
        cut: CutParameters::default(),
    }
}

#[test]
fn descriptors() {
    let bytes = descriptor().seal(key().backup()).unwrap();
    assert_eq!(Descriptor::open(&bytes, key().backup()).unwrap(), descriptor());
    assert_eq!(Descriptor::peek(&bytes).unwrap(), descriptor());
    let other = Descriptor::open(&bytes, RestoreKey::generate().backup());
    assert!(matches!(other, Err(Error::Key { .. })), "{other:?}");
    let forged = descriptor().seal(RestoreKey::new(&[9; 32], &[2; 32]).backup()).unwrap();
    is_damaged(Descriptor::open(&forged, key().backup()), "mac");
    let bad = Descriptor { cut: CutParameters { minimum: 1, ..CutParameters::default() }, ..descriptor() };
    assert!(matches!(bad.seal(key().backup()), Err(Error::Invalid { .. })));
}

#[test]
fn claims() {
    let claim = Claim {
        repository: REPOSITORY,
        generation: 2,
        owner: OwnerId::new([6; 16]),
        catalog: None,
        host: "hv1".into(),
        created: at("2026-11-23T17:05:09.120Z"),
    };
    let bytes = claim.seal();
    assert_eq!(Claim::open(2, &REPOSITORY, &bytes).unwrap(), claim);
    assert!(!String::from_utf8_lossy(&bytes).contains("catalog"));
    let with = Claim { catalog: Some(CatalogId::new([9; 16])), ..claim.clone() };
    assert_eq!(Claim::open(2, &REPOSITORY, &with.seal()).unwrap(), with);
    is_damaged(Claim::open(3, &REPOSITORY, &bytes), "it holds generation 2");
    is_damaged(Claim::open(2, &RepositoryId::new([0; 16]), &bytes), "it is of repository");
}

fn several() -> Vec<Snapshot> {
    let make = |id: u8, vm: &str, time: &str| Snapshot {
        snapshot: SnapshotId::new([id; 16]),
        vm: vm.into(),
        time: at(time),
        ..snapshot()
    };
    let mut all = vec![
        make(0xa1, "web", "2026-11-23T17:05:09.120Z"),
        make(0xa2, "web", "2026-11-23T18:00:00.000Z"),
        make(0xa3, "web", "2026-11-22T17:00:00.000Z"),
        make(0xb1, "db", "2026-11-24T00:00:00.000Z"),
    ];
    let mut near = [0xa1; 16];
    near[2] = 0;
    all.push(Snapshot { snapshot: SnapshotId::new(near), vm: "web2".into(), ..all[0].clone() });
    all
}

#[test]
fn selection() {
    let all = several();
    let found =
        |wanted: &str| select(&all, wanted).map(|snapshot| snapshot.snapshot.as_bytes()[0..3].to_vec());
    assert_eq!(found("web@latest").unwrap(), [0xa2; 3]);
    assert_eq!(found("db@latest").unwrap(), [0xb1; 3]);
    assert_eq!(found("web@2026-11-23T17").unwrap(), [0xa1; 3]);
    assert_eq!(found("web@2026-11-22").unwrap(), [0xa3; 3]);
    assert_eq!(found("b1b1").unwrap(), [0xb1; 3]);
    assert_eq!(found("B1B1b1").unwrap(), [0xb1; 3]);
    assert_eq!(found("a1a1a1").unwrap(), [0xa1; 3]);
    assert_eq!(found("a1a100").unwrap(), [0xa1, 0xa1, 0]);
    assert!(matches!(found("web@2026"), Err(Error::AmbiguousSnapshot { count: 3, .. })));
    assert!(matches!(found("a1a1"), Err(Error::AmbiguousSnapshot { count: 2, .. })));
    for wanted in ["", "a1a", "web", "web@", "@latest", "mail@latest", "web@2027", "web@Latest", "ffff", "@"]
    {
        assert!(matches!(found(wanted), Err(Error::NoSnapshot { .. })), "{wanted}");
    }
}

proptest! {
    #[test]
    fn any_text_selects_without_panic(wanted in "\\PC{0,20}") {
        let _ = select(&several(), &wanted);
    }

    #[test]
    fn snapshots_round_trip(vm in "[a-z][ -?A-Z]{0,40}", size in 1..=1_u64 << 63, node: Option<[u8; 32]>, numbers: [u64; 3]) {
        prop_assume!(!vm.contains('/'));
        let mut snapshot = snapshot();
        snapshot.vm = vm;
        snapshot.disks[0].root = Root { size, node: node.map(NodeId::new) };
        snapshot.statistics.bytes_read = numbers[0];
        snapshot.statistics.bytes_new = numbers[1];
        snapshot.statistics.bytes_uploaded = numbers[2];
        let bytes = snapshot.seal(key().backup()).unwrap();
        let back = Snapshot::open(&snapshot.snapshot, &REPOSITORY, &bytes, key().backup()).unwrap();
        prop_assert_eq!(back, snapshot);
    }

    #[test]
    fn every_bit_flip_in_a_snapshot_is_found(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let snapshot = snapshot();
        let mut bytes = snapshot.seal(key().backup()).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Snapshot::open(&snapshot.snapshot, &REPOSITORY, &bytes, key().backup()).is_err());
        let _ = Snapshot::peek(&snapshot.snapshot, &REPOSITORY, &bytes);
    }
}
