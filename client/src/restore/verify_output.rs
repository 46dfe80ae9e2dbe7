//! An output that keeps nothing.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{DiskOutput, Finished, RestoreError, check_bounds};

/// Counts and discards: for reading and verifying a disk without keeping it.
#[derive(Debug)]
pub struct VerifyOutput {
    size: u64,
    written: AtomicU64,
}

impl VerifyOutput {
    /// Takes a disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self { size, written: AtomicU64::new(0) }
    }
}

impl DiskOutput for VerifyOutput {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), RestoreError> {
        check_bounds(Path::new("the disk being verified"), self.size, offset, data.len() as u64)?;
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Finished, RestoreError> {
        Ok(Finished { size: self.size, written: self.written.into_inner() })
    }
}
