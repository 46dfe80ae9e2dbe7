use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
#[serde(deny_unknown_fields)]
struct Body {
    name: String,
    count: u64,
    list: Vec<Option<String>>,
}

const KEY: [u8; 32] = [7; 32];

fn body() -> Body {
    Body { name: "a \"b\"\n".into(), count: 3, list: vec![None, Some("x".into())] }
}

fn replaced(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(seal("claim", &body(), &KEY)).unwrap();
    assert!(text.contains(from));
    text.replace(from, to).into_bytes()
}

fn damage(bytes: &[u8]) -> String {
    match open::<Body>("claims/1.json", "claim", bytes, &KEY).unwrap_err() {
        Error::Damaged { object, what } => {
            assert_eq!(object, "claims/1.json");
            what
        }
        other => panic!("{other}"),
    }
}

#[test]
fn exact_text() {
    let expected = "{\n  \"underlay\": \"claim\",\n  \"version\": 1,\n  \"body\": {\n  \"name\": \"a \\\"b\\\"\\n\",\n  \
                    \"count\": 3,\n  \"list\": [\n    null,\n    \"x\"\n  ]\n},\n  \"mac\": \"";
    let text = String::from_utf8(seal("claim", &body(), &KEY)).unwrap();
    assert!(text.starts_with(expected), "{text}");
    let start = text.find("\"body\": ").unwrap() + 8;
    let end = text.find(",\n  \"mac\"").unwrap();
    let mut input = vec![1, 0, 0, 0];
    input.extend_from_slice(&text.as_bytes()[start..end]);
    let mac = blake3::keyed_hash(&KEY, &input).to_hex();
    assert_eq!(&text[end..], format!(",\n  \"mac\": \"{mac}\"\n}}\n"));
}

#[test]
fn version_is_checked_before_everything_else() {
    let other = br#"{"underlay": "claim", "version": 9, "corpus": {}, "signature": "?"}"#;
    let error = open::<Body>("claims/1.json", "claim", other, &KEY).unwrap_err();
    assert!(matches!(error, Error::Version { found: 9, known: 1, .. }), "{error}");
    let error = peek::<Body>("claims/1.json", "claim", other).unwrap_err();
    assert!(matches!(error, Error::Version { found: 9, known: 1, .. }), "{error}");
}

#[test]
fn refuses_what_is_not_exactly_so() {
    assert!(damage(&replaced("\"claim\"", "\"snapshot\"")).contains("of kind \"snapshot\""));
    assert!(damage(&replaced("\"count\": 3", "\"count\": 4")).contains("mac"));
    assert!(damage(&replaced("\"mac\": \"", "\"mac\": \"0")).contains("64 hex"));
    assert!(damage(&replaced("  \"version\"", " \"version\"")).contains("canonical"));
    assert!(damage(&replaced("}\n", "}")).contains("canonical"));
    assert!(damage(&replaced("\"version\": 1", "\"version\": 1, \"x\": 2")).contains("unknown field"));
    assert!(damage(b"").contains("not a document"));
    assert!(damage(b"\xff\xfe").contains("not a document"));
    let wrong = open::<Body>("o", "claim", &seal("claim", &body(), &KEY), &[8; 32]).unwrap_err();
    assert!(matches!(wrong, Error::Damaged { .. }), "{wrong}");
}

#[test]
fn peek_takes_any_mac_but_only_canonical_form() {
    let bytes = seal("claim", &body(), &[1; 32]);
    assert_eq!(peek::<Body>("o", "claim", &bytes).unwrap(), body());
    assert!(peek::<Body>("o", "key slot", &bytes).is_err());
    assert!(peek::<Body>("o", "claim", &replaced("  \"version\"", " \"version\"")).is_err());
    assert!(peek::<Body>("o", "claim", &replaced("\"mac\": \"", "\"mac\": \"x")).is_err());
}

#[test]
fn checksum_keys_differ_by_kind() {
    assert_ne!(public_key_for("claim"), public_key_for("key slot"));
    assert_eq!(public_key_for("claim"), blake3::derive_key("underlay v1 document claim", b""));
}

proptest! {
    #[test]
    fn round_trip(name in any::<String>(), count in any::<u64>(), list in prop::collection::vec(any::<Option<String>>(), 0..4)) {
        let body = Body { name, count, list };
        let bytes = seal("claim", &body, &KEY);
        prop_assert_eq!(open::<Body>("o", "claim", &bytes, &KEY).unwrap(), body);
    }

    #[test]
    fn every_bit_flip_is_found(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bytes = seal("claim", &body(), &KEY);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(open::<Body>("o", "claim", &bytes, &KEY).is_err());
    }
}
