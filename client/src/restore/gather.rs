//! Neighbouring chunks, put side by side in memory so that one call writes them.

use super::{DiskOutput, RestoreError};

/// Bytes gathered at most, unless a single chunk is longer. A processor's own cache still holds that many when they are written.
const LONGEST: usize = 256 << 10;

/// Chunks that follow one another on the disk and are not written yet. Backups store neighbours side by side, so that they mostly come in
/// that order.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Where the first byte goes, in bytes of guest address space.
    offset: u64,
    /// Bytes that wait to be written.
    waiting: usize,
    /// Bytes behind those that are made ready for one more chunk.
    room: usize,
    buffer: Vec<u8>,
}

impl Gathered {
    /// Makes room for a chunk of `length` bytes that goes to `offset`. What waits is written first if the chunk does not follow it.
    ///
    /// # Errors
    /// What the output reports.
    pub(super) fn prepare(
        &mut self,
        offset: u64,
        length: usize,
        output: &dyn DiskOutput,
    ) -> Result<(), RestoreError> {
        let follows = self.offset + self.waiting as u64 == offset;
        if !follows || self.waiting + length > LONGEST {
            self.write(output)?;
        }
        if self.waiting == 0 {
            self.offset = offset;
        }
        self.room = length;
        let end = self.waiting + length;
        if self.buffer.len() < end {
            self.buffer.resize(end.max(LONGEST), 0);
        }
        Ok(())
    }

    /// The room for the chunk. Unless it is taken, what is put there goes nowhere.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.waiting..][..self.room]
    }

    /// The chunk in the room waits from now on, too.
    pub(super) fn take(&mut self) {
        self.waiting += std::mem::take(&mut self.room);
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// What the output reports.
    pub(super) fn write(&mut self, output: &dyn DiskOutput) -> Result<(), RestoreError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting == 0 { Ok(()) } else { output.write_at(self.offset, &self.buffer[..waiting]) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::Finished;
    use super::*;
    use proptest::prelude::*;

    /// Keeps the calls.
    #[derive(Default)]
    struct Calls(Mutex<Vec<(u64, Vec<u8>)>>);

    impl DiskOutput for Calls {
        fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), RestoreError> {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            Ok(())
        }

        fn finish(self: Box<Self>) -> Result<Finished, RestoreError> {
            unreachable!("nobody finishes it")
        }
    }

    /// Hands chunks on: where each goes, how long it is, and whether it turned out to be sound.
    fn hand_on(chunks: &[(u64, usize, bool)]) -> Vec<(u64, Vec<u8>)> {
        let (output, mut gathered) = (Calls::default(), Gathered::default());
        for (number, &(offset, length, sound)) in chunks.iter().enumerate() {
            gathered.prepare(offset, length, &output).unwrap();
            gathered.room().fill(number as u8);
            if sound {
                gathered.take();
            }
        }
        gathered.write(&output).unwrap();
        gathered.write(&output).unwrap();
        output.0.into_inner().unwrap()
    }

    #[test]
    fn neighbours_are_written_by_one_call() {
        let chunks: Vec<_> = (0..64).map(|at| (7 + at * 28_672, 28_672, true)).collect();
        let calls = hand_on(&chunks);
        assert_eq!(calls.len(), 8, "nine chunks fit each time");
        assert!(calls.iter().all(|(_, data)| data.len() <= LONGEST));
    }

    #[test]
    fn a_chunk_that_is_longer_than_all_is_written_alone() {
        let calls = hand_on(&[(0, 100, true), (100, 3 * LONGEST, true), (100 + 3 * LONGEST as u64, 5, true)]);
        assert_eq!(calls.iter().map(|(_, data)| data.len()).collect::<Vec<_>>(), [100, 3 * LONGEST, 5]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn every_sound_chunk_is_written_once_where_it_belongs(
            chunks in proptest::collection::vec((0u64..3, 1usize..150_000, any::<bool>()), 0..20),
        ) {
            let (mut at, mut placed) = (0, Vec::new());
            for (gap, length, sound) in chunks {
                // One gap in three is none. Some go before what came last.
                let offset = if gap == 2 { (1 << 40) - at } else { at + gap * 10 };
                placed.push((offset, length, sound));
                at += gap * 10 + length as u64 + u64::from(gap == 2) * 150_000;
            }
            let mut expected: Vec<_> = placed
                .iter()
                .enumerate()
                .filter(|(_, (_, _, sound))| *sound)
                .flat_map(|(number, &(offset, length, _))| (offset..offset + length as u64).map(move |at| (at, number as u8)))
                .collect();
            let calls = hand_on(&placed).into_iter();
            let mut written: Vec<_> = calls.flat_map(|(offset, data)| (offset..).zip(data)).collect();
            expected.sort_unstable();
            written.sort_unstable();
            prop_assert!(written == expected);
        }
    }
}
