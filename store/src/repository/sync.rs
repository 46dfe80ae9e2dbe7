//! Bringing the catalog up to what the bucket holds.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use super::damage::{Trust, retire_marked};
use super::{NodeReader, deletions, owner, retired};
use crate::authority::StoredDocument;
use crate::backend::Backend;
use crate::catalog::{Catalog, Held, PackRecord, SessionState, SnapshotRecord};
use crate::gc::Marks;
use crate::id::{OwnerId, PackName, RepositoryId, Root};
use crate::names::{self, ObjectName};
use crate::pack::{self, Entry, PackId, PackKind, Parsed};
use crate::progress::Silent;
use crate::snapshot::Snapshot;
use crate::{Error, Result};

/// Tail read at first; a trailer that is longer costs a second read.
const TAIL: u64 = 256 << 10;
/// Packs whose trailers are read at once.
const PARALLEL: usize = 16;
/// Packs put into the catalog at once.
const TOGETHER: usize = 256;

/// Opens the catalog at `path`, building it from the bucket if there is none. `state` remembers who this host is.
pub(super) async fn open_catalog(
    path: &Path,
    state: &Path,
    id: RepositoryId,
    backend: &Backend,
) -> Result<Arc<Catalog>> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = |action| move |source| Error::File { path: path.to_owned(), action, source };
    fs::create_dir_all(folder).map_err(file("create the folder of"))?;
    let lock = File::create(path.with_extension("lock")).map_err(file("lock"))?;
    lock.lock().map_err(file("lock"))?;
    if path.try_exists().map_err(file("look for"))? {
        return Catalog::open(path, id).map(Arc::new);
    }
    // Built aside and renamed, so that a half-built catalog is never taken for a whole one. A log that a lost catalog left
    // behind would be replayed into the new one.
    let building = path.with_extension("building");
    remove_database(&building)?;
    remove_database(path)?;
    let mut catalog = Catalog::open(&building, id)?;
    remember_owner(&mut catalog, &state.join("owners").join(id.to_string()))?;
    let catalog = Arc::new(catalog);
    import(backend, &catalog, &NodeReader::new(backend.clone(), Arc::clone(&catalog)), id, 0).await?;
    drop(catalog);
    fs::rename(&building, path).map_err(file("put in place"))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file("put in place"))?;
    Catalog::open(path, id).map(Arc::new)
}

/// Removes a database that is not whole, and what belongs to it.
pub(super) fn remove_database(path: &Path) -> Result<()> {
    for leftover in [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")] {
        match fs::remove_file(&leftover) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(Error::File { path: leftover, action: "remove", source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Held open for as long as the catalog is used: nobody puts another in its place meanwhile.
pub(super) fn join_users(path: &Path) -> Result<File> {
    let users = users_file(path)?;
    users.lock_shared().map_err(|source| Error::File { path: path.to_owned(), action: "lock", source })?;
    Ok(users)
}

/// Held open while another catalog is put in the place of this one.
pub(super) fn exclude_users(path: &Path) -> Result<File> {
    let users = users_file(path)?;
    match users.try_lock() {
        Ok(()) => Ok(users),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => {
            Err(Error::File { path: path.to_owned(), action: "lock", source })
        }
    }
}

fn users_file(path: &Path) -> Result<File> {
    let file = |action| move |source| Error::File { path: path.to_owned(), action, source };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(file("create the folder of"))?;
    File::create(path.with_extension("users")).map_err(file("lock"))
}

/// Writes a small file whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = |action| move |source| Error::File { path: path.to_owned(), action, source };
    let partial = beside(path, &format!(".{}.partial", std::process::id()));
    let mut written = File::create(&partial).map_err(file("write"))?;
    written.write_all(bytes).map_err(file("write"))?;
    written.sync_all().map_err(file("write"))?;
    fs::rename(&partial, path).map_err(file("write"))
}

/// Who this host was when it opened the repository last.
pub(super) fn remembered_owner(state: &Path, id: RepositoryId) -> Result<Option<OwnerId>> {
    let path = state.join("owners").join(id.to_string());
    match fs::read_to_string(&path) {
        Ok(text) => Ok(OwnerId::from_hex(text.trim())),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path, action: "read", source }),
    }
}

/// The path with something appended to it.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A catalog that was lost is rebuilt under the same owner: the claim in the bucket stays this host's.
fn remember_owner(catalog: &mut Catalog, path: &Path) -> Result<()> {
    let file = |action| move |source| Error::File { path: path.to_owned(), action, source };
    match fs::read_to_string(path) {
        Ok(text) => match OwnerId::from_hex(text.trim()) {
            Some(owner) => catalog.set_owner(owner),
            None => Err(Error::damaged(path.display().to_string(), "it holds no owner id")),
        },
        Err(source) if source.kind() == ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).map_err(file("create the folder of"))?;
            write_whole(path, format!("{}\n", catalog.owner()).as_bytes())
        }
        Err(source) => Err(file("read")(source)),
    }
}

