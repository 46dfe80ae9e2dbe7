//! Disks that could not be restored whole: under what name they lie.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags};
use rustix::io::Errno;

use super::report::Failure;
use crate::restore::RestoreError;

/// What a file with holes ends in.
const ENDING: &str = ".incomplete";

/// Where a disk that may have holes is written: beside `path`, unless that is a device or stdout, which have one name only.
pub(super) fn incomplete(path: &Path, force: bool) -> Result<PathBuf, Failure> {
    if path.as_os_str() == "-" || std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Ok(path.to_owned());
    }
    if !force && path.symlink_metadata().is_ok() {
        return Err(RestoreError::TargetExists { path: path.to_owned() }.into());
    }
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(ENDING);
    Ok(name.into())
}

/// Gives a file without holes its own name.
pub(super) fn is_whole(under: &Path, path: &Path, force: bool) -> Result<(), Failure> {
    if under == path {
        return Ok(());
    }
    let renamed = match force {
        true => rustix::fs::rename(under, path),
        false => match rustix::fs::renameat_with(CWD, under, CWD, path, RenameFlags::NOREPLACE) {
            // Not every file system knows this flag; a hard link refuses a taken name just as well.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                rustix::fs::linkat(CWD, under, CWD, path, AtFlags::empty())
                    .and_then(|()| rustix::fs::unlinkat(CWD, under, AtFlags::empty()))
            }
            done => done,
        },
    };
    renamed.map_err(|error| {
        let said = format!("{} is whole, but cannot be called {}", under.display(), path.display());
        Failure::failed(said, std::io::Error::from(error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let under = incomplete(&path, false).unwrap();
        assert_eq!(under, folder.path().join("disk.raw.incomplete"));
        std::fs::write(&under, "whole").unwrap();
        is_whole(&under, &path, false).unwrap();
        assert!(path.exists() && !under.exists());
        assert!(incomplete(&path, false).is_err() && incomplete(&path, true).is_ok());
        std::fs::write(&under, "other").unwrap();
        is_whole(&under, &path, false).unwrap_err();
        is_whole(&under, &path, true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
        assert_eq!(incomplete(Path::new("/dev/null"), false).unwrap(), Path::new("/dev/null"));
        assert_eq!(incomplete(Path::new("-"), false).unwrap(), Path::new("-"));
    }
}
