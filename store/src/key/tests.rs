use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::slot::{Argon2id, Slot, open_any};
use super::*;
use crate::id::RepositoryId;
use crate::names;
use crate::snapshot::Timestamp;

const REPOSITORY: RepositoryId = RepositoryId::new([3; 16]);

fn restore_key() -> RestoreKey {
    RestoreKey::new(&[1; 32], &[2; 32])
}

fn keys() -> [Key; 2] {
    [Key::Backup(restore_key().backup().clone()), Key::Restore(restore_key())]
}

fn slot(key: &Key, passphrase: &str) -> (String, Vec<u8>) {
    let created = Timestamp::from_milliseconds(0).unwrap();
    let slot = Slot::create(REPOSITORY, key, passphrase, "label", created, Argon2id::CHEAPEST).unwrap();
    (names::slot(&slot.slot), slot.seal())
}

fn reason(error: Error) -> String {
    match error {
        Error::Key { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn derived_values_are_pinned() {
    let key = restore_key();
    let backup = key.backup();
    // X25519 of the clamped secret 0x02 repeated; RFC 7748.
    assert_eq!(
        backup.public_key().to_string(),
        "ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59"
    );
    let chunk = blake3::derive_key("underlay v1 chunk id", &[1; 32]);
    assert_eq!(backup.chunk_id(b"abc").as_bytes(), blake3::keyed_hash(&chunk, b"abc").as_bytes());
    let node = blake3::derive_key("underlay v1 node id", &[1; 32]);
    assert_eq!(backup.node_id(b"abc").as_bytes(), blake3::keyed_hash(&node, b"abc").as_bytes());
    assert_eq!(backup.cut_secret()[..32], blake3::derive_key("underlay v1 cut points", &[1; 32]));
    assert_ne!(backup.document_key("snapshot"), backup.document_key("repository"));
    assert_eq!(
        backup.document_key("snapshot"),
        blake3::derive_key("underlay v1 document snapshot", &[1; 32])
    );
}

#[test]
fn nothing_secret_is_printed() {
    for key in keys() {
        let text = format!("{key:?}");
        assert!(text.contains("public"), "{text}");
        assert!(!text.contains("01010101") && !text.contains("1, 1") && !text.contains("2, 2"), "{text}");
    }
    let (data_key, _) = restore_key().backup().seal_data_key(&REPOSITORY).unwrap();
    assert_eq!(format!("{data_key:?}"), format!("DataKey {{ id: {:?}, .. }}", data_key.id()));
}

#[test]
fn bytes_round_trip() {
    for key in keys() {
        let bytes = key.to_bytes();
        assert_eq!(bytes.len(), key.holds().length());
        let back = Key::from_bytes("o", key.holds(), &bytes).unwrap();
        assert_eq!(back.to_bytes(), bytes);
        assert!(reason(Key::from_bytes("o", key.holds(), &bytes[1..]).unwrap_err()).contains("bytes, not"));
    }
    let mut bytes = keys()[1].to_bytes();
    bytes[40] ^= 1;
    assert!(reason(Key::from_bytes("o", Holds::Restore, &bytes).unwrap_err()).contains("public key"));
    assert!(matches!(keys()[0].restore(), Err(Error::NeedsRestoreKey)));
    assert!(keys()[1].restore().is_ok());
}

#[test]
fn sealed_data_key_opens_only_as_it_is() {
    let key = restore_key();
    let (data_key, sealed) = key.backup().seal_data_key(&REPOSITORY).unwrap();
    let mut text = b"plain".to_vec();
    let nonce = data_key.seal(b"aad", &mut text);
    let opened = key.open_data_key(&REPOSITORY, &sealed).unwrap();
    assert_eq!(opened.id(), sealed.id());
    let mut out = vec![9; 9];
    assert!(opened.open(&nonce, b"aad", &text, &mut out));
    assert_eq!(out, b"plain");
    assert!(!opened.open(&nonce, b"AAD", &text, &mut out));
    assert!(out.is_empty());
    assert!(!opened.open(&nonce, b"aad", &text[..15], &mut out));

    assert!(key.open_data_key(&RepositoryId::new([4; 16]), &sealed).is_err());
    assert!(RestoreKey::generate().open_data_key(&REPOSITORY, &sealed).is_err());
    for bit in 0..SealedKey::LENGTH * 8 {
        let mut bytes = *sealed.as_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // X25519 ignores the top bit of a public key, but the HPKE context holds the key as it came.
        assert!(key.open_data_key(&REPOSITORY, &SealedKey::new(bytes)).is_err(), "bit {bit}");
    }
}

#[test]
fn a_public_key_of_low_order_is_refused() {
    let backup = BackupKey::new(&[1; 32], PublicKey::new([0; 32]));
    assert!(matches!(backup.seal_data_key(&REPOSITORY), Err(Error::Key { .. })));
}

#[test]
fn slots_open_with_their_passphrase() {
    for key in keys() {
        let slots = [slot(&key, "correct"), slot(&key, "other")];
        let opened = open_any(&REPOSITORY, &slots, "correct").unwrap();
        assert_eq!((opened.holds(), opened.to_bytes()), (key.holds(), key.to_bytes()));
        let error = open_any(&REPOSITORY, &slots, "wrong").unwrap_err();
        assert!(matches!(error, Error::WrongPassphrase { slots: 2 }), "{error}");
    }
    let none: [(String, Vec<u8>); 0] = [];
    assert!(matches!(open_any(&REPOSITORY, &none, "x"), Err(Error::WrongPassphrase { slots: 0 })));
}

#[test]
fn the_restore_key_is_tried_first() {
    for order in [[0, 1], [1, 0]] {
        let slots = order.map(|index: usize| slot(&keys()[index], "same"));
        assert_eq!(open_any(&REPOSITORY, &slots, "same").unwrap().holds(), Holds::Restore);
    }
}

#[test]
fn a_damaged_slot_hides_no_other_and_is_not_hidden() {
    let [backup, _] = keys();
    let mut damaged = slot(&backup, "first");
    let at = damaged.1.len() / 2;
    damaged.1[at] ^= 1;
    let slots = [damaged, slot(&backup, "second")];
    assert!(open_any(&REPOSITORY, &slots, "second").is_ok());
    let error = open_any(&REPOSITORY, &slots, "first").unwrap_err();
    assert!(matches!(&error, Error::Damaged { object, .. } if *object == slots[0].0), "{error}");
}

#[test]
fn a_slot_belongs_to_its_repository_and_name() {
    let (object, bytes) = slot(&keys()[0], "x");
    let other = RepositoryId::new([9; 16]);
    assert!(reason(Slot::read(&other, &object, &bytes).unwrap_err()).contains("repository"));
    let error = Slot::read(&REPOSITORY, "keys/0000000000000000.json", &bytes).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");

    // The checksum is anyone's to make, so the ciphertext itself must hold the fields.
    let mut forged = Slot::read(&REPOSITORY, &object, &bytes).unwrap();
    forged.repository = other;
    assert!(forged.open("x").unwrap().is_none());
    let mut forged = Slot::read(&REPOSITORY, &object, &bytes).unwrap();
    forged.holds = Holds::Restore;
    assert!(forged.open("x").unwrap().is_none());
}

#[test]
fn absurd_costs_are_refused() {
    let cost = |memory_kib, passes, lanes| Argon2id { memory_kib, passes, lanes };
    for cost in [
        cost((1 << 20) + 1, 1, 1),
        cost(1 << 20, 17, 1),
        cost(8, u32::MAX, 1),
        cost(7, 1, 1),
        cost(8, 0, 1),
        cost(8, 1, 0),
        cost(1 << 20, 1, 65),
        cost(u32::MAX, u32::MAX, u32::MAX),
    ] {
        let created = Timestamp::from_milliseconds(0).unwrap();
        let made = Slot::create(REPOSITORY, &keys()[0], "x", "", created, cost);
        assert!(reason(made.unwrap_err()).contains("limits"), "{cost:?}");
        let (object, bytes) = slot(&keys()[0], "x");
        let mut forged = Slot::read(&REPOSITORY, &object, &bytes).unwrap();
        forged.argon2id = cost;
        assert!(reason(forged.open("x").unwrap_err()).contains("limits"));
    }
}

#[test]
fn key_files_and_paper_round_trip() {
    for key in keys() {
        for text in [file::to_json(&REPOSITORY, &key), file::to_paper(&REPOSITORY, &key)] {
            let (repository, back) = file::parse("key", &text).unwrap();
            assert_eq!((repository, back.to_bytes()), (REPOSITORY, key.to_bytes()));
        }
    }
}

#[test]
fn paper_is_exact_and_its_reader_forgiving() {
    let text = file::to_paper(&REPOSITORY, &keys()[0]);
    assert_paper(&text);
    let sloppy = text.to_uppercase().replace("UNDERLAY BACKUP KEY, VERSION", "underlay backup key, version");
    let sloppy = sloppy
        .replace("REPOSITORY", "repository")
        .replace("\n1 ", "\n\n  1: ")
        .replace("0101 0101", "01010101");
    assert_eq!(file::parse("paper", &sloppy).unwrap().1.to_bytes(), keys()[0].to_bytes());
}

fn assert_paper(text: &str) {
    let line = |number: u8, bytes: &[u8; 16], groups: &str| {
        let hash = blake3::hash(&[[number].as_slice(), bytes].concat());
        format!("{number}  {groups}  {}\n", &hash.to_hex()[..4])
    };
    let ones = "0101 0101 0101 0101 0101 0101 0101 0101";
    let first = line(1, &[1; 16], ones);
    let start = format!(
        "underlay backup key, version 1\nrepository {REPOSITORY}\n{first}{}3  ce8d 3ad1",
        line(2, &[1; 16], ones)
    );
    assert!(text.starts_with(&start), "{text}");
    assert_eq!(text.lines().count(), 6);
}

#[test]
fn paper_names_the_wrong_line() {
    let text = file::to_paper(&REPOSITORY, &keys()[1]);
    let broken = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        file::parse("paper", &text.replacen(from, to, 1)).unwrap_err()
    };
    assert!(reason(broken("3  ce8d", "3  ce8e")).contains("line 3 is mistyped"));
    assert!(reason(broken("5  0202", "5  02o2")).contains("line 5 is not 32 hex digits"));
    assert!(reason(broken("2  0101 ", "2  ")).contains("line 2 is not"));
    assert!(reason(broken("4  ", "5  ")).contains("line 4 is missing"));
    assert!(reason(broken("repository 03", "repository 3")).contains("second line"));
    assert!(reason(broken("underlay", "overlay")).contains("neither"));
    assert!(reason(broken("restore", "backup")).contains("4 numbered lines"));
    let cut = text.lines().take(6).collect::<Vec<_>>().join("\n");
    assert!(reason(file::parse("paper", &cut).unwrap_err()).contains("line 5 of 6 is missing"));
    let twice = format!("{}{}", &*text, &*text);
    assert!(reason(file::parse("paper", &twice).unwrap_err()).contains("more follow"));
    let error = broken("version 1", "version 2");
    assert!(matches!(error, Error::Version { found: 2, known: 1, .. }), "{error}");
}

#[test]
fn key_files_are_private_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let text = file::to_json(&REPOSITORY, &keys()[1]);
    file::write(&path, &text).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(file::read(&path, &REPOSITORY).unwrap().holds(), Holds::Restore);
    assert!(matches!(file::write(&path, &text), Err(Error::File { .. })));
    let other = file::read(&path, &RepositoryId::new([9; 16])).unwrap_err();
    assert!(reason(other).contains("it is for repository"));
    assert!(matches!(file::read(&folder.path().join("none"), &REPOSITORY), Err(Error::File { .. })));
    let long = folder.path().join("long");
    file::write(&long, &"x".repeat(70_000)).unwrap();
    assert!(matches!(file::read(&long, &REPOSITORY), Err(Error::File { .. })));
}

proptest! {
    #[test]
    fn any_key_survives_paper_and_file(backup: [u8; 32], restore: [u8; 32], repository: [u8; 16]) {
        let repository = RepositoryId::new(repository);
        let key = Key::Restore(RestoreKey::new(&backup, &restore));
        for text in [file::to_json(&repository, &key), file::to_paper(&repository, &key)] {
            let (found, back) = file::parse("key", &text).unwrap();
            prop_assert_eq!(found, repository);
            prop_assert_eq!(back.to_bytes(), key.to_bytes());
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}", tail in "[0-9a-f \n]{0,400}") {
        let _ = file::parse("key", &text);
        let _ = file::parse("key", &format!("underlay backup key, version 1\nrepository {REPOSITORY}\n{tail}"));
    }
}
