//! tree(layer) = apply(tree(layer below), the extents this layer allocates).

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;
use underlay_store::cut::{REGION, RecutRun, recut};
use underlay_store::id::{ChunkId, Root};
use underlay_store::tree::{Cursor, Editor, Node, Run, regions};

use super::dirty::{DirtyRegion, DirtyRegions};
use super::nodes::{NodeStore, misplaced};
use super::region::Region;
use super::uploads::{Asked, Uploads};
use super::{BackupError, Context, DiskSource};

/// Bytes of memory for the regions that are read and cut together. At most four batches are alive.
const BATCH: usize = 16 << 20;
/// Regions in a batch, however little of them is read: their leaves are in memory, too.
const BATCH_REGIONS: usize = 256;

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

/// Buffers for regions. Those for whole ones are reused: fresh pages cost as much as filling them.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// A buffer for a region that takes this many bytes.
    fn take(&self, memory: usize) -> Vec<u8> {
        let kept = if memory < REGION { None } else { self.kept().pop() };
        kept.unwrap_or_else(|| Vec::with_capacity(memory))
    }

    fn give(&self, buffer: Vec<u8>) {
        // Small ones are not kept: were they used for more each time, all of them would be large in the end.
        if buffer.capacity() >= REGION {
            self.kept().push(buffer);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    let size = source.content.size(index);
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
    let content = &source.content;
    let size = content.size(index);
    let below = (base.size > 0).then_some(base);
    let mut dirty = DirtyRegions::new(content.extents(index, below)?, base.size, size);
    let mut cursor = Cursor::new(base);
    let mut seen = 0;
    loop {
        context.check_cancelled()?;
        let batch = next_batch(&mut dirty)?;
        let Some(last) = batch.last().map(|region| region.index) else { break };
        let old = old_runs(&mut cursor, &batch, nodes)?;
        let cut = batch.into_par_iter().zip(old).map(|(dirty, old)| {
            let mut region = Region::new(content, index, dirty.index, buffers.take(dirty.memory()));
            let runs = recut(&context.cutter, &old, &dirty.blocks, &mut region)?;
            let ids = runs.iter().filter_map(|run| match run {
                RecutRun::Fresh { first, blocks } => {
                    Some(context.key.chunk_id(region.bytes(*first..*first + *blocks)))
                }
                RecutRun::Kept(_) => None,
            });
            let ids = ids.collect();
            Ok(CutRegion { index: dirty.index, runs, ids, content: region })
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

/// The next regions that are worth a batch; none at the end.
fn next_batch<E>(dirty: &mut impl Iterator<Item = Result<DirtyRegion, E>>) -> Result<Vec<DirtyRegion>, E> {
    let (mut batch, mut memory) = (Vec::new(), 0);
    while memory < BATCH
        && batch.len() < BATCH_REGIONS
        && let Some(region) = dirty.next().transpose()?
    {
        memory += region.memory();
        batch.push(region);
    }
    Ok(batch)
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
            debug_assert!(cut.index < regions(size));
            let leaf = cut.leaf().map(|leaf| nodes.put(&leaf));
            editor.set(cut.index, leaf, &mut source, &mut sink, misplaced)?;
            buffers.give(cut.content.into_buffer());
        }
        uploads.nodes(nodes)?;
    }
    Ok(editor.finish(&mut sink))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::ops::Range;

    use underlay_store::cut::REGION_BLOCKS;

    use super::*;

    /// Batches of a thousand regions, in each of which so many runs of so many blocks are dirty.
    fn batches(runs: usize, blocks: usize) -> Vec<Vec<DirtyRegion>> {
        let dirty: Vec<Range<usize>> = (0..runs).map(|run| run * 64..run * 64 + blocks).collect();
        let region = |index| Ok::<_, Infallible>(DirtyRegion { index, blocks: dirty.clone() });
        let mut regions = (0..1000).map(region);
        std::iter::from_fn(|| next_batch(&mut regions).ok().filter(|batch| !batch.is_empty())).collect()
    }

    #[test]
    fn a_batch_is_worth_looking_up_and_takes_bounded_memory() {
        for (runs, blocks, expected) in
            [(1, REGION_BLOCKS, 8), (1, REGION_BLOCKS / 2 + 1, 8), (8, 16, 16), (1, 16, 128), (1, 1, 241)]
        {
            let batches = batches(runs, blocks);
            assert_eq!(batches[0].len(), expected, "{runs} runs of {blocks} blocks");
            assert!(batches.iter().flatten().map(|region| region.index).eq(0..1000));
            for batch in batches {
                let memory: usize = batch.iter().map(DirtyRegion::memory).sum();
                assert!(batch.len() <= BATCH_REGIONS && memory < BATCH + REGION, "{memory} bytes");
            }
        }
    }
}
