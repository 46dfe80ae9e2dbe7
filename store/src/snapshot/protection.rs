//! Marks that protect snapshots: while one is there, its snapshot is not dropped.

use serde::{Deserialize, Serialize};

use crate::id::{RepositoryId, SnapshotId};
use crate::{Error, Result, document, names};

const KIND: &str = "protection";

/// One mark. That its object exists is what counts; what it says is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protection {
    /// The repository it is in.
    pub repository: RepositoryId,
    /// The snapshot, as in its name: `protected/<snapshot>.json`.
    pub snapshot: SnapshotId,
}

impl Protection {
    /// The object `protected/<snapshot>.json`, always the same for a snapshot.
    pub fn seal(&self) -> Vec<u8> {
        document::seal(KIND, self, &document::public_key_for(KIND))
    }

    /// Reads the mark of `snapshot`: only to say that it is damaged, for it protects all the same.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Version`] as any document; [`Error::Damaged`] also if it is another snapshot's.
    pub fn open(snapshot: &SnapshotId, bytes: &[u8]) -> Result<Self> {
        let object = names::protection(snapshot);
        let mark: Self = document::open(&object, KIND, bytes, &document::public_key_for(KIND))?;
        if mark.snapshot != *snapshot {
            return Err(Error::damaged(object, format!("it is of snapshot {}", mark.snapshot)));
        }
        Ok(mark)
    }
}
