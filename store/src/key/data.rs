//! Data keys: random, one a session, sealed to the repository's public key.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::cipher::Cipher;
use crate::hexadecimal::Hex;
use crate::id::{DataKeyId, RepositoryId};

/// What a data key is sealed for: the HPKE info.
pub(super) fn info(repository: &RepositoryId) -> Vec<u8> {
    [b"underlay v1 data key".as_slice(), repository.as_bytes()].concat()
}

/// What the AES-256-GCM keys of chunks derive from. Cheap to clone; wiped when the last clone goes; never printed.
#[derive(Clone)]
pub struct DataKey {
    id: DataKeyId,
    secret: Arc<Zeroizing<[u8; 32]>>,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl DataKey {
    pub(super) fn new(id: DataKeyId, secret: &[u8; 32]) -> Self {
        Self { id, secret: Arc::new(Zeroizing::new(*secret)) }
    }

    /// Its name in pack headers.
    pub fn id(&self) -> DataKeyId {
        self.id
    }

    /// Each text has a key of its own, derived from what it is bound to: random nonces then never wear a key out.
    fn cipher(&self, aad: &[u8]) -> Cipher {
        Cipher::new(blake3::keyed_hash(&self.secret, aad).as_bytes())
    }

    /// Encrypts in place, appends the 16-byte tag, and returns the fresh random nonce.
    pub fn seal(&self, aad: &[u8], buffer: &mut Vec<u8>) -> [u8; 12] {
        self.cipher(aad).seal(aad, buffer)
    }

    /// Decrypts ciphertext and tag into `out`, replacing what it held. False, and `out` empty, if anything was altered.
    #[must_use]
    pub fn open(&self, nonce: &[u8; 12], aad: &[u8], sealed: &[u8], out: &mut Vec<u8>) -> bool {
        self.cipher(aad).open(nonce, aad, sealed, out)
    }

    /// As [`Self::open`], into memory of the plaintext's length; what is in it is not to be used if this returns false.
    #[must_use]
    pub fn open_into(&self, nonce: &[u8; 12], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        self.cipher(aad).open_into(nonce, aad, sealed, out)
    }
}

/// A data key as pack headers and snapshots carry it: only the restore key opens it. 96 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct SealedKey(Hex<96>);

impl SealedKey {
    /// Length in bytes.
    pub const LENGTH: usize = 96;

    /// Wraps raw bytes: key id 16, encapsulated key 32, ciphertext and tag 48.
    pub const fn new(bytes: [u8; 96]) -> Self {
        Self(Hex(bytes))
    }

    pub(super) fn from_parts(id: DataKeyId, encapsulated: &[u8], ciphertext: &[u8]) -> Option<Self> {
        [id.as_bytes(), encapsulated, ciphertext].concat().try_into().ok().map(Self::new)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 96] {
        &self.0.0
    }

    /// The key's name.
    pub fn id(&self) -> DataKeyId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0.0[..16]);
        DataKeyId::new(id)
    }

    pub(super) fn encapsulated(&self) -> &[u8] {
        &self.0.0[16..48]
    }

    pub(super) fn ciphertext(&self) -> &[u8] {
        &self.0.0[48..]
    }
}
