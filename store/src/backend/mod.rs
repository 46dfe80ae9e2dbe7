//! Where objects lie: an S3 bucket or a directory. The only room that names `object_store`.
//!
//! Objects are written once. A [`Backend`] never answers with part of what was asked for: a short or failed answer is an
//! error, and so is a short or failed listing.

mod direct;
mod fault;
mod open;
mod probe;
mod recording;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

pub use self::direct::SignedRequest;
use self::direct::Signer;
pub use self::fault::{Fault, Faults, Operation, Rule};
pub use self::open::Options;
use self::open::Root;
pub use self::probe::{ConditionalPut, Honours};
pub use self::recording::{Recording, Traffic};
use crate::error::{Error, Result, Source};

/// A place that holds objects by name. Cheap to clone; clones share connections.
///
/// Names are relative to the repository: `packs/5f/5f3a…`. Every error names the object.
#[derive(Clone)]
pub struct Backend {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    location: String,
    /// The directory, if this is one.
    root: Option<Arc<Root>>,
    /// Answers `If-None-Match` by ignoring or refusing it, and repeats a write only if it may replace.
    remote: bool,
    /// Signs requests that others make, if this is a bucket.
    signer: Option<Arc<Signer>>,
}

/// The source of the error of [`Backend::put`] when the name is taken by other content.
#[derive(Debug, thiserror::Error)]
#[error("another object with this name is already there")]
pub struct NameTaken;

