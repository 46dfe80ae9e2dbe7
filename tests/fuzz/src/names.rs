//! Names of objects, ids and times: what is accepted is exactly what is written.

use underlay_store::id::{ChunkId, PackName, SlotId, SnapshotId};
use underlay_store::names::ObjectName;
use underlay_store::pack::PackKind;
use underlay_store::snapshot::Timestamp;

use crate::{Seed, allocations};

/// A name as a bucket lists it.
///
/// # Panics
/// If something is accepted that is not written the same way.
pub fn object_name(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let limit = 4096 + 4 * text.len();
    if let Some(name) = allocations::within(limit, || ObjectName::parse(text)) {
        assert_eq!(name.to_string(), text);
        if let ObjectName::Pack(kind, _) = name {
            assert!(text.starts_with(kind.folder()));
        }
    }
    if let Some(time) = allocations::within(limit, || Timestamp::parse(text)) {
        assert_eq!(time.to_string(), text);
        let again = Timestamp::from_milliseconds(time.as_milliseconds()).expect("in the years 0 to 9999");
        assert_eq!(again, time);
    }
    if let Some(id) = SnapshotId::from_hex(text) {
        assert_eq!(id.to_string(), text);
    }
    if let Some(id) = ChunkId::from_hex(text) {
        assert_eq!(id.to_string(), text);
    }
}

/// A name of every kind.
pub fn seeds() -> Vec<Seed> {
    let names = [
        ("descriptor", ObjectName::Descriptor),
        ("slot", ObjectName::Slot(SlotId::new([0xab; 8]))),
        ("claim", ObjectName::Claim(10)),
        ("data-pack", ObjectName::Pack(PackKind::Data, PackName::new([0xcd; 32]))),
        ("node-pack", ObjectName::Pack(PackKind::Nodes, PackName::new([0x01; 32]))),
        ("snapshot", ObjectName::Snapshot(SnapshotId::new([0xef; 16]))),
        ("deletion", ObjectName::Deletion(10, 1)),
        ("closing", ObjectName::Closing(2)),
        ("retired", ObjectName::Retired(PackName::new([0xcd; 32]))),
        ("protection", ObjectName::Protection(SnapshotId::new([0x5f; 16]))),
    ];
    let mut seeds: Vec<_> =
        names.iter().map(|(kind, name)| ((*kind).to_owned(), name.to_string().into_bytes())).collect();
    for (name, text) in [
        ("time", "2026-11-23T17:05:09.120Z"),
        ("year-0", "0000-01-01T00:00:00.000Z"),
        ("leap-second", "2016-12-31T23:59:60.000Z"),
    ] {
        seeds.push((name.to_owned(), text.as_bytes().to_vec()));
    }
    seeds
}
