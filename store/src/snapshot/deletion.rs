//! Records of deletions: written before the first of their packs goes, and kept. Whoever takes the repository over, or builds a
//! catalog anew, does not rely on a pack that is named in one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{PackName, RepositoryId};
use crate::{Error, Result, document, names};

const KIND: &str = "deletion";

/// Packs that an owner has decided to delete. A checksum guards it, no key: an authority without keys writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deletion {
    /// The repository it is about.
    pub repository: RepositoryId,
    /// Generation of the claim that the owner relied on.
    pub generation: u64,
    /// Counts the records of a generation, from 0.
    pub number: u32,
    /// SHA-256 of the data packs.
    pub packs: Vec<PackName>,
    /// SHA-256 of the node packs.
    pub nodes: Vec<PackName>,
}

/// How many records of each earlier owner the owner of a generation found when it took over. It relies on none of the packs in
/// those, and on any other: what an earlier owner recorded later was never deleted, for that owner read the claims after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closing {
    /// The repository it is about.
    pub repository: RepositoryId,
    /// Generation of the claim of whoever wrote it.
    pub generation: u64,
    /// By earlier generation; those without records are left out.
    pub records: BTreeMap<u64, u32>,
}

const CLOSING: &str = "closing";

impl Closing {
    /// The object `closings/<generation>.json`.
    pub fn seal(&self) -> Vec<u8> {
        document::seal(CLOSING, self, &document::public_key_for(CLOSING))
    }

    /// Reads the object of that generation.
    ///
    /// # Errors
    /// As [`Deletion::open`].
    pub fn open(generation: u64, repository: &RepositoryId, bytes: &[u8]) -> Result<Self> {
        let object = names::closing(generation);
        let closing: Self = document::open(&object, CLOSING, bytes, &document::public_key_for(CLOSING))?;
        if (closing.generation, closing.repository) != (generation, *repository) {
            return Err(Error::damaged(object, "it is another's"));
        }
        Ok(closing)
    }
}

impl Deletion {
    /// The object `deletions/<generation>-<number>.json`.
    pub fn seal(&self) -> Vec<u8> {
        document::seal(KIND, self, &document::public_key_for(KIND))
    }

    /// Reads the object of that generation and number.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Version`] as any document; [`Error::Damaged`] also if it is another's.
    pub fn open(generation: u64, number: u32, repository: &RepositoryId, bytes: &[u8]) -> Result<Self> {
        let object = names::deletion(generation, number);
        let deletion: Self = document::open(&object, KIND, bytes, &document::public_key_for(KIND))?;
        if (deletion.generation, deletion.number, deletion.repository) != (generation, number, *repository) {
            return Err(Error::damaged(object, "it is another record"));
        }
        Ok(deletion)
    }
}
