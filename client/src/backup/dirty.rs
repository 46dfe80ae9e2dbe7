//! From a layer's extents to the blocks of each region that may have changed. Pure.

use std::ops::Range;

use underlay_store::cut::{BLOCK, REGION};

use crate::image::Extent;

/// A region and its dirty blocks: ascending, disjoint, not touching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DirtyRegion {
    /// Index of the region: its first byte is `index * REGION`.
    pub index: u64,
    /// Blocks relative to the region's start.
    pub blocks: Vec<Range<usize>>,
}

/// Bytes that are read around a change beside itself, in the mean and rounded up: the chunks that it touches.
const AROUND: usize = 64 << 10;

impl DirtyRegion {
    /// Bytes of memory to read it into, about: all of the region if more than half of it will be needed.
    pub fn memory(&self) -> usize {
        let needed: usize = self.blocks.iter().map(|blocks| blocks.len() * BLOCK + AROUND).sum();
        if needed > REGION / 2 { REGION } else { needed }
    }
}

/// Splits ascending extents into regions.
pub(super) struct DirtyRegions<I> {
    extents: I,
    /// The next extent, or what is left of it after the regions already given.
    extent: Option<Range<u64>>,
    /// Bytes where the end of the disk moved.
    boundary: Option<Range<u64>>,
    size: u64,
}

impl<I, E> DirtyRegions<I>
where
    I: Iterator<Item = Result<Extent, E>>,
{
    /// Dirty regions of a disk of `size` bytes whose tree below has `base_size` bytes.
    pub fn new(extents: I, base_size: u64, size: u64) -> Self {
        let end = base_size.min(size);
        // The block at the shorter end may have been, or may become, a short one.
        let boundary = (base_size != size && end > 0).then(|| (end - 1) / BLOCK as u64 * BLOCK as u64..end);
        Self { extents, extent: None, boundary, size }
    }

    /// Fetches the next extent if none is at hand. Extents past the disk's end count for nothing.
    fn fill(&mut self) -> Result<(), E> {
        while self.extent.is_none() {
            let Some(extent) = self.extents.next().transpose()? else { break };
            let bytes = extent.offset..(extent.offset + extent.length).min(self.size);
            self.extent = Some(bytes).filter(|bytes| !bytes.is_empty());
        }
        Ok(())
    }

    /// Takes the dirty bytes that start first, up to the end of region `within`; `None` if they start in a later one.
    fn take(&mut self, within: Option<u64>) -> Result<Option<Range<u64>>, E> {
        self.fill()?;
        let start = |bytes: &Option<Range<u64>>| bytes.as_ref().map_or(u64::MAX, |bytes| bytes.start);
        let boundary_first = start(&self.boundary) < start(&self.extent);
        let source = if boundary_first { &mut self.boundary } else { &mut self.extent };
        let Some(bytes) = source.clone() else { return Ok(None) };
        let region = bytes.start / REGION as u64;
        if within.is_some_and(|within| within != region) {
            return Ok(None);
        }
        let end = bytes.end.min((region + 1) * REGION as u64);
        *source = (end < bytes.end).then_some(end..bytes.end);
        Ok(Some(bytes.start..end))
    }
}

impl<I, E> Iterator for DirtyRegions<I>
where
    I: Iterator<Item = Result<Extent, E>>,
{
    type Item = Result<DirtyRegion, E>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut current: Option<DirtyRegion> = None;
        loop {
            let bytes = match self.take(current.as_ref().map(|current| current.index)) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return current.map(Ok),
                Err(error) => return Some(Err(error)),
            };
            let index = bytes.start / REGION as u64;
            let base = index * REGION as u64;
            let blocks = (bytes.start - base) as usize / BLOCK..((bytes.end - base) as usize).div_ceil(BLOCK);
            let current = current.get_or_insert_with(|| DirtyRegion { index, blocks: Vec::new() });
            match current.blocks.last_mut() {
                Some(last) if blocks.start <= last.end => last.end = last.end.max(blocks.end),
                _ => current.blocks.push(blocks),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ExtentKind;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn regions_cover_exactly_the_blocks_of_the_extents(
            gaps in proptest::collection::vec((0u64..3_000_000, 1u64..5_000_000), 0..8),
            base_size in 0u64..20_000_000,
            size in 1u64..20_000_000,
        ) {
            let (mut extents, mut at) = (Vec::new(), 0);
            for (gap, length) in gaps {
                let offset = at + gap;
                if offset >= size { break; }
                let length = length.min(size - offset);
                extents.push(Extent { offset, length, kind: ExtentKind::Data });
                at = offset + length + 1;
            }
            let mut expected = vec![false; size.div_ceil(BLOCK as u64) as usize];
            for extent in &extents {
                let last = (extent.offset + extent.length).div_ceil(BLOCK as u64) as usize;
                expected[extent.offset as usize / BLOCK..last].fill(true);
            }
            if base_size != size && base_size.min(size) > 0 {
                expected[(base_size.min(size) - 1) as usize / BLOCK] = true;
            }
            let mut found = vec![false; expected.len()];
            let mut last_index = None;
            for region in DirtyRegions::new(extents.into_iter().map(Ok::<_, ()>), base_size, size) {
                let region = region.unwrap();
                prop_assert!(last_index < Some(region.index), "regions ascend");
                last_index = Some(region.index);
                prop_assert!(region.blocks.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", region.blocks);
                for block in region.blocks.into_iter().flatten() {
                    found[region.index as usize * (REGION / BLOCK) + block] = true;
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
