//! One region of a flattened disk, read only where it is needed.

use std::ops::Range;

use underlay_store::cut::{BLOCK, REGION, RegionContent};

use super::BackupError;
use super::source::DiskContent;

/// A region's loaded blocks. Memory is taken for them alone.
pub(super) struct Region<'a> {
    content: &'a DiskContent,
    layer: usize,
    offset: u64,
    length: usize,
    /// The stretches' bytes, one after another. Longer if the buffer held more before.
    bytes: Vec<u8>,
    /// Ascending; no two touch.
    stretches: Vec<Stretch>,
}

/// Loaded blocks that follow one another.
struct Stretch {
    blocks: Range<usize>,
    /// Where the first one's bytes lie.
    at: usize,
}

impl<'a> Region<'a> {
    /// The region at `index` of the disk as seen at `layer`. What `buffer` holds does not matter.
    pub fn new(content: &'a DiskContent, layer: usize, index: u64, buffer: Vec<u8>) -> Self {
        let offset = index * REGION as u64;
        let length = (content.size(layer) - offset).min(REGION as u64) as usize;
        Self { content, layer, offset, length, bytes: buffer, stretches: Vec::new() }
    }

    /// Bytes of blocks that are loaded; the last block of a disk may be short.
    ///
    /// # Panics
    /// If one of them is not loaded, or one between them.
    pub fn bytes(&self, blocks: Range<usize>) -> &[u8] {
        let after = self.stretches.partition_point(|stretch| stretch.blocks.start <= blocks.start);
        let stretch = &self.stretches[after - 1];
        assert!(blocks.end <= stretch.blocks.end, "blocks {blocks:?} are not loaded");
        let start = stretch.at + (blocks.start - stretch.blocks.start) * BLOCK;
        &self.bytes[start..start + self.length_of(&blocks)]
    }

    /// Gives the buffer back.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    fn length_of(&self, blocks: &Range<usize>) -> usize {
        (blocks.end * BLOCK).min(self.length) - blocks.start * BLOCK
    }
}

impl RegionContent for Region<'_> {
    type Error = BackupError;

    fn blocks(&self) -> usize {
        self.length.div_ceil(BLOCK)
    }

    fn load(&mut self, blocks: Range<usize>) -> Result<(), BackupError> {
        let last = self.stretches.last();
        let (loaded, at) =
            last.map_or((0, 0), |last| (last.blocks.end, last.at + self.length_of(&last.blocks)));
        let joins = last.is_some_and(|last| {
            debug_assert!(last.blocks.start <= blocks.start, "loads ascend");
            blocks.start <= last.blocks.end
        });
        let new = if joins { loaded..blocks.end } else { blocks };
        if new.is_empty() {
            return Ok(());
        }
        let end = at + self.length_of(&new);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.content.read_at(
            self.layer,
            self.offset + (new.start * BLOCK) as u64,
            &mut self.bytes[at..end],
        )?;
        match self.stretches.last_mut() {
            Some(last) if joins => last.blocks.end = new.end,
            _ => self.stretches.push(Stretch { blocks: new, at }),
        }
        Ok(())
    }

    fn block(&self, index: usize) -> &[u8] {
        self.bytes(index..index + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Chain, Format, OpenOptions};
    use proptest::prelude::*;

    /// Two regions and a bit, every byte of which tells where it is.
    fn disk() -> (tempfile::NamedTempFile, Vec<u8>) {
        let bytes: Vec<u8> =
            (0..(2 * REGION + 100 * BLOCK + 512) as u32).map(|at| ((at / 7) ^ (at >> 12)) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        (file, bytes)
    }

    fn open(file: &tempfile::NamedTempFile) -> DiskContent {
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        DiskContent::Layers(Chain::open(file.path(), &options).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn what_was_loaded_is_there_and_nothing_else_takes_memory(
            index in 0u64..3,
            old in 0usize..400_000,
            steps in proptest::collection::vec((0usize..60, 0usize..60), 1..12),
        ) {
            let (file, bytes) = disk();
            let chain = open(&file);
            let content = &bytes[index as usize * REGION..bytes.len().min((index as usize + 1) * REGION)];
            let mut region = Region::new(&chain, 0, index, vec![9; old]);
            let (mut loaded, mut at) = (vec![false; region.blocks()], 0);
            for (gap, length) in steps {
                // Some begin before the end of the one before, as when a chunk grows into the next change.
                at = (at + gap.saturating_sub(20)).min(region.blocks());
                let blocks = at..(at + length).min(region.blocks());
                region.load(blocks.clone()).unwrap();
                loaded[blocks].fill(true);
            }
            let mut start = 0;
            for run in loaded.chunk_by(|a, b| a == b) {
                let blocks = start..start + run.len();
                if run[0] {
                    let expected = &content[start * BLOCK..content.len().min(blocks.end * BLOCK)];
                    prop_assert!(region.bytes(blocks.clone()) == expected);
                    prop_assert!(region.block(blocks.end - 1) == &expected[(run.len() - 1) * BLOCK..]);
                }
                start = blocks.end;
            }
            let loaded = loaded.iter().filter(|&&loaded| loaded).count();
            prop_assert!(region.into_buffer().len() <= old.max(loaded * BLOCK));
        }
    }

    #[test]
    #[should_panic(expected = "are not loaded")]
    fn what_was_not_loaded_is_not_given() {
        let (file, _) = disk();
        let chain = open(&file);
        let mut region = Region::new(&chain, 0, 0, Vec::new());
        region.load(3..5).unwrap();
        region.load(7..9).unwrap();
        region.bytes(4..8);
    }
}
