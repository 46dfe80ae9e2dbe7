//! Ownership claims: the highest generation owns the repository.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::id::{CatalogId, OwnerId, RepositoryId};
use crate::{Error, Result, document, names};

const KIND: &str = "claim";

/// One claim. A checksum guards it, no key: an authority without keys writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The repository it is about.
    pub repository: RepositoryId,
    /// Its name: `claims/<generation>.json`.
    pub generation: u64,
    /// Who claims.
    pub owner: OwnerId,
    /// With which catalog. Another one of the same owner, which replaced it, claims anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog: Option<CatalogId>,
    /// Host name, for people.
    pub host: String,
    /// When it was made.
    pub created: Timestamp,
}

impl Claim {
    /// The object `claims/<generation>.json`.
    pub fn seal(&self) -> Vec<u8> {
        document::seal(KIND, self, &document::public_key_for(KIND))
    }

    /// Reads the object of the claim called `generation`.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Version`] as any document; [`Error::Damaged`] also if it is another generation's or
    /// another repository's.
    pub fn open(generation: u64, repository: &RepositoryId, bytes: &[u8]) -> Result<Self> {
        let object = names::claim(generation);
        let claim: Self = document::open(&object, KIND, bytes, &document::public_key_for(KIND))?;
        if claim.generation != generation {
            return Err(Error::damaged(object, format!("it holds generation {}", claim.generation)));
        }
        if claim.repository != *repository {
            return Err(Error::damaged(object, format!("it is of repository {}", claim.repository)));
        }
        Ok(claim)
    }
}
