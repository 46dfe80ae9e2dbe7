//! The walk over what contexts say of a disk.

use std::collections::VecDeque;
use std::ops::Range;

use super::Extent;
use super::error::{Fault, NbdError};
use super::export::Export;
use super::status;

/// Most bytes that one request asks about: the largest multiple of every possible block size below 4 GiB.
const SPAN: u32 = u32::MAX - 0xffff;

/// Runs of a disk, from [`Export::extents`]. Holds what one answer describes, not all of the disk.
#[derive(Debug)]
pub struct Extents<'export, const N: usize> {
    export: &'export Export,
    /// Which of the export's contexts are looked at.
    indexes: [usize; N],
    range: Range<u64>,
    /// Received, and not the last: that one may go on in the next answer.
    ready: VecDeque<Extent<N>>,
    pending: Option<Extent<N>>,
}

impl<'export, const N: usize> Extents<'export, N> {
    /// `range` lies within the disk, and shrinks as answers come.
    pub(super) fn new(export: &'export Export, indexes: [usize; N], range: Range<u64>) -> Self {
        Self { export, indexes, range, ready: VecDeque::new(), pending: None }
    }

    /// Asks about the start of what is left.
    fn fetch(&mut self) -> Result<(), NbdError> {
        let block = self.export.minimum();
        let start = self.range.start - self.range.start % block;
        let length = (self.range.end.next_multiple_of(block) - start).min(u64::from(SPAN)) as u32;
        let answers = self.export.status(start, length)?;
        let runs = status::join(start, self.indexes.map(|index| answers[index].as_slice()));
        let known = runs.last().map_or(start, Extent::end).min(self.range.end);
        if known <= self.range.start {
            let fault = Fault::Malformed("it ends before the place in question".into());
            return Err(self.export.status_error(start, fault));
        }
        for run in runs {
            let (offset, end) = (run.offset.max(self.range.start), run.end().min(known));
            if offset < end {
                self.append(Extent { offset, length: end - offset, ..run });
            }
        }
        self.range.start = known;
        Ok(())
    }

    fn append(&mut self, extent: Extent<N>) {
        match &mut self.pending {
            Some(last) if last.flags == extent.flags => last.length += extent.length,
            pending => self.ready.extend(pending.replace(extent)),
        }
    }
}

impl<const N: usize> Iterator for Extents<'_, N> {
    type Item = Result<Extent<N>, NbdError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.range.is_empty() {
            if let Err(error) = self.fetch() {
                self.range.start = self.range.end;
                self.pending = None;
                return Some(Err(error));
            }
        }
        self.ready.pop_front().or_else(|| self.pending.take()).map(Ok)
    }
}
