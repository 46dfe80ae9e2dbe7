//! Tokens: who may do what. Only their hashes are kept.

mod file;
mod pattern;

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use underlay_store::hexadecimal::Hex;
use underlay_store::id::{RepositoryId, SessionHandle, SessionId, WriterId};
use underlay_store::snapshot::Timestamp;

pub(crate) use file::write_whole;
pub use file::{TokenError, TokenFile, Tokens};
pub(crate) use pattern::fits;

/// What a token begins with, so that it is recognised where it should not be.
const PREFIX: &str = "ult1";

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Add snapshots of its machines, and nothing else.
    Backup,
    /// Read.
    Restore,
    /// Forget, protect, collect, check, repair.
    Maintain,
    /// Make the repository, add and remove passphrases.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Backup, Self::Restore, Self::Maintain, Self::Admin];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Maintain => "maintain",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|scope| scope.name() == text);
        known.ok_or_else(|| "a scope is backup, restore, maintain or admin".to_owned())
    }
}

/// A token as the server keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Its public part: 8 random bytes.
    pub id: Hex<8>,
    /// For people.
    pub label: String,
    /// SHA-256 of the whole token. It has 256 random bits: nothing slower is needed.
    pub hash: Hex<32>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Patterns of the repositories it is for.
    pub repositories: Vec<String>,
    /// Patterns of the machines it is for.
    pub machines: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is not valid any more.
    pub expires: Option<Timestamp>,
    /// Since when it is not valid any more.
    pub revoked: Option<Timestamp>,
}

/// What a new token shall be.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// For people.
    pub label: String,
    /// What it may do; at least one.
    pub scopes: Vec<Scope>,
    /// Patterns of repositories.
    pub repositories: Vec<String>,
    /// Patterns of machines.
    pub machines: Vec<String>,
    /// When it ends.
    pub expires: Option<Timestamp>,
}

/// The text that its bearer shows. It is printed once and kept nowhere.
pub struct Secret(String);

impl Secret {
    /// The text, to be printed once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Token {
    /// Makes a token, and the text that its bearer shows.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn make(new: NewToken) -> (Self, Secret) {
        let id = Hex(underlay_store::key::random_bytes::<8>());
        let secret = Secret(format!("{PREFIX}_{id}_{}", Hex(underlay_store::key::random_bytes::<32>())));
        let NewToken { label, scopes, repositories, machines, expires } = new;
        let (hash, created) = (hash(secret.expose()), Timestamp::now());
        (Self { id, label, hash, scopes, repositories, machines, created, expires, revoked: None }, secret)
    }

    /// Whether it is valid at that time.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether it is for a repository of this name.
    pub fn covers_repository(&self, name: &str) -> bool {
        self.repositories.iter().any(|pattern| pattern::fits(pattern, name))
    }

    /// Whether it is for a machine of this name.
    pub fn covers_machine(&self, name: &str) -> bool {
        self.machines.iter().any(|pattern| pattern::fits(pattern, name))
    }

    /// Whether it is for every machine there can be.
    pub fn covers_all_machines(&self) -> bool {
        self.machines.iter().any(|pattern| pattern == "*")
    }

    /// Whether it has one of these scopes.
    pub fn has_any(&self, scopes: &[Scope]) -> bool {
        scopes.iter().any(|scope| self.scopes.contains(scope))
    }

    /// Who its bearer is to that repository: another token is another writer.
    pub fn writer(&self, repository: RepositoryId) -> WriterId {
        let parts: [&[u8]; 3] = [b"underlay writer v1", repository.as_bytes(), &self.hash.0];
        let digest = digest(&SHA256, &parts.concat());
        let mut id = [0; WriterId::LENGTH];
        id.copy_from_slice(&digest.as_ref()[..WriterId::LENGTH]);
        WriterId::new(id)
    }

    /// The session that this token means by that handle. Another token means another session by it.
    pub fn session(&self, repository: RepositoryId, handle: SessionHandle) -> SessionId {
        let parts: [&[u8]; 4] =
            [b"underlay session v1", repository.as_bytes(), &self.hash.0, handle.as_bytes()];
        let digest = digest(&SHA256, &parts.concat());
        let mut id = [0; SessionId::LENGTH];
        id.copy_from_slice(&digest.as_ref()[..SessionId::LENGTH]);
        SessionId::new(id)
    }
}

fn hash(text: &str) -> Hex<32> {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    Hex(hash)
}

/// The public part of a token's text; `None` if it is none.
fn id_of(text: &str) -> Option<Hex<8>> {
    let rest = text.strip_prefix(PREFIX)?.strip_prefix('_')?;
    let (id, secret) = rest.split_once('_')?;
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !(id.len() == 16 && secret.len() == 64 && is_hex(id) && is_hex(secret)) {
        return None;
    }
    let mut bytes = [0; 8];
    hex::decode_to_slice(id, &mut bytes).ok()?;
    Some(Hex(bytes))
}
