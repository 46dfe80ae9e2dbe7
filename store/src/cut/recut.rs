//! Re-cutting around dirty blocks only. The result equals cutting the whole region afresh.

use std::ops::Range;

use super::{Cutter, Piece, REGION_BLOCKS, Walk};
use crate::tree::Run;

/// The new content of one region, loaded piece by piece.
pub trait RegionContent {
    /// Why a load failed.
    type Error;

    /// Blocks in this region, the last of which may be short.
    fn blocks(&self) -> usize;

    /// Makes these blocks available to [`Self::block`]. Loading twice must cost nothing. [`recut`] never asks for blocks before those
    /// that it asked for last, and takes no chunk from blocks that it did not ask for one after another.
    fn load(&mut self, blocks: Range<usize>) -> Result<(), Self::Error>;

    /// A loaded block's bytes.
    fn block(&self, index: usize) -> &[u8];
}

/// A run of the region after re-cutting. Positions and lengths are in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecutRun {
    /// As it was: zeros, or a chunk that the tree already names.
    Kept(Run),
    /// A chunk to be hashed; its blocks are loaded.
    Fresh {
        /// Its first block.
        first: usize,
        /// How many blocks it has.
        blocks: usize,
    },
}

/// The runs of the old leaf with their positions, clipped to the region's present length, zeros at the end made explicit.
struct OldRuns {
    starts: Vec<usize>,
    runs: Vec<Run>,
    end: usize,
}

impl OldRuns {
    fn new(old: &[Run], end: usize) -> Self {
        let (mut starts, mut runs, mut at) = (Vec::new(), Vec::new(), 0);
        for run in old {
            if at >= end {
                break;
            }
            let run = run.with_blocks(run.blocks().min(end - at));
            starts.push(at);
            runs.push(run);
            at += run.blocks();
        }
        if at < end {
            starts.push(at);
            runs.push(Run::Zero(end - at));
        }
        Self { starts, runs, end }
    }

    fn index_at(&self, block: usize) -> usize {
        self.starts.partition_point(|&start| start <= block) - 1
    }

    /// Whether a walk with nothing gathered may stop here: old and new agree from `block` on, if all that follows is clean.
    fn resumes_at(&self, block: usize) -> bool {
        block == self.end || {
            let index = self.index_at(block);
            self.starts[index] == block || matches!(self.runs[index], Run::Zero(_))
        }
    }

    fn zero_at(&self, block: usize) -> bool {
        matches!(self.runs[self.index_at(block)], Run::Zero(_))
    }

    /// Where a walk must start so that it sees everything a change at `dirty` can alter.
    fn start_for(&self, dirty: usize, maximum: usize) -> usize {
        if dirty == 0 {
            return 0;
        }
        let index = self.index_at(dirty - 1);
        let Run::Chunk(blocks, _) = self.runs[index] else { return dirty };
        let ends_here = self.starts[index] + blocks == dirty;
        // A chunk that ended because a zero block followed may now grow; one that was cut cannot.
        let was_cut = blocks == maximum || (dirty < self.end && !self.zero_at(dirty));
        if ends_here && was_cut { dirty } else { self.starts[index] }
    }

    /// Copies the old runs of `range`, which starts and ends on a boundary or inside zeros.
    fn copy(&self, range: Range<usize>, out: &mut Vec<RecutRun>) {
        let mut at = range.start;
        while at < range.end {
            let index = self.index_at(at);
            let run = self.runs[index];
            let stop = (self.starts[index] + run.blocks()).min(range.end);
            push(out, RecutRun::Kept(run.with_blocks(stop - at)));
            at = stop;
        }
    }
}

fn push(out: &mut Vec<RecutRun>, run: RecutRun) {
    if let (Some(RecutRun::Kept(Run::Zero(last))), RecutRun::Kept(Run::Zero(more))) = (out.last_mut(), run) {
        *last += more;
    } else {
        out.push(run);
    }
}

