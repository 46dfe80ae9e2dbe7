//! The backup key: enough to write and to deduplicate, not enough to read.

use std::fmt;
use std::sync::Arc;

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::data::{DataKey, SealedKey, info};
use crate::hexadecimal::Hex;
use crate::id::{ChunkId, DataKeyId, NodeId, RepositoryId};
use crate::{Error, Result};

/// The X25519 public key that data keys are sealed to; the restore secret opens them. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct PublicKey(Hex<32>);

impl PublicKey {
    /// Wraps raw bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(Hex(bytes))
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[derive(Zeroize, ZeroizeOnDrop)]
struct Secrets {
    secret: [u8; 32],
    chunk: [u8; 32],
    node: [u8; 32],
    cut: [u8; 192],
}

/// Every host that backs up holds this: it names, cuts and encrypts chunks, and authenticates documents. It cannot
/// decrypt. Cheap to clone; wiped when the last clone goes; never printed.
#[derive(Clone)]
pub struct BackupKey {
    secrets: Arc<Secrets>,
    public: PublicKey,
}

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl BackupKey {
    /// Derives everything from the backup secret, once.
    pub fn new(secret: &[u8; 32], public: PublicKey) -> Self {
        let mut cut = [0; 192];
        blake3::Hasher::new_derive_key("underlay v1 cut points").update(secret).finalize_xof().fill(&mut cut);
        let secrets = Secrets {
            secret: *secret,
            chunk: blake3::derive_key("underlay v1 chunk id", secret),
            node: blake3::derive_key("underlay v1 node id", secret),
            cut,
        };
        cut.zeroize();
        Self { secrets: Arc::new(secrets), public }
    }

    /// The key that data keys are sealed to.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Names a chunk by its plaintext.
    pub fn chunk_id(&self, plain: &[u8]) -> ChunkId {
        ChunkId::new(*blake3::keyed_hash(&self.secrets.chunk, plain).as_bytes())
    }

    /// Names a tree node by its encoding.
    pub fn node_id(&self, encoded: &[u8]) -> NodeId {
        NodeId::new(*blake3::keyed_hash(&self.secrets.node, encoded).as_bytes())
    }

    /// The secret of the cutter's XXH3-64.
    pub fn cut_secret(&self) -> [u8; 192] {
        self.secrets.cut
    }

    /// The key that authenticates documents of this kind (`repository`, `snapshot`).
    pub fn document_key(&self, kind: &str) -> [u8; 32] {
        blake3::derive_key(&format!("underlay v1 document {kind}"), &self.secrets.secret)
    }

    /// Makes a fresh data key and seals it for whoever holds the restore key.
    ///
    /// # Errors
    /// [`Error::Key`] if the public key is none (a point of low order).
    pub fn seal_data_key(&self, repository: &RepositoryId) -> Result<(DataKey, SealedKey)> {
        let id = DataKeyId::random();
        let secret = Zeroizing::new(super::random_bytes::<32>());
        let unusable =
            || Error::Key { object: "the public key".into(), reason: "nothing can be sealed to it".into() };
        let public = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(self.public.as_bytes())
            .map_err(|_| unusable())?;
        let (encapsulated, ciphertext) = hpke::single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public,
            &info(repository),
            secret.as_slice(),
            id.as_bytes(),
        )
        .map_err(|_| unusable())?;
        let sealed = SealedKey::from_parts(id, &encapsulated.to_bytes(), &ciphertext).ok_or_else(unusable)?;
        Ok((DataKey::new(id, &secret), sealed))
    }

    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.secrets.secret
    }
}
