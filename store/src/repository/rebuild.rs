//! What a repository is opened with, made anew: its catalog, and its descriptor from the copy that a host keeps.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::{NodeReader, Repository, catalog_path, owner, sync};
use crate::authority::StoredDocument;
use crate::backend::Backend;
use crate::catalog::Catalog;
use crate::id::{RepositoryId, SnapshotId};
use crate::names;
use crate::pack::PackKind;
use crate::snapshot::{Descriptor, Timestamp};
use crate::{Error, Result};

/// What a catalog built anew says, and where it differs from the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RebuildReport {
    /// Packs in the bucket.
    pub packs: u64,
    /// Snapshots in the bucket.
    pub snapshots: u64,
    /// Packs that the old catalog did not know.
    pub unindexed: u64,
    /// Packs that only the old catalog knew.
    pub missing: u64,
    /// Places of which the old catalog said something else; `None` if it could not be compared.
    pub differing: Option<u64>,
    /// Snapshots that the old catalog did not know.
    pub new_snapshots: u64,
    /// Snapshots that only the old catalog held: their documents were put back into the bucket.
    pub put_back: Vec<SnapshotId>,
    /// Documents below `snapshots/` that cannot be read.
    pub unreadable: Vec<String>,
    /// What is wrong with the old catalog's file, or why it cannot be read.
    pub faults: Vec<String>,
    /// Where the old catalog is kept.
    pub kept: Option<PathBuf>,
}

impl Repository {
    /// Builds the catalog anew from the bucket alone, and puts it in the place of the old one, which is kept. Snapshots that only the old one
    /// holds and `verifies` believes are put back into the bucket first.
    ///
    /// # Errors
    /// [`Error::InUse`] while another process uses the catalog; [`Error::OwnedElsewhere`]; as [`Repository::open`].
    pub async fn rebuild_catalog(
        backend: &Backend,
        state: &Path,
        dry_run: bool,
        verifies: &(dyn Fn(&SnapshotId, &[u8]) -> bool + Sync),
    ) -> Result<RebuildReport> {
        let id = Descriptor::peek(&backend.get(names::DESCRIPTOR).await?)?.repository;
        let path = catalog_path(backend, state, id);
        let _alone = if dry_run { None } else { Some(sync::exclude_users(&path)?) };
        let mut report = RebuildReport::default();
        let old = old_catalog(&path, id, &mut report);
        let remembered = match sync::remembered_owner(state, id)? {
            Some(owner) => Some(owner),
            None => old.as_ref().map(Catalog::owner),
        };
        let claim = owner::current(backend, &id).await?;
        if let Some(claim) = claim.as_ref().filter(|claim| remembered != Some(claim.owner)) {
            return Err(owner::elsewhere(claim));
        }
        // What a catalog of before the newest claim holds, another owner may have dropped.
        let newest = claim.map_or(0, |claim| claim.generation);
        if let Some(old) = old.as_ref().filter(|old| old.caught_up().is_ok_and(|known| known == newest)) {
            put_back(backend, old, dry_run, verifies, &mut report).await?;
        }
        let building = path.with_extension("building");
        let mut new = match dry_run {
            true => Catalog::in_memory(id)?,
            false => {
                sync::remove_database(&building)?;
                Catalog::open(&building, id)?
            }
        };
        if let Some(owner) = remembered {
            new.set_owner(owner)?;
        }
        let new = Arc::new(new);
        let nodes = NodeReader::new(backend.clone(), Arc::clone(&new));
        let unreadable = sync::import(backend, &new, &nodes, id, 0).await?;
        drop(nodes);
        compare(&new, old.as_ref(), &path, &mut report)?;
        report.unreadable = unreadable.into_iter().map(|StoredDocument { name, .. }| name).collect();
        drop((old, new));
        if !dry_run {
            report.kept = swap(&building, &path)?;
        }
        Ok(report)
    }

    /// The copy of `underlay.json` that this host keeps of a repository.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn kept_descriptor(backend: &Backend, state: &Path, id: RepositoryId) -> Result<Option<Bytes>> {
        let path = descriptor_path(&catalog_path(backend, state, id));
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { path, action: "read", source }),
        }
    }

    /// Keeps a copy of `underlay.json` beside the catalog. The caller has verified it. Does nothing where that cannot be.
    pub fn keep_descriptor(backend: &Backend, state: &Path, id: RepositoryId, descriptor: &Bytes) {
        let path = descriptor_path(&catalog_path(backend, state, id));
        if fs::read(&path).is_ok_and(|kept| kept == *descriptor) {
            return;
        }
        if let Err(error) = sync::write_whole(&path, descriptor) {
            tracing::debug!("no copy of underlay.json is kept: {error}");
        }
    }

    /// Puts a descriptor in the place of a damaged or missing one. The caller has verified it.
    ///
    /// # Errors
    /// What the backend reports.
    pub async fn put_descriptor(backend: &Backend, descriptor: Bytes) -> Result<()> {
        backend.replace(names::DESCRIPTOR, descriptor).await
    }
}

