//! What tells that a layer is still the file it was.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ImageError;

/// Everything a memo compares before it is believed. Change time is left out: relabelling a file alters it.
#[derive(Serialize, Deserialize, PartialEq, Eq, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct LayerIdentity {
    /// Device that holds the file.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Its length, or the block device's, in bytes.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime_seconds: i64,
    /// Modification time, nanoseconds.
    pub mtime_nanos: u32,
    /// BLAKE3 of what maps the disk to the file: header, active L1 and L2 tables, and the state of an external data file.
    pub metadata: [u8; 32],
}

/// The part of a file's identity that the file system keeps.
pub(super) fn stat(path: &Path, file: &File, size: u64, metadata: [u8; 32]) -> Result<LayerIdentity, ImageError> {
    let found = file.metadata().map_err(ImageError::io(path, "look at"))?;
    Ok(LayerIdentity {
        device: found.dev(),
        inode: found.ino(),
        size,
        mtime_seconds: found.mtime(),
        mtime_nanos: u32::try_from(found.mtime_nsec()).unwrap_or(0),
        metadata,
    })
}
