use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::Error;
use crate::authority::StoredDocument;
use crate::catalog::Location;
use crate::id::{ChunkId, NodeId, PackName, SessionId, SnapshotId};
use crate::pack::Codec;

fn location() -> impl Strategy<Value = Location> {
    (any::<[u8; 32]>(), any::<[u32; 3]>(), any::<bool>(), any::<bool>()).prop_map(
        |(pack, [offset, payload_length, plain_length], zstd, retired)| Location {
            pack: PackName::new(pack),
            offset,
            payload_length,
            plain_length,
            codec: if zstd { Codec::Zstd } else { Codec::None },
            retired,
        },
    )
}

fn document() -> impl Strategy<Value = StoredDocument> {
    ("[a-z/.é]{0,40}", prop::collection::vec(any::<u8>(), 0..60))
        .prop_map(|(name, bytes)| StoredDocument { name, bytes: bytes.into() })
}

/// Every decoder takes these bytes without a panic. What decodes is the only encoding of what it says.
fn decodes_to_itself(bytes: &[u8]) {
    let shared = Bytes::copy_from_slice(bytes);
    if let Ok(ids) = decode_ids::<ChunkId>(bytes) {
        assert_eq!(encode_ids(&ids), bytes);
    }
    if let Ok(ids) = decode_ids::<NodeId>(bytes) {
        assert_eq!(encode_ids(&ids), bytes);
    }
    let said = bytes.get(8..12).map_or(0, |count| u32::from_le_bytes(count.try_into().unwrap()) as usize);
    for expected in [0, 1, 7, said] {
        if let Ok(answers) = decode_bitmap(bytes, expected) {
            assert_eq!(encode_bitmap(&answers), bytes);
        }
        if let Ok(nodes) = decode_nodes(&shared, expected) {
            assert_eq!(encode_nodes(&nodes), bytes);
        }
        if let Ok(places) = decode_places(bytes, expected) {
            assert_eq!(encode_places(&places), bytes);
        }
    }
    if let Ok(documents) = decode_documents(&shared) {
        assert_eq!(encode_documents(&documents), bytes);
    }
    if let Ok(problem) = serde_json::from_slice::<Problem>(bytes) {
        let _ = problem.into_error("server", "location").to_string();
    }
    let _ = serde_json::from_slice::<JobRequest>(bytes);
    let _ = serde_json::from_slice::<JobStatus>(bytes);
}

proptest! {
    #[test]
    fn ids_come_back(ids in prop::collection::btree_set(any::<[u8; 32]>(), 0..40)) {
        let ids: Vec<ChunkId> = ids.into_iter().map(ChunkId::new).collect();
        prop_assert_eq!(decode_ids::<ChunkId>(&encode_ids(&ids)).unwrap(), ids.clone());
        prop_assert!(decode_ids::<NodeId>(&encode_ids(&ids)).is_err());
    }

    #[test]
    fn answers_come_back(answers in prop::collection::vec(any::<bool>(), 0..70)) {
        let bytes = encode_bitmap(&answers);
        prop_assert_eq!(decode_bitmap(&bytes, answers.len()).unwrap(), answers.clone());
        prop_assert!(decode_bitmap(&bytes, answers.len() + 1).is_err());
    }

    #[test]
    fn nodes_places_and_documents_come_back(
        nodes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..9),
        places in prop::collection::vec(prop::collection::vec(location(), 0..4), 0..9),
        documents in prop::collection::vec(document(), 0..9),
    ) {
        let nodes: Vec<Bytes> = nodes.into_iter().map(Bytes::from).collect();
        prop_assert_eq!(decode_nodes(&encode_nodes(&nodes).into(), nodes.len()).unwrap(), nodes.clone());
        prop_assert!(decode_nodes(&encode_nodes(&nodes).into(), nodes.len() - 1).is_err());
        prop_assert_eq!(decode_places(&encode_places(&places), places.len()).unwrap(), places.clone());
        prop_assert_eq!(decode_documents(&encode_documents(&documents).into()).unwrap(), documents);
    }

    #[test]
    fn anything_may_arrive(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decodes_to_itself(&bytes);
    }

    /// Well begun, and then wrong in one place, cut off or too long.
    #[test]
    fn almost_right_may_arrive(
        places in prop::collection::vec(prop::collection::vec(location(), 0..3), 1..5),
        documents in prop::collection::vec(document(), 1..5),
        which in 0..5_usize, at in any::<prop::sample::Index>(), value in any::<u8>(), cut in 0..3_usize,
    ) {
        let ids: Vec<ChunkId> = (0..9).map(|byte| ChunkId::new([byte; 32])).collect();
        let nodes: Vec<Bytes> = documents.iter().map(|document| document.bytes.clone()).collect();
        let mut bytes = match which {
            0 => encode_ids(&ids),
            1 => encode_bitmap(&[true; 13]),
            2 => encode_nodes(&nodes),
            3 => encode_places(&places),
            _ => encode_documents(&documents),
        };
        let at = at.index(bytes.len());
        bytes[at] = value;
        match cut {
            0 => bytes.truncate(at),
            1 => bytes.push(value),
            _ => {}
        }
        decodes_to_itself(&bytes);
    }
}

