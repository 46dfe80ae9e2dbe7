//! A store that fails on request: by script, by seed, or all at once as if the machine had lost power.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Writing an object.
    Put,
    /// Reading an object or a range of one.
    Get,
    /// Asking for an object's existence or length.
    Head,
    /// Listing a folder.
    List,
    /// Deleting an object.
    Delete,
}

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and nothing happened.
    Before,
    /// It happened, and the answer was lost. A listing fails after naming everything.
    After,
    /// A put finds the disk full; nothing is stored. Other requests fail likewise.
    NoSpace,
    /// A get answers with at most this many bytes, a listing fails after this many names. Others are not touched.
    Short(u64),
    /// A get answers with this byte's lowest bit flipped (counted from the start of the answer, modulo its length).
    Flip(u64),
    /// It takes this much longer, and works.
    Delay(Duration),
}

/// When a fault strikes: on requests of this kind whose object name contains `name`.
#[derive(Debug, Clone)]
pub struct Rule {
    /// `None`: any.
    pub operation: Option<Operation>,
    /// Part of the object's name (of the folder's, for listings). Empty: any.
    pub name: String,
    /// Matching requests that pass before the first that fails.
    pub skip: u64,
    /// Matching requests that fail after those.
    pub times: u64,
    /// What happens to them.
    pub fault: Fault,
}

impl Rule {
    /// Every request of this kind on names containing `name`.
    pub fn always(operation: Operation, name: &str, fault: Fault) -> Self {
        Self { operation: Some(operation), name: name.to_owned(), skip: 0, times: u64::MAX, fault }
    }

    /// The first request of this kind on names containing `name`.
    pub fn once(operation: Operation, name: &str, fault: Fault) -> Self {
        Self { times: 1, ..Self::always(operation, name, fault) }
    }
}

/// What will go wrong. Shared with the backend made by [`super::Backend::with_faults`]; may change while it works.
#[derive(Debug, Default)]
pub struct Faults {
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    rules: Vec<Rule>,
    chance: Option<Chance>,
    crash: Option<Crash>,
    calls: u64,
}

#[derive(Debug)]
struct Chance {
    seed: u64,
    per_mille: u64,
    /// How often each request was made, so that the outcome does not depend on the order of concurrent ones.
    seen: HashMap<(Operation, String), u64>,
}

#[derive(Debug, Clone, Copy)]
struct Crash {
    at: u64,
    last_lands: bool,
}

impl Faults {
    /// Nothing goes wrong yet.
    pub fn none() -> Arc<Self> {
        Arc::default()
    }

    /// Faults by script. The first rule that applies to a request decides.
    pub fn script(rules: impl IntoIterator<Item = Rule>) -> Arc<Self> {
        let faults = Self::none();
        faults.lock().rules.extend(rules);
        faults
    }

    /// Each request fails with a probability of `per_mille` thousandths, before or after it happened. Which ones depends on
    /// the seed, the request and how often it was made before; not on the order of different requests.
    pub fn seeded(seed: u64, per_mille: u64) -> Arc<Self> {
        let faults = Self::none();
        faults.lock().chance = Some(Chance { seed, per_mille, seen: HashMap::new() });
        faults
    }

    /// Adds a rule after the existing ones.
    pub fn add(&self, rule: Rule) {
        self.lock().rules.push(rule);
    }

    /// Lets `calls` more requests finish and fails every one after, for ever. The first of those takes effect without an
    /// answer if `last_lands`.
    pub fn crash_after(&self, calls: u64, last_lands: bool) {
        let mut plan = self.lock();
        plan.crash = Some(Crash { at: plan.calls + calls, last_lands });
    }

    /// Whether the crash has struck.
    pub fn crashed(&self) -> bool {
        let plan = self.lock();
        plan.crash.is_some_and(|crash| plan.calls > crash.at)
    }

