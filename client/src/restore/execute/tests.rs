//! The executor over a repository in memory that can be damaged.

mod memory;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use underlay_store::Error;

use super::super::testing::{Numbers, names};
use super::super::{Finished, Qcow2File, RawFile, StreamOutput, VerifyOutput, verify};
use super::*;
use memory::{Memory, disk_of};

/// Restores into a raw file and returns its bytes.
fn to_file(memory: &Memory, root: Root) -> Result<(Vec<u8>, RestoreStatistics), RestoreError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let output: Box<dyn DiskOutput> = Box::new(RawFile::create(&path, root.size, false)?);
    let restored = memory.with(|environment| restore(environment, root, &*output, &options()));
    match restored {
        Ok(statistics) => {
            output.finish()?;
            Ok((std::fs::read(&path).unwrap(), statistics))
        }
        Err(error) => {
            drop(output);
            assert!(names(folder.path()).is_empty(), "a failed restore leaves nothing");
            Err(error)
        }
    }
}

fn options() -> RestoreOptions {
    RestoreOptions { reads: 3, workers: 3 }
}

/// Records what it is told, and refuses to be told twice.
struct Coverage(Mutex<Vec<(Range<u64>, bool)>>);

impl DiskOutput for Coverage {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), RestoreError> {
        self.0.lock().unwrap().push((offset..offset + data.len() as u64, true));
        Ok(())
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<(), RestoreError> {
        self.0.lock().unwrap().push((offset..offset + length, false));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Finished, RestoreError> {
        Ok(Finished { size: 0, written: 0 })
    }
}

/// Sizes in bytes: nothing, less than a block, one region, several, an odd end, and more than one window in order.
const SIZES: [u64; 7] = [0, 1, 5000, 2 << 20, (7 << 20) + 513, (40 << 20) + 4096, 133 << 20];

#[test]
fn every_output_gets_the_disk() {
    for (seed, size) in (1..).zip(SIZES) {
        let disk = disk_of(&mut Numbers(seed), size);
        let mut memory = Memory::new();
        let root = memory.store(&disk);
        let (bytes, statistics) = to_file(&memory, root).unwrap();
        assert!(bytes == disk, "raw disk of {size} bytes");
        assert_eq!(statistics.recovered, 0);

        let mut stream = Vec::new();
        let output = Box::new(StreamOutput::new(&mut stream, "pipe", size));
        memory.with(|environment| restore(environment, root, &*output, &options())).unwrap();
        output.finish().unwrap();
        assert!(stream == disk, "stream of {size} bytes");

        let folder = tempfile::tempdir().unwrap();
        let output = Box::new(Qcow2File::create(&folder.path().join("disk"), size, false).unwrap());
        let again = memory.with(|environment| restore(environment, root, &*output, &options())).unwrap();
        assert_eq!(output.finish().unwrap().written, again.data_bytes);
    }
}

#[test]
fn data_and_zeros_cover_the_disk_once() {
    for (seed, size) in (11..).zip(SIZES) {
        let disk = disk_of(&mut Numbers(seed), size);
        let mut memory = Memory::new();
        let root = memory.store(&disk);
        let coverage = Coverage(Mutex::default());
        memory.with(|environment| restore(environment, root, &coverage, &options())).unwrap();
        let mut told = coverage.0.into_inner().unwrap();
        told.sort_by_key(|(range, _)| range.start);
        let mut end = 0;
        for (range, data) in told {
            assert_eq!(range.start, end, "disk of {size} bytes");
            let zero = disk[range.start as usize..range.end as usize].iter().all(|&byte| byte == 0);
            assert_eq!(zero, !data);
            end = range.end;
        }
        assert_eq!(end, size);
        assert_eq!(memory.progress.advanced.load(Ordering::Relaxed), size);
    }
}

#[test]
fn a_huge_sparse_disk_is_cheap() {
    let mut memory = Memory::new();
    let size = 8u64 << 40;
    let blocks = [(0, 1u8), (5 << 30, 2), (3 << 40, 3), (size - 4096, 4)];
    let root = memory.store_sparse(size, &blocks.map(|(offset, byte)| (offset, vec![byte; 4096])));
    let coverage = Coverage(Mutex::default());
    let statistics = memory.with(|environment| restore(environment, root, &coverage, &options())).unwrap();
    assert_eq!((statistics.chunks, statistics.data_bytes), (4, 4 * 4096));
    let told = coverage.0.into_inner().unwrap();
    let data: Vec<_> = told.iter().filter(|(_, data)| *data).map(|(range, _)| range.start).collect();
    assert!(blocks.iter().all(|(offset, _)| data.contains(offset)));
    assert_eq!(told.iter().map(|(range, _)| range.end - range.start).sum::<u64>(), size);
    assert!(memory.nodes_read.load(Ordering::Relaxed) < 30);
}

#[test]
fn repeated_chunks_are_read_once_in_a_window() {
    let piece = disk_of(&mut Numbers(3), 2 << 20);
    let disk = piece.repeat(20);
    let mut memory = Memory::new();
    let root = memory.store(&disk);
    let (bytes, statistics) = to_file(&memory, root).unwrap();
    assert!(bytes == disk);
    assert_eq!(statistics.data_bytes, statistics.chunk_bytes * 20);
}

#[test]
fn reads_in_flight_bound_the_memory() {
    let disk = disk_of(&mut Numbers(4), 60 << 20);
    let mut memory = Memory::new();
    let root = memory.store(&disk);
    to_file(&memory, root).unwrap();
    let most = memory.lent.most.load(Ordering::Relaxed);
    // A read and a header each; packs here are shorter than the longest read.
    let bound = options().reads as u64 * (memory.longest_pack() + 160);
    assert!(most > 0 && most <= bound && bound < memory.stored_bytes(), "{most} bytes, bound {bound}");
}

#[test]
fn a_good_copy_replaces_a_bad_one() {
    let disk = disk_of(&mut Numbers(5), 9 << 20);
    for injury in [Memory::flip_every_frame, Memory::truncate, Memory::remove, Memory::flip_header] {
        let mut recovered = 0;
        for injure_copies in [false, true] {
            let mut memory = Memory::new();
            let root = memory.store(&disk);
            let originals = memory.pack_names();
            memory.copy_packs();
            let (injured, good): (Vec<_>, Vec<_>) =
                memory.pack_names().into_iter().partition(|name| originals.contains(name) != injure_copies);
            injured.iter().for_each(|pack| injury(&mut memory, pack));
            let (bytes, statistics) = to_file(&memory, root).unwrap();
            assert!(bytes == disk);
            recovered += statistics.recovered;
            good.iter().for_each(|pack| injury(&mut memory, pack));
            let error = to_file(&memory, root).unwrap_err();
            assert!(matches!(error, RestoreError::Data { .. }), "{error:?}");
        }
        assert!(recovered > 0, "whichever copy is read first, one of the two times it was the bad one");
    }
}

#[test]
fn damage_names_chunk_pack_and_place() {
    let disk = disk_of(&mut Numbers(6), 3 << 20);
    let mut memory = Memory::new();
    let root = memory.store(&disk);
    let (id, location) = memory.some_chunk();
    memory.flip(&location.pack, location.offset as usize + 100);
    let error = to_file(&memory, root).unwrap_err();
    let RestoreError::Data { offset, source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(memory.key.backup().chunk_id(&disk[*offset as usize..][..location.plain_length as usize]), id);
    let text = source.to_string();
    for part in [id.to_string(), location.pack.to_string(), format!("offset {} bytes", location.offset)] {
        assert!(text.contains(&part), "{text}");
    }
    assert!(error.hint().is_some());
}

#[test]
fn a_lost_chunk_and_a_damaged_tree_are_errors() {
    let disk = disk_of(&mut Numbers(7), 3 << 20);
    let mut memory = Memory::new();
    let root = memory.store(&disk);
    let (id, _) = memory.some_chunk();
    let places = memory.places.remove(&id).unwrap();
    let error = to_file(&memory, root).unwrap_err();
    assert!(
        matches!(&error, RestoreError::Data { source, .. } if matches!(**source, Error::Missing { .. })),
        "{error:?}"
    );
    memory.places.insert(id, places);
    to_file(&memory, root).unwrap();

    // Another disk's leaf in the root's place: its id is right, its level is not.
    let leaf = memory.store(&disk[..4096]).node;
    let error = to_file(&memory, Root { size: root.size, node: leaf }).unwrap_err();
    assert!(error.to_string().contains("level 0 in a place of level 1"), "{error}");
    // The tree of a longer disk.
    let error = to_file(&memory, Root { size: (2 << 20) + 1, node: root.node }).unwrap_err();
    assert!(error.to_string().contains("past the disk's end"), "{error}");
    memory.flip_node(&root.node.unwrap());
    let error = to_file(&memory, root).unwrap_err();
    assert!(error.to_string().contains("another id"), "{error}");
}

#[test]
fn a_failing_output_and_a_cancelled_restore_stop() {
    let disk = disk_of(&mut Numbers(8), 20 << 20);
    let mut memory = Memory::new();
    let root = memory.store(&disk);
    let small = VerifyOutput::new(1 << 20);
    let error = memory.with(|environment| restore(environment, root, &small, &options())).unwrap_err();
    assert!(matches!(error, RestoreError::OutOfBounds { .. }), "{error}");

    memory.cancel.store(true, Ordering::Relaxed);
    let error = to_file(&memory, root).unwrap_err();
    assert!(matches!(error, RestoreError::Store(Error::Interrupted)), "{error}");
}

#[test]
fn verification_reads_each_chunk_once_and_finds_all_damage() {
    let mut numbers = Numbers(9);
    let first = disk_of(&mut numbers, 20 << 20);
    let mut second = first.clone();
    second[5 << 20..][..4096].fill(77);
    let mut memory = Memory::new();
    let roots = [memory.store(&first), memory.store(&second)];
    let all = memory.places.len() as u64;
    let report = memory.with(|environment| verify(environment, &roots, 100.0, &options())).unwrap();
    assert_eq!((report.statistics.chunks, report.damage.len()), (all, 0));
    let report = memory.with(|environment| verify(environment, &roots, 30.0, &options())).unwrap();
    assert!((all / 10..all / 2).contains(&report.statistics.chunks), "{} of {all}", report.statistics.chunks);

    let (_, location) = memory.some_chunk();
    memory.flip(&location.pack, location.offset as usize + 100);
    let lost = memory.pack_names().into_iter().find(|name| *name != location.pack).unwrap();
    let in_lost = memory.places.values().filter(|places| places[0].pack == lost).count();
    memory.remove(&lost);
    let report = memory.with(|environment| verify(environment, &roots, 100.0, &options())).unwrap();
    assert_eq!(report.damage.len(), 1 + in_lost);
    assert_eq!(report.statistics.chunks, all - 1 - in_lost as u64);

    memory.flip_node(&roots[1].node.unwrap());
    let report = memory.with(|environment| verify(environment, &roots, 100.0, &options())).unwrap();
    let trees = report
        .damage
        .iter()
        .filter(|(root, error)| *root == roots[1] && matches!(error, RestoreError::Store(_)));
    assert_eq!(trees.count(), 1);
}

#[test]
fn damage_touches_every_disk_that_shares_it() {
    let first = disk_of(&mut Numbers(10), 6 << 20);
    let mut memory = Memory::new();
    let root = memory.store(&first);
    let (_, location) = memory.some_chunk();
    let mut second = first.clone();
    second.extend_from_slice(&[9; 4096]);
    let roots = [root, memory.store(&[200; 3 << 20]), memory.store(&second)];
    let sound = memory.with(|environment| verify(environment, &roots, 100.0, &options())).unwrap();
    assert_eq!(sound.affected, []);
    memory.flip(&location.pack, location.offset as usize + 100);
    let report = memory.with(|environment| verify(environment, &roots, 100.0, &options())).unwrap();
    assert_eq!((report.damage.len(), report.affected), (1, vec![roots[0], roots[2]]));
    memory.flip_node(&roots[1].node.unwrap());
    let report = memory.with(|environment| verify(environment, &roots, 100.0, &options())).unwrap();
    assert_eq!(report.affected, roots);
}
