//! Headers of packs and the data keys they seal, fetched and opened once while they are in use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;
use underlay_store::authority::Authority;
use underlay_store::id::{PackName, RepositoryId};
use underlay_store::key::{DataKey, RestoreKey, SealedKey};
use underlay_store::pack::{Header, PackId, PackKind, Parsed, parse_header};
use underlay_store::{Error, Result};

/// Packs whose headers are kept. A header is about 160 bytes; one with the most keys 400 KB.
const PACKS: usize = 1024;
/// Sealed keys in the headers kept, 96 bytes each, and opened keys kept.
const KEYS: usize = 16_384;
/// Bytes of a header with one key: as a backup writes it.
const FIRST_READ: usize = 32 + SealedKey::LENGTH + 32;

type Cell = Arc<OnceCell<Arc<Header>>>;

/// A bounded cache. When it is full it is emptied: a restore goes through packs in passes, it does not return to favourites.
#[derive(Debug, Default)]
pub(super) struct Headers {
    packs: Mutex<Packs>,
    opened: Mutex<HashMap<SealedKey, DataKey>>,
}

#[derive(Debug, Default)]
struct Packs {
    cells: HashMap<PackName, Cell>,
    keys: usize,
}

impl Headers {
    /// The header of a data pack. Those who ask at the same time share one read.
    ///
    /// # Errors
    /// What reading or parsing reports; the next to ask tries again.
    pub(super) async fn header(&self, authority: &dyn Authority, name: PackName) -> Result<Arc<Header>> {
        let cell = {
            let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
            if packs.cells.len() >= PACKS || packs.keys >= KEYS {
                *packs = Packs::default();
            }
            Arc::clone(packs.cells.entry(name).or_default())
        };
        let header = cell.get_or_try_init(|| async {
            let header = read_header(authority, name).await?;
            self.packs.lock().unwrap_or_else(PoisonError::into_inner).keys += header.sealed_keys.len();
            Ok::<_, Error>(Arc::new(header))
        });
        header.await.cloned()
    }

    /// Opens a sealed key; the first time takes about 60 microseconds.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it does not open.
    pub(super) fn open(
        &self,
        key: &RestoreKey,
        repository: &RepositoryId,
        sealed: &SealedKey,
    ) -> Result<DataKey> {
        let opened = || self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = opened().get(sealed) {
            return Ok(known.clone());
        }
        let fresh = key.open_data_key(repository, sealed)?;
        let mut opened = opened();
        if opened.len() >= KEYS {
            opened.clear();
        }
        opened.insert(*sealed, fresh.clone());
        Ok(fresh)
    }
}

async fn read_header(authority: &dyn Authority, name: PackName) -> Result<Header> {
    let pack = PackId::new(PackKind::Data, name);
    let mut length = FIRST_READ;
    loop {
        let bytes = authority.read_pack(name, 0..length as u64).await?;
        match parse_header(&pack, &bytes)? {
            Parsed::Whole(header) => return Ok(header),
            Parsed::Needs(needed) if needed > length => length = needed,
            Parsed::Needs(_) => return Err(Error::damaged(format!("header of {pack}"), "it is cut off")),
        }
    }
}
