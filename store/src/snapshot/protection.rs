//! Marks that protect snapshots: while one is there, its snapshot is not dropped.

use serde::{Deserialize, Serialize};

use crate::document;
use crate::id::{RepositoryId, SnapshotId};

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
}
