//! Packs as they come: through here, or by requests that are signed here and go to the bucket.

use std::time::Duration;

use bytes::Bytes;

use super::sync::read_trailer;
use super::{Repository, blocking};
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
    /// Stores a pack whose SHA-256 is its name: the caller has seen to that. Otherwise as [`put_pack`].
    ///
    /// [`put_pack`]: crate::authority::Authority::put_pack
    ///
    /// # Errors
    /// As [`put_pack`].
    pub async fn put_named_pack(&self, session: SessionId, pack: PackId, bytes: Bytes) -> Result<()> {
        let id = self.id;
        let (record, bytes) = blocking(move || {
            let index = pack::parse(&pack, &bytes)?;
            if index.header.repository != id {
                return Err(Error::damaged(pack.to_string(), "it was made for another repository"));
            }
            let (PackId { name, kind, .. }, size) = (pack, bytes.len() as u64);
            Ok((PackRecord { name, kind, size, entries: index.entries }, bytes))
        })
        .await?;
        // Whoever was shut out hears of it before it sends more.
        self.ownership.still_ours(&self.backend).await?;
        // Recorded before it is stored: a process killed between the two leaves a pack that the next one finds.
        let now = (self.clock)();
        self.with_catalog(move |catalog| catalog.expect_pack(session, &pack, now)).await?;
        self.backend.put(&pack.to_string(), bytes).await?;
        self.with_catalog(move |catalog| catalog.add_pack(session, &record)).await
    }

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

    /// Bytes of a pack, as the catalog has it; `None` if it is not known there.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub async fn pack_size(&self, pack: PackName) -> Result<Option<u64>> {
        self.with_catalog(move |catalog| catalog.pack_size(&pack)).await
    }
}
