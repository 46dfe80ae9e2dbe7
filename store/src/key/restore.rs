//! The restore key: the backup key and the secret that opens data keys.

use std::fmt;
use std::sync::Arc;

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, Serializable};
use zeroize::Zeroizing;

use super::backup::{BackupKey, PublicKey};
use super::data::{DataKey, SealedKey, info};
use crate::id::RepositoryId;
use crate::{Error, Result};

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type EncapsulatedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

/// Whoever restores holds this. Cheap to clone; wiped when the last clone goes; never printed.
#[derive(Clone)]
pub struct RestoreKey {
    backup: BackupKey,
    secret: Arc<Zeroizing<[u8; 32]>>,
}

impl fmt::Debug for RestoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoreKey").field("public", &self.backup.public_key()).finish_non_exhaustive()
    }
}

impl RestoreKey {
    /// A fresh key for a new repository.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn generate() -> Self {
        let backup = Zeroizing::new(super::random_bytes());
        let restore = Zeroizing::new(super::random_bytes());
        Self::new(&backup, &restore)
    }

    /// Puts a key together from its two secrets. The public key follows from the restore secret.
    ///
    /// # Panics
    /// Never: any 32 bytes are an X25519 secret.
    pub fn new(backup_secret: &[u8; 32], restore_secret: &[u8; 32]) -> Self {
        let public = X25519HkdfSha256::sk_to_pk(&private(restore_secret));
        let mut bytes = [0; 32];
        public.write_exact(&mut bytes);
        Self {
            backup: BackupKey::new(backup_secret, PublicKey::new(bytes)),
            secret: Arc::new(Zeroizing::new(*restore_secret)),
        }
    }

    /// The part that every backup host holds.
    pub fn backup(&self) -> &BackupKey {
        &self.backup
    }

    /// Opens a sealed data key. About 80 microseconds: keep the result for the pack, or longer.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it was altered, or sealed to another key or for another repository.
    pub fn open_data_key(&self, repository: &RepositoryId, sealed: &SealedKey) -> Result<DataKey> {
        let damaged = || {
            Error::damaged(
                format!("sealed data key {}", sealed.id()),
                "it does not open: it was altered or sealed for another repository",
            )
        };
        let encapsulated = EncapsulatedKey::from_bytes(sealed.encapsulated()).map_err(|_| damaged())?;
        let secret = hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &private(&self.secret),
            &encapsulated,
            &info(repository),
            sealed.ciphertext(),
            sealed.id().as_bytes(),
        )
        .map(Zeroizing::new)
        .map_err(|_| damaged())?;
        let secret = secret.as_slice().try_into().map_err(|_| damaged())?;
        Ok(DataKey::new(sealed.id(), secret))
    }

    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }
}

fn private(secret: &[u8; 32]) -> PrivateKey {
    PrivateKey::from_bytes(secret).expect("any 32 bytes are an X25519 secret")
}