/// A catalog in memory, built from the bucket: for reading where the real one cannot be opened.
pub(super) async fn temporary_catalog(id: RepositoryId, backend: &Backend) -> Result<Arc<Catalog>> {
    let catalog = Arc::new(Catalog::in_memory(id)?);
    import(backend, &catalog, &NodeReader::new(backend.clone(), Arc::clone(&catalog)), id, 0).await?;
    Ok(catalog)
}

/// Imports every pack and snapshot that the bucket holds and the catalog does not, and what its marks name. `owned`: generation of our claim, or 0. Returns
/// snapshots that cannot be read.
pub(super) async fn import(
    backend: &Backend,
    catalog: &Catalog,
    nodes: &NodeReader,
    id: RepositoryId,
    owned: u64,
) -> Result<Vec<StoredDocument>> {
    // After the claim was written, if one is: whatever is recorded later is not deleted any more.
    let generation = owner::highest(backend).await?;
    let mut found = deletions::honoured(backend, &id, generation).await?;
    if owned > 0 {
        found = deletions::close(backend, catalog, id, owned, found).await?;
    }
    for error in &found.unreadable {
        tracing::warn!("{error}; what it says of deleted packs is not known");
    }
    catalog.exhume_all_but(&found.packs, owned)?;
    catalog.bury(&found.packs)?;
    // Snapshots are listed first: whatever they need was stored before them.
    let snapshots = backend.list(names::SNAPSHOTS).await?;
    drop_vanished(backend, catalog, &snapshots).await?;
    import_packs(backend, catalog).await?;
    let unreadable = adopt_snapshots(backend, catalog, nodes, Sight::First, id, snapshots).await?;
    retire_marked(backend, catalog, id, Trust::Nothing).await?;
    retired::honour(backend, catalog, &id).await?;
    if owned > 0 {
        catalog.catch_up(owned)?;
    }
    Ok(unreadable)
}

/// Drops snapshots that another owner has dropped. A listing alone proves nothing: each is asked for.
async fn drop_vanished(backend: &Backend, catalog: &Catalog, listed: &[(String, u64)]) -> Result<()> {
    let listed: HashSet<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    for (snapshot, _) in catalog.snapshots()? {
        let name = names::snapshot(&snapshot);
        if !listed.contains(name.as_str()) && backend.size(&name).await?.is_none() {
            tracing::info!("{name} was dropped by the repository's owner");
            catalog.drop_snapshot(snapshot)?;
        }
    }
    Ok(())
}

