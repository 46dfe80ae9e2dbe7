//! What can go wrong while a disk is given back. Each error names the file, or the place on the disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use underlay_store::id::ChunkId;

/// Everything a restore reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The repository failed.
    #[error(transparent)]
    Store(#[from] underlay_store::Error),
    /// A part of the disk cannot be had from the repository. The source names the chunk, its pack and its place there.
    #[error("the disk's data at offset {offset} bytes cannot be restored")]
    Data {
        /// The chunk that holds the data.
        chunk: ChunkId,
        /// Where the data belongs, in bytes of guest address space.
        offset: u64,
        /// What is wrong with the last copy tried. Shared with the other chunks of the same failed read.
        #[source]
        source: Arc<underlay_store::Error>,
    },
    /// Something is there already.
    #[error("{path} already exists")]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// The target exists and is neither a regular file nor a block device, or has no usable name.
    #[error("{path} is not a place for a disk: it is {found}")]
    NotATarget {
        /// The target.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The block device cannot hold the disk.
    #[error("{path} holds {capacity} bytes; the disk has {size}")]
    DeviceTooSmall {
        /// The device.
        path: PathBuf,
        /// Its capacity in bytes.
        capacity: u64,
        /// The disk's size in bytes.
        size: u64,
    },
    /// More than the image format can express.
    #[error("{path}: a qcow2 image holds at most {limit} bytes; the disk has {size}")]
    TooLarge {
        /// The target.
        path: PathBuf,
        /// The largest virtual size, in bytes.
        limit: u64,
        /// The disk's size in bytes.
        size: u64,
    },
    /// Data that does not belong to the disk. Nothing of it was written.
    #[error("{path}: {length} bytes at offset {offset} lie outside the disk of {size} bytes")]
    OutOfBounds {
        /// The target.
        path: PathBuf,
        /// Start of the data in bytes.
        offset: u64,
        /// Length of the data in bytes.
        length: u64,
        /// The disk's size in bytes.
        size: u64,
    },
    /// A stream was given data that lies before what it has already passed on.
    #[error("{path}: data for offset {offset} came after the stream had passed it, at {position}")]
    OutOfOrder {
        /// The stream.
        path: PathBuf,
        /// Start of the data in bytes.
        offset: u64,
        /// How far the stream is, in bytes.
        position: u64,
    },
    /// The target could not be used.
    #[error("cannot {action} {path}")]
    File {
        /// The target, or its directory.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The operating system's report.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// What the user can do next, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Store(source) => return source.hint(),
            Self::Data { source, .. } if source.is_damage() => {
                "`underlay restore --allow-holes` writes all the rest; `underlay repair` finds out what else is affected"
            }
            Self::Data { source, .. } => return source.hint(),
            Self::TargetExists { .. } => "choose another place, or replace what is there with --force",
            Self::NotATarget { .. } => "restore to a file, a block device, or `-` for standard output",
            Self::DeviceTooSmall { .. } => "choose or make a larger device",
            Self::TooLarge { .. } => "restore with --format raw",
            Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space or restore elsewhere"
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
                "something uses the device: unmount it, or stop what holds it"
            }
            _ => return None,
        })
    }

    /// For `map_err`: the operating system failed to `action` the file at `path`.
    pub(super) fn file(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + Copy {
        move |source| Self::File { path: path.to_owned(), action, source }
    }
}
