//! Bringing the catalog up to what the bucket holds.

use std::fs::{self, File};
use std::path::Path;

use futures::{StreamExt, TryStreamExt, stream};

use crate::backend::Backend;
use crate::catalog::{Catalog, PackRecord};
use crate::document;
use crate::id::RepositoryId;
use crate::names;
use crate::pack::{self, Kind};
use crate::snapshot::Snapshot;
use crate::{Error, Result};

/// Tail read at first; a trailer that is longer costs a second read.
const TAIL: u64 = 256 << 10;
/// Packs whose trailers are read at once.
const PARALLEL: usize = 16;

/// Opens the catalog at `path`, building it from the bucket if there is none. True if it was built.
pub(super) async fn open_catalog(path: &Path, id: RepositoryId, backend: &Backend) -> Result<(Catalog, bool)> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = |action| move |source| Error::File { path: path.to_owned(), action, source };
    fs::create_dir_all(folder).map_err(file("create the folder of"))?;
    let lock = File::create(path.with_extension("lock")).map_err(file("lock"))?;
    lock.lock().map_err(file("lock"))?;
    if path.exists() {
        return Ok((Catalog::open(path, id)?, false));
    }
    // Built aside and renamed, so that a half-built catalog is never taken for a whole one.
    let building = path.with_extension("building");
    for leftover in ["building", "building-wal", "building-shm"] {
        match fs::remove_file(path.with_extension(leftover)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(file("remove what is left of")(source));
            }
            _ => {}
        }
    }
    let catalog = Catalog::open(&building, id)?;
    import(backend, &catalog).await?;
    drop(catalog);
    fs::rename(&building, path).map_err(file("put in place"))?;
    Ok((Catalog::open(path, id)?, true))
}

/// Imports every pack and snapshot that the bucket holds and the catalog does not.
pub(super) async fn import(backend: &Backend, catalog: &Catalog) -> Result<()> {
    for kind in [Kind::Data, Kind::Nodes] {
        let known: std::collections::HashSet<_> = catalog.packs(kind)?.into_iter().map(|pack| pack.name).collect();
        let listed = backend.list(names::pack_folder(kind)).await?;
        let unknown = listed.into_iter().filter_map(|(name, size)| {
            let (_, pack) = names::parse_pack(&name)?;
            (!known.contains(&pack)).then_some((name, pack, size))
        });
        stream::iter(unknown)
            .map(|(name, pack, size)| async move {
                let entries = read_entries(backend, &name, size).await?;
                Ok::<_, Error>(PackRecord { name: pack, kind, size, entries })
            })
            .buffer_unordered(PARALLEL)
            .try_for_each(|record| async move { catalog.import_pack(&record) })
            .await?;
    }
    adopt(backend, catalog).await
}

/// Imports snapshots that were stored but never acknowledged: everything they need is durable.
pub(super) async fn adopt(backend: &Backend, catalog: &Catalog) -> Result<()> {
    for (name, _) in backend.list(names::SNAPSHOTS).await? {
        let Some(id) = names::parse_snapshot(&name) else { continue };
        if catalog.has_snapshot(&id)? {
            continue;
        }
        let bytes = backend.get(&name).await?;
        let snapshot: Snapshot = document::peek(&name, Snapshot::KIND, &bytes)?;
        catalog.import_snapshot(id, &snapshot.vm, snapshot.time.as_millis(), &bytes, &snapshot.roots())?;
    }
    Ok(())
}

/// The trailer of the pack called `name`.
pub(super) async fn read_entries(backend: &Backend, name: &str, size: u64) -> Result<Vec<pack::Entry>> {
    let mut start = size.saturating_sub(TAIL);
    loop {
        let tail = backend.get_range(name, start..size).await?;
        match pack::parse_trailer(name, &tail, size)? {
            pack::Trailer::Entries(entries) => return Ok(entries),
            pack::Trailer::StartsAt(at) if at < start => start = at,
            pack::Trailer::StartsAt(_) => return Err(Error::damaged(name, "its trailer does not fit")),
        }
    }
}