/// Re-cuts a region of which only `dirty` blocks (ascending, disjoint) may differ from what `old` describes.
///
/// Loads the dirty blocks, the chunk before each that may change with them, and what follows until a cut falls on an old
/// boundary. If the region became shorter or its last block changed length, that last block must be among the dirty ones.
///
/// # Errors
/// What `content` reports when a load fails.
pub fn recut<C: RegionContent>(
    cutter: &Cutter,
    old: &[Run],
    dirty: &[Range<usize>],
    content: &mut C,
) -> Result<Vec<RecutRun>, C::Error> {
    let end = content.blocks();
    debug_assert!(end <= REGION_BLOCKS);
    let old = OldRuns::new(old, end);
    let mut out = Vec::new();
    let mut done = 0;
    let mut dirty = dirty.iter().filter(|range| range.start < range.end).peekable();
    while let Some(first) = dirty.next() {
        let start = old.start_for(first.start, cutter.maximum).max(done);
        old.copy(done..start, &mut out);
        let mut dirty_end = first.end.min(end);
        content.load(start..dirty_end)?;
        let mut loaded = dirty_end;
        let (mut at, mut walk) = (start, Walk::default());
        let mut emitted = start;
        loop {
            while let Some(next) = dirty.next_if(|next| next.start <= at) {
                dirty_end = dirty_end.max(next.end.min(end));
            }
            if at == end {
                break;
            }
            if at >= dirty_end {
                let idle = walk.chunk == 0;
                if (idle && old.resumes_at(at)) || (!idle && old.zero_at(at)) {
                    break;
                }
            }
            if at >= loaded {
                loaded = (at + cutter.minimum).max(dirty_end).min(end);
                content.load(at..loaded)?;
            }
            walk.step(cutter, content.block(at), |piece| emit(piece, &mut emitted, &mut out));
            at += 1;
        }
        walk.flush(|piece| emit(piece, &mut emitted, &mut out));
        done = at;
    }
    old.copy(done..end, &mut out);
    Ok(out)
}

