//! Opening files, and only those that may be opened.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::ImageError;

/// An open file, its real path and its length.
#[derive(Debug)]
pub(super) struct Opened {
    pub file: File,
    /// Links resolved.
    pub path: PathBuf,
    /// Bytes in the file or the block device.
    pub length: u64,
    pub is_block_device: bool,
    /// Device and inode.
    pub key: (u64, u64),
}

/// Which directories files named inside images may lie in.
#[derive(Debug)]
pub(super) struct Allowed(Vec<PathBuf>);

impl Allowed {
    /// The top image's own directory, unless it is a device, and those the user named.
    pub fn new(top: &Opened, directories: &[PathBuf]) -> Result<Self, ImageError> {
        let mut allowed = Vec::new();
        if let Some(parent) = top.path.parent().filter(|_| !top.is_block_device) {
            allowed.push(parent.to_owned());
        }
        for directory in directories {
            allowed.push(fs::canonicalize(directory).map_err(ImageError::io(directory, "resolve"))?);
        }
        Ok(Self(allowed))
    }

    /// Opens a file that `image` names. Relative names start at the image's directory.
    pub fn open(&self, image: &Path, named: &str) -> Result<Opened, ImageError> {
        let field = "the name of another file";
        let named = named.strip_prefix("file:").unwrap_or(named);
        let protocol = named.split('/').next().is_some_and(|head| head.contains(':'));
        if protocol || named.is_empty() || named.contains('\0') {
            let what = format!("{named:?} is not a plain path; network and json: images are never opened");
            return Err(ImageError::unsupported(image, field, what));
        }
        let path = image.parent().unwrap_or(Path::new("/")).join(named);
        let real = fs::canonicalize(&path).map_err(ImageError::io(&path, "find"))?;
        if !self.0.iter().any(|directory| real.starts_with(directory)) {
            return Err(ImageError::Outside { image: image.to_owned(), named: real });
        }
        open_real(real)
    }
}

/// Opens the file a user named.
pub(super) fn open_named(path: &Path) -> Result<Opened, ImageError> {
    open_real(fs::canonicalize(path).map_err(ImageError::io(path, "find"))?)
}

/// Opens a path without links for reading. Nothing but files and block devices is ever opened: a pipe or a tape would react.
fn open_real(path: PathBuf) -> Result<Opened, ImageError> {
    let usable = |kind: fs::FileType| kind.is_file() || kind.is_block_device();
    let before = fs::symlink_metadata(&path).map_err(ImageError::io(&path, "look at"))?;
    if !usable(before.file_type()) {
        return Err(ImageError::NotAFile { path });
    }
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(&path)
        .map_err(ImageError::io(&path, "open"))?;
    let metadata = file.metadata().map_err(ImageError::io(&path, "look at"))?;
    let now = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(ImageError::io(&path, "look at"))?;
    if !usable(metadata.file_type()) || now != path {
        return Err(ImageError::Changed { path });
    }
    let is_block_device = metadata.file_type().is_block_device();
    let length = if is_block_device {
        file.seek(SeekFrom::End(0)).map_err(ImageError::io(&path, "measure"))?
    } else {
        metadata.len()
    };
    Ok(Opened { file, length, is_block_device, key: (metadata.dev(), metadata.ino()), path })
}
