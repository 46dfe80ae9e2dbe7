//! From a location, as a user writes it, to a backend.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};

use super::{Backend, Inner, Signer};
use crate::error::{Error, Result};

/// As `object_store` has it.
const DEFAULT_REGION: &str = "us-east-1";

/// How to open a location.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Create the directory if there is none (mode 0700, parents too). Only `init` does.
    pub create: bool,
}

impl Backend {
    /// Opens `s3://bucket/prefix`, `file:///path` or a path.
    ///
    /// S3 takes credentials, region and endpoint from the `AWS_*` environment variables (`AWS_ENDPOINT_URL` for servers
    /// other than Amazon's) and addresses the bucket in the path unless `AWS_VIRTUAL_HOSTED_STYLE_REQUEST` says otherwise.
    /// No request is made here.
    ///
    /// # Errors
    /// [`Error::Location`] if this is not a location, [`Error::NoRepository`] if there is no such directory,
    /// [`Error::File`] if it cannot be used.
    pub fn open(location: &str, options: Options) -> Result<Self> {
        let wrong =
            |reason: &str| Error::Location { location: location.to_owned(), reason: reason.to_owned() };
        if let Some(rest) = location.strip_prefix("s3://") {
            return Self::bucket(location, rest, AmazonS3Builder::from_env());
        }
        let path = match location.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => path,
            Some(("file", _)) => return Err(wrong("a file URL has three slashes and an absolute path")),
            Some((scheme, _)) => {
                return Err(wrong(&format!("{scheme:?} is neither s3 nor file, and a path has no \"://\"")));
            }
            None if location.is_empty() => return Err(wrong("it is empty")),
            None => location,
        };
        Self::local(location, Path::new(path), options)
    }

    /// Objects in memory, for tests. Clones share them; nothing survives the last clone.
    pub fn memory() -> Self {
        Self::build(Arc::new(InMemory::new()), "memory:", None, false, None)
    }

    /// Objects in a store of the caller's, which is treated as a bucket: for tests. `location` is only shown.
    pub fn on(store: Arc<dyn ObjectStore>, location: &str) -> Self {
        Self::build(store, location, None, true, None)
    }

    fn local(location: &str, path: &Path, options: Options) -> Result<Self> {
        let file_error = |action: &'static str| {
            let path = path.to_owned();
            move |source| Error::File { path, action, source }
        };
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                let reason = "it is a file, not a directory".to_owned();
                return Err(Error::Location { location: location.to_owned(), reason });
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file_error("open")(error)),
            Err(_) if !options.create => return Err(Error::NoRepository { location: location.to_owned() }),
            Err(_) => create_directory(path).map_err(file_error("create"))?,
        }
        let root = Root::new(path).map_err(file_error("open"))?;
        let store = local_store(root.path())
            .map_err(|error| Error::Location { location: location.to_owned(), reason: error.to_string() })?;
        Ok(Self::build(Arc::new(store), location, Some(Arc::new(root)), false, None))
    }

    fn bucket(location: &str, rest: &str, builder: AmazonS3Builder) -> Result<Self> {
        let wrong = |reason: String| Error::Location { location: location.to_owned(), reason };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(wrong("it names no bucket: s3://bucket/prefix".to_owned()));
        }
        if let Some(odd) = rest.chars().find(|c| matches!(c, '?' | '#' | '@' | ' ') || c.is_control()) {
            return Err(wrong(format!("{odd:?} cannot be part of it")));
        }
        let prefix = object_store::path::Path::parse(prefix.trim_end_matches('/'))
            .map_err(|error| wrong(error.to_string()))?;
        let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
        let region = region.unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let s3 = s3_store(builder.with_bucket_name(bucket)).map_err(|error| wrong(error.to_string()))?;
        let signer = Signer { bucket: s3.clone(), region, prefix: prefix.clone() };
        let store: Arc<dyn ObjectStore> =
            if prefix.is_root() { Arc::new(s3) } else { Arc::new(PrefixStore::new(s3, prefix)) };
        Ok(Self::build(store, location, None, true, Some(Arc::new(signer))))
    }

    fn build(
        store: Arc<dyn ObjectStore>,
        location: &str,
        root: Option<Arc<Root>>,
        remote: bool,
        signer: Option<Arc<Signer>>,
    ) -> Self {
        Self { inner: Arc::new(Inner { store, location: location.to_owned(), root, remote, signer }) }
    }
}

/// The only constructor of a directory's store: files and their directories are synced before a write returns.
fn local_store(path: &Path) -> object_store::Result<LocalFileSystem> {
    Ok(LocalFileSystem::new_with_prefix(path)?.with_fsync(true))
}