#[test]
fn no_room_is_made_for_what_did_not_come() {
    for magic in [b"ULid", b"ULbm", b"ULnd", b"ULpl", b"ULdc"] {
        for count in [u32::MAX, 1 << 31, 1 << 20] {
            let mut bytes = magic.to_vec();
            bytes.extend_from_slice(&[1, 1, 0, 0]);
            bytes.extend_from_slice(&count.to_le_bytes());
            let expected = count as usize;
            let shared = Bytes::copy_from_slice(&bytes);
            assert!(decode_ids::<ChunkId>(&bytes).is_err());
            assert!(decode_bitmap(&bytes, expected).is_err());
            assert!(decode_nodes(&shared, expected).is_err());
            assert!(decode_places(&bytes, expected).is_err());
            assert!(decode_documents(&shared).is_err());
        }
    }
}

#[test]
fn ids_have_an_order_and_a_limit() {
    let (one, two) = (ChunkId::new([1; 32]), ChunkId::new([2; 32]));
    let mut bytes = encode_ids(&[one, two]);
    let (first, second) = bytes[12..].split_at_mut(32);
    first.swap_with_slice(second);
    assert!(decode_ids::<ChunkId>(&bytes).unwrap_err().contains("ascending"));
    let mut twice = encode_ids(&[one, two]);
    twice.copy_within(12..44, 44);
    assert!(decode_ids::<ChunkId>(&twice).unwrap_err().contains("ascending"));
    let mut many = b"ULid\x01\x01\0\0".to_vec();
    many.extend_from_slice(&(MAXIMUM_IDS as u32 + 1).to_le_bytes());
    many.resize(12 + 32 * (MAXIMUM_IDS + 1), 0);
    assert!(decode_ids::<ChunkId>(&many).unwrap_err().contains("at most"));
}

#[test]
fn every_error_of_a_repository_is_the_same_on_the_other_side() {
    let (session, snapshot) = (SessionId::new([7; 16]), SnapshotId::new([8; 16]));
    let text = || "text".to_owned();
    let errors = [
        Error::NoRepository { location: "here".into() },
        Error::AlreadyExists { location: "here".into() },
        Error::damaged("packs/5f", "its trailer"),
        Error::Missing { object: "underlay.json".into() },
        Error::Version { object: text(), found: 9, known: 1 },
        Error::Backend { action: "read", object: text(), source: "the line is dead".into() },
        Error::Catalog { path: "catalog.sqlite".into(), action: "commit", source: "disk full".into() },
        Error::File { path: "x.lock".into(), action: "lock", source: std::io::Error::other("no") },
        Error::InUse { path: "x".into() },
        Error::Key { object: text(), reason: text() },
        Error::OwnedElsewhere { host: "other".into(), generation: 4 },
        Error::Session { session, state: "fenced" },
        Error::Unproven { snapshot, reason: text() },
        Error::Invalid { what: "VM name", value: "a/b".into(), rule: "no `/`".into() },
        Error::NoSnapshot { wanted: "web@latest".into() },
        Error::AmbiguousSnapshot { wanted: "5f".into(), count: 2 },
        Error::Protected { snapshot },
        Error::Busy { what: "a collection" },
    ];
    for error in errors {
        let problem = Problem::of(&error, true);
        assert!(problem.status >= 400, "{error}");
        let read: Problem = serde_json::from_slice(&serde_json::to_vec(&problem).unwrap()).unwrap();
        let again = read.into_error("https://server", "here");
        assert_eq!(again.to_string(), error.to_string());
        assert_eq!(again.hint(), error.hint(), "{error}");
        assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&error), "{error}");
        let source = |error: &Error| std::error::Error::source(error).map(ToString::to_string);
        assert_eq!(source(&again), source(&error));
    }
}

#[test]
fn folders_and_sources_of_the_server_stay_there() {
    let error =
        Error::Catalog { path: "/srv/secret/catalog.sqlite".into(), action: "commit", source: "deep".into() };
    let told = serde_json::to_string(&Problem::of(&error, false)).unwrap();
    assert!(!told.contains("secret") && !told.contains("deep") && told.contains("catalog.sqlite"), "{told}");
}

#[test]
fn what_is_not_known_is_told_by_its_title() {
    let problem = Problem::new(500, "news", "the moon fell");
    assert_eq!(problem.into_error("s", "l").to_string(), "s: the moon fell");
    let lacking = Problem::new(409, "session", "session is odd");
    assert!(matches!(lacking.into_error("s", "l"), Error::Server { .. }));
    let refused = Problem::new(401, kind::UNAUTHORIZED, "no token").into_error("s", "l");
    assert!(matches!(refused, Error::Denied { .. }) && refused.hint().is_some());
}

#[test]
fn words_are_few() {
    assert_eq!(word("a collection", "x"), "a collection");
    assert_eq!(word(&"y".repeat(65), "x"), "x");
    assert_eq!(word("a\nb", "x"), "x");
}

#[test]
fn requests_have_no_unknown_fields() {
    assert!(serde_json::from_str::<OpenSession>(r#"{"vm":"a"}"#).is_ok());
    assert!(serde_json::from_str::<OpenSession>(r#"{"vm":"a","x":1}"#).is_err());
    let gc = r#"{"kind":"gc","options":{"dry_run":true,"max_unused":0.05,"lease_ms":1}}"#;
    assert!(matches!(serde_json::from_str(gc), Ok(JobRequest::Gc(GcRequest { dry_run: true, .. }))));
    assert!(serde_json::from_str::<JobRequest>(&gc.replace("lease_ms", "leaze_ms")).is_err());
}