fn emit(piece: Piece, at: &mut usize, out: &mut Vec<RecutRun>) {
    match piece {
        Piece::Zero(blocks) => {
            push(out, RecutRun::Kept(Run::Zero(blocks)));
            *at += blocks;
        }
        Piece::Chunk(blocks) => {
            out.push(RecutRun::Fresh { first: *at, blocks });
            *at += blocks;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cut::{BLOCK, CutParameters};
    use crate::id::ChunkId;
    use proptest::prelude::*;

    /// A region whose blocks are given by one number each; 0 is a zero block.
    struct Memory {
        bytes: Vec<u8>,
        loaded: Vec<bool>,
    }

    impl Memory {
        fn new(blocks: &[u8], short: usize) -> Self {
            let mut bytes: Vec<u8> = blocks
                .iter()
                .flat_map(|&seed| {
                    (0..BLOCK)
                        .map(move |at| if seed == 0 { 0 } else { seed.wrapping_add((at % 7) as u8) | 1 })
                })
                .collect();
            bytes.truncate(bytes.len().saturating_sub(short));
            Self { bytes, loaded: vec![false; blocks.len()] }
        }
    }

    impl RegionContent for Memory {
        type Error = std::convert::Infallible;
        fn blocks(&self) -> usize {
            self.loaded.len()
        }
        fn load(&mut self, blocks: Range<usize>) -> Result<(), Self::Error> {
            self.loaded[blocks].fill(true);
            Ok(())
        }
        fn block(&self, index: usize) -> &[u8] {
            assert!(self.loaded[index], "block {index} was never loaded");
            &self.bytes[index * BLOCK..self.bytes.len().min((index + 1) * BLOCK)]
        }
    }

    fn id(bytes: &[u8]) -> ChunkId {
        ChunkId::new(*blake3::hash(bytes).as_bytes())
    }

    fn afresh(cutter: &Cutter, bytes: &[u8]) -> Vec<Run> {
        let mut at = 0;
        cutter
            .cut(bytes)
            .into_iter()
            .map(|piece| match piece {
                Piece::Zero(blocks) => {
                    at += blocks * BLOCK;
                    Run::Zero(blocks)
                }
                Piece::Chunk(blocks) => {
                    let end = bytes.len().min(at + blocks * BLOCK);
                    let run = Run::Chunk(blocks, id(&bytes[at..end]));
                    at = end;
                    run
                }
            })
            .collect()
    }

    fn named(runs: Vec<RecutRun>, memory: &Memory) -> Vec<Run> {
        runs.into_iter()
            .map(|run| match run {
                RecutRun::Kept(run) => run,
                RecutRun::Fresh { first, blocks } => {
                    assert!(memory.loaded[first..first + blocks].iter().all(|&loaded| loaded));
                    let end = memory.bytes.len().min((first + blocks) * BLOCK);
                    Run::Chunk(blocks, id(&memory.bytes[first * BLOCK..end]))
                }
            })
            .collect()
    }

    fn dirty_ranges(flags: &[bool]) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (at, _) in flags.iter().enumerate().filter(|(_, flag)| **flag) {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end += 1,
                _ => ranges.push(at..at + 1),
            }
        }
        ranges
    }

    fn block() -> impl Strategy<Value = u8> {
        prop_oneof![2 => Just(0u8), 5 => 1u8..=255]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
        #[test]
        fn recutting_equals_cutting_afresh(
            before in proptest::collection::vec(block(), 1..120),
            after in proptest::collection::vec((block(), 0u8..12), 1..120),
            shorts in (0usize..4096, 0usize..4096, any::<bool>()),
            mask_bits in 0u8..4,
            extra in proptest::collection::vec(0usize..120, 0..3),
        ) {
            let cutter = Cutter::new(&CutParameters { minimum: 16384, maximum: 65536, mask_bits }, [9; 192]);
            // The new region: mostly what was before, of possibly another length.
            let blocks: Vec<u8> = after.iter().enumerate().map(|(at, (new, keep))| {
                if *keep > 1 { before.get(at).copied().unwrap_or(0) } else { *new }
            }).collect();
            let short = if shorts.2 { shorts.0 } else { 0 };
            let old_short = if shorts.2 { shorts.1 } else { 0 };
            let old = Memory::new(&before, old_short);
            let mut new = Memory::new(&blocks, short);
            let mut flags: Vec<bool> = (0..blocks.len()).map(|at| blocks[at] != before.get(at).copied().unwrap_or(0)).collect();
            // The ends move: the last block of either is dirty by contract.
            flags[blocks.len() - 1] = true;
            if before.len() <= blocks.len() { flags[before.len() - 1] = true; }
            for at in extra { if at < flags.len() { flags[at] = true; } }
            let old_runs = afresh(&cutter, &old.bytes);
            let runs = recut(&cutter, &old_runs, &dirty_ranges(&flags), &mut new).unwrap();
            prop_assert_eq!(named(runs, &new), afresh(&cutter, &new.bytes));
        }
    }

    #[test]
    fn an_isolated_change_loads_little() {
        let blocks: Vec<u8> = (0..512).map(|at| (at % 250) as u8 + 1).collect();
        let cutter = Cutter::new(&CutParameters::default(), [3; 192]);
        let old = afresh(&cutter, &Memory::new(&blocks, 0).bytes);
        let mut changed = blocks;
        changed[250..266].fill(77);
        let mut new = Memory::new(&changed, 0);
        let dirty = 250..266;
        recut(&cutter, &old, std::slice::from_ref(&dirty), &mut new).unwrap();
        let loaded = new.loaded.iter().filter(|&&loaded| loaded).count();
        assert!(loaded <= 16 + 2 * 24 + 4, "{loaded} blocks loaded for 16 dirty ones");
    }
}
