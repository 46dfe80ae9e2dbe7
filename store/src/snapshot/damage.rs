//! Marks on snapshots that lost data: they survive a lost catalog, and a policy does not count such a snapshot as a good one.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::id::{ChunkId, RepositoryId, SnapshotId};
use crate::{Error, Result, document, names};

const KIND: &str = "damage";

/// One mark. That its object exists is what counts; what it says is for people, and for whoever lost the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamageMark {
    /// The repository it is in.
    pub repository: RepositoryId,
    /// The snapshot, as in its name: `damaged/<snapshot>.json`.
    pub snapshot: SnapshotId,
    /// When the loss was found.
    pub found: Timestamp,
    /// The disks that lost something.
    pub disks: Vec<DamagedDisk>,
    /// Where what they lost lies, or should: not to be relied on until it was read again.
    pub places: Vec<DamagedPlace>,
}

/// What one disk lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedDisk {
    /// The disk.
    pub name: String,
    /// Chunks that no sound pack holds.
    pub chunks: u64,
    /// Tree nodes that cannot be read: what is below them is lost with them.
    pub nodes: u64,
}

/// A place that is not to be relied on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedPlace {
    /// The pack, by its name in the bucket.
    pub object: String,
    /// The chunk or node in it that somebody with keys found wrong; null: the object is missing, or not what its name says.
    pub id: Option<ChunkId>,
}

impl DamageMark {
    /// The object `damaged/<snapshot>.json`.
    pub fn seal(&self) -> Vec<u8> {
        document::seal(KIND, self, &document::public_key_for(KIND))
    }

    /// Reads the mark of `snapshot`.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Version`] as any document; [`Error::Damaged`] also if it is another snapshot's.
    pub fn open(snapshot: &SnapshotId, bytes: &[u8]) -> Result<Self> {
        let object = names::damage(snapshot);
        let mark: Self = document::open(&object, KIND, bytes, &document::public_key_for(KIND))?;
        if mark.snapshot != *snapshot {
            return Err(Error::damaged(object, format!("it is of snapshot {}", mark.snapshot)));
        }
        Ok(mark)
    }
}
