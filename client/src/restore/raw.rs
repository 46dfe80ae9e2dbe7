//! A raw disk in a sparse file.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::partial::PartialFile;
use super::{DiskOutput, Finished, RestoreError, check_bounds, data_runs};

/// A raw image of exactly the disk's size; zeros are holes.
#[derive(Debug)]
pub struct RawFile {
    partial: PartialFile,
    size: u64,
    written: AtomicU64,
}

impl RawFile {
    /// Begins a file at `path` for a disk of `size` bytes. Without `force` the name must be free, now and at the end.
    ///
    /// # Errors
    /// [`RestoreError::TargetExists`], [`RestoreError::NotATarget`] or [`RestoreError::File`].
    pub fn create(path: &Path, size: u64, force: bool) -> Result<Self, RestoreError> {
        let partial = PartialFile::create(path, force)?;
        partial.file().set_len(size).map_err(RestoreError::file("size", path))?;
        Ok(Self { partial, size, written: AtomicU64::new(0) })
    }
}

impl DiskOutput for RawFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), RestoreError> {
        let path = self.partial.path();
        check_bounds(path, self.size, offset, data.len() as u64)?;
        for (offset, run) in data_runs(offset, data) {
            self.partial.file().write_all_at(run, offset).map_err(RestoreError::file("write", path))?;
            self.written.fetch_add(run.len() as u64, Ordering::Relaxed);
            self.partial.wrote(run.len() as u64);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Finished, RestoreError> {
        self.partial.finish()?;
        Ok(Finished { size: self.size, written: self.written.into_inner() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::testing::{Disk, names};
    use super::*;

    #[test]
    fn random_writes_from_threads_make_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        for (seed, size) in [(1, 0), (2, 1), (3, 5000), (4, (3 << 20) + 513), (5, 8 << 20)] {
            let disk = Disk::random(seed, size);
            let path = folder.path().join(format!("{seed}"));
            let output: Box<dyn DiskOutput> = Box::new(RawFile::create(&path, size, false).unwrap());
            disk.write_to(&*output, 4);
            assert_eq!(output.finish().unwrap().size, size);
            assert!(std::fs::read(&path).unwrap() == disk.bytes, "seed {seed}, size {size}");
        }
    }

    #[test]
    fn zeros_take_no_space_and_bounds_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let output = RawFile::create(&path, 1 << 40, false).unwrap();
        output.write_at(0, &vec![0; 4 << 20]).unwrap();
        output.write_at((1 << 40) - 1, b"x").unwrap();
        assert!(matches!(output.write_at(1 << 40, b"x"), Err(RestoreError::OutOfBounds { .. })));
        assert!(matches!(output.write_at(u64::MAX, b"x"), Err(RestoreError::OutOfBounds { .. })));
        assert_eq!(Box::new(output).finish().unwrap(), Finished { size: 1 << 40, written: 1 });
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_dropped_output_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let output = RawFile::create(&folder.path().join("disk"), 1 << 20, false).unwrap();
        output.write_at(0, b"x").unwrap();
        drop(output);
        assert!(names(folder.path()).is_empty());
    }
}
