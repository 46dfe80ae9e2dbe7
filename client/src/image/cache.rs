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
    slots: Vec<Slot>,
}

/// Least-recently-used blocks in independently locked shards. At most `blocks` of them, roughly.
#[derive(Debug)]
pub(super) struct BlockCache {
    shards: Vec<Mutex<Shard>>,
    slots: usize,
}

const SLOTS: usize = 16;

impl BlockCache {
    /// A cache of at least `blocks` blocks, rounded up to whole shards.
    pub(super) fn new(blocks: usize) -> Self {
        let shards = blocks.div_ceil(SLOTS).clamp(1, 64);
        Self { shards: (0..shards).map(|_| Mutex::default()).collect(), slots: blocks.clamp(1, SLOTS) }
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
        shard.clock += 1;
        let slot = Slot { key, used: shard.clock, block };
        if let Some(same) = shard.slots.iter_mut().find(|old| old.key == key) {
            *same = slot;
        } else if shard.slots.len() < self.slots {
            shard.slots.push(slot);
        } else if let Some(oldest) = shard.slots.iter_mut().min_by_key(|old| old.used) {
            *oldest = slot;
        }
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        let mixed = (key.offset / 512 + u64::from(key.layer)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.shards[mixed as usize % self.shards.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_used_and_stays_bounded() {
        let cache = BlockCache::new(4);
        let key = |offset| Key { layer: 0, offset, length: 1 };
        for offset in 0..100 {
            cache.put(key(offset), Arc::from([offset as u8].as_slice()));
            assert!(cache.get(key(0)).is_some(), "the block used last was dropped");
        }
        let kept = (0..100).filter(|offset| cache.get(key(*offset)).is_some()).count();
        assert_eq!(kept, 4);
    }
}
