//! Passphrase slots: a key encrypted under a passphrase, stored in the repository.

use argon2::{Algorithm, Argon2, Params};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::cipher::Cipher;
use super::{Holds, Key};
use crate::hexadecimal::{Hex, HexBytes};
use crate::id::{RepositoryId, SlotId};
use crate::snapshot::Timestamp;
use crate::snapshot::validate;
use crate::{Error, Result, document, names};

const KIND: &str = "key slot";

/// What guessing a passphrase costs. The default takes about a tenth of a second and 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Argon2id {
    /// Memory in KiB; at most 1 GiB, at least 8 a lane.
    pub memory_kib: u32,
    /// Passes over the memory; passes times memory at most 16 GiB.
    pub passes: u32,
    /// Lanes; at most 64.
    pub lanes: u32,
}

impl Default for Argon2id {
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 1 }
    }
}

impl Argon2id {
    /// The cheapest legal cost: for tests, and for secrets that are random already.
    pub const CHEAPEST: Self = Self { memory_kib: 8, passes: 1, lanes: 1 };

    fn is_reasonable(self) -> bool {
        (1..=64).contains(&self.lanes)
            && (8 * self.lanes..=1 << 20).contains(&self.memory_kib)
            && self.passes >= 1
            && u64::from(self.memory_kib) * u64::from(self.passes) <= 16 << 20
    }

    fn derive(self, object: &str, passphrase: &str, salt: &[u8; 16]) -> Result<Cipher> {
        let unusable = |reason: String| Error::Key { object: object.into(), reason };
        if !self.is_reasonable() {
            return Err(unusable(format!(
                "Argon2id with {} KiB, {} passes and {} lanes is outside the limits",
                self.memory_kib, self.passes, self.lanes
            )));
        }
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32))
            .map_err(|error| unusable(error.to_string()))?;
        let mut derived = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), salt, derived.as_mut_slice())
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Cipher::new(&derived))
    }
}

/// One passphrase slot. Holds ciphertext only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// Its name: `keys/<slot>.json`.
    pub slot: SlotId,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// What the passphrase gives.
    pub holds: Holds,
    /// For people; at most 128 bytes, no control characters.
    pub label: String,
    /// When it was made.
    pub created: Timestamp,
    /// What a guess costs.
    pub argon2id: Argon2id,
    salt: Hex<16>,
    nonce: Hex<12>,
    sealed: HexBytes,
}

impl Slot {
    /// Encrypts `key` under a passphrase, in a slot of its own.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the label breaks its rule, [`Error::Key`] if `cost` is outside its limits.
    pub fn create(
        repository: RepositoryId,
        key: &Key,
        passphrase: &str,
        label: &str,
        created: Timestamp,
        cost: Argon2id,
    ) -> Result<Self> {
        validate::label(label)?;
        let slot = SlotId::random();
        let salt = super::random_bytes();
        let cipher = cost.derive("a new slot", passphrase, &salt)?;
        // Encrypted in place; the room for the tag keeps the secret from being copied.
        let plain = key.to_bytes();
        let mut sealed = Vec::with_capacity(plain.len() + super::cipher::TAG_LENGTH);
        sealed.extend_from_slice(&plain);
        let nonce = cipher.seal(&associated(repository, slot, key.holds()), &mut sealed);
        Ok(Self {
            slot,
            repository,
            holds: key.holds(),
            label: label.into(),
            created,
            argon2id: cost,
            salt: Hex(salt),
            nonce: Hex(nonce),
            sealed: HexBytes(sealed),
        })
    }

    /// The object `keys/<slot>.json`.
    pub fn seal(&self) -> Vec<u8> {
        document::seal(KIND, self, &document::public_key_for(KIND))
    }

    /// Reads a slot from the object called `object`.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Version`] as any document, [`Error::Damaged`] also if it is not the slot its name
    /// says, [`Error::Key`] if it belongs to another repository.
    pub fn read(repository: &RepositoryId, object: &str, bytes: &[u8]) -> Result<Self> {
        let slot: Self = document::open(object, KIND, bytes, &document::public_key_for(KIND))?;
        if names::slot(&slot.slot) != object {
            return Err(Error::damaged(object, format!("it holds slot {}", slot.slot)));
        }
        if slot.repository != *repository {
            return Err(Error::Key {
                object: object.into(),
                reason: format!("it is for repository {}, not {repository}", slot.repository),
            });
        }
        validate::label(&slot.label).map_err(|error| Error::damaged(object, error.to_string()))?;
        Ok(slot)
    }

    /// Tries a passphrase; `None` if it is another one.
    ///
    /// # Errors
    /// [`Error::Key`] if the slot asks for an absurd amount of work, or what it holds is no key.
    pub fn open(&self, passphrase: &str) -> Result<Option<Key>> {
        let object = names::slot(&self.slot);
        let cipher = self.argon2id.derive(&object, passphrase, &self.salt.0)?;
        let mut plain = Zeroizing::new(Vec::new());
        let aad = associated(self.repository, self.slot, self.holds);
        if !cipher.open(&self.nonce.0, &aad, &self.sealed.0, &mut plain) {
            return Ok(None);
        }
        Key::from_bytes(&object, self.holds, &plain).map(Some)
    }
}

fn associated(repository: RepositoryId, slot: SlotId, holds: Holds) -> Vec<u8> {
    [repository.as_bytes(), slot.as_bytes().as_slice(), holds.as_str().as_bytes()].concat()
}

/// Opens the first slot that this passphrase opens; slots that hold the restore key are tried first. `slots` are the
/// objects below `keys/`, names and bytes.
///
/// # Errors
/// [`Error::WrongPassphrase`] if every slot could be read and none opens. If a slot could not be read and none of the
/// others opens, what is wrong with that one: the passphrase may be its.
pub fn open_any(
    repository: &RepositoryId,
    slots: &[(impl AsRef<str>, impl AsRef<[u8]>)],
    passphrase: &str,
) -> Result<Key> {
    let mut readable = Vec::new();
    let mut problem = None;
    for (object, bytes) in slots {
        match Slot::read(repository, object.as_ref(), bytes.as_ref()) {
            Ok(slot) => readable.push(slot),
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    readable.sort_by_key(|slot| (std::cmp::Reverse(slot.holds), slot.slot));
    for slot in &readable {
        match slot.open(passphrase) {
            Ok(Some(key)) => return Ok(key),
            Ok(None) => {}
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    Err(problem.unwrap_or(Error::WrongPassphrase { slots: slots.len() }))
}
