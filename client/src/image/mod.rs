//! Reads virtual disk images: raw and qcow2 files, and chains of overlays over them.
//!
//! Every image is hostile until proven otherwise. A path named inside an image is opened only in allowed
//! directories, nothing is probed, every header field and table entry is checked before it is used, memory is
//! bounded whatever a header claims, and damage is an error, never zeros. What is read is exactly what QEMU shows
//! the guest:
//!
//! - past the end of a layer that is shorter than the layers above, zeros, never what lies deeper;
//! - a raw file's last sector is padded with zeros to 512 bytes, and a qcow2 header's size is rounded down to 512.
//!
//! Files are opened read-only and stay open; nothing here ever writes.

mod cache;
mod chain;
mod error;
mod file;
mod in_use;
mod layer;
mod paths;
mod qcow2;
mod raw;

use std::path::PathBuf;

pub use chain::Chain;
pub use error::ImageError;
pub use file::ReadCounters;
pub use in_use::is_open_in_qemu;
pub use layer::{Layer, LayerIdentity};

/// The format of one image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk's bytes, one to one: a regular file or a block device.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
}

/// How to open a chain.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The format of the top image. `None` takes it from the extension `.qcow2` or `.raw`, and from nothing else.
    pub format: Option<Format>,
    /// Directories, besides the top image's own, in or below which images may name files. Symlinks are followed.
    pub allow_dirs: Vec<PathBuf>,
    /// Files that images may name, wherever they lie: layers that somebody trustworthy, such as libvirt, knows of.
    pub allow_files: Vec<PathBuf>,
    /// Keep QEMU and its tools from writing to any layer while the chain is open: a machine on these disks does not start.
    pub keep_writers_out: bool,
    /// The most layers a chain may have. At most 256, whatever is given.
    pub max_depth: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            format: None,
            allow_dirs: Vec::new(),
            allow_files: Vec::new(),
            keep_writers_out: false,
            max_depth: 64,
        }
    }
}

/// A run of a virtual disk, in bytes of guest address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    pub kind: ExtentKind,
}

/// What is known about a run without reading its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Must be read; may turn out to be zeros.
    Data,
    /// Reads as zeros for certain.
    Zero,
}

impl Extent {
    /// The first byte after the run.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}
