//! Looking up, encoding and uploading what is new: back-pressure and the order of a commit live here.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use underlay_store::Error;
use underlay_store::id::{ChunkId, NodeId};
use underlay_store::key::{DataKey, SealedKey};
use underlay_store::pack::{Frame, PackKind, PackWriter};

use super::effort::{Effort, Filled};
use super::encoders::{Borrowed, Encoders};
use super::layer::CutRegion;
use super::nodes::NodeStore;
use super::{BackupError, Context};

/// Nodes are looked up when this many bytes of them wait.
const NODE_BATCH: usize = 1 << 20;

/// Packs being filled and in flight.
pub(super) struct Uploads<'a> {
    context: &'a Context<'a>,
    data_key: DataKey,
    sealed: SealedKey,
    data: PackWriter,
    nodes: PackWriter,
    /// Nodes in the pack being filled.
    node_ids: Vec<NodeId>,
    /// Chunks of this backup that the look-up under way may not have seen: those in packs that were not acknowledged before it began.
    unseen: HashSet<ChunkId>,
    /// Those of them that were acknowledged since.
    acknowledged: Vec<ChunkId>,
    data_ids: Vec<ChunkId>,
    encoders: Encoders,
    effort: Effort,
    /// When the pack before was full.
    filling_since: Instant,
    /// Time spent since then in encoding.
    encoding: Duration,
    slots: Arc<Semaphore>,
    running: JoinSet<Result<Stored, Error>>,
    /// Memory of packs that are stored, for the next ones: fresh pages cost as much as filling them.
    buffers: Vec<Vec<u8>>,
}

/// A pack that was acknowledged.
struct Stored {
    ids: Vec<ChunkId>,
    buffer: Option<Vec<u8>>,
}

/// A look-up under way: the ids asked for, ascending, and whether each is stored.
pub(super) struct Asked {
    ids: Arc<[ChunkId]>,
    have: JoinHandle<Result<Vec<bool>, Error>>,
}

/// Chunks that the repository lacks.
pub(super) struct Wanted(HashSet<ChunkId>);

impl<'a> Uploads<'a> {
    pub fn new(context: &'a Context<'a>) -> Result<Self, BackupError> {
        let repository = context.descriptor.repository;
        let (data_key, sealed) = context.key.seal_data_key(&repository)?;
        Ok(Self {
            context,
            data: PackWriter::data(repository, vec![sealed])?,
            nodes: PackWriter::nodes(repository),
            data_key,
            sealed,
            node_ids: Vec::new(),
            unseen: HashSet::new(),
            acknowledged: Vec::new(),
            data_ids: Vec::new(),
            encoders: Encoders::default(),
            effort: Effort::new(context.options.compression),
            filling_since: Instant::now(),
            encoding: Duration::ZERO,
            slots: Arc::new(Semaphore::new(context.options.uploads.max(1))),
            running: JoinSet::new(),
            buffers: Vec::new(),
        })
    }

