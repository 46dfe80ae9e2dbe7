//! Snapshots, and the other documents that say what a repository is and who owns it.

mod claim;
mod damage;
mod deletion;
mod descriptor;
mod private;
mod protection;
pub mod retention;
mod select;
mod time;
pub mod validate;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use claim::Claim;
pub use damage::{DamageMark, DamagedDisk, DamagedPlace, RetiredPlaces};
pub use deletion::{Closing, Deletion};
pub use descriptor::Descriptor;
pub use private::{PrivateField, PrivateImage, PrivateMetadata};
pub use protection::Protection;
pub use select::select;
pub use time::Timestamp;

use crate::id::{RepositoryId, Root, SessionId, SnapshotId};
use crate::key::BackupKey;
use crate::{Error, Result, document, names};

/// Kind of the document.
pub(crate) const KIND: &str = "snapshot";

/// How sure it is that a snapshot's disks fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// The VM was off.
    Offline,
    /// As after a power cut.
    Crash,
    /// The guest flushed and froze its file systems.
    Filesystem,
}

impl Consistency {
    /// As in documents: `offline`, `crash` or `filesystem`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Crash => "crash",
            Self::Filesystem => "filesystem",
        }
    }
}

/// One disk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its name within the VM, such as `vda`; the rules are those of [`validate::disk_name`].
    pub name: String,
    /// Its content.
    pub root: Root,
    /// Roots of frozen layers below it, kept alive so that the next VM on the same base need not read it.
    pub layers: Vec<Root>,
}

/// What making a snapshot took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Sizes of all disks together, in bytes.
    pub disk_bytes: u64,
    /// Guest bytes read from images.
    pub bytes_read: u64,
    /// Plain bytes of chunks that the repository lacked.
    pub bytes_new: u64,
    /// Bytes of packs sent.
    pub bytes_uploaded: u64,
}

/// One VM at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Its name: `snapshots/<snapshot>.json`.
    pub snapshot: SnapshotId,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// The session that made it.
    pub session: SessionId,
    /// The VM's name; the rules are those of [`validate::vm_name`].
    pub vm: String,
    /// When the session opened, by the clock of the repository's authority.
    pub time: Timestamp,
    /// How sure it is that the disks fit together.
    pub consistency: Consistency,
    /// Its disks, no two of the same name.
    pub disks: Vec<Disk>,
    /// What making it took.
    pub statistics: Statistics,
    /// Version of the client that made it.
    pub client: String,
    /// What only the restore key reads.
    pub private: Option<PrivateField>,
}

impl Snapshot {
    /// The object `snapshots/<snapshot>.json`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a name breaks its rule.
    pub fn seal(&self, key: &BackupKey) -> Result<Vec<u8>> {
        self.validate()?;
        Ok(document::seal(KIND, self, &key.document_key(KIND)))
    }

    /// Verifies and reads the object of the snapshot called `id`.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not exactly what a holder of this key wrote under this name in this repository,
    /// [`Error::Version`] if another version wrote it.
    pub fn open(id: &SnapshotId, repository: &RepositoryId, bytes: &[u8], key: &BackupKey) -> Result<Self> {
        let object = names::snapshot(id);
        let snapshot: Self = document::open(&object, KIND, bytes, &key.document_key(KIND))?;
        snapshot.check(&object, id, repository)
    }

    /// Reads it without verifying who wrote it: for an authority that holds no keys.
    ///
    /// # Errors
    /// As [`Snapshot::open`], but a forged snapshot is not found out.
    pub fn peek(id: &SnapshotId, repository: &RepositoryId, bytes: &[u8]) -> Result<Self> {
        let object = names::snapshot(id);
        let snapshot: Self = document::peek(&object, KIND, bytes)?;
        snapshot.check(&object, id, repository)
    }

    /// Every root it keeps alive: its disks', and their layers'.
    pub fn roots(&self) -> impl Iterator<Item = &Root> {
        self.disks.iter().flat_map(|disk| std::iter::once(&disk.root).chain(&disk.layers))
    }

    /// Checks the names and sizes.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming what breaks which rule.
    pub fn validate(&self) -> Result<()> {
        validate::vm_name(&self.vm)?;
        let mut seen = BTreeSet::new();
        for disk in &self.disks {
            validate::disk_name(&disk.name)?;
            if !seen.insert(&disk.name) {
                return Err(Error::Invalid {
                    what: "disk name",
                    value: disk.name.clone(),
                    rule: "no two disks of a VM have the same".into(),
                });
            }
        }
        for root in self.roots() {
            if root.size > 1 << 63 || (root.size == 0 && root.node.is_some()) {
                return Err(Error::Invalid {
                    what: "disk size",
                    value: root.size.to_string(),
                    rule: "at most 2^63 bytes, and no node if there are none".into(),
                });
            }
        }
        Ok(())
    }

    fn check(self, object: &str, id: &SnapshotId, repository: &RepositoryId) -> Result<Self> {
        if self.snapshot != *id {
            return Err(Error::damaged(object, format!("it holds snapshot {}", self.snapshot)));
        }
        if self.repository != *repository {
            return Err(Error::damaged(object, format!("it is of repository {}", self.repository)));
        }
        self.validate().map_err(|error| Error::damaged(object, error.to_string()))?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
