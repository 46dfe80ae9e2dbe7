//! A raw disk onto an existing block device.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, OFlags};
use underlay_store::cut::BLOCK;

use super::{DiskOutput, Finished, RestoreError, check_bounds};

/// Bytes zeroed by one call, so that a huge range can be interrupted between two.
const ZERO_STEP: u64 = 256 << 20;
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// A block device that the disk is written onto. It held something before: zeros reach it as [`DiskOutput::zero_range`],
/// and what lies past the disk's end stays as it was.
#[derive(Debug)]
pub struct BlockDevice {
    file: File,
    path: PathBuf,
    size: u64,
    written: AtomicU64,
}

impl BlockDevice {
    /// Opens the device for a disk of `size` bytes. Symlinks are followed. A device that is mounted or part of another one
    /// is refused by the kernel.
    ///
    /// # Errors
    /// [`RestoreError::TargetExists`] without `force`: this overwrites what is there. [`RestoreError::DeviceTooSmall`],
    /// [`RestoreError::NotATarget`] if it is no block device, [`RestoreError::File`].
    pub fn open(path: &Path, size: u64, force: bool) -> Result<Self, RestoreError> {
        if !force {
            return Err(RestoreError::TargetExists { path: path.to_owned() });
        }
        let failed = RestoreError::file("open", path);
        // On a block device this flag means: nobody else may hold it.
        let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap_or_default();
        let mut file = OpenOptions::new().write(true).custom_flags(exclusive).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.file_type().is_block_device() {
            return Err(RestoreError::NotATarget { path: path.to_owned(), found: "no block device" });
        }
        let capacity = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if capacity < size {
            return Err(RestoreError::DeviceTooSmall { path: path.to_owned(), capacity, size });
        }
        Ok(Self { file, path: path.to_owned(), size, written: AtomicU64::new(0) })
    }

    /// Lets the kernel or the device do the zeroing; false if neither can.
    fn zero_by_kernel(&self, offset: u64, length: u64) -> bool {
        let modes = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
        modes.into_iter().any(|mode| {
            rustix::fs::fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, length).is_ok()
        })
    }

    fn write_zeros(&self, mut offset: u64, end: u64) -> Result<(), RestoreError> {
        while offset < end {
            let length = (end - offset).min(ZEROS.len() as u64);
            self.file
                .write_all_at(&ZEROS[..length as usize], offset)
                .map_err(RestoreError::file("write zeros to", &self.path))?;
            offset += length;
        }
        Ok(())
    }
}

impl DiskOutput for BlockDevice {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), RestoreError> {
        check_bounds(&self.path, self.size, offset, data.len() as u64)?;
        self.file.write_all_at(data, offset).map_err(RestoreError::file("write", &self.path))?;
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<(), RestoreError> {
        check_bounds(&self.path, self.size, offset, length)?;
        let (mut at, end) = (offset, offset + length);
        // Kernels zero whole sectors only; a disk's end may be shorter.
        let aligned = end / BLOCK as u64 * BLOCK as u64;
        if at.is_multiple_of(BLOCK as u64) {
            while at < aligned {
                let step = (aligned - at).min(ZERO_STEP);
                if !self.zero_by_kernel(at, step) {
                    self.write_zeros(at, at + step)?;
                }
                at += step;
            }
        }
        self.write_zeros(at, end)
    }

    fn finish(self: Box<Self>) -> Result<Finished, RestoreError> {
        self.file.sync_all().map_err(RestoreError::file("sync", &self.path))?;
        Ok(Finished { size: self.size, written: self.written.into_inner() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_and_only_by_force() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = BlockDevice::open(file.path(), 0, true).unwrap_err();
        assert!(matches!(refused, RestoreError::NotATarget { .. }), "{refused}");
        let refused = BlockDevice::open(file.path(), 0, false).unwrap_err();
        assert!(matches!(refused, RestoreError::TargetExists { .. }), "{refused}");
    }

    #[test]
    fn zeroing_overwrites_what_was_there() {
        // A plain file takes the same calls as a device; the real suite repeats this on one.
        for (offset, length) in [(0, 300_000), (4096, 8192 + 77), (100, 5000), (299_999, 1), (7, 0)] {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[7; 300_000], 0).unwrap();
            let device =
                BlockDevice { file, path: "device".into(), size: 300_000, written: AtomicU64::new(0) };
            device.zero_range(offset, length).unwrap();
            let mut bytes = vec![1; 300_000];
            device.file.read_exact_at(&mut bytes, 0).unwrap();
            for (at, &byte) in bytes.iter().enumerate() {
                let zeroed = (offset..offset + length).contains(&(at as u64));
                assert_eq!(byte, if zeroed { 0 } else { 7 }, "byte {at} of {offset}+{length}");
            }
        }
    }
}
