//! What a snapshot keeps from everyone without the restore key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::hexadecimal::{Hex, HexBytes};
use crate::id::{RepositoryId, SnapshotId};
use crate::key::{BackupKey, RestoreKey, SealedKey};
use crate::{Error, Result, names};

/// An image file as the client found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateImage {
    /// Name of the disk it belongs to.
    pub disk: String,
    /// Where it lay.
    pub path: String,
    /// `qcow2`, `raw`, …
    pub format: String,
}

/// Host names, paths, the domain's definition. Open: fields that this build does not know end up in `extra`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateMetadata {
    /// The host that backed up.
    pub host: String,
    /// Image files, topmost layer of each disk.
    pub images: Vec<PrivateImage>,
    /// Anything else, by name.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// [`PrivateMetadata`] as a snapshot carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PrivateField {
    key: SealedKey,
    nonce: Hex<12>,
    sealed: HexBytes,
}

impl PrivateField {
    /// Encrypts metadata for this snapshot under a data key of its own.
    ///
    /// # Errors
    /// [`Error::Key`] if nothing can be sealed to the public key.
    pub fn seal(
        key: &BackupKey,
        repository: &RepositoryId,
        snapshot: &SnapshotId,
        metadata: &PrivateMetadata,
    ) -> Result<Self> {
        let (data_key, sealed_key) = key.seal_data_key(repository)?;
        let mut text = serde_json::to_vec(metadata).expect("metadata serializes");
        let nonce = data_key.seal(&associated(repository, snapshot), &mut text);
        Ok(Self { key: sealed_key, nonce: Hex(nonce), sealed: HexBytes(text) })
    }

    /// Decrypts it.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it was altered or belongs to another snapshot.
    pub fn open(
        &self,
        key: &RestoreKey,
        repository: &RepositoryId,
        snapshot: &SnapshotId,
    ) -> Result<PrivateMetadata> {
        let damaged =
            |what: &str| Error::damaged(names::snapshot(snapshot), format!("private metadata: {what}"));
        let data_key =
            key.open_data_key(repository, &self.key).map_err(|_| damaged("its key does not open"))?;
        let mut text = Zeroizing::new(Vec::new());
        if !data_key.open(&self.nonce.0, &associated(repository, snapshot), &self.sealed.0, &mut text) {
            return Err(damaged("it does not decrypt"));
        }
        serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string()))
    }
}

fn associated(repository: &RepositoryId, snapshot: &SnapshotId) -> Vec<u8> {
    [repository.as_bytes().as_slice(), snapshot.as_bytes()].concat()
}
