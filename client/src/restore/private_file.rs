//! A small file that holds secrets.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::RestoreError;
use super::partial::PartialFile;

/// A file that only its owner may read. It appears when it is whole.
#[derive(Debug)]
pub struct PrivateFile {
    partial: PartialFile,
}

impl PrivateFile {
    /// Begins a file at `path`. Without `force` the name must be free, now and at the end.
    ///
    /// # Errors
    /// [`RestoreError::TargetExists`], [`RestoreError::NotATarget`] or [`RestoreError::File`].
    pub fn create(path: &Path, force: bool) -> Result<Self, RestoreError> {
        let partial = PartialFile::create(path, force)?;
        // It has the mode of a file that it replaces.
        let private = partial.file().set_permissions(Permissions::from_mode(0o600));
        private.map_err(RestoreError::file("set the mode of", path))?;
        Ok(Self { partial })
    }

    /// Gives it this content and its name, durably.
    ///
    /// # Errors
    /// [`RestoreError::File`], or [`RestoreError::TargetExists`] if something took the name meanwhile.
    pub fn finish(self, content: &[u8]) -> Result<(), RestoreError> {
        let written = self.partial.file().write_all(content);
        written.map_err(RestoreError::file("write", self.partial.path()))?;
        self.partial.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::testing::names;
    use super::*;

    #[test]
    fn it_is_whole_and_private_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("domain.xml");
        drop(PrivateFile::create(&path, false).unwrap());
        assert!(names(folder.path()).is_empty());
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(PrivateFile::create(&path, false), Err(RestoreError::TargetExists { .. })));
        PrivateFile::create(&path, true).unwrap().finish(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["domain.xml"]);
    }
}
