//! Cutting a disk into chunks: block-aligned, content-defined, one region at a time. Pure.

pub mod parameters;
mod recut;

use xxhash_rust::xxh3::xxh3_64_with_secret;

pub use parameters::CutParameters;
pub use recut::{RecutRun, RegionContent, recut};

/// Bytes in a block, the grain of cutting.
pub const BLOCK: usize = 4096;
/// Bytes in a region. Cuts never cross a region's end.
pub const REGION: usize = 2 << 20;
/// Blocks in a full region.
pub const REGION_BLOCKS: usize = REGION / BLOCK;

/// Whether every byte of `bytes` is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let head = bytes.len().min(16);
    bytes[..head].iter().all(|&byte| byte == 0) && bytes[head..] == bytes[..bytes.len() - head]
}

/// A run of blocks as the cutter sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// This many blocks hold only zeros.
    Zero(usize),
    /// This many blocks form one chunk.
    Chunk(usize),
}

/// Decides where chunks end. Holds the repository's secret, so that cut points do not fingerprint content.
#[derive(Clone)]
pub struct Cutter {
    minimum: usize,
    maximum: usize,
    mask: u64,
    secret: [u8; 192],
}

impl std::fmt::Debug for Cutter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cutter").field("minimum", &self.minimum).field("maximum", &self.maximum).finish()
    }
}

impl Cutter {
    /// Takes the repository's parameters and its cut secret.
    pub fn new(parameters: &CutParameters, secret: [u8; 192]) -> Self {
        Self {
            minimum: parameters.minimum as usize / BLOCK,
            maximum: parameters.maximum as usize / BLOCK,
            mask: (1 << parameters.mask_bits) - 1,
            secret,
        }
    }

    /// Whether a chunk of `blocks` blocks, the last of which is `last`, ends here.
    fn ends(&self, blocks: usize, last: &[u8]) -> bool {
        blocks >= self.maximum
            || (blocks >= self.minimum && xxh3_64_with_secret(last, &self.secret) & self.mask == 0)
    }

    /// Cuts one region afresh. `region` is at most [`REGION`] bytes; its last block may be short.
    pub fn cut(&self, region: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut walk = Walk::default();
        for block in region.chunks(BLOCK) {
            walk.step(self, block, |piece| pieces.push(piece));
        }
        walk.flush(|piece| pieces.push(piece));
        pieces
    }
}

/// The cutter's state between two blocks: what has gathered and is not yet a piece.
#[derive(Default)]
struct Walk {
    zeros: usize,
    chunk: usize,
}

impl Walk {
    fn step(&mut self, cutter: &Cutter, block: &[u8], mut emit: impl FnMut(Piece)) {
        if is_zero(block) {
            if self.chunk > 0 {
                emit(Piece::Chunk(std::mem::take(&mut self.chunk)));
            }
            self.zeros += 1;
            return;
        }
        if self.zeros > 0 {
            emit(Piece::Zero(std::mem::take(&mut self.zeros)));
        }
        self.chunk += 1;
        if cutter.ends(self.chunk, block) {
            emit(Piece::Chunk(std::mem::take(&mut self.chunk)));
        }
    }

    fn flush(&mut self, mut emit: impl FnMut(Piece)) {
        if self.zeros > 0 {
            emit(Piece::Zero(std::mem::take(&mut self.zeros)));
        }
        if self.chunk > 0 {
            emit(Piece::Chunk(std::mem::take(&mut self.chunk)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_test_sees_every_position() {
        for length in [0, 1, 15, 16, 17, 31, 4096] {
            assert!(is_zero(&vec![0; length]));
            for at in 0..length {
                let mut bytes = vec![0; length];
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "length {length}, byte {at}");
            }
        }
    }

    #[test]
    fn fixed_size_when_minimum_is_maximum() {
        let cutter = Cutter::new(&CutParameters { minimum: 65536, maximum: 65536, mask_bits: 2 }, [7; 192]);
        let pieces = cutter.cut(&vec![1; 5 * 65536 / 2]);
        assert_eq!(pieces, [Piece::Chunk(16), Piece::Chunk(16), Piece::Chunk(8)]);
    }
}
