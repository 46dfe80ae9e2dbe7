//! The paper copy: a key as lines a person can type, each with its own check digits.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::{Holds, Key};
use crate::id::RepositoryId;
use crate::{Error, Result};

const VERSION: u32 = 1;

/// Writes the paper copy.
pub fn write(repository: &RepositoryId, key: &Key) -> Zeroizing<String> {
    // Sized beforehand: growing would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(1024));
    let _ = write!(text, "underlay {} key, version {VERSION}\nrepository {repository}\n", key.holds());
    for (index, bytes) in key.to_bytes().chunks(16).enumerate() {
        let number = line_number(index);
        let _ = write!(text, "{number} ");
        for pair in bytes.chunks(2) {
            let _ = write!(text, " {}", *Zeroizing::new(hex::encode(pair)));
        }
        let _ = writeln!(text, "  {}", check(number, bytes));
    }
    text
}

/// Reads a paper copy. Blanks, blank lines and the case of hex digits are forgiven; `object` names it in errors.
pub fn parse(object: &str, text: &str) -> Result<(RepositoryId, Key)> {
    let unusable = |reason: String| Error::Key { object: object.into(), reason };
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let holds = title(object, lines.next().unwrap_or_default())?;
    let second: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let repository = match second[..] {
        ["repository", id] => RepositoryId::from_hex(&id.to_ascii_lowercase()),
        _ => None,
    };
    let repository =
        repository.ok_or_else(|| unusable("its second line is not `repository` and 32 hex digits".into()))?;
    let mut key = Zeroizing::new(Vec::with_capacity(Holds::Restore.length()));
    let expected = holds.length() / 16;
    for (index, line) in lines.enumerate() {
        if index == expected {
            return Err(unusable(format!("a {holds} key has {expected} numbered lines, and more follow")));
        }
        key.extend_from_slice(key_line(line_number(index), line).map_err(unusable)?.as_slice());
    }
    if key.len() != holds.length() {
        let missing = key.len() / 16 + 1;
        return Err(unusable(format!("line {missing} of {expected} is missing")));
    }
    Ok((repository, Key::from_bytes(object, holds, &key)?))
}

fn title(object: &str, line: &str) -> Result<Holds> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (holds, version) = match words[..] {
        ["underlay", "backup", "key,", "version", version] => (Holds::Backup, version),
        ["underlay", "restore", "key,", "version", version] => (Holds::Restore, version),
        _ => {
            return Err(Error::Key {
                object: object.into(),
                reason: "neither a key file nor a paper copy, which begins `underlay restore key, version 1`"
                    .into(),
            });
        }
    };
    match version.parse() {
        Ok(VERSION) => Ok(holds),
        Ok(found) => Err(Error::Version { object: object.into(), found, known: VERSION }),
        Err(_) => Err(Error::Key {
            object: object.into(),
            reason: format!("its first line ends in {version:?} where its version belongs"),
        }),
    }
}

fn key_line(number: u8, line: &str) -> Result<Zeroizing<[u8; 16]>, String> {
    let mut words = line.split_whitespace();
    let found = words.next().unwrap_or_default().trim_end_matches([':', '.']);
    if found.parse() != Ok(number) {
        return Err(format!("line {number} is missing or out of order: found one numbered {found:?}"));
    }
    let mut digits = Zeroizing::new(String::with_capacity(line.len()));
    words.for_each(|word| digits.push_str(word));
    digits.make_ascii_lowercase();
    if digits.len() != 36 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(format!("line {number} is not 32 hex digits and 4 check digits"));
    }
    let (key, found) = digits.split_at(32);
    let mut bytes = Zeroizing::new([0; 16]);
    hex::decode_to_slice(key, bytes.as_mut_slice()).map_err(|error| format!("line {number}: {error}"))?;
    if check(number, bytes.as_slice()) != found {
        return Err(format!("line {number} is mistyped: its check digits do not belong to it"));
    }
    Ok(bytes)
}

fn line_number(index: usize) -> u8 {
    u8::try_from(index + 1).unwrap_or(u8::MAX)
}

fn check(number: u8, bytes: &[u8]) -> String {
    let hash = blake3::Hasher::new().update(&[number]).update(bytes).finalize();
    hex::encode(&hash.as_bytes()[..2])
}
