//! Choosing the output for a path.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::{BlockDevice, DiskOutput, Qcow2File, RawFile, RestoreError};

/// How a restored disk is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    /// The disk's bytes as they are.
    Raw,
    /// A flattened qcow2 image of version 3.
    Qcow2,
}

impl OutputFormat {
    /// What QEMU, libvirt and Glance call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Begins the output at `path` for a disk of `size` bytes: an existing block device is overwritten in place, anything
/// else becomes a new file. Without `force` nothing that exists is touched.
///
/// # Errors
/// [`RestoreError::TargetExists`] without `force`, [`RestoreError::NotATarget`] for a qcow2 image on a device and for
/// anything that is neither file nor block device, and what the outputs themselves report.
pub fn create_output(
    path: &Path,
    format: OutputFormat,
    size: u64,
    force: bool,
) -> Result<Box<dyn DiskOutput>, RestoreError> {
    let on_device = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    Ok(match (on_device, format) {
        (true, OutputFormat::Raw) => Box::new(BlockDevice::open(path, size, force)?),
        (true, OutputFormat::Qcow2) => {
            let found = "a block device, and a qcow2 image needs a file";
            return Err(RestoreError::NotATarget { path: path.to_owned(), found });
        }
        (false, OutputFormat::Raw) => Box::new(RawFile::create(path, size, force)?),
        (false, OutputFormat::Qcow2) => Box::new(Qcow2File::create(path, size, force)?),
    })
}
