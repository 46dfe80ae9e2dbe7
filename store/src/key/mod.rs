//! Keys: what a backup host holds, what a restore needs, and how they are kept.

mod backup;
mod cipher;
mod data;
pub mod file;
mod paper;
#[cfg(feature = "simulation")]
mod repeatable;
mod restore;
pub mod slot;

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use backup::{BackupKey, PublicKey};
pub use data::{DataKey, SealedKey};
#[cfg(feature = "simulation")]
pub use repeatable::{Randomness, repeatable_randomness};
pub use restore::RestoreKey;

use crate::{Error, Result};

/// `N` random bytes from the operating system.
///
/// # Panics
/// If the operating system has no randomness to give; nothing safe can be done then.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[cfg(feature = "simulation")]
    if repeatable::fill(&mut bytes) {
        return bytes;
    }
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// What a slot or key file gives to whoever opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// The backup key: writes and deduplicates, reads no data.
    Backup,
    /// The restore key: everything.
    Restore,
}

impl Holds {
    /// `backup` or `restore`, as in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
        }
    }

    /// Length of the key's bytes.
    const fn length(self) -> usize {
        match self {
            Self::Backup => 64,
            Self::Restore => 96,
        }
    }
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The key at hand. Cheap to clone; never prints its secrets.
#[derive(Clone, Debug)]
pub enum Key {
    /// Writes only.
    Backup(BackupKey),
    /// Writes and reads.
    Restore(RestoreKey),
}

impl Key {
    /// The part that writes; every key has it.
    pub fn backup(&self) -> &BackupKey {
        match self {
            Self::Backup(key) => key,
            Self::Restore(key) => key.backup(),
        }
    }

    /// The part that reads.
    ///
    /// # Errors
    /// [`Error::NeedsRestoreKey`] if only a backup key is at hand.
    pub fn restore(&self) -> Result<&RestoreKey> {
        match self {
            Self::Backup(_) => Err(Error::NeedsRestoreKey),
            Self::Restore(key) => Ok(key),
        }
    }

    /// Which of the two this is.
    pub fn holds(&self) -> Holds {
        match self {
            Self::Backup(_) => Holds::Backup,
            Self::Restore(_) => Holds::Restore,
        }
    }

    /// The key's bytes as slots and key files keep them: backup secret 32, public key 32, and restore secret 32 if it
    /// has one.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        // Sized beforehand: growing would leave a copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(Holds::Restore.length()));
        bytes.extend_from_slice(self.backup().secret());
        bytes.extend_from_slice(self.backup().public_key().as_bytes());
        if let Self::Restore(key) = self {
            bytes.extend_from_slice(key.secret());
        }
        bytes
    }

    /// Reads [`Key::to_bytes`] back. `object` names the slot or file in errors.
    ///
    /// # Errors
    /// [`Error::Key`] if the length is wrong or the public key does not belong to the restore secret.
    pub fn from_bytes(object: &str, holds: Holds, bytes: &[u8]) -> Result<Self> {
        let unusable = |reason: String| Error::Key { object: object.into(), reason };
        let wrong_length =
            || unusable(format!("a {holds} key has {} bytes, not {}", holds.length(), bytes.len()));
        if bytes.len() != holds.length() {
            return Err(wrong_length());
        }
        let (secret, rest) = bytes.split_first_chunk::<32>().ok_or_else(wrong_length)?;
        let (public, rest) = rest.split_first_chunk::<32>().ok_or_else(wrong_length)?;
        let public = PublicKey::new(*public);
        if holds == Holds::Backup {
            return Ok(Self::Backup(BackupKey::new(secret, public)));
        }
        let restore = rest.first_chunk::<32>().ok_or_else(wrong_length)?;
        let key = RestoreKey::new(secret, restore);
        if key.backup().public_key() != public {
            return Err(unusable("its public key does not belong to its restore secret".into()));
        }
        Ok(Self::Restore(key))
    }
}

#[cfg(test)]
mod tests;
