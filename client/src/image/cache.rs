//! A small cache of byte blocks, bounded whatever an image claims.

use std::sync::{Arc, Mutex, PoisonError};

/// What a cached block is: bytes of one layer, found at `offset` of its file. `length` tells apart two
/// compressed clusters that claim to start at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub layer: u32,
    pub offset: u64,
    pub length: u32,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    used: u64,
    block: Arc<[u8]>,
}

#[derive(Debug, Default)]
struct Shard {
    clock: u64,
    bytes: usize,
    slots: Vec<Slot>,
}

/// Least-recently-used blocks in independently locked shards, bounded in number and in bytes.
#[derive(Debug)]
pub(super) struct BlockCache {
    shards: Vec<Mutex<Shard>>,
    bytes_per_shard: usize,
}

/// Blocks in one shard: few enough to search one by one.
const SLOTS: usize = 16;

impl BlockCache {
    /// A cache of at most `shards` times 16 blocks and about `bytes` in all.
    pub(super) fn new(shards: usize, bytes: usize) -> Self {
        let shards = shards.max(1);
        Self { bytes_per_shard: bytes / shards, shards: (0..shards).map(|_| Mutex::default()).collect() }
    }

    pub(super) fn get(&self, key: Key) -> Option<Arc<[u8]>> {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        shard.clock += 1;
        let now = shard.clock;
        let slot = shard.slots.iter_mut().find(|slot| slot.key == key)?;
        slot.used = now;
        Some(Arc::clone(&slot.block))
    }

    pub(super) fn put(&self, key: Key, block: Arc<[u8]>) {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        let shard = &mut *shard;
        shard.clock += 1;
        shard.slots.retain(|slot| slot.key != key);
        shard.bytes = shard.slots.iter().map(|slot| slot.block.len()).sum::<usize>() + block.len();
        while shard.slots.len() >= SLOTS || (shard.bytes > self.bytes_per_shard && !shard.slots.is_empty()) {
            let oldest = shard.slots.iter().enumerate().min_by_key(|(_, slot)| slot.used);
            let Some((index, _)) = oldest else { break };
            shard.bytes -= shard.slots.swap_remove(index).block.len();
        }
        shard.slots.push(Slot { key, used: shard.clock, block });
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        let mixed = (key.offset / 512 + u64::from(key.layer)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.shards[mixed as usize % self.shards.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(cache: &BlockCache, size: usize) -> usize {
        let key = |offset| Key { layer: 0, offset, length: 1 };
        for offset in 0..100 {
            cache.put(key(offset), vec![offset as u8; size].into());
            assert!(cache.get(key(0)).is_some(), "the block used last was dropped");
        }
        (0..100).filter(|offset| cache.get(key(*offset)).is_some()).count()
    }

    #[test]
    fn keeps_what_is_used_and_stays_bounded() {
        assert_eq!(fill(&BlockCache::new(1, 1 << 20), 10), SLOTS);
        assert_eq!(fill(&BlockCache::new(1, 1000), 250), 4);
    }
}
