//! Which parts of an answer have arrived. Pure.

use super::error::Fault;

/// Most separate parts that an answer may be in at one time. QEMU sends from front to back: one.
const MOST_PARTS: usize = 4096;

/// The parts of a buffer that are filled: ascending, disjoint, not adjacent.
#[derive(Debug, Default)]
pub(super) struct Filled {
    parts: Vec<(usize, usize)>,
}

impl Filled {
    /// Notes that `start..end` arrives, which must not be empty.
    ///
    /// Refuses what arrived before, and answers so scattered that keeping track of them would take memory.
    pub(super) fn add(&mut self, start: usize, end: usize) -> Result<(), Fault> {
        let next = self.parts.partition_point(|part| part.0 < start);
        let overlaps_before = next > 0 && self.parts[next - 1].1 > start;
        let overlaps_after = self.parts.get(next).is_some_and(|part| part.0 < end);
        if overlaps_before || overlaps_after {
            return Fault::malformed(format!("bytes {start} to {end} of the answer came twice"));
        }
        let touches_before = next > 0 && self.parts[next - 1].1 == start;
        let touches_after = self.parts.get(next).is_some_and(|part| part.0 == end);
        match (touches_before, touches_after) {
            (true, true) => {
                self.parts[next - 1].1 = self.parts[next].1;
                self.parts.remove(next);
            }
            (true, false) => self.parts[next - 1].1 = end,
            (false, true) => self.parts[next].0 = start,
            (false, false) if self.parts.len() == MOST_PARTS => {
                return Fault::malformed(format!("an answer in more than {MOST_PARTS} scattered parts"));
            }
            (false, false) => self.parts.insert(next, (start, end)),
        }
        Ok(())
    }

    /// The first of `length` bytes that is missing.
    pub(super) fn first_gap(&self, length: usize) -> Option<usize> {
        let filled = match self.parts.first() {
            Some(&(0, end)) => end,
            _ => 0,
        };
        (filled < length).then_some(filled)
    }
}
