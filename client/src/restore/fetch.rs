//! Windows in flight: where their chunks lie, which reads give them, and where to turn when a copy is bad.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};

use futures::future::{join, try_join};
use futures::stream::{self, FuturesUnordered};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Semaphore, oneshot};
use underlay_store::Error;
use underlay_store::catalog::Location;
use underlay_store::id::{ChunkId, PackName, Root};
use underlay_store::key::{DataKey, SealedKey};
use underlay_store::pack::ChunkDecoder;
use underlay_store::progress::Progress;
use underlay_store::restore::{PackRead, Wanted, frame_range, plan_reads};

use super::damage::{Damage, Found};
use super::decode::{Failure, Held, Job, Reply, work};
use super::headers::Headers;
use super::verify::Seen;
use super::walk::{Window, WindowLimits, Windows};
use super::{DiskOutput, Environment, RestoreError, RestoreOptions, RestoreStatistics};

/// Reads of one pack are joined across gaps up to this many bytes: cheaper than another request.
const GAP: u64 = 256 << 10;
/// No joined read is longer, in bytes. Times the reads in flight, this bounds the memory of a restore.
const LONGEST_READ: u64 = 8 << 20;
/// Chunks located by one request.
const LOCATE: usize = 8192;
/// Out of order only the map of a window is in memory, not its data: 1 GiB of disk at 28 KiB a chunk.
const ANY_ORDER: WindowLimits = WindowLimits { leaves: 512, places: 40_960 };
/// In order a window's data waits in memory: 16 MiB each.
const ASCENDING: WindowLimits = WindowLimits { leaves: 8, places: usize::MAX };
/// Windows worked on at once, out of order and in order.
const WINDOWS: (usize, usize) = (2, 4);

/// A window being fetched.
pub(super) struct Fetched {
    pub(super) window: Window,
    /// Chunks wait here if the output takes them only in order.
    pub(super) held: Option<Held>,
}

/// Where the copies of a chunk lie, the one to try first in front.
struct Candidate {
    id: ChunkId,
    locations: Vec<Location>,
}

/// What a restore's tasks and threads share. Serves one disk after another.
pub(super) struct Engine<'a> {
    environment: &'a Environment<'a>,
    options: &'a RestoreOptions,
    headers: Headers,
    reads_in_flight: Semaphore,
    damage: Damage,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    chunks: AtomicU64,
    chunk_bytes: AtomicU64,
    data_bytes: AtomicU64,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    recovered: AtomicU64,
}

impl<'a> Engine<'a> {
    pub(super) fn new(environment: &'a Environment<'a>, options: &'a RestoreOptions, damage: Damage) -> Self {
        Self {
            environment,
            options,
            headers: Headers::default(),
            reads_in_flight: Semaphore::new(options.reads.max(1)),
            damage,
            counts: Counts::default(),
        }
    }

    pub(super) fn check_cancelled(&self) -> Result<(), RestoreError> {
        let cancelled = self.environment.cancel.load(Ordering::Relaxed);
        if cancelled { Err(Error::Interrupted.into()) } else { Ok(()) }
    }

    pub(super) fn progress(&self) -> &dyn Progress {
        self.environment.progress
    }

    pub(super) fn data_key(&self, sealed: &SealedKey) -> Result<DataKey, Error> {
        self.headers.open(self.environment.key, &self.environment.repository, sealed)
    }

    /// Counts a chunk of `chunk_bytes`, which takes `data_bytes` at all its places.
    pub(super) fn delivered(&self, chunk_bytes: u64, data_bytes: u64) {
        self.counts.chunks.fetch_add(1, Ordering::Relaxed);
        self.counts.chunk_bytes.fetch_add(chunk_bytes, Ordering::Relaxed);
        self.counts.data_bytes.fetch_add(data_bytes, Ordering::Relaxed);
    }

    /// What was done so far, and what was found damaged.
    pub(super) fn finish(self) -> (RestoreStatistics, Found) {
        let counts = self.counts;
        let statistics = RestoreStatistics {
            data_bytes: counts.data_bytes.into_inner(),
            chunks: counts.chunks.into_inner(),
            chunk_bytes: counts.chunk_bytes.into_inner(),
            reads: counts.reads.into_inner(),
            bytes_read: counts.bytes_read.into_inner(),
            recovered: counts.recovered.into_inner(),
        };
        (statistics, self.damage.into_found())
    }

    /// Gives a disk to `output`. Blocks.
    pub(super) fn run(
        &self,
        root: Root,
        output: &dyn DiskOutput,
        seen: Option<&Seen>,
    ) -> Result<(), RestoreError> {
        let environment = self.environment;
        let (jobs, queue) = mpsc::channel();
        let queue = Mutex::new(queue);
        let mut decoders = Vec::new();
        for _ in 0..self.options.workers.max(1) {
            decoders.push(ChunkDecoder::new(environment.key.backup().clone(), environment.repository)?);
        }
        std::thread::scope(|scope| {
            for decoder in decoders {
                scope.spawn(|| work(self, output, decoder, &queue));
            }
            let drive = async {
                if output.ascending() {
                    self.drive_in_order(root, &jobs, seen).await
                } else {
                    self.drive(root, &jobs, seen).await
                }
            };
            let result = environment.runtime.block_on(drive);
            // The threads end when there can be no more work.
            drop(jobs);
            result
        })
    }

