//! Counts requests and bytes, by folder.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Requests made and bytes moved. Failed requests count too; their bytes do not arrive, so only those of puts are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Objects written.
    pub puts: u64,
    /// Bytes sent by puts.
    pub put_bytes: u64,
    /// Reads of an object or of a range of one.
    pub gets: u64,
    /// Bytes answered to gets.
    pub get_bytes: u64,
    /// Questions for an object's existence or length.
    pub heads: u64,
    /// Listings.
    pub lists: u64,
    /// Objects named in listings.
    pub listed: u64,
    /// Deletions.
    pub deletes: u64,
}

impl Traffic {
    /// Requests of every kind. A long listing counts as one.
    pub fn requests(&self) -> u64 {
        self.puts + self.gets + self.heads + self.lists + self.deletes
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.puts += other.puts;
        self.put_bytes += other.put_bytes;
        self.gets += other.gets;
        self.get_bytes += other.get_bytes;
        self.heads += other.heads;
        self.lists += other.lists;
        self.listed += other.listed;
        self.deletes += other.deletes;
    }
}

/// What passed through a backend made by [`super::Backend::with_recording`].
#[derive(Debug, Default)]
pub struct Recording {
    folders: Mutex<BTreeMap<String, Traffic>>,
}

impl Recording {
    /// All traffic so far.
    pub fn total(&self) -> Traffic {
        let mut total = Traffic::default();
        self.lock().values().for_each(|traffic| total += *traffic);
        total
    }

    /// Traffic on objects in the top folder `folder`, such as `packs`. The empty string stands for objects in no folder.
    pub fn folder(&self, folder: &str) -> Traffic {
        self.lock().get(folder).copied().unwrap_or_default()
    }

    /// Traffic by top folder.
    pub fn folders(&self) -> BTreeMap<String, Traffic> {
        self.lock().clone()
    }

    /// Returns all traffic by top folder and starts anew from zero.
    pub fn take(&self) -> BTreeMap<String, Traffic> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Traffic>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, path: &Path, traffic: Traffic) {
        let folder = path.as_ref().split_once('/').map_or("", |(folder, _)| folder);
        *self.lock().entry(folder.to_owned()).or_default() += traffic;
    }

    fn count_list(&self, prefix: Option<&Path>, traffic: Traffic) {
        let folder = prefix.and_then(|p| p.as_ref().split('/').next()).unwrap_or_default();
        *self.lock().entry(folder.to_owned()).or_default() += traffic;
    }
}

/// A store that counts. Ranges are asked for one request each, as S3 does it.
#[derive(Debug)]
pub(super) struct RecordingStore {
    store: Arc<dyn ObjectStore>,
    recording: Arc<Recording>,
}

impl RecordingStore {
    pub(super) fn new(store: Arc<dyn ObjectStore>, recording: Arc<Recording>) -> Self {
        Self { store, recording }
    }
}

impl fmt::Display for RecordingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "recorded {}", self.store)
    }
}

#[async_trait]
impl ObjectStore for RecordingStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let put_bytes = payload.content_length() as u64;
        self.recording.count(path, Traffic { puts: 1, put_bytes, ..Traffic::default() });
        self.store.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            self.recording.count(path, Traffic { heads: 1, ..Traffic::default() });
            return self.store.get_opts(path, options).await;
        }
        self.recording.count(path, Traffic { gets: 1, ..Traffic::default() });
        let answer = self.store.get_opts(path, options).await?;
        let get_bytes = answer.range.end - answer.range.start;
        self.recording.count(path, Traffic { get_bytes, ..Traffic::default() });
        Ok(answer)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let recording = self.recording.clone();
        let counted = paths.inspect(move |path| {
            if let Ok(path) = path {
                recording.count(path, Traffic { deletes: 1, ..Traffic::default() });
            }
        });
        self.store.delete_stream(counted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.recording.count_list(prefix, Traffic { lists: 1, ..Traffic::default() });
        let recording = self.recording.clone();
        let prefix = prefix.cloned();
        let listing = self.store.list(prefix.as_ref());
        let counted = listing.inspect(move |found| {
            if found.is_ok() {
                recording.count_list(prefix.as_ref(), Traffic { listed: 1, ..Traffic::default() });
            }
        });
        counted.boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.recording.count_list(prefix, Traffic { lists: 1, ..Traffic::default() });
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.recording.count(to, Traffic { puts: 1, ..Traffic::default() });
        self.store.copy_opts(from, to, options).await
    }
}
