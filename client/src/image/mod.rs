//! Disk images: layers, the chains they form, and what a guest would read from them. Hostile until proven otherwise.

mod chain;
mod error;
mod identity;
mod paths;
mod qcow2;
mod raw;

use std::path::PathBuf;

pub use chain::{Chain, Layer, ReadCounters};
pub use error::ImageError;
pub use identity::LayerIdentity;

/// How an image file holds its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes, nothing else.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// How to open a chain.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Format of the top image. `None`: by its name's ending, never by its content, which the guest controls.
    pub format: Option<Format>,
    /// Directories, besides the top image's own, in and below which files named inside images may lie.
    pub allow_dirs: Vec<PathBuf>,
    /// Most layers a chain may have.
    pub max_depth: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { format: None, allow_dirs: Vec::new(), max_depth: 64 }
    }
}

/// A run of a virtual disk, in bytes of guest address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// What is there.
    pub kind: ExtentKind,
}

/// What an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that must be read.
    Data,
    /// Zeros, known without reading.
    Zero,
}

/// Where a layer keeps a run of the disk. Offsets are in bytes of the file that holds the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not in this layer: whatever the layer below holds.
    Below,
    /// Zeros.
    Zero,
    /// Plain bytes from here on.
    Data(u64),
    /// One compressed cluster.
    Compressed {
        /// Where it starts in the file.
        host: u64,
        /// Its length in the file is at most this.
        length: u64,
        /// Where the run starts within the decompressed cluster.
        within: u64,
    },
}

impl Place {
    /// The same place `by` bytes further on.
    fn advanced(self, by: u64) -> Self {
        match self {
            Self::Data(host) => Self::Data(host + by),
            Self::Compressed { host, length, within } => Self::Compressed { host, length, within: within + by },
            other => other,
        }
    }
}
