use std::collections::BTreeMap;

use super::super::testing::{Disk, names};
use super::*;

/// Reads an image by the letter of the format, and proves that every cluster is used once and counted once.
pub(super) struct Image {
    pub(super) bytes: Vec<u8>,
}

impl Image {
    fn u64(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.bytes[at as usize..at as usize + 8].try_into().unwrap())
    }

    fn u32(&self, at: u64) -> u32 {
        u32::from_be_bytes(self.bytes[at as usize..at as usize + 4].try_into().unwrap())
    }

    /// Where the clusters of the disk lie.
    fn map(&self) -> BTreeMap<u64, u64> {
        assert_eq!(&self.bytes[..4], b"QFI\xfb");
        assert_eq!((self.u32(4), self.u64(8), self.u32(20)), (3, 0, 16));
        let total = self.bytes.len() as u64 / CLUSTER;
        let mut used = BTreeMap::from([(0, "header")]);
        let mut claim = |at: u64, what| {
            assert!(at.is_multiple_of(CLUSTER) && at / CLUSTER < total, "{what} at {at}");
            assert_eq!(used.insert(at / CLUSTER, what), None, "{what} at {at} is used twice");
        };
        let (l1_entries, l1_at) = (u64::from(self.u32(36)), self.u64(40));
        (0..(l1_entries * 8).div_ceil(CLUSTER)).for_each(|at| claim(l1_at + at * CLUSTER, "l1"));
        let (refcounts_at, refcount_clusters) = (self.u64(48), u64::from(self.u32(56)));
        (0..refcount_clusters).for_each(|at| claim(refcounts_at + at * CLUSTER, "refcount table"));
        let mut map = BTreeMap::new();
        for l1 in (0..l1_entries).filter(|l1| self.u64(l1_at + l1 * 8) != 0) {
            let l2_at = self.u64(l1_at + l1 * 8) ^ COPIED;
            claim(l2_at, "l2");
            for l2 in (0..L2_ENTRIES as u64).filter(|l2| self.u64(l2_at + l2 * 8) != 0) {
                let data_at = self.u64(l2_at + l2 * 8) ^ COPIED;
                claim(data_at, "data");
                map.insert(l1 * L2_ENTRIES as u64 + l2, data_at);
            }
        }
        let blocks: Vec<u64> =
            (0..refcount_clusters * CLUSTER / 8).map(|at| self.u64(refcounts_at + at * 8)).collect();
        blocks.iter().filter(|&&at| at != 0).for_each(|&at| claim(at, "refcount block"));
        for cluster in 0..total {
            let at = blocks[(cluster / REFCOUNTS) as usize] + cluster % REFCOUNTS * 2;
            assert_eq!(self.bytes[at as usize..at as usize + 2], [0, 1], "cluster {cluster}");
            assert!(used.contains_key(&cluster), "cluster {cluster} leaks");
        }
        map
    }

    pub(super) fn flatten(&self) -> Vec<u8> {
        let mut disk = vec![0; self.u64(24) as usize];
        for (cluster, at) in self.map() {
            let start = (cluster * CLUSTER) as usize;
            let length = (disk.len() - start).min(CLUSTER as usize);
            disk[start..start + length].copy_from_slice(&self.bytes[at as usize..at as usize + length]);
        }
        disk
    }
}

#[test]
fn random_writes_from_threads_make_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, size) in [(1, 0), (2, 1), (3, 5000), (4, 65536), (5, (3 << 20) + 513), (6, 9 << 20)] {
        let disk = Disk::random(seed, size);
        let path = folder.path().join(format!("{seed}"));
        let output: Box<dyn DiskOutput> = Box::new(Qcow2File::create(&path, size, false).unwrap());
        disk.write_to(&*output, 4);
        assert_eq!(output.finish().unwrap().size, size.next_multiple_of(512));
        let mut expected = disk.bytes.clone();
        expected.resize(size.next_multiple_of(512) as usize, 0);
        let image = Image { bytes: std::fs::read(&path).unwrap() };
        assert!(image.flatten() == expected, "seed {seed}, size {size}");
    }
    assert_eq!(names(folder.path()).len(), 6);
}

#[test]
fn a_huge_disk_with_little_data_stays_small() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let size = 8 << 40;
    let output = Qcow2File::create(&path, size, false).unwrap();
    let places = [0, 5 << 30, (3 << 40) + 4096, size - 4096];
    for (at, &place) in places.iter().enumerate() {
        output.write_at(place, &[1 + at as u8; 4096]).unwrap();
    }
    output.write_at(1 << 40, &[0; 1 << 20]).unwrap();
    Box::new(output).finish().unwrap();
    let image = Image { bytes: std::fs::read(&path).unwrap() };
    assert!(image.bytes.len() < 2 << 20);
    let map = image.map();
    assert_eq!(map.keys().copied().collect::<Vec<_>>(), places.map(|place| place / CLUSTER));
    for (at, place) in places.iter().enumerate() {
        let host = map[&(place / CLUSTER)] + place % CLUSTER;
        assert_eq!(image.bytes[host as usize..][..4096], [1 + at as u8; 4096]);
    }
}

#[test]
fn refcounts_count_themselves() {
    for used in [2, 3, 32765, 32766, 32767, 32768, 65533, 65534, 268_000_000, 268_402_687, 268_402_688] {
        let layout = RefcountLayout::after(used);
        assert_eq!(layout.total, used + layout.table_clusters + layout.blocks);
        assert!(layout.blocks * REFCOUNTS >= layout.total, "{used}: {layout:?}");
        assert!((layout.blocks - 1) * REFCOUNTS < layout.total, "{used}: {layout:?}");
        assert!(layout.table_clusters * CLUSTER >= layout.blocks * 8);
    }
}

#[test]
fn a_disk_beyond_the_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let refused = Qcow2File::create(&path, (2 << 50) + 1, false).unwrap_err();
    assert!(matches!(refused, RestoreError::TooLarge { .. }), "{refused}");
    drop(Qcow2File::create(&path, 2 << 50, false).unwrap());
    assert!(names(folder.path()).is_empty());
}
