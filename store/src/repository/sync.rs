//! Bringing the catalog up to what the bucket holds.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

use futures::{StreamExt, TryStreamExt, stream};

use crate::backend::Backend;
use crate::catalog::{Catalog, PackRecord};
use crate::id::{PackName, RepositoryId, Root};
use crate::names::{self, ObjectName};
use crate::pack::{self, Entry, PackId, PackKind, Parsed};
use crate::snapshot::Snapshot;
use crate::{Error, Result};

/// Tail read at first; a trailer that is longer costs a second read.
const TAIL: u64 = 256 << 10;
/// Packs whose trailers are read at once.
const PARALLEL: usize = 16;
/// Packs put into the catalog at once.
const TOGETHER: usize = 256;

/// Opens the catalog at `path`, building it from the bucket if there is none. True if it was built.
pub(super) async fn open_catalog(
    path: &Path,
    id: RepositoryId,
    backend: &Backend,
) -> Result<(Catalog, bool)> {
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
    import(backend, &catalog, id).await?;
    drop(catalog);
    fs::rename(&building, path).map_err(file("put in place"))?;
    Ok((Catalog::open(path, id)?, true))
}

/// Imports every pack and snapshot that the bucket holds and the catalog does not.
pub(super) async fn import(backend: &Backend, catalog: &Catalog, id: RepositoryId) -> Result<()> {
    for kind in [PackKind::Data, PackKind::Nodes] {
        let known: HashSet<PackName> = catalog.packs(kind)?.into_iter().map(|pack| pack.name).collect();
        let listed = backend.list(kind.folder()).await?;
        let unknown: Vec<(PackId, u64)> = (listed.into_iter())
            .filter_map(|(name, size)| match ObjectName::parse(&name) {
                Some(ObjectName::Pack(kind, name)) if !known.contains(&name) => {
                    Some((PackId::new(kind, name), size))
                }
                _ => None,
            })
            .collect();
        for some in unknown.chunks(TOGETHER) {
            let records = stream::iter(some)
                .map(|(pack, size)| read_record(backend, *pack, *size))
                .buffer_unordered(PARALLEL)
                .try_collect::<Vec<PackRecord>>()
                .await?;
            catalog.import_packs(&records)?;
        }
    }
    adopt(backend, catalog, id).await
}

/// Imports what was stored but never acknowledged, because its writer was killed: packs it had announced, and snapshots.
pub(super) async fn adopt(backend: &Backend, catalog: &Catalog, id: RepositoryId) -> Result<()> {
    for pack in catalog.expected_packs()? {
        // Absent, it may be on its way from another process: nothing is concluded.
        if let Some(size) = backend.size(&pack.to_string()).await? {
            catalog.import_pack(&read_record(backend, pack, size).await?)?;
        }
    }
    for (name, _) in backend.list(names::SNAPSHOTS).await? {
        let Some(ObjectName::Snapshot(snapshot)) = ObjectName::parse(&name) else { continue };
        if catalog.has_snapshot(snapshot)? {
            continue;
        }
        let bytes = backend.get(&name).await?;
        let body = Snapshot::peek(&snapshot, &id, &bytes)?;
        let roots: Vec<Root> = body.roots().copied().collect();
        catalog.import_snapshot(snapshot, &body.vm, body.time.as_milliseconds(), &bytes, &roots)?;
    }
    Ok(())
}

/// What a pack holds: by its trailer, or by its frames if the trailer is damaged.
async fn read_record(backend: &Backend, pack: PackId, size: u64) -> Result<PackRecord> {
    let entries = match read_trailer(backend, pack, size).await {
        Err(Error::Damaged { object, what }) => {
            tracing::warn!("{object} is damaged: {what}; reading its frames instead");
            walk(&pack, &backend.get(&pack.to_string()).await?)
        }
        other => other?,
    };
    Ok(PackRecord { name: pack.name, kind: pack.kind, size, entries })
}

/// The frames that can still be told. None, if the header is damaged too: the pack is known all the same, so that a check
/// reports it.
fn walk(pack: &PackId, bytes: &[u8]) -> Vec<Entry> {
    match pack::parse_header(pack, bytes) {
        Ok(Parsed::Whole(header)) => {
            let frames = pack::walk_frames(pack, header.length() as u32, bytes).frames;
            frames.iter().map(pack::FrameRef::entry).collect()
        }
        _ => Vec::new(),
    }
}

async fn read_trailer(backend: &Backend, pack: PackId, size: u64) -> Result<Vec<Entry>> {
    let name = pack.to_string();
    let mut length = TAIL;
    loop {
        let tail = backend.get_range(&name, size.saturating_sub(length)..size).await?;
        match pack::parse_trailer(&pack, size, &tail)? {
            Parsed::Whole((_, entries)) => return Ok(entries),
            Parsed::Needs(needed) if needed as u64 > length => length = needed as u64,
            Parsed::Needs(_) => return Err(Error::damaged(name, "its trailer does not fit")),
        }
    }
}
