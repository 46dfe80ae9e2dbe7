//! tree(layer) = apply(tree(layer below), the extents this layer allocates).

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rayon::prelude::*;
use underlay_store::cut::{BLOCK, REGION, RecutRun, recut};
use underlay_store::id::{ChunkId, Root};
use underlay_store::tree::{Cursor, Editor, Node, Run, regions};

use super::dirty::{DirtyRegion, DirtyRegions};
use super::nodes::{NodeStore, misplaced};
use super::region::Region;
use super::uploads::{Asked, Uploads};
use super::{BackupError, Context, DiskSource};

/// Regions read and cut together: 2 MiB of memory each, and at most four batches are alive.
const BATCH: usize = 8;

/// A region after cutting, with the bytes of its new chunks.
pub(super) struct CutRegion<'a> {
    index: u64,
    runs: Vec<RecutRun>,
    /// Ids of the fresh runs, in order.
    ids: Vec<ChunkId>,
    content: Region<'a>,
}

impl CutRegion<'_> {
    /// Chunks that were hashed, with their bytes.
    pub fn fresh(&self) -> impl Iterator<Item = (ChunkId, &[u8])> {
        let fresh = self.runs.iter().filter_map(|run| match run {
            RecutRun::Fresh { first, blocks } => Some(self.content.bytes(*first..*first + *blocks)),
            RecutRun::Kept(_) => None,
        });
        self.ids.iter().copied().zip(fresh)
    }

    fn leaf(&self) -> Option<Node> {
        let mut ids = self.ids.iter();
        Node::leaf(self.runs.iter().filter_map(|run| match run {
            RecutRun::Kept(run) => Some(*run),
            RecutRun::Fresh { blocks, .. } => ids.next().map(|id| Run::Chunk(*blocks, *id)),
        }))
    }
}

/// Buffers for regions, reused.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_else(|| vec![0; REGION])
    }

    fn give(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Makes the tree of layer `index` from that of the layer below (`None` for a base).
pub(super) fn apply(
    context: &Context<'_>,
    source: &DiskSource,
    index: usize,
    below: Option<Root>,
    nodes: &NodeStore<'_>,
    uploads: &mut Uploads<'_>,
) -> Result<Root, BackupError> {
    let base = below.unwrap_or(Root { size: 0, node: None });
    let size = source.chain.layer(index).virtual_size();
    context.progress.phase("reading", Some(size));
    let buffers = Buffers::default();
    std::thread::scope(|scope| {
        // While one batch is encoded, the next is looked up and the one after is read.
        let (sender, receiver) = sync_channel(0);
        let buffers = &buffers;
        let reader = scope.spawn(move || read(context, source, index, base, nodes, buffers, &sender));
        let written = write(context, base, size, nodes, uploads, buffers, receiver);
        // The receiver is gone by now, so a reader that still has something to send stops.
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A reader's own failure comes first: the writer only saw the channel close.
        read.and(written)
    })
}

/// Reads, cuts and hashes the dirty regions, a batch at a time.
fn read<'a>(
    context: &Context<'_>,
    source: &'a DiskSource,
    index: usize,
    base: Root,
    nodes: &NodeStore<'_>,
    buffers: &Buffers,
    sender: &SyncSender<Vec<CutRegion<'a>>>,
) -> Result<(), BackupError> {
    let chain = &source.chain;
    let size = chain.layer(index).virtual_size();
    let mut dirty = DirtyRegions::new(chain.extents(index)?, base.size, size);
    let mut cursor = Cursor::new(base);
    let mut seen = 0;
    loop {
        context.check_cancelled()?;
        let batch: Vec<DirtyRegion> = dirty.by_ref().take(BATCH).collect::<Result<_, _>>()?;
        let Some(last) = batch.last().map(|region| region.index) else { break };
        let old = old_runs(&mut cursor, &batch, nodes)?;
        let cut = batch.into_par_iter().zip(old).map(|(dirty, old)| {
            let mut content = Region::new(chain, index, dirty.index, buffers.take());
            let runs = recut(&context.cutter, &old, &dirty.blocks, &mut content)?;
            let ids = runs.iter().filter_map(|run| match run {
                RecutRun::Fresh { first, blocks } => {
                    Some(context.key.chunk_id(content.bytes(*first..*first + *blocks)))
                }
                RecutRun::Kept(_) => None,
            });
            let ids = ids.collect();
            Ok(CutRegion { index: dirty.index, runs, ids, content })
        });
        let cut: Vec<CutRegion<'a>> = cut.collect::<Result<_, BackupError>>()?;
        let position = ((last + 1) * REGION as u64).min(size);
        context.progress.advance(position - seen);
        seen = position;
        if sender.send(cut).is_err() {
            break;
        }
    }
    context.progress.advance(size - seen);
    Ok(())
}

/// What the tree below has in these regions.
fn old_runs(
    cursor: &mut Cursor,
    batch: &[DirtyRegion],
    nodes: &NodeStore<'_>,
) -> Result<Vec<Vec<Run>>, BackupError> {
    let mut source = nodes;
    let leaves = batch
        .iter()
        .map(|dirty| cursor.leaf(dirty.index, &mut source, misplaced))
        .collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<_> = leaves.iter().flatten().copied().collect();
    let mut contents = nodes.read(&ids)?.into_iter().zip(&ids);
    leaves
        .iter()
        .map(|leaf| match leaf.and_then(|_| contents.next()) {
            None => Ok(Vec::new()),
            Some((Node::Leaf(runs), _)) => Ok(runs),
            Some((Node::Inner { .. }, id)) => Err(misplaced(id).into()),
        })
        .collect()
}

/// Stores what is new and builds the tree.
fn write(
    context: &Context<'_>,
    base: Root,
    size: u64,
    nodes: &NodeStore<'_>,
    uploads: &mut Uploads<'_>,
    buffers: &Buffers,
    receiver: Receiver<Vec<CutRegion<'_>>>,
) -> Result<Root, BackupError> {
    let mut source = nodes;
    let mut sink = |node: &Node| nodes.put(node);
    let mut editor = Editor::new(base, size, &mut source, &mut sink, misplaced)?;
    let mut looked_up: Option<(Vec<CutRegion<'_>>, Asked)> = None;
    loop {
        let next = receiver.recv().ok();
        context.check_cancelled()?;
        let answered =
            looked_up.take().map(|(batch, asked)| Ok::<_, BackupError>((batch, uploads.answer(asked)?)));
        let ended = next.is_none();
        looked_up = next.map(|batch| uploads.ask(&batch).map(|asked| (batch, asked))).transpose()?;
        let Some((batch, wanted)) = answered.transpose()? else { if ended { break } else { continue } };
        uploads.chunks(&batch, wanted)?;
        for cut in batch {
            debug_assert!(cut.index < regions(size) && cut.content.bytes(0..1).len() <= BLOCK);
            let leaf = cut.leaf().map(|leaf| nodes.put(&leaf));
            editor.set(cut.index, leaf, &mut source, &mut sink, misplaced)?;
            buffers.give(cut.content.into_buffer());
        }
        uploads.nodes(nodes)?;
    }
    Ok(editor.finish(&mut sink))
}
