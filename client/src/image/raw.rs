//! One raw layer: a regular file or a block device.

use std::sync::Arc;

use super::error::ImageError;
use super::file::ImageFile;
use super::layer::{Run, Shared, Source};

#[derive(Debug)]
pub(super) struct Raw {
    pub file: ImageFile,
    pub shared: Arc<Shared>,
}

impl Raw {
    /// The file's size, rounded up to whole 512-byte sectors like QEMU does.
    pub(super) fn virtual_size(&self) -> u64 {
        self.file.size().next_multiple_of(512)
    }

    /// What lies at `offset`: data, or a hole of the file. `offset < limit <= virtual_size`.
    pub(super) fn run_at(&self, offset: u64, limit: u64) -> Result<Run, ImageError> {
        let data = self.file.next_data(offset)?.unwrap_or(limit);
        if data > offset {
            return Ok(Run { length: data.min(limit) - offset, source: Source::Unallocated });
        }
        // A hole that ends the file mid-sector belongs to the data: nothing is lost by reading it.
        let hole = match self.file.next_hole(offset)? {
            hole if hole >= self.file.size() || hole <= offset => limit,
            hole => hole.min(limit),
        };
        Ok(Run { length: hole - offset, source: Source::Data { host: offset } })
    }

    /// Fills `buf` from `offset`; the file's last sector may end in zeros that the file does not have.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        let stored = self.file.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        self.file.read_exact(offset, &mut buf[..stored]).map_err(|error| error.at_guest(offset))?;
        buf[stored..].fill(0);
        self.shared.counters.data(stored);
        Ok(())
    }
}
