//! Packs that go between a client and the bucket without passing through here.

use std::time::Duration;

use super::Repository;
use super::sync::read_trailer;
use crate::backend::SignedRequest;
use crate::catalog::PackRecord;
use crate::id::{PackName, SessionId};
use crate::names;
use crate::pack::{self, MAXIMUM_LENGTH, PackId, PackKind, Parsed};
use crate::{Error, Result};

/// A pack may be read for so long with one signature.
pub const READABLE_FOR: Duration = Duration::from_secs(15 * 60);
/// Bytes read from the beginning of a pack at first: enough for the header of one with a few keys.
const HEAD: u64 = 4096;

impl Repository {
    /// A request that stores this very pack. It counts for nothing until [`Repository::pack_is_stored`].
    ///
    /// # Errors
    /// [`Error::Session`] unless the session is open; [`Error::OwnedElsewhere`]; [`Error::Location`] if this is no bucket.
    pub async fn sign_put_pack(
        &self,
        session: SessionId,
        kind: PackKind,
        name: PackName,
    ) -> Result<SignedRequest> {
        self.ownership.still_ours(&self.backend).await?;
        let (pack, now) = (PackId::new(kind, name), (self.clock)());
        self.with_catalog(move |catalog| catalog.expect_pack(session, &pack, now)).await?;
        self.backend.sign_put(&names::pack(kind, &name), name.as_bytes()).await
    }

    /// Takes into the catalog what the session has stored with such a request: from here on it is what [`put_pack`] has stored. The store
    /// has compared its SHA-256; its length, header and trailer are looked at here.
    ///
    /// [`put_pack`]: crate::authority::Authority::put_pack
    ///
    /// # Errors
    /// [`Error::Missing`] if it is not there; [`Error::Damaged`] if it is no pack of this repository; [`Error::Session`] unless the session
    /// is open.
    pub async fn pack_is_stored(&self, session: SessionId, kind: PackKind, name: PackName) -> Result<()> {
        let pack = PackId::new(kind, name);
        let object = pack.to_string();
        let size = self.backend.size(&object).await?;
        let size = size.ok_or_else(|| Error::Missing { object: object.clone() })?;
        if size > u64::from(MAXIMUM_LENGTH) {
            return Err(Error::damaged(object, format!("it is longer than {MAXIMUM_LENGTH} bytes")));
        }
        self.check_head(&pack, size).await?;
        let entries = read_trailer(&self.backend, pack, size).await?;
        let record = PackRecord { name, kind, size, entries };
        self.with_catalog(move |catalog| catalog.add_pack(session, &record)).await
    }

    async fn check_head(&self, pack: &PackId, size: u64) -> Result<()> {
        let object = pack.to_string();
        let mut length = HEAD.min(size);
        loop {
            let head = self.backend.get_range(&object, 0..length).await?;
            match pack::parse_header(pack, &head)? {
                Parsed::Whole(header) if header.repository == self.id => return Ok(()),
                Parsed::Whole(_) => return Err(Error::damaged(object, "it was made for another repository")),
                Parsed::Needs(needed) if length < needed as u64 && needed as u64 <= size => {
                    length = needed as u64;
                }
                Parsed::Needs(_) => return Err(Error::damaged(object, "its header does not fit")),
            }
        }
    }

    /// A request that reads ranges of a data pack, for [`READABLE_FOR`].
    ///
    /// # Errors
    /// [`Error::Location`] if this is no bucket.
    pub async fn sign_read_pack(&self, name: PackName) -> Result<SignedRequest> {
        self.backend.sign_get(&names::pack(PackKind::Data, &name), READABLE_FOR).await
    }
}
