//! The descriptor: `underlay.json`, what a repository is.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::cut::parameters::CutParameters;
use crate::id::RepositoryId;
use crate::key::{BackupKey, PublicKey};
use crate::names::DESCRIPTOR;
use crate::{Error, Result, document};

const KIND: &str = "repository";

/// What a repository is; written once, by `init`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// Names the repository for ever.
    pub repository: RepositoryId,
    /// When it was made.
    pub created: Timestamp,
    /// What data keys are sealed to.
    pub public_key: PublicKey,
    /// How its disks are cut.
    pub cut: CutParameters,
}

impl Descriptor {
    /// The object `underlay.json`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the cut parameters break a rule.
    pub fn seal(&self, key: &BackupKey) -> Result<Vec<u8>> {
        self.cut.validate()?;
        Ok(document::seal(KIND, self, &key.document_key(KIND)))
    }

    /// Verifies and reads it.
    ///
    /// # Errors
    /// [`Error::Key`] if the key is for another repository, [`Error::Damaged`] or [`Error::Version`] as any document.
    pub fn open(bytes: &[u8], key: &BackupKey) -> Result<Self> {
        let public = Self::peek(bytes)?.public_key;
        if public != key.public_key() {
            return Err(Error::Key {
                object: "the key at hand".into(),
                reason: format!(
                    "its public key is {}, underlay.json has {public}: the key is another repository's, or underlay.json is damaged",
                    key.public_key()
                ),
            });
        }
        document::open(DESCRIPTOR, KIND, bytes, &key.document_key(KIND))
    }

    /// Reads it without verifying who wrote it: for an authority without keys, and to learn which key is needed.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Version`] as any document.
    pub fn peek(bytes: &[u8]) -> Result<Self> {
        let descriptor: Self = document::peek(DESCRIPTOR, KIND, bytes)?;
        descriptor.cut.validate().map_err(|error| Error::damaged(DESCRIPTOR, error.to_string()))?;
        Ok(descriptor)
    }
}
