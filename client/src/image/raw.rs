//! Raw images: files, with their holes, and block devices.

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::identity::{LayerIdentity, stat};
use super::paths::Opened;
use super::{ImageError, Place};

/// A disk's bytes and nothing else.
#[derive(Debug)]
pub(super) struct RawLayer {
    pub opened: Opened,
    pub virtual_size: u64,
}

impl RawLayer {
    /// As QEMU does, a length that is no multiple of a sector counts as rounded up, with zeros.
    pub fn new(opened: Opened) -> Self {
        let virtual_size = opened.length.next_multiple_of(512);
        Self { opened, virtual_size }
    }

    /// Where the run at `offset` lies, and how long it is, at most `limit`.
    pub fn place(&self, offset: u64, limit: u64) -> (Place, u64) {
        match self.opened.length.checked_sub(offset).filter(|&left| left > 0) {
            Some(left) => (Place::Data(offset), left.min(limit)),
            None => (Place::Zero, limit),
        }
    }

    /// The next run of data at or after `offset`: a file's holes are skipped.
    pub fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, ImageError> {
        let end = self.opened.length;
        if offset >= end {
            return Ok(None);
        }
        if self.opened.is_block_device {
            return Ok(Some((offset, end - offset)));
        }
        let failed = |errno: Errno| ImageError::io(&self.opened.path, "find the data of")(errno.into());
        let start = match seek(&self.opened.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((offset, end - offset))),
            Err(errno) => return Err(failed(errno)),
        };
        let stop = seek(&self.opened.file, SeekFrom::Hole(start)).map_err(failed)?.min(end);
        Ok((start < end && stop > start).then_some((start, stop - start)))
    }

    pub fn identity(&self) -> Result<LayerIdentity, ImageError> {
        let length = match self.opened.is_block_device {
            true => self.opened.length,
            false => self.opened.file.metadata().map_err(ImageError::io(&self.opened.path, "look at"))?.len(),
        };
        stat(&self.opened.path, &self.opened.file, length, *blake3::hash(b"raw").as_bytes())
    }
}
