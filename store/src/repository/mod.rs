//! The repository itself: one bucket or directory, its catalog, and the promise of every commit.

mod authority;
mod claims;
mod collect;
mod damage;
mod deletions;

mod forward;
mod nodes;
mod overview;
mod owner;
mod packs;
mod rebuild;
mod retired;
mod strict;
mod sync;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::authority::StoredDocument;
use crate::backend::Backend;
use crate::catalog::{self, Catalog};
use crate::id::{RepositoryId, SlotId};
use crate::names;
use crate::snapshot::{Descriptor, Timestamp};
use crate::{Error, Result};

pub(crate) use nodes::{NodeReader, Whose};
pub use owner::Access;
pub use rebuild::RebuildReport;

/// Tells the time, in milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// One repository, embedded in this process. Talk to it through [`crate::authority::Authority`].
pub struct Repository {
    id: RepositoryId,
    backend: Backend,
    catalog: Arc<Catalog>,
    nodes: nodes::NodeReader,
    access: Access,
    ownership: owner::Ownership,
    clock: Clock,
    /// Documents below `snapshots/` that cannot be read: listed, so that whoever verifies them sees it.
    unreadable: Vec<StoredDocument>,
    /// Held open: while it is, nobody puts another catalog in the place of this one.
    _users: Option<File>,
    /// What is wrong with the catalog, if it is so damaged that the repository is read without it.
    lost_catalog: Option<String>,
}

impl Repository {
    /// Makes a new repository of these documents: the descriptor and any key slots.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; what the backend reports.
    pub async fn init(backend: &Backend, descriptor: Bytes, slots: Vec<(SlotId, Bytes)>) -> Result<()> {
        if backend.size(names::DESCRIPTOR).await?.is_some() {
            return Err(Error::AlreadyExists { location: backend.location().to_owned() });
        }
        if let lost @ Error::Missing { .. } = lost_descriptor(backend).await? {
            return Err(lost);
        }
        for (slot, document) in slots {
            backend.put(&names::slot(&slot), document).await?;
        }
        // Last, so that a repository whose keys were not stored is never mistaken for one.
        backend.put(names::DESCRIPTOR, descriptor).await
    }

    /// Opens an existing repository. `state` is the folder for catalogs of repositories that are not local directories.
    ///
    /// # Errors
    /// [`Error::NoRepository`]; [`Error::OwnedElsewhere`] for [`Access::Write`]; a damaged descriptor; backend and catalog errors.
    pub async fn open(backend: Backend, state: &Path, access: Access) -> Result<Self> {
        let descriptor = match backend.get(names::DESCRIPTOR).await {
            Err(Error::Missing { .. }) => {
                return Err(lost_descriptor(&backend).await?);
            }
            other => other?,
        };
        let descriptor = Descriptor::peek(&descriptor)?;
        let id = descriptor.repository;
        let path = catalog_path(&backend, state, id);
        rebuild::is_not_anothers(&path, &descriptor)?;
        let opened = async {
            let users = sync::join_users(&path)?;
            Ok((sync::open_catalog(&path, state, id, &backend).await?, Some(users)))
        };
        let (catalog, users, lost_catalog) = match opened.await {
            Ok((catalog, users)) => (catalog, users, None),
            // Whoever only reads needs no catalog that can be written, or is sound.
            Err(error @ (Error::File { .. } | Error::Catalog { .. })) if access == Access::Read => {
                tracing::warn!("{error}; reading the repository without it, which takes longer");
                let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
                let what = format!("{error}{}", source.unwrap_or_default());
                let lost = catalog::is_damaged(&error).then_some(what);
                (sync::temporary_catalog(id, &backend).await?, None, lost)
            }
            Err(error) => return Err(error),
        };
        let clock = Arc::new(|| Timestamp::now().as_milliseconds());
        let repository = Self::open_on(backend, catalog, id, clock, access).await?;
        Ok(Self { _users: users, lost_catalog, ..repository })
    }

    /// Opens repository `id` on a catalog that the caller has opened, with the caller's clock.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub async fn open_with(
        backend: Backend,
        catalog: Catalog,
        id: RepositoryId,
        clock: Clock,
        access: Access,
    ) -> Result<Self> {
        Self::open_on(backend, Arc::new(catalog), id, clock, access).await
    }

    async fn open_on(
        backend: Backend,
        catalog: Arc<Catalog>,
        id: RepositoryId,
        clock: Clock,
        access: Access,
    ) -> Result<Self> {
        let nodes = nodes::NodeReader::new(backend.clone(), Arc::clone(&catalog));
        let (ownership, unreadable) = loop {
            deletions::is_this_the_newest(&backend, &catalog).await?;
            let ownership = owner::Ownership::settle(&backend, id, &catalog, access).await?;
            // Whoever took the repository over and was killed right after has the claim, and knows nothing yet of what others did before.
            // If the claim cannot be read it may be this host's: nothing is concluded from what is not listed.
            let caught_up = catalog.caught_up()?;
            let ours = caught_up > 0 && (caught_up == ownership.generation() || ownership.is_unknown());
            if !ours {
                let owned = ownership.generation();
                break (ownership, sync::import(&backend, &catalog, &nodes, id, owned).await?);
            }
            let unreadable = sync::adopt(&backend, &catalog, &nodes, id).await?;
            // What is in the bucket may tell that the catalog is an old copy.
            if catalog.caught_up()? == caught_up {
                break (ownership, unreadable);
            }
        };
        let (_users, lost_catalog) = (None, None);
        let repository =
            Self { id, backend, catalog, nodes, access, ownership, clock, unreadable, _users, lost_catalog };
        if access != Access::Read {
            // Whoever was killed while it forgot had decided.
            for snapshot in repository.catalog.forgotten_objects()? {
                repository.delete_forgotten(snapshot).await?;
            }
        }
        Ok(repository)
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.id
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({} at {})", self.id, self.backend.location())
    }
}

/// What a place without a descriptor is: a repository that lost it, if it holds what only a repository does.
async fn lost_descriptor(backend: &Backend) -> Result<Error> {
    for folder in [names::CLAIMS, names::SNAPSHOTS, names::PACKS, names::NODES] {
        if !backend.list(folder).await?.is_empty() {
            return Ok(Error::Missing { object: names::DESCRIPTOR.to_owned() });
        }
    }
    Ok(Error::NoRepository { location: backend.location().to_owned() })
}

/// A directory keeps its catalog inside, so that it can be moved; a bucket's lies with this host's state.
fn catalog_path(backend: &Backend, state: &Path, id: RepositoryId) -> PathBuf {
    match backend.directory() {
        Some(directory) => directory.join("catalog").join("catalog.sqlite"),
        None => state.join("catalogs").join(format!("{id}.sqlite")),
    }
}

/// Runs catalog work, which blocks, where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}
