//! One region of a flattened disk, read only where it is needed.

use std::ops::Range;

use underlay_store::cut::{BLOCK, REGION, REGION_BLOCKS, RegionContent};

use crate::image::{Chain, ImageError};

/// A region's bytes. Blocks that were never loaded hold whatever the buffer held before.
pub(super) struct Region<'a> {
    chain: &'a Chain,
    layer: usize,
    offset: u64,
    length: usize,
    bytes: Vec<u8>,
    loaded: [bool; REGION_BLOCKS],
}

impl<'a> Region<'a> {
    /// The region at `index` of the disk as seen at `layer`. `buffer` has [`REGION`] bytes.
    pub fn new(chain: &'a Chain, layer: usize, index: u64, buffer: Vec<u8>) -> Self {
        debug_assert_eq!(buffer.len(), REGION);
        let offset = index * REGION as u64;
        let length = (chain.layer(layer).virtual_size() - offset).min(REGION as u64) as usize;
        Self { chain, layer, offset, length, bytes: buffer, loaded: [false; REGION_BLOCKS] }
    }

    /// Bytes of blocks that are loaded; the last block of a disk may be short.
    pub fn bytes(&self, blocks: Range<usize>) -> &[u8] {
        &self.bytes[blocks.start * BLOCK..(blocks.end * BLOCK).min(self.length)]
    }

    /// Gives the buffer back.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

impl RegionContent for Region<'_> {
    type Error = ImageError;

    fn blocks(&self) -> usize {
        self.length.div_ceil(BLOCK)
    }

    fn load(&mut self, blocks: Range<usize>) -> Result<(), ImageError> {
        let mut at = blocks.start;
        while at < blocks.end {
            if self.loaded[at] {
                at += 1;
                continue;
            }
            let end = (at..blocks.end).find(|&block| self.loaded[block]).unwrap_or(blocks.end);
            let bytes = &mut self.bytes[at * BLOCK..(end * BLOCK).min(self.length)];
            self.chain.read_at(self.layer, self.offset + (at * BLOCK) as u64, bytes)?;
            self.loaded[at..end].fill(true);
            at = end;
        }
        Ok(())
    }

    fn block(&self, index: usize) -> &[u8] {
        self.bytes(index..index + 1)
    }
}