    fn windows<'s>(
        &'s self,
        root: Root,
        limits: WindowLimits,
        seen: Option<&'s Seen>,
    ) -> impl stream::Stream<Item = Result<Window, RestoreError>> + 's {
        let Environment { authority, key, .. } = *self.environment;
        let windows = Windows::new(authority, key.backup(), root, limits, seen, &self.damage);
        stream::try_unfold(windows, async |mut windows| {
            self.check_cancelled()?;
            Ok(windows.next().await?.map(|window| (window, windows)))
        })
    }

    /// While the chunks of a window are read, the next one is looked up.
    async fn drive(&self, root: Root, jobs: &Sender<Job>, seen: Option<&Seen>) -> Result<(), RestoreError> {
        let windows = self.windows(root, ANY_ORDER, seen);
        let fetched = windows.map_ok(async |window| {
            let window = Arc::new(Fetched { window, held: None });
            let zeros = request(jobs, |reply| Job::Zeros { window: Arc::clone(&window), reply });
            try_join(self.fetch(&window, jobs), zeros).await
        });
        fetched.try_buffer_unordered(WINDOWS.0).try_for_each(async |_| Ok(())).await
    }

    /// Windows are fetched ahead, and written one after the other.
    async fn drive_in_order(
        &self,
        root: Root,
        jobs: &Sender<Job>,
        seen: Option<&Seen>,
    ) -> Result<(), RestoreError> {
        let (ready, mut writing) = tokio::sync::mpsc::channel(1);
        let produce = async move {
            let windows = self.windows(root, ASCENDING, seen).map_ok(async |window| {
                let window = Arc::new(Fetched { window, held: Some(Held::default()) });
                self.fetch(&window, jobs).await?;
                Ok(window)
            });
            let mut fetched = std::pin::pin!(windows.try_buffered(WINDOWS.1));
            while let Some(window) = fetched.try_next().await? {
                if ready.send(window).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let consume = async {
            while let Some(window) = writing.recv().await {
                request(jobs, |reply| Job::WriteHeld { window, reply }).await?;
            }
            Ok(())
        };
        try_join(produce, consume).await.map(|_| ())
    }

    /// Reads every chunk of a window from whichever copy gives it.
    async fn fetch(&self, window: &Arc<Fetched>, jobs: &Sender<Job>) -> Result<(), RestoreError> {
        let mut candidates = self.locate(window).await?;
        let first = candidates.iter().filter_map(|chunk| {
            chunk.locations.first().map(|location| Wanted { id: chunk.id, location: *location })
        });
        let mut waiting = VecDeque::from(plan_reads(first, GAP, LONGEST_READ));
        let (mut running, mut exhausted) = (FuturesUnordered::new(), Vec::new());
        loop {
            while running.len() < self.options.reads.max(1)
                && let Some(read) = waiting.pop_front()
            {
                running.push(self.read(read, window, jobs));
            }
            if let Some(failures) = running.next().await.transpose()? {
                for failure in failures {
                    match self.next_try(&candidates, failure) {
                        Ok(read) => waiting.push_back(read),
                        Err(failure) => exhausted.push(failure),
                    }
                }
                continue;
            }
            for failure in std::mem::take(&mut exhausted) {
                // A collection may have moved it since it was looked up.
                let moved = matches!(*failure.error, Error::Missing { .. });
                let read = if moved { self.locate_again(&mut candidates, &failure).await? } else { None };
                match read {
                    Some(read) => waiting.push_back(read),
                    None => {
                        let Wanted { id, location } = failure.wanted;
                        self.damage.copy_is_bad(id, location.pack, &failure.error);
                        self.is_lost(window, &id, failure.error)?;
                    }
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
        }
    }

    /// Asks where the chunks are; reports those that are nowhere.
    async fn locate(&self, window: &Fetched) -> Result<Vec<Candidate>, RestoreError> {
        let ids = window.window.chunks();
        let mut candidates = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LOCATE) {
            self.check_cancelled()?;
            let found = self.environment.authority.locate_chunks(ids).await?;
            if found.len() != ids.len() {
                let what = format!("{} of {} places came", found.len(), ids.len());
                return Err(Error::damaged(format!("the answer for chunk {}", ids[0]), what).into());
            }
            candidates.extend(ids.iter().zip(found).map(|(&id, locations)| Candidate { id, locations }));
        }
        for chunk in candidates.iter().filter(|chunk| chunk.locations.is_empty()) {
            let missing = Error::Missing { object: format!("chunk {}", chunk.id) };
            self.is_lost(window, &chunk.id, Arc::new(missing))?;
        }
        prefer_few_packs(&mut candidates);
        Ok(candidates)
    }

    /// One read of one pack; returns the chunks that it did not give.
    async fn read(
        &self,
        read: PackRead,
        window: &Arc<Fetched>,
        jobs: &Sender<Job>,
    ) -> Result<Vec<Failure>, RestoreError> {
        // Held until the bytes are decoded: this bounds what is in memory.
        let Ok(_permit) = self.reads_in_flight.acquire().await else { return Ok(Vec::new()) };
        self.check_cancelled()?;
        let authority = self.environment.authority;
        let failed = |error: Error, shared_read| {
            let error = Arc::new(error);
            let fail = |&wanted: &Wanted| Failure { wanted, error: Arc::clone(&error), shared_read };
            Ok(read.chunks.iter().map(fail).collect())
        };
        let shared = read.chunks.len() > 1;
        let bytes = authority.read_pack(read.pack, read.range.clone());
        let (header, bytes) = join(self.headers.header(authority, read.pack), bytes).await;
        let (header, bytes) = match (header, bytes) {
            (Err(Error::Interrupted), _) | (_, Err(Error::Interrupted)) => {
                return Err(Error::Interrupted.into());
            }
            (Err(error), _) => return failed(error, false),
            (_, Err(error)) => {
                let gone = matches!(error, Error::Missing { .. });
                return failed(error, shared && !gone);
            }
            (Ok(header), Ok(bytes)) => (header, bytes),
        };
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let window = Arc::clone(window);
        request(jobs, |reply| Job::Decode { read, bytes, header, window, reply }).await
    }

    /// Asks once more where a chunk is. A place that was not tried becomes the only one, and is read.
    async fn locate_again(
        &self,
        candidates: &mut [Candidate],
        failure: &Failure,
    ) -> Result<Option<PackRead>, RestoreError> {
        let id = failure.wanted.id;
        let Ok(at) = candidates.binary_search_by_key(&id, |chunk| chunk.id) else { return Ok(None) };
        let mut found = self.environment.authority.locate_chunks(&[id]).await?.pop().unwrap_or_default();
        found.retain(|place| !candidates[at].locations.contains(place));
        let read = found.first().map(|&location| alone(Wanted { id, location }));
        candidates[at].locations.extend(found);
        Ok(read)
    }

    /// The read to try after this failure: the same copy alone, or the next copy; the failure, if none is left.
    fn next_try(&self, candidates: &[Candidate], failure: Failure) -> Result<PackRead, Failure> {
        let Wanted { id, location } = failure.wanted;
        if failure.shared_read {
            return Ok(alone(failure.wanted));
        }
        let locations = candidates
            .binary_search_by_key(&id, |chunk| chunk.id)
            .map_or(&[][..], |at| candidates[at].locations.as_slice());
        let tried = locations.iter().position(|&other| other == location);
        let Some(&location) = tried.and_then(|tried| locations.get(tried + 1)) else {
            return Err(failure);
        };
        self.damage.copy_is_bad(id, failure.wanted.location.pack, &failure.error);
        tracing::warn!(chunk = %id, error = %failure.error, "a copy is bad; another one is read");
        self.counts.recovered.fetch_add(1, Ordering::Relaxed);
        Ok(alone(Wanted { id, location }))
    }

    fn is_lost(&self, window: &Fetched, id: &ChunkId, source: Arc<Error>) -> Result<(), RestoreError> {
        let places = window.window.places_of(id);
        let offset = places.first().map(|place| place.offset).unwrap_or_default();
        let ranges = places.iter().map(|place| place.offset..place.offset + u64::from(place.length));
        self.damage.chunk_is_lost(RestoreError::Data { chunk: *id, offset, source }, ranges)
    }
}

/// Sends work to the threads and waits for its outcome.
async fn request<T>(jobs: &Sender<Job>, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, RestoreError> {
    let (reply, outcome) = oneshot::channel();
    // Threads outlive the sender; one that is gone has panicked, and its panic is about to surface.
    let _ = jobs.send(job(reply));
    outcome.await.unwrap_or_else(|_| Err(Error::Interrupted.into()))
}

fn alone(wanted: Wanted) -> PackRead {
    PackRead { pack: wanted.location.pack, range: frame_range(&wanted.location), chunks: vec![wanted] }
}

/// Of several copies, takes first the one in the pack that most chunks could come from.
fn prefer_few_packs(candidates: &mut [Candidate]) {
    if candidates.iter().all(|chunk| chunk.locations.len() < 2) {
        return;
    }
    let mut wanted: HashMap<PackName, usize> = HashMap::new();
    for location in candidates.iter().flat_map(|chunk| &chunk.locations) {
        *wanted.entry(location.pack).or_default() += 1;
    }
    for chunk in candidates {
        chunk.locations.sort_by_key(|at| {
            (at.retired, std::cmp::Reverse(wanted.get(&at.pack).copied()), at.pack, at.offset)
        });
        chunk.locations.dedup();
    }
}
