//! One open image file: positioned reads, its size and its identity on the host.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use rustix::fs::SeekFrom;

use super::error::ImageError;
use super::in_use;

/// How much was read from the files of a chain since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadCounters {
    /// Bytes of guest data read from files. A compressed cluster counts its compressed bytes, each time it is
    /// read from the file rather than from the cache.
    pub data_bytes: u64,
    /// Number of reads of guest data.
    pub data_reads: u64,
    /// Bytes of headers and mapping tables read from files.
    pub metadata_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    data_bytes: AtomicU64,
    data_reads: AtomicU64,
    metadata_bytes: AtomicU64,
}

impl Counters {
    pub(super) fn data(&self, bytes: usize) {
        self.data_bytes.fetch_add(bytes as u64, Relaxed);
        self.data_reads.fetch_add(1, Relaxed);
    }

    pub(super) fn metadata(&self, bytes: usize) {
        self.metadata_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn snapshot(&self) -> ReadCounters {
        ReadCounters {
            data_bytes: self.data_bytes.load(Relaxed),
            data_reads: self.data_reads.load(Relaxed),
            metadata_bytes: self.metadata_bytes.load(Relaxed),
        }
    }
}

/// What the host says a file is. Not ctime: relabelling a file changes that without changing its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub mtime_seconds: i64,
    pub mtime_nanos: u32,
    /// When the file was made, if its file system tells. A removed file's inode number goes to the next file, which can
    /// have been given the same modification time.
    pub born: Option<SystemTime>,
}

/// A regular file or block device, held open read-only.
#[derive(Debug)]
pub(super) struct ImageFile {
    pub path: PathBuf,
    pub stat: Stat,
    pub block_device: bool,
    file: File,
}

impl ImageFile {
    pub(super) fn new(path: PathBuf, file: File) -> Result<Self, ImageError> {
        // What is written through a memory map moves the modification time only when a clean page becomes dirty. Afterwards all
        // pages are clean, so whoever writes once this file has been looked at is seen.
        match rustix::fs::fsync(&file) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::ROFS) => {}
            Err(errno) => return Err(io_error(&path, "flush", errno.into())),
        }
        let metadata = file.metadata().map_err(|source| io_error(&path, "stat", source))?;
        let block_device = metadata.file_type().is_block_device();
        let mut this = Self { path, file, block_device, stat: stat_of(&metadata, metadata.len()) };
        this.stat = this.restat()?;
        Ok(this)
    }

    /// Fails if a virtual machine or an image tool has the file open for writing.
    pub(super) fn refuse_if_written(&self) -> Result<(), ImageError> {
        match in_use::has_writer(&self.file) {
            Ok(false) => Ok(()),
            Ok(true) => Err(ImageError::InUse { path: self.path.clone() }),
            Err(source) => Err(io_error(&self.path, "ask for locks on", source)),
        }
    }

    /// From now until the file is closed, QEMU and its tools refuse to write to it. Who writes already goes on.
    pub(super) fn keep_writers_out(&self) -> Result<(), ImageError> {
        in_use::keep_writers_out(&self.file).map_err(|source| io_error(&self.path, "lock", source))
    }

    /// Bytes in the file, or of the block device, when it was opened.
    pub(super) fn size(&self) -> u64 {
        self.stat.size
    }

    /// Asks the host again.
    pub(super) fn restat(&self) -> Result<Stat, ImageError> {
        let metadata = self.file.metadata().map_err(|source| io_error(&self.path, "stat", source))?;
        let size = if self.block_device {
            rustix::fs::seek(&self.file, SeekFrom::End(0))
                .map_err(|source| io_error(&self.path, "find the size of", source.into()))?
        } else {
            metadata.len()
        };
        Ok(stat_of(&metadata, size))
    }

    /// Reads until `buf` is full or the file ends; returns the bytes read.
    pub(super) fn read_up_to(&self, offset: u64, buf: &mut [u8]) -> Result<usize, ImageError> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.read_error(offset + done as u64, source)),
            }
        }
        Ok(done)
    }

    /// Fills `buf`. A file that ends too early has shrunk: every offset is checked against its size before.
    pub(super) fn read_exact(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        let wanted = buf.len();
        match self.read_up_to(offset, buf)? {
            read if read == wanted => Ok(()),
            read => Err(self.read_error(offset + read as u64, io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Where the next data at or after `offset` lies: `Ok(None)` if only a hole follows. A file system that
    /// cannot tell answers `offset` itself.
    pub(super) fn next_data(&self, offset: u64) -> Result<Option<u64>, ImageError> {
        if self.block_device {
            return Ok(Some(offset));
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(position) => Ok(Some(position.max(offset))),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(errno) => Err(self.read_error(offset, errno.into())),
        }
    }

    /// Where the data that `offset` lies in ends, at most the end of the file.
    pub(super) fn next_hole(&self, offset: u64) -> Result<u64, ImageError> {
        if self.block_device {
            return Ok(self.size());
        }
        match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(position) => Ok(position),
            Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                Ok(self.size())
            }
            Err(errno) => Err(self.read_error(offset, errno.into())),
        }
    }

    fn read_error(&self, offset: u64, source: io::Error) -> ImageError {
        ImageError::Io {
            path: self.path.clone(),
            action: "read",
            offset: Some(offset),
            guest_offset: None,
            source,
        }
    }

    pub(super) fn header(
        &self,
        field: &'static str,
        found: impl ToString,
        problem: impl Into<String>,
    ) -> ImageError {
        ImageError::Header {
            path: self.path.clone(),
            field,
            found: found.to_string(),
            problem: problem.into(),
        }
    }

    pub(super) fn damaged(&self, guest_offset: u64, problem: impl Into<String>) -> ImageError {
        ImageError::Damaged { path: self.path.clone(), guest_offset, problem: problem.into() }
    }
}

fn stat_of(metadata: &std::fs::Metadata, size: u64) -> Stat {
    Stat {
        device: metadata.dev(),
        inode: metadata.ino(),
        size,
        mtime_seconds: metadata.mtime(),
        mtime_nanos: metadata.mtime_nsec() as u32,
        born: metadata.created().ok(),
    }
}

pub(super) fn io_error(path: &Path, action: &'static str, source: io::Error) -> ImageError {
    ImageError::Io { path: path.to_owned(), action, offset: None, guest_offset: None, source }
}