    /// Requests made so far, failed ones too.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// From here on nothing goes wrong.
    pub fn clear(&self) {
        let mut plan = self.lock();
        *plan = Plan { calls: plan.calls, ..Plan::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strike(&self, operation: Operation, name: &str) -> Option<Fault> {
        self.lock().strike(operation, name)
    }
}

impl Plan {
    fn strike(&mut self, operation: Operation, name: &str) -> Option<Fault> {
        let call = self.calls;
        self.calls += 1;
        if let Some(crash) = self.crash
            && call >= crash.at
        {
            let lands = call == crash.at && crash.last_lands;
            return Some(if lands { Fault::After } else { Fault::Before });
        }
        for rule in &mut self.rules {
            if rule.operation.is_some_and(|only| only != operation) || !name.contains(&rule.name) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.times > 0 {
                rule.times -= 1;
                return Some(rule.fault);
            }
        }
        self.chance.as_mut()?.strike(operation, name)
    }
}

impl Chance {
    fn strike(&mut self, operation: Operation, name: &str) -> Option<Fault> {
        let seen = self.seen.entry((operation, name.to_owned())).or_default();
        *seen += 1;
        let mut hasher = DefaultHasher::new();
        (self.seed, operation, name, *seen).hash(&mut hasher);
        let draw = hasher.finish();
        let fault = if draw & (1 << 63) == 0 { Fault::Before } else { Fault::After };
        (draw % 1000 < self.per_mille).then_some(fault)
    }
}

/// The store below, with faults.
#[derive(Debug)]
pub(super) struct FaultStore {
    store: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

impl FaultStore {
    pub(super) fn new(store: Arc<dyn ObjectStore>, faults: Arc<Faults>) -> Self {
        Self { store, faults }
    }

    /// Runs a request whose answer cannot be tampered with.
    async fn run<T>(
        &self,
        operation: Operation,
        name: &str,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.faults.strike(operation, name) {
            None | Some(Fault::Short(_) | Fault::Flip(_)) => request.await,
            Some(Fault::Before) => Err(injected("failed")),
            Some(Fault::NoSpace) => Err(full()),
            Some(Fault::After) => {
                request.await?;
                Err(injected("answer lost"))
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                request.await
            }
        }
    }
}

fn injected(what: &str) -> Error {
    Error::Generic { store: "fault", source: format!("injected fault: {what}").into() }
}

fn full() -> Error {
    Error::Generic { store: "fault", source: Box::new(io::Error::from(io::ErrorKind::StorageFull)) }
}

/// The answer with its body changed and everything said about it unchanged: what a careless reader would believe.
async fn tampered(answer: GetResult, fault: Fault) -> Result<GetResult> {
    let GetResult { meta, range, attributes, extensions, .. } = &answer;
    let (meta, range, attributes, extensions) =
        (meta.clone(), range.clone(), attributes.clone(), extensions.clone());
    let mut bytes = Vec::from(answer.bytes().await?);
    match fault {
        Fault::Short(length) => bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX)),
        Fault::Flip(at) if !bytes.is_empty() => {
            let at = at % bytes.len() as u64;
            bytes[at as usize] ^= 1;
        }
        _ => {}
    }
    let body = futures::stream::once(std::future::ready(Ok(Bytes::from(bytes)))).boxed();
    Ok(GetResult { payload: GetResultPayload::Stream(body), meta, range, attributes, extensions })
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.store)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.run(Operation::Put, path.as_ref(), self.store.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.run(Operation::Put, path.as_ref(), self.store.put_multipart_opts(path, options)).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            return self.run(Operation::Head, path.as_ref(), self.store.get_opts(path, options)).await;
        }
        let fault = self.faults.strike(Operation::Get, path.as_ref());
        match fault {
            None => self.store.get_opts(path, options).await,
            Some(Fault::Before | Fault::After) => Err(injected("failed")),
            Some(Fault::NoSpace) => Err(full()),
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                self.store.get_opts(path, options).await
            }
            Some(fault) => tampered(self.store.get_opts(path, options).await?, fault).await,
        }
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (store, faults) = (self.store.clone(), self.faults.clone());
        let deleted = paths.then(move |path| {
            let one = FaultStore::new(store.clone(), faults.clone());
            async move {
                let path = path?;
                let alone = futures::stream::once(std::future::ready(Ok(path.clone()))).boxed();
                let request = one.store.delete_stream(alone).try_collect::<Vec<_>>();
                one.run(Operation::Delete, path.as_ref(), request).await.map(|_| path)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let names = self.store.list(prefix);
        let failure = |error| futures::stream::once(std::future::ready(Err(error)));
        match self.faults.strike(Operation::List, prefix.map_or("", Path::as_ref)) {
            None | Some(Fault::Flip(_)) => names,
            Some(Fault::Before) => failure(injected("failed")).boxed(),
            Some(Fault::NoSpace) => failure(full()).boxed(),
            Some(Fault::After) => names.chain(failure(injected("listing ended early"))).boxed(),
            Some(Fault::Short(names_told)) => {
                let told = names.take(usize::try_from(names_told).unwrap_or(usize::MAX));
                told.chain(failure(injected("listing ended early"))).boxed()
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).map(move |()| names).flatten_stream().boxed()
            }
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let name = prefix.map_or("", Path::as_ref);
        self.run(Operation::List, name, self.store.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.run(Operation::Put, to.as_ref(), self.store.copy_opts(from, to, options)).await
    }
}
