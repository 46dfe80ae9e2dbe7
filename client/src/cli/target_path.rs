//! What the path of a restored disk says.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::restore::OutputFormat;

/// Formats that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TargetFormat {
    /// The disk's bytes, with holes where there are zeros
    Raw,
    /// qcow2 version 3
    Qcow2,
}

impl TargetFormat {
    /// What the outputs call it.
    pub fn output(self) -> OutputFormat {
        match self {
            Self::Raw => OutputFormat::Raw,
            Self::Qcow2 => OutputFormat::Qcow2,
        }
    }
}

/// Whether a disk of this name is raw unless said otherwise.
pub(super) fn is_raw_by_name(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "raw" || ending == "img" || ending == "fd")
}

/// Whether there is a block device.
pub(super) fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// The absolute path of a folder that may not be there yet, in a folder that is.
pub(super) fn absolute(folder: &Path) -> std::io::Result<PathBuf> {
    let missing = match (folder.canonicalize(), folder.file_name()) {
        (Err(error), Some(name)) if error.kind() == std::io::ErrorKind::NotFound => name,
        (found, _) => return found,
    };
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(parent.unwrap_or(Path::new(".")).canonicalize()?.join(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_names_folders_that_stay_where_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(absolute(&real.join("link")).unwrap(), real);
        assert_eq!(absolute(&real.join("link/../new/")).unwrap(), real.parent().unwrap().join("new"));
        assert_eq!(absolute(Path::new("new/")).unwrap(), std::env::current_dir().unwrap().join("new"));
        assert!(absolute(&real.join("no/such")).is_err());
    }
}
