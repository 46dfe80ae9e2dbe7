//! The repository itself: one bucket or directory, its catalog, and the promise of every commit.

mod authority;
mod collect;
mod deletions;
mod nodes;
mod owner;
mod sync;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::authority::StoredDocument;
use crate::backend::Backend;
use crate::catalog::Catalog;
use crate::id::{RepositoryId, SlotId};
use crate::names;
use crate::snapshot::{Descriptor, Timestamp};
use crate::{Error, Result};

pub(crate) use nodes::NodeReader;
pub use owner::Access;

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
                return Err(Error::NoRepository { location: backend.location().to_owned() });
            }
            other => other?,
        };
        let id = Descriptor::peek(&descriptor)?.repository;
        let path = catalog_path(&backend, state, id);
        let catalog = match sync::open_catalog(&path, state, id, &backend).await {
            // Whoever only reads needs no catalog that can be written, or is sound.
            Err(error @ (Error::File { .. } | Error::Catalog { .. })) if access == Access::Read => {
                tracing::warn!("{error}; reading the repository without it, which takes longer");
                sync::temporary_catalog(id, &backend).await?
            }
            other => other?,
        };
        let clock = Arc::new(|| Timestamp::now().as_milliseconds());
        Self::open_on(backend, catalog, id, clock, access).await
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
        let ownership = owner::Ownership::settle(&backend, id, catalog.owner(), access).await?;
        let nodes = nodes::NodeReader::new(backend.clone(), Arc::clone(&catalog));
        // Whoever took the repository over and was killed right after has the claim, and knows nothing yet of what others did before.
        let ours = ownership.generation() > 0 && catalog.caught_up()? == ownership.generation();
        let unreadable = match ours {
            true => sync::adopt(&backend, &catalog, &nodes, id).await?,
            false => sync::import(&backend, &catalog, &nodes, id, ownership.generation()).await?,
        };
        let repository = Self { id, backend, catalog, nodes, access, ownership, clock, unreadable };
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
