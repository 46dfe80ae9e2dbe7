//! Disks for the tests of the outputs.

use std::path::Path;

use super::DiskOutput;

/// A small generator: tests must give the same disk for the same seed.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A disk's bytes and the pieces, in random order, that make it.
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
    pieces: Vec<(u64, usize)>,
}

impl Disk {
    /// Runs of blocks, some zero within, some left out; the last may be short.
    pub(super) fn random(seed: u64, size: u64) -> Self {
        let mut numbers = Numbers(seed);
        let (mut bytes, mut pieces, mut at) = (vec![0; size as usize], Vec::new(), 0);
        while at < size {
            let length = ((1 + numbers.below(24)) * 4096).min(size - at);
            if numbers.below(3) > 0 {
                for block in bytes[at as usize..(at + length) as usize].chunks_mut(4096) {
                    let byte = numbers.below(4) as u8;
                    block.fill(byte);
                    block[0] ^= byte.wrapping_mul(numbers.below(200) as u8);
                }
                pieces.push((at, length as usize));
            }
            at += length;
        }
        for place in (1..pieces.len()).rev() {
            pieces.swap(place, numbers.below(place as u64 + 1) as usize);
        }
        Self { bytes, pieces }
    }

    pub(super) fn piece(&self, offset: u64, length: usize) -> &[u8] {
        &self.bytes[offset as usize..offset as usize + length]
    }

    pub(super) fn sorted_pieces(&self) -> Vec<(u64, usize)> {
        let mut pieces = self.pieces.clone();
        pieces.sort_unstable();
        pieces
    }

    /// Writes every piece, shared out among threads.
    pub(super) fn write_to(&self, output: &dyn DiskOutput, threads: usize) {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    for &(offset, length) in self.pieces.iter().skip(thread).step_by(threads) {
                        output.write_at(offset, self.piece(offset, length)).unwrap();
                    }
                });
            }
        });
    }
}

/// Names in a folder, sorted.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
