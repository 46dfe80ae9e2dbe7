//! Documents and keys. Each target knows one key and reads its input twice: as it is, and with a `mac` (or check digits) that
//! belongs to it, for no mutation finds that by itself.

/// Documents as the code writes them.
pub mod seeds;

use serde_json::value::RawValue;
use underlay_store::id::{PackName, RepositoryId, SlotId, SnapshotId};
use underlay_store::key::{Key, RestoreKey, file, slot::Slot};
use underlay_store::names::{self, DESCRIPTOR};
use underlay_store::snapshot::{
    Claim, Closing, DamageMark, Deletion, Descriptor, Protection, RetiredPlaces, Snapshot,
};
use underlay_store::{Error, document};

use crate::{allocations, assert_names};

/// The repository that all inputs are of.
pub const REPOSITORY: RepositoryId = RepositoryId::new(*b"a fuzzed one----");
/// The snapshot that inputs are read as.
pub const SNAPSHOT: SnapshotId = SnapshotId::new(*b"its one snapshot");
/// The slot that an input is read as if it does not say its name.
pub const SLOT: SlotId = SlotId::new(*b"its slot");
/// The generation that claims and deletions are read as.
pub const GENERATION: u64 = 3;
/// The pack that records are read as being about.
pub const PACK: PackName = PackName::new([0xcd; 32]);
/// What opens the slot among the seeds.
pub const PASSPHRASE: &str = "open sesame";

/// The key that all inputs are written with.
#[must_use]
pub fn key() -> RestoreKey {
    thread_local! { static KEY: RestoreKey = RestoreKey::new(&[0x11; 32], &[0x22; 32]) }
    KEY.with(Clone::clone)
}

/// What reading a document may hold at once: its text a few times over, and a little.
fn limit(bytes: &[u8]) -> usize {
    (64 << 10) + 32 * bytes.len()
}

/// The input, and the same body with a `mac` that belongs to it.
fn versions(kind: &'static str, bytes: &[u8], mac_key: &[u8; 32]) -> Vec<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Anything<'a> {
        #[serde(borrow)]
        body: &'a RawValue,
    }
    let resealed =
        serde_json::from_slice(bytes).ok().map(|found: Anything| document::seal(kind, &found.body, mac_key));
    std::iter::once(bytes.to_vec()).chain(resealed).collect()
}

/// Reads a document in all its versions: what is accepted is exactly what is written, and an error names the object.
fn read_versions<T>(
    object: &str,
    versions: &[Vec<u8>],
    read: impl Fn(&[u8]) -> Result<T, Error>,
    write: impl Fn(&T) -> Vec<u8>,
    then: impl Fn(T),
) {
    for bytes in versions {
        match allocations::within(limit(bytes), || read(bytes)) {
            Ok(value) => {
                assert!(write(&value) == *bytes, "{object} is accepted, and written another way");
                then(value);
            }
            Err(error) => assert_names(object, &error),
        }
    }
}

/// `underlay.json`.
///
/// # Panics
/// If something is accepted that the code would not write.
pub fn descriptor(bytes: &[u8]) {
    let key = key();
    let backup = key.backup();
    let versions = versions("repository", bytes, &backup.document_key("repository"));
    let write = |descriptor: &Descriptor| descriptor.seal(backup).expect("what was read can be written");
    read_versions(DESCRIPTOR, &versions, |bytes| Descriptor::open(bytes, backup), write, drop);
    for bytes in &versions {
        match allocations::within(limit(bytes), || Descriptor::peek(bytes)) {
            Ok(descriptor) => assert!(descriptor.cut.validate().is_ok()),
            Err(error) => assert_names(DESCRIPTOR, &error),
        }
    }
}

/// A snapshot, read with the key and without, and its private part.
///
/// # Panics
/// If something is accepted that the code would not write.
pub fn snapshot(bytes: &[u8]) {
    let key = key();
    let object = names::snapshot(&SNAPSHOT);
    let versions = versions("snapshot", bytes, &key.backup().document_key("snapshot"));
    let write = |snapshot: &Snapshot| snapshot.seal(key.backup()).expect("what was read can be written");
    let read = |bytes: &[u8]| Snapshot::open(&SNAPSHOT, &REPOSITORY, bytes, key.backup());
    read_versions(&object, &versions, read, write, |snapshot| {
        assert!(snapshot.roots().count() >= snapshot.disks.len());
        let Some(private) = snapshot.private else { return };
        match private.open(&key, &REPOSITORY, &SNAPSHOT) {
            Ok(metadata) => assert_eq!(metadata, seeds::private(), "an altered private part is accepted"),
            Err(error) => assert_names(&object, &error),
        }
    });
    for bytes in &versions {
        let peeked = allocations::within(limit(bytes), || Snapshot::peek(&SNAPSHOT, &REPOSITORY, bytes));
        match (peeked, read(bytes)) {
            (Err(error), Ok(_)) => panic!("read with the key and not without: {error}"),
            (Err(error), _) => assert_names(&object, &error),
            (Ok(peeked), Ok(read)) => assert_eq!(peeked, read),
            (Ok(_), Err(_)) => {}
        }
    }
}