fn s3_store(mut builder: AmazonS3Builder) -> object_store::Result<AmazonS3> {
    let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(|key| builder.get_config_value(key));
    if endpoint.is_some_and(|url| url.starts_with("http://")) {
        builder = builder.with_allow_http(true);
    }
    let untouched = AmazonS3Builder::new();
    // A whole request: a pack of 64 MiB over a line of 2 Mbit/s. `AWS_TIMEOUT` and `AWS_CONNECT_TIMEOUT` win.
    for (key, value) in [(ClientConfigKey::Timeout, "300 s"), (ClientConfigKey::ConnectTimeout, "10 s")] {
        let key = AmazonS3ConfigKey::Client(key);
        if builder.get_config_value(&key) == untouched.get_config_value(&key) {
            builder = builder.with_config(key, value);
        }
    }
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        max_retries: 8,
        retry_timeout: Duration::from_secs(180),
    };
    // Single deletes: some servers lack the bulk request.
    builder.with_retry(retry).with_disable_bulk_delete(true).build()
}

fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// A repository's directory, recognised again after something was mounted over it or unmounted below it.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Root {
    fn new(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let found = std::fs::metadata(&path)?;
        Ok(Self { device: found.dev(), inode: found.ino(), path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// One `stat`: cheap enough to make on the calling thread.
    pub(super) fn check(&self) -> io::Result<()> {
        let found = std::fs::metadata(&self.path)?;
        if (found.dev(), found.ino()) == (self.device, self.inode) {
            return Ok(());
        }
        Err(io::Error::other(format!("{} is no longer the directory that was opened", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const CREATE: Options = Options { create: true };

    fn refused(location: &str) -> String {
        match Backend::open(location, CREATE) {
            Err(Error::Location { reason, .. }) => reason,
            other => panic!("{location}: {other:?}"),
        }
    }

    #[test]
    fn the_local_store_syncs() {
        let dir = tempfile::tempdir().unwrap();
        let store = local_store(dir.path()).unwrap();
        assert!(format!("{store:?}").contains("fsync: true"), "{store:?}");
    }

    #[test]
    fn a_directory_is_created_only_on_demand_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b/répo");
        let text = path.to_str().unwrap();
        assert!(matches!(Backend::open(text, Options::default()), Err(Error::NoRepository { .. })));
        assert!(!path.exists());
        let backend = Backend::open(text, CREATE).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(backend.location(), text);
        assert_eq!(backend.directory(), Some(path.canonicalize().unwrap().as_path()));
        Backend::open(&format!("file://{text}"), Options::default()).unwrap();
    }

    #[test]
    fn odd_locations_are_refused_with_a_reason() {
        assert!(refused("ftp://host/x").contains("ftp"));
        assert!(refused("file://relative").contains("absolute"));
        assert!(refused("").contains("empty"));
        assert!(refused("s3://").contains("bucket"));
        assert!(refused("s3:///prefix").contains("bucket"));
        assert!(refused("s3://bucket/a//b").contains("empty"));
        assert!(refused("s3://bucket/a?region=x").contains('?'));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(refused(file.path().to_str().unwrap()).contains("file"));
    }

    #[test]
    fn a_bucket_takes_its_endpoint_and_prefix() {
        let builder = AmazonS3Builder::new()
            .with_config("aws_endpoint_url".parse().unwrap(), "http://127.0.0.1:3900")
            .with_config("aws_access_key_id".parse().unwrap(), "key")
            .with_config("aws_secret_access_key".parse().unwrap(), "secret");
        let store = s3_store(builder.clone().with_bucket_name("b")).unwrap();
        let shown = format!("{store:?}");
        assert!(shown.contains("http://127.0.0.1:3900/b"), "path style: {shown}");
        assert!(shown.contains("TotalTimeout: 300s"), "{shown}");
        let hasty = builder.clone().with_config("aws_timeout".parse().unwrap(), "7 s").with_bucket_name("b");
        let shown = format!("{:?}", s3_store(hasty).unwrap());
        assert!(shown.contains("TotalTimeout: 7s"), "{shown}");
        let backend = Backend::bucket("s3://b/vm/daily/", "b/vm/daily/", builder).unwrap();
        assert!(backend.inner.store.to_string().contains("vm/daily"), "{}", backend.inner.store);
        assert_eq!(backend.directory(), None);
    }

    #[tokio::test]
    async fn a_vanished_directory_is_an_error_and_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repo");
        let backend = Backend::open(path.to_str().unwrap(), CREATE).unwrap();
        assert_eq!(backend.list("packs").await.unwrap(), []);
        // Kept, so that its inode is not given to the directory made below.
        std::fs::rename(&path, dir.path().join("aside")).unwrap();
        for _ in 0..2 {
            assert!(matches!(backend.list("packs").await, Err(Error::Backend { action: "list", .. })));
            assert!(matches!(backend.get("underlay.json").await, Err(Error::Backend { .. })));
            assert!(matches!(backend.size("underlay.json").await, Err(Error::Backend { .. })));
            assert!(matches!(backend.put("a", "x".into()).await, Err(Error::Backend { .. })));
            assert!(!path.join("a").exists());
            std::fs::create_dir_all(&path).unwrap();
        }
    }
}
