//! From wanted chunks to few, large reads of packs.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::catalog::Location;
use crate::id::{ChunkId, PackName};
use crate::pack::FRAME_HEADER_LENGTH;

/// A chunk to read, with the one place chosen for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The chunk.
    pub id: ChunkId,
    /// Where it lies.
    pub location: Location,
}

/// One read of one pack that yields several chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackRead {
    /// The pack.
    pub pack: PackName,
    /// Bytes to read.
    pub range: Range<u64>,
    /// The chunks within, by offset.
    pub chunks: Vec<Wanted>,
}

/// Bytes of a frame, header and payload, within its pack.
pub fn frame_range(location: &Location) -> Range<u64> {
    let start = u64::from(location.offset);
    start..start + u64::from(FRAME_HEADER_LENGTH) + u64::from(location.payload_length)
}

/// Groups ascending ranges: neighbours at most `gap` bytes apart join, up to `longest` bytes. Returns index ranges.
pub fn coalesce(ranges: &[Range<u64>], gap: u64, longest: u64) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let (mut start, mut end) = (0, 0);
    for (at, range) in ranges.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if range.start <= end + gap && range.end.max(end) - start <= longest => {
                group.end = at + 1
            }
            _ => {
                groups.push(at..at + 1);
                start = range.start;
                end = range.end;
            }
        }
        end = end.max(range.end);
    }
    groups
}

/// Plans the reads for `wanted`, each chunk once: by pack, by offset, coalesced across gaps of at most `gap` bytes, none
/// longer than `longest` bytes unless a single frame is.
pub fn plan_reads(wanted: impl IntoIterator<Item = Wanted>, gap: u64, longest: u64) -> Vec<PackRead> {
    let mut packs: BTreeMap<PackName, Vec<Wanted>> = BTreeMap::new();
    for chunk in wanted {
        packs.entry(chunk.location.pack).or_default().push(chunk);
    }
    let mut reads = Vec::new();
    for (pack, mut chunks) in packs {
        chunks.sort_by_key(|chunk| (chunk.location.offset, chunk.id));
        chunks.dedup();
        let ranges: Vec<_> = chunks.iter().map(|chunk| frame_range(&chunk.location)).collect();
        for group in coalesce(&ranges, gap, longest) {
            let end = ranges[group.clone()].iter().map(|range| range.end).max().unwrap_or(0);
            reads.push(PackRead {
                pack,
                range: ranges[group.start].start..end,
                chunks: chunks[group].to_vec(),
            });
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_chunk_is_read_once_and_whole(
            places in proptest::collection::vec((0u8..4, 0u32..200, 1u32..2000), 1..80),
            gap in 0u64..5000,
            longest in 1u64..20000,
        ) {
            let wanted: Vec<Wanted> = places.iter().enumerate().map(|(at, &(pack, slot, length))| Wanted {
                id: ChunkId::new([at as u8; 32]),
                location: Location {
                    pack: PackName::new([pack; 32]), offset: slot * 3000, payload_length: length, plain_length: 4096, codec: crate::pack::Codec::None, retired: false,
                },
            }).collect();
            let reads = plan_reads(wanted.clone(), gap, longest);
            let mut found: Vec<Wanted> = reads.iter().flat_map(|read| read.chunks.clone()).collect();
            for read in &reads {
                for chunk in &read.chunks {
                    let frame = frame_range(&chunk.location);
                    prop_assert_eq!(chunk.location.pack, read.pack);
                    prop_assert!(read.range.start <= frame.start && frame.end <= read.range.end);
                }
                prop_assert!(read.range.end - read.range.start <= longest || read.chunks.len() == 1);
            }
            let mut all = wanted;
            found.sort_by_key(|chunk| chunk.id);
            all.sort_by_key(|chunk| chunk.id);
            prop_assert_eq!(found, all);
        }
    }
}