/// Where the copy of a repository's descriptor lies.
fn descriptor_path(catalog: &Path) -> PathBuf {
    catalog.with_extension("underlay.json")
}

/// Refuses the descriptor of another repository in the place of this one's.
pub(super) fn is_not_anothers(catalog: &Path, descriptor: &Descriptor) -> Result<()> {
    let path = descriptor_path(catalog);
    let kept = fs::read(&path).ok().and_then(|kept| Descriptor::peek(&kept).ok());
    match kept {
        Some(kept) if kept.repository != descriptor.repository => {
            let (found, kept) = (descriptor.repository, kept.repository);
            let what =
                format!("it is of repository {found}; the one kept in {} is of {kept}", path.display());
            Err(Error::damaged(names::DESCRIPTOR, what))
        }
        _ => Ok(()),
    }
}

/// The old catalog, if it can be read at all.
fn old_catalog(path: &Path, id: RepositoryId, report: &mut RebuildReport) -> Option<Catalog> {
    if !path.exists() {
        report.faults.push("there is none".to_owned());
        return None;
    }
    let opened = Catalog::open(path, id).and_then(|old| Ok((old.faults()?, old)));
    match opened {
        Ok((faults, old)) => {
            report.faults = faults;
            Some(old)
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            report.faults.push(format!("{error}{}", source.unwrap_or_default()));
            None
        }
    }
}

/// Snapshots that the bucket lost. What cannot be read of a damaged catalog cannot be put back.
async fn put_back(
    backend: &Backend,
    old: &Catalog,
    dry_run: bool,
    verifies: &(dyn Fn(&SnapshotId, &[u8]) -> bool + Sync),
    report: &mut RebuildReport,
) -> Result<()> {
    for (snapshot, document) in old.snapshots().unwrap_or_default() {
        let name = names::snapshot(&snapshot);
        let lost = match backend.get(&name).await {
            Ok(bytes) => bytes != document && !verifies(&snapshot, &bytes),
            Err(error) if error.is_damage() => true,
            Err(error) => return Err(error),
        };
        if lost && verifies(&snapshot, &document) {
            if !dry_run {
                backend.replace(&name, Bytes::from(document)).await?;
            }
            report.put_back.push(snapshot);
        }
    }
    Ok(())
}

fn compare(new: &Catalog, old: Option<&Catalog>, path: &Path, report: &mut RebuildReport) -> Result<()> {
    let names = |catalog: &Catalog| -> Result<HashMap<_, _>> {
        let data = catalog.packs(PackKind::Data)?;
        let nodes = catalog.packs(PackKind::Nodes)?;
        Ok(data.into_iter().chain(nodes).map(|pack| (pack.name, pack.size)).collect())
    };
    let snapshots = |catalog: &Catalog| -> Result<BTreeSet<SnapshotId>> {
        Ok(catalog.snapshots()?.into_iter().map(|(snapshot, _)| snapshot).collect())
    };
    let (packs, listed) = (names(new)?, snapshots(new)?);
    report.packs = packs.len() as u64;
    report.snapshots = listed.len() as u64;
    let Some(old) = old else { return Ok(()) };
    let known = names(old).and_then(|packs| Ok((packs, snapshots(old)?)));
    let Ok((old_packs, old_snapshots)) = known else { return Ok(()) };
    report.unindexed = packs.keys().filter(|name| !old_packs.contains_key(name)).count() as u64;
    report.missing = old_packs.keys().filter(|name| !packs.contains_key(name)).count() as u64;
    report.new_snapshots = listed.difference(&old_snapshots).count() as u64;
    report.differing = new.places_unlike(path).ok();
    Ok(())
}

/// Puts the new catalog in the place of the old one. Where the old one is kept.
fn swap(building: &Path, path: &Path) -> Result<Option<PathBuf>> {
    let file = |action| move |source| Error::File { path: path.to_owned(), action, source };
    let moment = Timestamp::now().to_string().replace(':', "-");
    let kept = sync::beside(path, &format!(".old-{moment}"));
    let there = path.try_exists().map_err(file("look for"))?;
    // Its log first: without its database it is of no use to anyone.
    for ending in ["-wal", "-shm", ""] {
        let from = sync::beside(path, ending);
        match fs::rename(&from, sync::beside(&kept, ending)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(file("keep"))?,
        }
    }
    fs::rename(building, path).map_err(file("put in place"))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file("put in place"))?;
    Ok(there.then_some(kept))
}