impl Backend {
    /// Stores an object; durable when this returns. Repeating it is safe.
    ///
    /// # Errors
    /// [`Error::Backend`]; its source is [`NameTaken`] if the object exists with other content. Servers without
    /// conditional PUT may miss a racing writer: never build a lock on this.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        let path = path(name)?;
        self.check_root("write", name)?;
        if self.inner.remote {
            return self.put_remote(name, &path, &bytes).await;
        }
        match self.write(&path, &bytes, PutMode::Create).await {
            Ok(()) => Ok(()),
            Err(StoreError::AlreadyExists { .. }) => self.confirm(name, &bytes).await,
            Err(error) => Err(failed("write", name, error)),
        }
    }

    /// Stores an object in the place of a damaged one of this name, in one step; durable when this returns.
    ///
    /// # Errors
    /// [`Error::Backend`].
    pub async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        let path = path(name)?;
        self.check_root("write", name)?;
        self.write(&path, &bytes, PutMode::Overwrite).await.map_err(|error| failed("write", name, error))
    }

    /// Servers honour, ignore or refuse a conditional PUT, and a conditional one is not repeated after a timeout.
    async fn put_remote(&self, name: &str, path: &Path, bytes: &Bytes) -> Result<()> {
        if is_content_named(name) {
            // At worst it replaces equal bytes with themselves.
            return self.write(path, bytes, PutMode::Overwrite).await.map_err(|e| failed("write", name, e));
        }
        if self.exists(name).await? {
            return self.confirm(name, bytes).await;
        }
        let written = match self.write(path, bytes, PutMode::Create).await {
            Err(error) if is_unsupported(&error) => self.write(path, bytes, PutMode::Overwrite).await,
            written => written,
        };
        match written {
            Ok(()) => Ok(()),
            Err(StoreError::AlreadyExists { .. }) => self.confirm(name, bytes).await,
            Err(error) => Err(failed("write", name, error)),
        }
    }

    async fn write(&self, path: &Path, bytes: &Bytes, mode: PutMode) -> Result<(), StoreError> {
        let payload = PutPayload::from_bytes(bytes.clone());
        self.inner.store.put_opts(path, payload, mode.into()).await.map(drop)
    }

    /// The object exists: fine if it is this one, as after a lost answer.
    async fn confirm(&self, name: &str, bytes: &Bytes) -> Result<()> {
        if self.size(name).await? == Some(bytes.len() as u64) && self.get(name).await? == bytes {
            return Ok(());
        }
        Err(report("write", name, Box::new(NameTaken)))
    }

    /// The whole object.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such object; [`Error::Backend`] otherwise, also for a short answer.
    pub async fn get(&self, name: &str) -> Result<Bytes> {
        let path = path(name)?;
        let fetched = async {
            let answer = self.inner.store.get(&path).await?;
            let size = answer.meta.size;
            Ok((size, answer.bytes().await?))
        };
        let (size, bytes) = fetched.await.map_err(|e| self.read_failed(name, e))?;
        if bytes.len() as u64 != size {
            return Err(short(name, bytes.len() as u64, size));
        }
        Ok(bytes)
    }

    /// Bytes `range` of the object, all of them. An empty range costs no request.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Damaged`] if the object ends before the range does; [`Error::Backend`] otherwise,
    /// also for a short answer.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.end - range.start;
        let error = match self.inner.store.get_range(&path(name)?, range.clone()).await {
            Ok(bytes) if bytes.len() as u64 == wanted => return Ok(bytes),
            Ok(bytes) => short(name, bytes.len() as u64, wanted),
            Err(error) => self.read_failed(name, error),
        };
        // Stores report an end too early in different ways, so the reason is looked up.
        match self.size(name).await {
            Ok(Some(size)) if size < range.end => Err(Error::damaged(
                name,
                format!("it is {size} bytes long; bytes {} to {} were asked for", range.start, range.end),
            )),
            _ => Err(error),
        }
    }

    /// Length of the object in bytes; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Backend`].
    pub async fn size(&self, name: &str) -> Result<Option<u64>> {
        match self.inner.store.head(&path(name)?).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(StoreError::NotFound { .. }) => self.check_root("read", name).map(|()| None),
            Err(error) => Err(failed("read", name, error)),
        }
    }

    /// Whether the object is there.
    ///
    /// # Errors
    /// [`Error::Backend`].
    pub async fn exists(&self, name: &str) -> Result<bool> {
        Ok(self.size(name).await?.is_some())
    }

    /// Names and lengths in bytes of all objects below the folder `prefix` (empty: everywhere), sorted by name.
    ///
    /// # Errors
    /// [`Error::Backend`] if any part of the listing failed; there is no partial answer.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        let prefix = prefix.trim_end_matches('/');
        let folder = path(prefix)?;
        let folder = (!prefix.is_empty()).then_some(&folder);
        let shown = if prefix.is_empty() { "objects" } else { prefix };
        self.check_root("list", shown)?;
        let mut objects: Vec<(String, u64)> = (self.inner.store.list(folder))
            .map_ok(|meta| (String::from(meta.location), meta.size))
            .try_collect()
            .await
            .map_err(|e| failed("list", shown, e))?;
        // A directory that went away while it was listed looks empty.
        self.check_root("list", shown)?;
        objects.sort_unstable();
        Ok(objects)
    }

    /// Removes an object; one that is not there counts as removed.
    ///
    /// # Errors
    /// [`Error::Backend`].
    pub async fn delete(&self, name: &str) -> Result<()> {
        match self.inner.store.delete(&path(name)?).await {
            Ok(()) => Ok(()),
            Err(StoreError::NotFound { .. }) => self.check_root("delete", name),
            Err(error) => Err(failed("delete", name, error)),
        }
    }

    /// The URL or path as the user gave it.
    pub fn location(&self) -> &str {
        &self.inner.location
    }

    /// The directory, if objects are files.
    pub fn directory(&self) -> Option<&FilePath> {
        self.inner.root.as_deref().map(Root::path)
    }

    /// This backend, counting what passes through it.
    pub fn with_recording(&self) -> (Self, Arc<Recording>) {
        let recording = Arc::new(Recording::default());
        let store = recording::RecordingStore::new(self.inner.store.clone(), recording.clone());
        (self.wrapped(Arc::new(store)), recording)
    }

    /// This backend, failing as `faults` say. Clones made before stay sound: that is the disk that survives the crash.
    pub fn with_faults(&self, faults: Arc<Faults>) -> Self {
        self.wrapped(Arc::new(fault::FaultStore::new(self.inner.store.clone(), faults)))
    }

    fn wrapped(&self, store: Arc<dyn ObjectStore>) -> Self {
        let Inner { location, root, remote, signer, .. } = &*self.inner;
        let (location, root, signer) = (location.clone(), root.clone(), signer.clone());
        let inner = Inner { store, location, root, remote: *remote, signer };
        Self { inner: Arc::new(inner) }
    }

    /// An unmounted disk leaves an empty directory behind, in which everything would seem missing.
    fn check_root(&self, action: &'static str, object: &str) -> Result<()> {
        let Some(root) = &self.inner.root else { return Ok(()) };
        root.check().map_err(|source| report(action, object, Box::new(source)))
    }

    fn read_failed(&self, name: &str, error: StoreError) -> Error {
        match error {
            StoreError::NotFound { .. } => match self.check_root("read", name) {
                Ok(()) => Error::Missing { object: name.to_owned() },
                Err(error) => error,
            },
            other => failed("read", name, other),
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({})", self.inner.location)
    }
}

fn path(name: &str) -> Result<Path> {
    Path::parse(name).map_err(|error| Error::Invalid {
        what: "object name",
        value: name.to_owned(),
        rule: error.to_string(),
    })
}

/// Whether the name is a hash of the content, so that equal names mean equal bytes.
fn is_content_named(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default();
    file.len() == 64 && file.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Some servers refuse conditional writes, most ignore them.
fn is_unsupported(error: &StoreError) -> bool {
    match error {
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => true,
        StoreError::Generic { source, .. } => source.to_string().contains("NotImplemented"),
        _ => false,
    }
}

fn failed(action: &'static str, name: &str, error: StoreError) -> Error {
    let source = match error {
        StoreError::Generic { source, .. } => source,
        other => Box::new(other),
    };
    report(action, name, source)
}

fn report(action: &'static str, name: &str, source: Source) -> Error {
    Error::Backend { action, object: name.to_owned(), source }
}

fn short(name: &str, got: u64, wanted: u64) -> Error {
    report("read", name, format!("short answer: {got} of {wanted} bytes").into())
}
