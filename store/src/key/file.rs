//! Key files and paper copies: a key that lies with its owner, never in the repository.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{Holds, Key, paper};
use crate::id::RepositoryId;
use crate::{Error, Result, document};

const KIND: &str = "key file";

/// No key file is longer, in bytes.
const MAXIMUM_LENGTH: u64 = 64 << 10;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    repository: RepositoryId,
    holds: Holds,
    key: SecretText,
}

/// Secret hex digits: wiped, never printed.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct SecretText(String);

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The text of a key file.
pub fn to_json(repository: &RepositoryId, key: &Key) -> Zeroizing<String> {
    let body = Body {
        repository: *repository,
        holds: key.holds(),
        key: SecretText(hex::encode(key.to_bytes().as_slice())),
    };
    let bytes = document::seal(KIND, &body, &document::public_key_for(KIND));
    Zeroizing::new(String::from_utf8(bytes).expect("a document is text"))
}

/// The same as text to print and to type again: numbered lines with check digits.
pub fn to_paper(repository: &RepositoryId, key: &Key) -> Zeroizing<String> {
    paper::write(repository, key)
}

/// Reads a key file or a paper copy. `object` names it in errors.
///
/// # Errors
/// [`Error::Version`] if another version wrote it, [`Error::Damaged`] if it is an altered key file, [`Error::Key`] if it
/// is neither, a line was mistyped (naming the line), or the key does not fit together.
pub fn parse(object: &str, text: &str) -> Result<(RepositoryId, Key)> {
    if !text.trim_start().starts_with('{') {
        return paper::parse(object, text);
    }
    let body: Body = document::open(object, KIND, text.as_bytes(), &document::public_key_for(KIND))?;
    let bytes = hex::decode(&body.key.0).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| Error::damaged(object, "its key is not hex digits"))?;
    if body.key.0.bytes().any(|digit| digit.is_ascii_uppercase()) {
        return Err(Error::damaged(object, "not in canonical form"));
    }
    Ok((body.repository, Key::from_bytes(object, body.holds, &bytes)?))
}

/// Writes `text` to a new file that only its owner can read, and syncs it and its folder.
///
/// # Errors
/// [`Error::File`]; also if something is there already.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let failed = |source| Error::File { path: path.into(), action: "write key file", source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let mut write = || {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A folder that may be written and not read cannot be synced.
        File::open(folder).map_or(Ok(()), |folder| folder.sync_all())
    };
    // Half a key is worse than none.
    write().inspect_err(|_| drop(fs::remove_file(path))).map_err(failed)
}

/// Reads a key file or paper copy for this repository.
///
/// # Errors
/// [`Error::File`] if it cannot be read, otherwise as [`parse`]; [`Error::Key`] if it is for another repository.
pub fn read(path: &Path, repository: &RepositoryId) -> Result<Key> {
    let object = path.display().to_string();
    let (found, key) = parse(&object, &text(path)?)?;
    if found != *repository {
        return Err(Error::Key { object, reason: format!("it is for repository {found}, not {repository}") });
    }
    Ok(key)
}

/// Reads a key file or paper copy of whichever repository.
///
/// # Errors
/// As [`read`].
pub fn read_any(path: &Path) -> Result<(RepositoryId, Key)> {
    parse(&path.display().to_string(), &text(path)?)
}

fn text(path: &Path) -> Result<Zeroizing<String>> {
    let failed = |source| Error::File { path: path.into(), action: "read key file", source };
    // Sized beforehand: growing would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(4096));
    let file = File::open(path).map_err(failed)?;
    file.take(MAXIMUM_LENGTH + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAXIMUM_LENGTH {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "too long for a key file")));
    }
    Ok(text)
}