async fn import_packs(backend: &Backend, catalog: &Catalog) -> Result<()> {
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
            let records = stream::iter(some.to_vec())
                .map(|(pack, size)| found_record(backend, pack, size))
                .buffer_unordered(PARALLEL)
                .try_collect::<Vec<Option<PackRecord>>>()
                .await?;
            catalog.import_packs(&records.into_iter().flatten().collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

/// Imports what was stored but never acknowledged, because its writer was killed: packs it had announced, and snapshots.
/// Returns snapshots that cannot be read.
pub(super) async fn adopt(
    backend: &Backend,
    catalog: &Catalog,
    nodes: &NodeReader,
    id: RepositoryId,
) -> Result<Vec<StoredDocument>> {
    for pack in catalog.expected_packs()? {
        // Absent, it may be on its way from another process: nothing is concluded.
        if let Some(size) = backend.size(&pack.to_string()).await?
            && let Some(record) = found_record(backend, pack, size).await?
        {
            catalog.import_pack(&record)?;
        }
    }
    let listed = backend.list(names::SNAPSHOTS).await?;
    adopt_snapshots(backend, catalog, nodes, Sight::Later, id, listed).await
}

/// Whether this catalog owned the repository when it last looked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    First,
    Later,
}

async fn adopt_snapshots(
    backend: &Backend,
    catalog: &Catalog,
    nodes: &NodeReader,
    sight: Sight,
    id: RepositoryId,
    listed: Vec<(String, u64)>,
) -> Result<Vec<StoredDocument>> {
    let mut unreadable = Vec::new();
    for (name, _) in listed {
        let Some(ObjectName::Snapshot(snapshot)) = ObjectName::parse(&name) else { continue };
        if catalog.has_snapshot(snapshot)? || catalog.is_forgotten(snapshot)? {
            continue;
        }
        let bytes = match backend.get(&name).await {
            // Its owner may have dropped it since it was listed. Nothing is concluded from the listing alone.
            Err(Error::Missing { .. }) if backend.size(&name).await?.is_none() => continue,
            other => other?,
        };
        let body = match Snapshot::peek(&snapshot, &id, &bytes) {
            Ok(body) => body,
            // One damaged document must not keep anyone from all the others.
            Err(error) if error.is_damage() => {
                unreadable.push(StoredDocument { name, bytes });
                continue;
            }
            Err(error) => return Err(error),
        };
        let roots: Vec<Root> = body.roots().copied().collect();
        let (vm, time_ms) = (body.vm.as_str(), body.time.as_milliseconds());
        let record = SnapshotRecord { snapshot, vm, time_ms, document: &bytes, roots: &roots };
        match catalog.session_state(body.session)? {
            // Proven before its object was stored; its writer may be dead or about to say the same, or this catalog is an old copy and it was
            // acknowledged long ago. If it is not whole it may have been damaged since, or its writer was shut out and nobody ever knew of
            // it: that cannot be told, so it is kept, and whoever looks at it decides.
            Some(SessionState::Committing) => {
                catalog.commit_session(body.session, &record, &[])?;
            }
            Some(SessionState::Committed) => catalog.import_snapshot(&record)?,
            // A session is about to commit before its snapshot is stored. So this catalog is an old copy.
            Some(SessionState::Open) if sight == Sight::Later => {
                tracing::warn!(
                    "{name} was stored with a later state of this catalog; bringing it up to date"
                );
                catalog.set_outdated(catalog.records()?)?;
            }
            Some(SessionState::Open) => {
                import_packs(backend, catalog).await?;
                catalog.import_snapshot(&record)?;
            }
            Some(state) => tracing::warn!("{name} is left alone: its session is {}", state.name()),
            // Another owner's: its packs may be as unknown as it was.
            None => {
                import_packs(backend, catalog).await?;
                match sight {
                    // Stored after this catalog took over, by somebody who had not noticed yet: what it needs may be gone. Or
                    // this catalog is an old copy, and it was damaged since: nobody can tell, and it is kept.
                    Sight::Later if !is_whole(catalog, nodes, &roots).await? => {
                        tracing::warn!("{name} is not known, nor whole; bringing the catalog up to date");
                        catalog.set_outdated(catalog.records()?)?;
                    }
                    _ => catalog.import_snapshot(&record)?,
                }
            }
        }
    }
    Ok(unreadable)
}

/// Whether everything below these roots is stored.
async fn is_whole(catalog: &Catalog, nodes: &NodeReader, roots: &[Root]) -> Result<bool> {
    let mut marks = Marks::default();
    roots.iter().filter_map(|root| root.node).for_each(|node| marks.hold(&Held::Tree(node)));
    match marks.walk(nodes, &Silent).await {
        Err(error) if error.is_damage() => return Ok(false),
        walked => walked?,
    }
    Ok(catalog.survey(&marks)?.live_entries == marks.nodes() + marks.chunks())
}

/// A pack that was listed, unless it has been deleted since.
async fn found_record(backend: &Backend, pack: PackId, size: u64) -> Result<Option<PackRecord>> {
    match read_record(backend, pack, size).await {
        Err(Error::Missing { .. }) if !backend.exists(&pack.to_string()).await? => Ok(None),
        record => record.map(Some),
    }
}

/// What a pack holds: by its trailer, or by its frames if the trailer is damaged.
async fn read_record(backend: &Backend, pack: PackId, size: u64) -> Result<PackRecord> {
    let entries = match read_trailer(backend, pack, size).await {
        Err(error @ (Error::Damaged { .. } | Error::Version { .. })) => {
            let bytes = backend.get(&pack.to_string()).await?;
            // A newer build's, or one in which a bit of the version flipped.
            if matches!(error, Error::Version { .. }) && pack::name_of(&bytes) == pack.name {
                return Err(error);
            }
            tracing::warn!("{error}; reading its frames instead");
            walk(&pack, &bytes)
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

pub(super) async fn read_trailer(backend: &Backend, pack: PackId, size: u64) -> Result<Vec<Entry>> {
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
