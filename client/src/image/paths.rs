//! Which files an image may name, and opening them without being led elsewhere.
//!
//! A name is resolved like QEMU does (against the directory of the image as it was named), then every symlink in
//! it is followed, and only the result is compared with the allowed directories. The file is first opened with
//! `O_PATH`, which touches no device and never blocks; its type and its real place are checked on that
//! descriptor, and only then is it reopened for reading through `/proc/self/fd`. So what was checked is what is read.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use super::OpenOptions;
use super::error::{ImageError, shown};
use super::file::{ImageFile, io_error};

/// Where a path named inside an image may lie: in or below these directories, or at these files. All canonical.
#[derive(Debug)]
pub(super) struct Allowed {
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Allowed {
    /// The directory of the top image, under the name the caller gave and under its real one, and what `options` add. An
    /// allowed file that is not there allows nothing.
    pub(super) fn new(top: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        let mut directories = vec![canonical(directory_of(top))?];
        if let Some(real) = canonical(top)?.parent() {
            directories.push(real.to_owned());
        }
        for directory in &options.allow_dirs {
            directories.push(canonical(directory)?);
        }
        let files = options.allow_files.iter().filter_map(|file| canonical(file).ok()).collect();
        Ok(Self { directories, files })
    }

    fn contain(&self, path: &Path) -> bool {
        let below = |directory: &PathBuf| path != directory && path.starts_with(directory);
        self.directories.iter().any(below) || self.files.iter().any(|file| path == file)
    }
}

/// Opens the image that the caller named: wherever it lies.
pub(super) fn open_named_by_caller(path: &Path) -> Result<ImageFile, ImageError> {
    open(path, &canonical(path)?, |_| Ok(()))
}

/// Opens `path`, which `image` names as `named`, if it really lies in an allowed directory.
pub(super) fn open_named_by_image(
    image: &Path,
    named: &[u8],
    path: &Path,
    allowed: &Allowed,
) -> Result<ImageFile, ImageError> {
    let check = |real: &Path| {
        if allowed.contain(real) {
            return Ok(());
        }
        Err(ImageError::NotAllowed { path: image.to_owned(), named: shown(named), resolved: real.to_owned() })
    };
    let real = canonical(path)?;
    check(&real)?;
    open(path, &real, check)
}

/// The path that `image` means by `named`: absolute, or relative to the image's directory.
pub(super) fn resolve(image: &Path, named: &[u8]) -> Result<PathBuf, ImageError> {
    let refuse = |problem| Err(ImageError::BadName { path: image.to_owned(), named: shown(named), problem });
    let path = named.strip_prefix(b"file:").filter(|rest| rest.starts_with(b"/")).unwrap_or(named);
    if path.is_empty() || path.contains(&0) {
        return refuse("this is not a file name");
    }
    let first = path.iter().find(|byte| matches!(byte, b':' | b'/'));
    if first == Some(&b':') {
        return refuse("only plain files can be read, not json: or network protocols");
    }
    Ok(directory_of(image).join(OsStr::from_bytes(path)))
}

fn open(
    path: &Path,
    real: &Path,
    check: impl Fn(&Path) -> Result<(), ImageError>,
) -> Result<ImageFile, ImageError> {
    let failed = |source: rustix::io::Errno| io_error(path, "open", source.into());
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let handle: OwnedFd = rustix::fs::open(real, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&handle).map_err(failed)?;
    let found = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => None,
        FileType::Directory => Some("a directory"),
        FileType::Fifo => Some("a pipe"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice => Some("a character device"),
        FileType::Symlink => Some("a symbolic link"),
        _ => Some("something unknown"),
    };
    if let Some(found) = found {
        return Err(ImageError::NotAFile { path: path.to_owned(), found });
    }
    let link = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    check(&fs::read_link(&link).map_err(|source| io_error(path, "find the real place of", source))?)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: OwnedFd = rustix::fs::open(&link, flags, Mode::empty()).map_err(failed)?;
    ImageFile::new(path.to_owned(), File::from(file))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn canonical(path: &Path) -> Result<PathBuf, ImageError> {
    fs::canonicalize(path).map_err(|source| io_error(path, "find", source))
}