/// A passphrase slot, and what it holds.
///
/// # Panics
/// If something is accepted that the code would not write, or another key than the one that was put in comes out.
pub fn slot(bytes: &[u8]) {
    let object = names::slot(&slot_named(bytes).unwrap_or(SLOT));
    let versions = versions("key slot", bytes, &document::public_key_for("key slot"));
    let read = |bytes: &[u8]| Slot::read(&REPOSITORY, &object, bytes);
    read_versions(&object, &versions, read, Slot::seal, |slot| {
        let cost = slot.argon2id;
        let absurd = cost.memory_kib > 1 << 20
            || cost.lanes > 64
            || u64::from(cost.memory_kib) * u64::from(cost.passes) > 16 << 20;
        if !absurd && (cost.memory_kib > 64 || cost.passes > 2) {
            return;
        }
        match allocations::within(256 << 10, || slot.open(PASSPHRASE)) {
            Ok(Some(opened)) => {
                assert!(!absurd && *opened.to_bytes() == *Key::Restore(key()).to_bytes(), "another key");
            }
            Ok(None) => assert!(!absurd),
            Err(error) => assert_names(&object, &error),
        }
    });
}

/// The name of a slot is part of what it seals, and random: it is read under the name that it says itself.
fn slot_named(bytes: &[u8]) -> Option<SlotId> {
    let found: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    SlotId::from_hex(found["body"]["slot"].as_str()?)
}

/// An ownership claim.
///
/// # Panics
/// If something is accepted that the code would not write.
pub fn claim(bytes: &[u8]) {
    let versions = versions("claim", bytes, &document::public_key_for("claim"));
    let read = |bytes: &[u8]| Claim::open(GENERATION, &REPOSITORY, bytes);
    read_versions(&names::claim(GENERATION), &versions, read, Claim::seal, drop);
}

/// What an authority without keys writes: records of deletions, closings, what was stored wrong, marks of damage.
///
/// # Panics
/// If something is accepted that the code would not write.
pub fn deletion(bytes: &[u8]) {
    let versions = versions("deletion", bytes, &document::public_key_for("deletion"));
    let read = |bytes: &[u8]| Deletion::open(GENERATION, 0, &REPOSITORY, bytes);
    read_versions(&names::deletion(GENERATION, 0), &versions, read, Deletion::seal, drop);
    let versions = self::versions("closing", bytes, &document::public_key_for("closing"));
    let read = |bytes: &[u8]| Closing::open(GENERATION, &REPOSITORY, bytes);
    read_versions(&names::closing(GENERATION), &versions, read, Closing::seal, drop);
    let versions = self::versions("retired", bytes, &document::public_key_for("retired"));
    let read = |bytes: &[u8]| RetiredPlaces::open(&PACK, &REPOSITORY, bytes);
    read_versions(&names::retired(&PACK), &versions, read, RetiredPlaces::seal, drop);
    let versions = self::versions("damage", bytes, &document::public_key_for("damage"));
    let read = |bytes: &[u8]| DamageMark::open(&SNAPSHOT, bytes);
    read_versions(&names::damage(&SNAPSHOT), &versions, read, DamageMark::seal, drop);
}

/// A mark that protects a snapshot.
///
/// # Panics
/// If something is accepted that the code would not write.
pub fn protection(bytes: &[u8]) {
    let (object, mac_key) = (names::protection(&SNAPSHOT), document::public_key_for("protection"));
    let versions = versions("protection", bytes, &mac_key);
    let read = |bytes: &[u8]| document::open(&object, "protection", bytes, &mac_key);
    read_versions(&object, &versions, read, Protection::seal, drop);
}

/// A key file.
///
/// # Panics
/// If something is accepted that the code would not write.
pub fn key_file(bytes: &[u8]) {
    let versions = versions("key file", bytes, &document::public_key_for("key file"));
    versions.iter().filter_map(|bytes| str::from_utf8(bytes).ok()).for_each(read_key);
}

/// A paper copy.
///
/// # Panics
/// If something is accepted that does not mean the same when it is written again.
pub fn paper(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    read_key(text);
    read_key(&with_check_digits(text));
}

fn read_key(text: &str) {
    const OBJECT: &str = "/some/where.key";
    match allocations::within(limit(text.as_bytes()), || file::parse(OBJECT, text)) {
        Ok((repository, key)) => {
            let json = file::to_json(&repository, &key);
            if text.trim_start().starts_with('{') {
                assert!(*json == text, "a key file is accepted, and written another way");
            }
            for written in [json, file::to_paper(&repository, &key)] {
                let (found, again) = file::parse(OBJECT, &written).expect("what was written can be read");
                assert!(found == repository && *again.to_bytes() == *key.to_bytes());
            }
        }
        Err(error) => assert_names(OBJECT, &error),
    }
}

/// The same text with check digits that belong to its numbered lines.
fn with_check_digits(text: &str) -> String {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let number = words.next()?.parse::<u8>().ok()?;
        let digits: String = words.collect();
        let bytes = hex::decode(digits.get(..32)?).ok()?;
        let hash = blake3::Hasher::new().update(&[number]).update(&bytes).finalize();
        Some(format!("{number} {} {}", &digits[..32], hex::encode(&hash.as_bytes()[..2])))
    };
    text.lines().map(|found| line(found).unwrap_or_else(|| found.to_owned()) + "\n").collect()
}
