//! Documents: JSON a person can read in the bucket, in one exact form, with a keyed checksum.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::{Error, Result};

/// The document version this build writes and reads.
pub const VERSION: u32 = 1;

/// The longest document a reader takes, in bytes.
pub const MAXIMUM_LENGTH: usize = 16 << 20;

/// Only what is needed to tell what and which version a text is; anything else may differ in another version.
#[derive(Deserialize)]
struct Head {
    underlay: String,
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    underlay: String,
    version: u32,
    #[serde(borrow)]
    body: &'a RawValue,
    mac: String,
}

/// The key of documents that must be read before any key is at hand (`key slot`, `key file`, `claim`): a checksum that
/// anyone can make.
pub fn public_key_for(kind: &str) -> [u8; 32] {
    blake3::derive_key(&format!("underlay v1 document {kind}"), b"")
}

/// Writes a document: the exact bytes of the object.
///
/// # Panics
/// If `body` is not made of maps with text keys, sequences and scalars; every body in this crate is.
pub fn seal(kind: &'static str, body: &impl Serialize, key: &[u8; 32]) -> Vec<u8> {
    let body = pretty(body);
    text(kind, &body, &mac(&body, key).to_hex())
}

/// Verifies and reads a document of this kind. `object` names it in errors.
///
/// # Errors
/// [`Error::Version`] if another version wrote it, checked before anything that a version could change.
/// [`Error::Damaged`] if it is not a document of this kind, its `mac` does not belong to its body and `key`, or it is
/// not in canonical form.
pub fn open<T: Serialize + DeserializeOwned>(
    object: &str,
    kind: &'static str,
    bytes: &[u8],
    key: &[u8; 32],
) -> Result<T> {
    let (envelope, found) = envelope(object, kind, bytes)?;
    if found != mac(envelope.body.get(), key) {
        return Err(Error::damaged(object, "its mac does not belong to its body and the key at hand"));
    }
    body(object, kind, bytes, &envelope, &found)
}

/// Reads a document without verifying its `mac`: for an authority that holds no keys. Everything in it may be forged.
///
/// # Errors
/// As [`open`], except that the `mac` may be any 64 hex digits.
pub fn peek<T: Serialize + DeserializeOwned>(object: &str, kind: &'static str, bytes: &[u8]) -> Result<T> {
    let (envelope, found) = envelope(object, kind, bytes)?;
    body(object, kind, bytes, &envelope, &found)
}

fn pretty(body: &impl Serialize) -> Zeroizing<String> {
    Zeroizing::new(serde_json::to_string_pretty(body).expect("a document body serializes"))
}

fn mac(body: &str, key: &[u8; 32]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&VERSION.to_le_bytes());
    hasher.update(body.as_bytes());
    hasher.finalize()
}

fn text(kind: &str, body: &str, mac: &str) -> Vec<u8> {
    format!(
        "{{\n  \"underlay\": \"{kind}\",\n  \"version\": {VERSION},\n  \"body\": {body},\n  \"mac\": \"{mac}\"\n}}\n"
    )
    .into_bytes()
}

fn envelope<'a>(object: &str, kind: &str, bytes: &'a [u8]) -> Result<(Envelope<'a>, blake3::Hash)> {
    if bytes.len() > MAXIMUM_LENGTH {
        return Err(Error::damaged(object, format!("{} bytes are too long for a document", bytes.len())));
    }
    let malformed = |error: serde_json::Error| Error::damaged(object, format!("not a document: {error}"));
    let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
    if head.version != VERSION {
        return Err(Error::Version { object: object.into(), found: head.version, known: VERSION });
    }
    if head.underlay != kind {
        return Err(Error::damaged(object, format!("a document of kind {:?}, not {kind:?}", head.underlay)));
    }
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(malformed)?;
    debug_assert_eq!((envelope.underlay.as_str(), envelope.version), (kind, VERSION));
    let mac = blake3::Hash::from_hex(&envelope.mac)
        .map_err(|_| Error::damaged(object, "its mac is not 64 hex digits"))?;
    Ok((envelope, mac))
}

fn body<T: Serialize + DeserializeOwned>(
    object: &str,
    kind: &str,
    bytes: &[u8],
    envelope: &Envelope<'_>,
    mac: &blake3::Hash,
) -> Result<T> {
    let value: T = serde_json::from_str(envelope.body.get())
        .map_err(|error| Error::damaged(object, format!("its body cannot be read: {error}")))?;
    if text(kind, &pretty(&value), &mac.to_hex()) != bytes {
        return Err(Error::damaged(object, "not in canonical form"));
    }
    Ok(value)
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
