//! Marks on snapshots that lost data: they survive a lost catalog, and a policy does not count such a snapshot as a good one.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::id::{ChunkId, PackName, RepositoryId, SnapshotId};
use crate::{Error, Result, document, names};

const KIND: &str = "damage";

/// One mark. That its object exists is what counts; what it says is for people, and for whoever lost the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DamagedPlace {
    /// The pack, by its name in the bucket.
    pub object: String,
    /// The chunk or node in it that somebody with keys found wrong; null: the object is missing, or not what its name says.
    pub id: Option<ChunkId>,
}

const RETIRED: &str = "retired";

/// What was stored wrong in a pack that is what was stored: no later reading of the pack tells, and only whoever has keys finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredPlaces {
    /// The repository it is in.
    pub repository: RepositoryId,
    /// The pack, as in the name `retired/<pack>.json`.
    pub pack: PackName,
    /// The chunks or nodes in it, in ascending order.
    pub ids: Vec<ChunkId>,
}

impl RetiredPlaces {
    /// The object `retired/<pack>.json`.
    pub fn seal(&self) -> Vec<u8> {
        document::seal(RETIRED, self, &document::public_key_for(RETIRED))
    }

    /// Reads the record about `pack`.
    ///
    /// # Errors
    /// As [`DamageMark::open`].
    pub fn open(pack: &PackName, repository: &RepositoryId, bytes: &[u8]) -> Result<Self> {
        let object = names::retired(pack);
        let record: Self = document::open(&object, RETIRED, bytes, &document::public_key_for(RETIRED))?;
        if (&record.pack, &record.repository) != (pack, repository) {
            return Err(Error::damaged(object, "it is another record"));
        }
        Ok(record)
    }
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
