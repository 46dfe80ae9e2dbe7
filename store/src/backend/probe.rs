//! What a store honours, found out by trying.

use std::fmt;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error as StoreError, PutMode};

use super::{Backend, failed, is_unsupported, path};
use crate::Result;
use crate::key::random_bytes;

/// What became of a second PUT that was told not to replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionalPut {
    /// It was refused.
    Honoured,
    /// It replaced the object all the same.
    Ignored,
    /// The store does not know such requests.
    Unknown,
}

/// What a store does with what it is told. Displays as one line for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Honours {
    /// Not relied on by anything.
    pub conditional_put: ConditionalPut,
    /// A listing names what was just written, and not what was just deleted. Taking over and building a catalog anew rely on that.
    pub fresh_listings: bool,
    /// A range is answered with that range.
    pub ranges: bool,
}

impl Honours {
    /// Whether a repository can be kept there.
    pub fn suffices(&self) -> bool {
        self.fresh_listings && self.ranges
    }
}

impl fmt::Display for Honours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let put = match self.conditional_put {
            ConditionalPut::Honoured => "honoured",
            ConditionalPut::Ignored => "ignored",
            ConditionalPut::Unknown => "unknown",
        };
        let listings = if self.fresh_listings { "fresh" } else { "stale: not fit for a repository" };
        let ranges = if self.ranges { "honoured" } else { "ignored: not fit for a repository" };
        write!(f, "conditional PUT {put} (not relied on), listings {listings}, ranges {ranges}")
    }
}

impl Backend {
    /// Writes, lists, reads and deletes an object of its own. A directory is known, and is not tried.
    ///
    /// # Errors
    /// [`Error::Backend`](crate::Error::Backend) if a request fails.
    pub async fn probe(&self) -> Result<Honours> {
        if !self.inner.remote {
            return Ok(Honours {
                conditional_put: ConditionalPut::Honoured,
                fresh_listings: true,
                ranges: true,
            });
        }
        let name = format!("probe/{}", hex::encode(random_bytes::<16>()));
        let place = path(&name)?;
        self.put(&name, Bytes::from_static(b"first")).await?;
        let conditional_put = self.put_again(&name, &place).await?;
        let listed = self.names_probe(&name).await?;
        let ranges = matches!(self.get_range(&name, 1..4).await, Ok(bytes) if bytes.len() == 3);
        self.delete(&name).await?;
        let gone = !self.names_probe(&name).await? && !self.exists(&name).await?;
        Ok(Honours { conditional_put, fresh_listings: listed && gone, ranges })
    }

    async fn put_again(&self, name: &str, place: &Path) -> Result<ConditionalPut> {
        match self.write(place, &Bytes::from_static(b"second"), PutMode::Create).await {
            Ok(()) => Ok(ConditionalPut::Ignored),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                Ok(ConditionalPut::Honoured)
            }
            Err(error) if is_unsupported(&error) => Ok(ConditionalPut::Unknown),
            Err(error) => Err(failed("write", name, error)),
        }
    }

    async fn names_probe(&self, name: &str) -> Result<bool> {
        Ok(self.list("probe").await?.iter().any(|(listed, _)| listed == name))
    }
}
