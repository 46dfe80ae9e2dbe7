//! Looking up, encoding and uploading what is new: back-pressure and the order of a commit live here.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rayon::prelude::*;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use underlay_store::Error;
use underlay_store::id::{ChunkId, NodeId};
use underlay_store::key::{DataKey, SealedKey};
use underlay_store::pack::{ChunkEncoder, Frame, PackKind, PackWriter};

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
    /// Chunks in packs not yet acknowledged: the catalog does not know them.
    unacknowledged: HashSet<ChunkId>,
    data_ids: Vec<ChunkId>,
    slots: Arc<Semaphore>,
    running: JoinSet<Result<Vec<ChunkId>, Error>>,
}

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
            unacknowledged: HashSet::new(),
            data_ids: Vec::new(),
            slots: Arc::new(Semaphore::new(context.options.uploads.max(1))),
            running: JoinSet::new(),
        })
    }

    /// Stores those chunks of the regions that the repository lacks.
    pub fn chunks(&mut self, regions: &[CutRegion<'_>]) -> Result<(), BackupError> {
        let mut fresh: Vec<(ChunkId, &[u8])> = regions.iter().flat_map(CutRegion::fresh).collect();
        let mut ids: Vec<ChunkId> = fresh.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        self.collect_finished()?;
        ids.retain(|id| !self.unacknowledged.contains(id));
        let have = self.context.wait(self.context.authority.have_chunks(self.context.grant.session, &ids))?;
        let mut wanted: HashSet<ChunkId> =
            ids.into_iter().zip(have).filter(|(_, have)| !have).map(|(id, _)| id).collect();
        fresh.retain(|(id, _)| wanted.remove(id));
        let new: u64 = fresh.iter().map(|(_, plain)| plain.len() as u64).sum();
        self.context.counters.new.fetch_add(new, Ordering::Relaxed);
        let (repository, options, key) =
            (self.context.descriptor.repository, self.context.options, self.context.key);
        let data_key = &self.data_key;
        let new_encoder = || {
            let encoder = ChunkEncoder::new(key, repository, options.compression)?;
            Ok(if options.verify_encoding { encoder } else { encoder.without_verification() })
        };
        let encode = |encoder: &mut Result<ChunkEncoder, Error>, (id, plain): &(ChunkId, &[u8])| match encoder
        {
            Ok(encoder) => encoder.encode(data_key, *id, plain),
            Err(error) => Err(std::mem::replace(error, Error::EncodeCheck)),
        };
        let frames: Vec<Frame> =
            fresh.par_iter().map_init(new_encoder, encode).collect::<Result<_, Error>>()?;
        for ((id, _), frame) in fresh.into_iter().zip(frames) {
            self.data.add(&frame)?;
            self.data_ids.push(id);
            self.unacknowledged.insert(id);
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
        let empty = PackWriter::data(self.context.descriptor.repository, vec![self.sealed])?;
        let pack = std::mem::replace(&mut self.data, empty);
        let ids = std::mem::take(&mut self.data_ids);
        let slots = Arc::clone(&self.slots);
        // Waiting here, before more is read, is what bounds memory.
        let permit = self.context.wait(slots.acquire_owned()).map_err(|_| Error::Interrupted)?;
        let (authority, session) = (Arc::clone(&self.context.authority), self.context.grant.session);
        let counters = Arc::clone(&self.context.counters);
        self.running.spawn_on(
            async move {
                let finished = tokio::task::spawn_blocking(move || pack.finish())
                    .await
                    .map_err(|_| Error::Interrupted)?;
                if let Some(finished) = finished {
                    let length = finished.bytes.len() as u64;
                    authority.put_pack(session, PackKind::Data, finished.bytes).await?;
                    counters.uploaded.fetch_add(length, Ordering::Relaxed);
                }
                drop(permit);
                Ok(ids)
            },
            &self.context.runtime,
        );
        self.collect_finished()
    }

    fn flush_nodes(&mut self, store: &NodeStore<'_>) -> Result<(), BackupError> {
        if self.node_ids.is_empty() {
            return Ok(());
        }
        let empty = PackWriter::nodes(self.context.descriptor.repository);
        let Some(finished) = std::mem::replace(&mut self.nodes, empty).finish() else { return Ok(()) };
        let length = finished.bytes.len() as u64;
        self.context.wait(self.context.authority.put_pack(
            self.context.grant.session,
            PackKind::Nodes,
            finished.bytes,
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
        done: Result<Result<Vec<ChunkId>, Error>, tokio::task::JoinError>,
    ) -> Result<(), BackupError> {
        let ids = done.unwrap_or_else(|failure| match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Interrupted),
        })?;
        for id in ids {
            self.unacknowledged.remove(&id);
        }
        Ok(())
    }
}