    /// Begins to ask which chunks of the regions the repository lacks. The answer before must have been taken.
    pub fn ask(&mut self, regions: &[CutRegion<'_>]) -> Result<Asked, BackupError> {
        let mut ids: Vec<ChunkId> = regions.iter().flat_map(CutRegion::fresh).map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids.dedup();
        self.collect_finished()?;
        for id in self.acknowledged.drain(..) {
            self.unseen.remove(&id);
        }
        ids.retain(|id| !self.unseen.contains(id));
        let (authority, session) = (Arc::clone(&self.context.authority), self.context.grant.session);
        let ids: Arc<[ChunkId]> = ids.into();
        let asked = Arc::clone(&ids);
        let have = self.context.runtime.spawn(async move { authority.have_chunks(session, &asked).await });
        Ok(Asked { ids, have })
    }

    /// Waits for the answer.
    pub fn answer(&self, asked: Asked) -> Result<Wanted, BackupError> {
        let have = self.context.wait(asked.have).unwrap_or_else(|failure| Err(interrupted(failure)))?;
        let missing = asked.ids.iter().zip(have).filter(|(id, have)| !have && !self.unseen.contains(*id));
        Ok(Wanted(missing.map(|(id, _)| *id).collect()))
    }

    /// Stores those chunks of the regions that are wanted.
    pub fn chunks(&mut self, regions: &[CutRegion<'_>], wanted: Wanted) -> Result<(), BackupError> {
        let mut wanted = wanted.0;
        let fresh = regions.iter().flat_map(CutRegion::fresh);
        let fresh: Vec<(ChunkId, &[u8])> = fresh.filter(|(id, _)| wanted.remove(id)).collect();
        let new: u64 = fresh.iter().map(|(_, plain)| plain.len() as u64).sum();
        self.context.counters.new.fetch_add(new, Ordering::Relaxed);
        let (data_key, level, started) = (&self.data_key, self.effort.level(), Instant::now());
        let encode = |encoder: &mut Result<Borrowed<'_>, Error>, (id, plain): &(ChunkId, &[u8])| match encoder
        {
            Ok(encoder) => encoder.encode(data_key, *id, plain),
            Err(error) => Err(std::mem::replace(error, Error::EncodeCheck)),
        };
        let frames: Vec<Frame> = fresh
            .par_iter()
            .map_init(|| self.encoders.borrow(self.context, level), encode)
            .collect::<Result<_, Error>>()?;
        self.encoding += started.elapsed();
        for ((id, _), frame) in fresh.into_iter().zip(frames) {
            self.data.add(&frame)?;
            self.data_ids.push(id);
            self.unseen.insert(id);
            if self.data.is_full() {
                self.flush_data()?;
            }
        }
        Ok(())
    }

    /// Stores waiting nodes, if enough have gathered to be worth a look-up.
    pub fn nodes(&mut self, store: &NodeStore<'_>) -> Result<(), BackupError> {
        if store.queued_bytes() >= NODE_BATCH { self.queued_nodes(store) } else { Ok(()) }
    }

    /// Makes everything durable: packs first, then nodes.
    pub fn finish(&mut self, store: &NodeStore<'_>) -> Result<(), BackupError> {
        self.queued_nodes(store)?;
        self.flush_data()?;
        self.drain()?;
        self.flush_nodes(store)?;
        Ok(())
    }

    fn queued_nodes(&mut self, store: &NodeStore<'_>) -> Result<(), BackupError> {
        let mut queue = store.take_queue();
        queue.sort_unstable_by_key(|(id, _)| *id);
        let ids: Vec<NodeId> = queue.iter().map(|(id, _)| *id).collect();
        let have = self.context.wait(self.context.authority.have_nodes(self.context.grant.session, &ids))?;
        for ((id, encoding), have) in queue.into_iter().zip(have) {
            if have {
                store.stored([id]);
                continue;
            }
            self.nodes.add_node(id, &encoding)?;
            self.node_ids.push(id);
            if self.nodes.is_full() {
                // A node pack must never be stored before the chunks its leaves name.
                self.flush_data()?;
                self.drain()?;
                self.flush_nodes(store)?;
            }
        }
        Ok(())
    }

    fn flush_data(&mut self) -> Result<(), BackupError> {
        if self.data_ids.is_empty() {
            return Ok(());
        }
        let (slots, full) = (Arc::clone(&self.slots), Instant::now());
        // Waiting here, before more is read, is what bounds memory.
        let permit = self.context.wait(slots.acquire_owned()).map_err(|_| Error::Interrupted)?;
        self.learn(full.elapsed());
        self.collect_finished()?;
        let buffer = self.buffers.pop().unwrap_or_default();
        let empty = PackWriter::data_in(buffer, self.context.descriptor.repository, vec![self.sealed])?;
        let pack = std::mem::replace(&mut self.data, empty);
        let ids = std::mem::take(&mut self.data_ids);
        let (authority, session) = (Arc::clone(&self.context.authority), self.context.grant.session);
        let counters = Arc::clone(&self.context.counters);
        self.running.spawn_on(
            async move {
                let mut buffer = None;
                // The authority names it, by all of its bytes: once is enough.
                if let Some(bytes) = pack.finish_unnamed() {
                    let length = bytes.len() as u64;
                    authority.put_pack(session, PackKind::Data, bytes.clone()).await?;
                    counters.uploaded.fetch_add(length, Ordering::Relaxed);
                    buffer = bytes.try_into_mut().ok().map(Vec::from);
                }
                drop(permit);
                Ok(Stored { ids, buffer })
            },
            &self.context.runtime,
        );
        Ok(())
    }

    /// A pack was full and has waited this long: what that says of how hard to compress.
    fn learn(&mut self, waiting: Duration) {
        let took = self.filling_since.elapsed();
        let encoding = std::mem::take(&mut self.encoding);
        self.filling_since = Instant::now();
        let before = self.effort.level();
        self.effort.learn(Filled { took, encoding, waiting });
        tracing::debug!(?took, ?encoding, ?waiting, before, level = self.effort.level(), "a pack is full");
    }

    fn flush_nodes(&mut self, store: &NodeStore<'_>) -> Result<(), BackupError> {
        if self.node_ids.is_empty() {
            return Ok(());
        }
        let empty = PackWriter::nodes(self.context.descriptor.repository);
        let Some(bytes) = std::mem::replace(&mut self.nodes, empty).finish_unnamed() else { return Ok(()) };
        let length = bytes.len() as u64;
        self.context.wait(self.context.authority.put_pack(
            self.context.grant.session,
            PackKind::Nodes,
            bytes,
        ))?;
        self.context.counters.uploaded.fetch_add(length, Ordering::Relaxed);
        store.stored(std::mem::take(&mut self.node_ids));
        Ok(())
    }

    /// Takes note of uploads that are done; fails with the first that failed.
    fn collect_finished(&mut self) -> Result<(), BackupError> {
        while let Some(done) = self.running.try_join_next() {
            self.acknowledge(done)?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), BackupError> {
        while let Some(done) = self.context.runtime.block_on(self.running.join_next()) {
            self.acknowledge(done)?;
        }
        Ok(())
    }

    fn acknowledge(
        &mut self,
        done: Result<Result<Stored, Error>, tokio::task::JoinError>,
    ) -> Result<(), BackupError> {
        let Stored { ids, buffer } = done.unwrap_or_else(|failure| Err(interrupted(failure)))?;
        self.acknowledged.extend(ids);
        self.buffers.extend(buffer);
        Ok(())
    }
}

/// What became of a task that gave no result; goes on with its panic.
fn interrupted(failure: tokio::task::JoinError) -> Error {
    match failure.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::Interrupted,
    }
}
