use std::collections::BTreeMap;

use underlay_store::cut::CutParameters;
use underlay_store::id::{ChunkId, NodeId, OwnerId, PackName, Root, SessionId};
use underlay_store::key::slot::{Argon2id, Slot};
use underlay_store::key::{Key, file};
use underlay_store::names;
use underlay_store::pack::PackKind;
use underlay_store::snapshot::{
    Claim, Closing, Consistency, DamageMark, DamagedDisk, DamagedPlace, Deletion, Descriptor, Disk,
    PrivateField, PrivateImage, PrivateMetadata, Protection, RetiredPlaces, Snapshot, Statistics, Timestamp,
};

use super::{GENERATION, PACK, PASSPHRASE, REPOSITORY, SNAPSHOT, key};
use crate::Seed;

fn time() -> Timestamp {
    Timestamp::from_milliseconds(1_795_453_509_120).expect("a time of today")
}

fn named<const N: usize>(seeds: [(&str, Vec<u8>); N]) -> Vec<Seed> {
    seeds.map(|(name, bytes)| (name.to_owned(), bytes)).to_vec()
}

/// What the private part of the seeds holds.
#[must_use]
pub fn private() -> PrivateMetadata {
    let image = PrivateImage { disk: "vda".into(), path: "/images/vda.qcow2".into(), format: "qcow2".into() };
    let extra = BTreeMap::from([("more".to_owned(), serde_json::json!({ "of": ["it"] }))]);
    PrivateMetadata { host: "a host".into(), images: vec![image], extra }
}

/// Descriptors.
#[must_use]
pub fn descriptors() -> Vec<Seed> {
    let descriptor = |cut| Descriptor {
        repository: REPOSITORY,
        created: time(),
        public_key: key().backup().public_key(),
        cut,
    };
    let seal = |cut| descriptor(cut).seal(key().backup()).expect("valid parameters");
    let fixed = CutParameters { minimum: 4096, maximum: 2 << 20, mask_bits: 16 };
    named([("default", seal(CutParameters::default())), ("extreme", seal(fixed))])
}

/// Snapshots: without disks, with several, with a private part.
#[must_use]
pub fn snapshots() -> Vec<Seed> {
    let snapshot = |vm: &str, disks, private| {
        let snapshot = Snapshot {
            snapshot: SNAPSHOT,
            repository: REPOSITORY,
            session: SessionId::new([7; 16]),
            vm: vm.into(),
            time: time(),
            consistency: Consistency::Filesystem,
            disks,
            statistics: Statistics {
                disk_bytes: 5 << 30,
                bytes_read: 1 << 30,
                bytes_new: 12345,
                bytes_uploaded: 2345,
            },
            client: "0.1.0".into(),
            private,
        };
        snapshot.seal(key().backup()).expect("valid names")
    };
    let root = |size, node: u8| Root { size, node: (node > 0).then(|| NodeId::new([node; 32])) };
    let disk = |name: &str, root, layers| Disk { name: name.into(), root, layers };
    let disks = vec![
        disk("vda", root(5 << 30, 1), vec![root(3 << 30, 2)]),
        disk("vdb", root(1 << 20, 0), Vec::new()),
        disk("\"käse\" 1", root(0, 0), Vec::new()),
    ];
    let sealed = PrivateField::seal(key().backup(), &REPOSITORY, &SNAPSHOT, &private());
    named([
        ("bare", snapshot("web-01", Vec::new(), None)),
        ("disks", snapshot("käse 1", disks, None)),
        ("private", snapshot("web", vec![disk("a", root(1, 1), Vec::new())], sealed.ok())),
    ])
}

/// Slots that [`PASSPHRASE`] opens.
#[must_use]
pub fn slots() -> Vec<Seed> {
    let made = Slot::create(
        REPOSITORY,
        &Key::Restore(key()),
        PASSPHRASE,
        "for the safe",
        time(),
        Argon2id::CHEAPEST,
    );
    let mut slot = made.expect("a valid label");
    let sealed = slot.seal();
    slot.argon2id = Argon2id { memory_kib: u32::MAX, passes: u32::MAX, lanes: 1 };
    slot.label = "\u{fc}ber \"uns\"".into();
    named([("cheap", sealed), ("absurd", slot.seal())])
}

/// Claims.
#[must_use]
pub fn claims() -> Vec<Seed> {
    let claim = Claim {
        repository: REPOSITORY,
        generation: GENERATION,
        owner: OwnerId::new([9; 16]),
        catalog: None,
        host: "a host".into(),
        created: time(),
    };
    named([("claim", claim.seal())])
}

/// Records of deletions, closings, what was stored wrong, marks of damage.
#[must_use]
pub fn deletions() -> Vec<Seed> {
    let names = |first: u8| (first..first + 2).map(|byte| PackName::new([byte; 32])).collect();
    let (packs, nodes) = (names(1), names(9));
    let deletion = Deletion { repository: REPOSITORY, generation: GENERATION, number: 0, packs, nodes };
    let records = BTreeMap::from([(1, 2), (2, 1)]);
    let closing = Closing { repository: REPOSITORY, generation: GENERATION, records };
    let ids = vec![ChunkId::new([1; 32]), ChunkId::new([2; 32])];
    let retired = RetiredPlaces { repository: REPOSITORY, pack: PACK, ids };
    let disks = vec![DamagedDisk { name: "vda".into(), chunks: 1, nodes: 0 }];
    let object = names::pack(PackKind::Data, &PACK);
    let places = vec![DamagedPlace { object, id: Some(ChunkId::new([1; 32])) }];
    let mark = DamageMark { repository: REPOSITORY, snapshot: SNAPSHOT, found: time(), disks, places };
    named([
        ("deletion", deletion.seal()),
        ("closing", closing.seal()),
        ("retired", retired.seal()),
        ("damage", mark.seal()),
    ])
}

/// Marks.
#[must_use]
pub fn protections() -> Vec<Seed> {
    named([("mark", Protection { repository: REPOSITORY, snapshot: SNAPSHOT }.seal())])
}

fn keys() -> [(&'static str, Key); 2] {
    [("restore", Key::Restore(key())), ("backup", Key::Backup(key().backup().clone()))]
}

/// Key files.
#[must_use]
pub fn key_files() -> Vec<Seed> {
    named(keys().map(|(name, key)| (name, file::to_json(&REPOSITORY, &key).as_bytes().to_vec())))
}

/// Paper copies, one of them as somebody might type it.
#[must_use]
pub fn papers() -> Vec<Seed> {
    let mut seeds =
        named(keys().map(|(name, key)| (name, file::to_paper(&REPOSITORY, &key).as_bytes().to_vec())));
    let [(_, restore), _] = keys();
    let typed = file::to_paper(&REPOSITORY, &restore)
        .to_uppercase()
        .replace("UNDERLAY RESTORE KEY, VERSION", "underlay restore key, version");
    seeds.push(("typed".into(), typed.replace("REPOSITORY", "\nrepository").replace("  ", " ").into_bytes()));
    seeds
}
