//! The object store as one process sees it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::bucket::{Answer, Op, Refusal};
use crate::world::World;

pub struct Wire {
    pub world: Arc<World>,
    pub process: usize,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wire({})", self.process)
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

fn failed(name: &str, refusal: Refusal) -> Error {
    let path = name.to_owned();
    match refusal {
        Refusal::Missing => Error::NotFound { path, source: "simulated".into() },
        Refusal::Exists => Error::AlreadyExists { path, source: "simulated".into() },
        Refusal::BeyondTheEnd => Error::Generic { store: "simulated", source: "range beyond the end".into() },
        Refusal::NotImplemented => Error::Generic { store: "simulated", source: "NotImplemented".into() },
        Refusal::Lost(what) => Error::Generic { store: "simulated", source: what.into() },
        Refusal::Full => Error::Generic {
            store: "simulated",
            source: Box::new(std::io::Error::from(std::io::ErrorKind::StorageFull)),
        },
    }
}

fn meta(location: Path, size: u64) -> ObjectMeta {
    ObjectMeta { location, last_modified: Default::default(), size, e_tag: None, version: None }
}

fn unused<T>() -> Result<T> {
    Err(Error::NotImplemented { operation: "simulated".into(), implementer: "simulated".into() })
}

#[async_trait]
impl ObjectStore for Wire {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let name = path.to_string();
        let create = matches!(options.mode, PutMode::Create);
        let op = Op::Put { name: name.clone(), bytes: Bytes::from(payload), create };
        self.world.call(self.process, op).await.map_err(|refusal| failed(&name, refusal))?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        unused()
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let name = path.to_string();
        let range = match options.range {
            Some(GetRange::Bounded(range)) => Some(range),
            None => None,
            Some(_) => return unused(),
        };
        let op = match options.head {
            true => Op::Head { name: name.clone() },
            false => Op::Get { name: name.clone(), range },
        };
        let answer = self.world.call(self.process, op).await.map_err(|refusal| failed(&name, refusal))?;
        let Answer::Object { size, range, bytes } = answer else { return unused() };
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(std::future::ready(Ok(bytes))).boxed()),
            meta: meta(path.clone(), size),
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (world, process) = (Arc::clone(&self.world), self.process);
        let deleted = paths.then(move |path| {
            let world = Arc::clone(&world);
            async move {
                let path = path?;
                let op = Op::Delete { name: path.to_string() };
                match world.call(process, op).await {
                    Ok(_) => Ok(path),
                    Err(refusal) => Err(failed(path.as_ref(), refusal)),
                }
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let folder = prefix.map(Path::to_string).unwrap_or_default();
        let call = self.world.call(self.process, Op::List { folder: folder.clone() });
        let listing = call.map(move |answer| match answer {
            Ok(Answer::Names { names, whole }) => {
                let mut all: Vec<Result<ObjectMeta>> =
                    names.into_iter().map(|(name, size)| Ok(meta(Path::from(name), size))).collect();
                if !whole {
                    all.push(Err(failed(&folder, Refusal::Lost("the listing ended early"))));
                }
                stream::iter(all)
            }
            Ok(_) => stream::iter(vec![unused()]),
            Err(refusal) => stream::iter(vec![Err(failed(&folder, refusal))]),
        });
        listing.flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        unused()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        unused()
    }
}
