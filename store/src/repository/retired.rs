//! Records of what was stored wrong: a catalog that is built anew could not find it out again without keys.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::Repository;
use crate::backend::Backend;
use crate::catalog::{Catalog, Retired};
use crate::id::{PackName, RepositoryId};
use crate::names::{self, ObjectName};
use crate::snapshot::RetiredPlaces;
use crate::{Error, Result};

/// Writes into the bucket what the catalog says was stored wrong in these packs.
pub(super) async fn record(repository: &Repository, packs: &BTreeSet<PackName>) -> Result<()> {
    if packs.is_empty() {
        return Ok(());
    }
    let wrong = repository.with_catalog(Catalog::stored_wrong).await?;
    for (pack, ids) in wrong.into_iter().filter(|(pack, _)| packs.contains(pack)) {
        let record = RetiredPlaces { repository: repository.id, pack, ids };
        repository.backend.replace(&names::retired(&pack), Bytes::from(record.seal())).await?;
    }
    Ok(())
}

/// Takes out of use what the records name. One that cannot be read takes all of its pack out of use.
pub(super) async fn honour(backend: &Backend, catalog: &Catalog, id: &RepositoryId) -> Result<()> {
    let mut places = Vec::new();
    for (name, _) in backend.list(names::RETIRED).await? {
        let Some(ObjectName::Retired(pack)) = ObjectName::parse(&name) else { continue };
        let record = match backend.get(&name).await {
            Ok(bytes) => RetiredPlaces::open(&pack, id, &bytes),
            // Removed with its pack since it was listed.
            Err(Error::Missing { .. }) => continue,
            Err(error) => return Err(error),
        };
        match record {
            Ok(record) => {
                let ids = record.ids.iter().map(|id| *id.as_bytes());
                places.extend(ids.map(|id| Retired::Place { pack, id, wrong: true }));
            }
            Err(error) if error.is_damage() => {
                tracing::warn!("{error}; its pack is not relied on");
                places.push(Retired::Pack(pack));
            }
            Err(error) => return Err(error),
        }
    }
    catalog.retire(&places)?;
    Ok(())
}
