//! Which parts of a disk hold anything, known from its tree alone.

use std::ops::Range;
use std::sync::atomic::Ordering;

use underlay_store::Error;
use underlay_store::id::Root;

use super::damage::Damage;
use super::walk::{WindowLimits, Windows};
use super::{Environment, RestoreError};

/// Places of chunks looked at together: a few MiB.
const LIMITS: WindowLimits = WindowLimits { leaves: 512, places: 40_960 };
/// Clusters that share a count.
const GROUP: u64 = u64::BITS as u64;

/// The clusters of a disk that hold anything, each with its number among them. A disk of 1 TiB in clusters of 64 KiB takes 4 MiB.
#[derive(Debug)]
pub struct Allocation {
    size: u64,
    cluster: u64,
    /// A bit for each cluster.
    used: Vec<u64>,
    /// For each group of bits, how many are set in those before.
    before: Vec<u64>,
}

impl Allocation {
    #[cfg(test)]
    /// Of a disk of `size` bytes, in clusters of `cluster` bytes. `data` says where it holds something, in bytes of guest address space.
    pub(super) fn new(size: u64, cluster: u64, data: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut allocation = Self::nothing(size, cluster);
        data.into_iter().for_each(|range| allocation.mark(range));
        allocation.count();
        allocation
    }

    /// Reads it from the tree of the disk with this root. Blocks, and must not be called from an asynchronous task.
    ///
    /// # Errors
    /// [`RestoreError::Store`] for a damaged tree, a repository that cannot be read, or if the user asks to stop.
    pub fn read(environment: &Environment<'_>, root: Root, cluster: u64) -> Result<Self, RestoreError> {
        let damage = Damage::Stop;
        let Environment { authority, key, .. } = *environment;
        let mut windows = Windows::new(authority, key.backup(), root, LIMITS, None, &damage);
        let mut allocation = Self::nothing(root.size, cluster);
        environment.runtime.block_on(async {
            while let Some(window) = windows.next().await? {
                if environment.cancel.load(Ordering::Relaxed) {
                    return Err(RestoreError::from(Error::Interrupted));
                }
                for place in &window.places {
                    allocation.mark(place.offset..place.offset + u64::from(place.length));
                }
            }
            Ok(())
        })?;
        allocation.count();
        Ok(allocation)
    }

    fn nothing(size: u64, cluster: u64) -> Self {
        let groups = size.div_ceil(cluster).div_ceil(GROUP) as usize;
        Self { size, cluster, used: vec![0; groups], before: vec![0; groups] }
    }

    fn mark(&mut self, data: Range<u64>) {
        for cluster in data.start / self.cluster..data.end.div_ceil(self.cluster) {
            self.used[(cluster / GROUP) as usize] |= 1 << (cluster % GROUP);
        }
    }

    fn count(&mut self) {
        let mut total = 0;
        for (before, used) in self.before.iter_mut().zip(&self.used) {
            *before = total;
            total += u64::from(used.count_ones());
        }
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many clusters hold anything.
    pub(super) fn total(&self) -> u64 {
        let last = self.used.last().zip(self.before.last());
        last.map_or(0, |(used, before)| before + u64::from(used.count_ones()))
    }

    /// How many of the clusters before this one hold anything; `None` if it holds nothing itself.
    pub(super) fn rank(&self, cluster: u64) -> Option<u64> {
        let (group, bit) = ((cluster / GROUP) as usize, cluster % GROUP);
        let used = *self.used.get(group)?;
        let below = used & ((1 << bit) - 1);
        (used >> bit & 1 == 1).then(|| self.before[group] + u64::from(below.count_ones()))
    }

    /// Whether any of these clusters holds anything. Whole groups of 64.
    pub(super) fn any(&self, clusters: Range<u64>) -> bool {
        let groups = (clusters.start / GROUP) as usize..clusters.end.div_ceil(GROUP) as usize;
        self.used[groups.start.min(self.used.len())..groups.end.min(self.used.len())]
            .iter()
            .any(|&used| used != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranks_are_those_of_a_set(
            size in 1u64..2_000_000,
            data in proptest::collection::vec((0u64..2_000_000, 1u64..200_000), 0..20),
        ) {
            const CLUSTER: u64 = 4096;
            let data: Vec<_> = data.into_iter().map(|(at, length)| at.min(size - 1)..(at + length).min(size))
                .filter(|range| !range.is_empty()).collect();
            let mut set = BTreeSet::new();
            for range in &data {
                set.extend(range.start / CLUSTER..range.end.div_ceil(CLUSTER));
            }
            let allocation = Allocation::new(size, CLUSTER, data);
            prop_assert_eq!(allocation.total(), set.len() as u64);
            for cluster in 0..size.div_ceil(CLUSTER) + 2 {
                let expected = set.contains(&cluster).then(|| set.range(..cluster).count() as u64);
                prop_assert_eq!(allocation.rank(cluster), expected, "cluster {}", cluster);
            }
            for group in 0..9 {
                let clusters = group * GROUP..(group + 1) * GROUP;
                prop_assert_eq!(allocation.any(clusters.clone()), set.range(clusters).next().is_some());
            }
        }
    }
}
