//! A file that takes its name only when it is whole.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::RestoreError;
use super::flush::Flusher;

/// Bytes of the target's name that the temporary name repeats; names may have 255.
const NAME_SHOWN: usize = 200;

/// What stands between a target's name and the nonce.
const MARK: &str = ".underlay-partial-";
/// Hexadecimal digits of a nonce.
const NONCE: usize = 16;

/// A new file under the name `.NAME.underlay-partial-NONCE` beside its target. Removed on drop unless finished. It is locked until then: who
/// finds one that is not knows that its writer is gone.
#[derive(Debug)]
pub(super) struct PartialFile {
    file: File,
    flusher: Flusher,
    directory: File,
    temporary: OsString,
    path: PathBuf,
    force: bool,
    unfinished: bool,
}

impl PartialFile {
    /// Opens a new empty file that will replace `path`, or with `force` false may only take that name while it is free.
    ///
    /// With `force`, a symlink's target is replaced and not the symlink, and the new file gets the old one's owner and mode.
    /// Otherwise only the owner may read it: disks hold secrets.
    pub(super) fn create(path: &Path, force: bool) -> Result<Self, RestoreError> {
        let (path, replaced) = resolve(path, force)?;
        let not_a_target = |found| RestoreError::NotATarget { path: path.clone(), found };
        let name = path.file_name().ok_or_else(|| not_a_target("a directory"))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = File::open(parent).map_err(RestoreError::file("open", parent))?;
        let temporary = temporary_name(name);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, &temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| RestoreError::file("create", &path)(errno.into()))?;
        let file = File::from(file);
        // Where locks are not known, nobody will take it for abandoned either.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        let flusher = Flusher::new(&file).map_err(|error| {
            let _ = rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty());
            RestoreError::file("flush", &path)(error)
        })?;
        let partial = Self { file, flusher, directory, temporary, path, force, unfinished: true };
        if let Some(replaced) = replaced {
            partial.take_over(&replaced).map_err(RestoreError::file("set the owner of", &partial.path))?;
        }
        Ok(partial)
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Notes that this many bytes were written: they are brought to the disk while more comes.
    pub(super) fn wrote(&self, bytes: u64) {
        self.flusher.wrote(bytes);
    }

    /// The name it will take.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the file, gives it its name and syncs the directory.
    pub(super) fn finish(mut self) -> Result<(), RestoreError> {
        let flushed = self.flusher.finish();
        flushed.and_then(|()| self.file.sync_all()).map_err(RestoreError::file("sync", &self.path))?;
        self.take_name().map_err(|errno| match errno {
            Errno::EXIST => RestoreError::TargetExists { path: self.path.clone() },
            errno => RestoreError::file("give its name to", &self.path)(errno.into()),
        })?;
        self.unfinished = false;
        self.directory.sync_all().map_err(RestoreError::file("sync the directory of", &self.path))
    }

    fn take_name(&self) -> rustix::io::Result<()> {
        let (directory, name) = (&self.directory, self.path.file_name().unwrap_or_default());
        if self.force {
            return rustix::fs::renameat(directory, &self.temporary, directory, name);
        }
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(directory, &self.temporary, directory, name, flags) {
            // Not every file system knows this flag; a hard link refuses a taken name just as well.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                rustix::fs::linkat(directory, &self.temporary, directory, name, AtFlags::empty())?;
                rustix::fs::unlinkat(directory, &self.temporary, AtFlags::empty())
            }
            result => result,
        }
    }

    /// Takes owner and mode of the file that this one will replace. Who may not give files away keeps them private.
    fn take_over(&self, replaced: &fs::Metadata) -> io::Result<()> {
        match fchown(&self.file, Some(replaced.uid()), Some(replaced.gid())) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.file.set_permissions(fs::Permissions::from_mode(replaced.mode() & 0o777)),
        }
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.unfinished
            && let Err(error) = rustix::fs::unlinkat(&self.directory, &self.temporary, AtFlags::empty())
        {
            tracing::warn!(file = %self.temporary.display(), %error, "an unfinished file could not be removed");
        }
    }
}

/// The path whose name will be taken, and the file that has it now.
fn resolve(path: &Path, force: bool) -> Result<(PathBuf, Option<fs::Metadata>), RestoreError> {
    let failed = RestoreError::file("look at", path);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((path.to_owned(), None)),
        Err(error) => return Err(failed(error)),
        Ok(_) if !force => return Err(RestoreError::TargetExists { path: path.to_owned() }),
        Ok(_) => {}
    }
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok((fs::canonicalize(path).map_err(failed)?, Some(found))),
        Ok(found) => Err(RestoreError::NotATarget { path: path.to_owned(), found: kind(&found) }),
        // A symlink that leads nowhere: it is replaced itself.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((path.to_owned(), None)),
        Err(error) => Err(failed(error)),
    }
}

fn kind(found: &fs::Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = found.file_type();
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "neither a file nor a block device",
    }
}

fn temporary_name(name: &OsStr) -> OsString {
    let shown = &name.as_bytes()[..name.len().min(NAME_SHOWN)];
    let nonce = hex::encode(underlay_store::key::random_bytes::<{ NONCE / 2 }>());
    OsString::from_vec([b".", shown, MARK.as_bytes(), nonce.as_bytes()].concat())
}

/// Removes unfinished files in `folder` whose writers were killed, if `is_target` knows the name that they were to take. Returns what is
/// removed.
///
/// # Errors
/// If the folder cannot be read, or such a file not be removed.
pub fn remove_abandoned(folder: &Path, is_target: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder)? {
        let (entry, is_nonce) = (entry?, |nonce: &str| nonce.len() == NONCE && hex::decode(nonce).is_ok());
        let name = entry.file_name();
        let parts = name.to_str().and_then(|name| name.strip_prefix('.')?.rsplit_once(MARK));
        let Some((target, _)) = parts.filter(|(_, nonce)| is_nonce(nonce)) else { continue };
        if !is_target(target) || !entry.file_type()?.is_file() {
            continue;
        }
        let path = entry.path();
        let abandoned = File::open(&path)
            .is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if abandoned {
            fs::remove_file(&path)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::super::testing::names;
    use super::*;

    fn write(path: &Path, force: bool, content: &[u8]) -> Result<(), RestoreError> {
        let partial = PartialFile::create(path, force)?;
        partial.file().write_all(content).unwrap();
        partial.finish()
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let partial = PartialFile::create(&folder.path().join("disk"), false).unwrap();
        assert!(names(folder.path())[0].starts_with(".disk.underlay-partial-"));
        drop(partial);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn only_what_a_killed_writer_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let living = PartialFile::create(&place("disk.restored-1"), false).unwrap();
        let abandoned = place(".disk.restored-2.underlay-partial-0123456789abcdef");
        let others = [
            place(".disk.underlay-partial-0123456789abcdef"),
            place(".disk.restored-2.underlay-partial-0123"),
            place(".disk.restored-2.underlay-partial-0123456789abcdeg"),
            place("disk.restored-2.underlay-partial-0123456789abcdef"),
        ];
        others.iter().chain([&abandoned]).for_each(|path| fs::write(path, "x").unwrap());
        let link = place(".disk.restored-3.underlay-partial-0123456789abcdef");
        symlink(&others[0], &link).unwrap();
        let is_target = |name: &str| name.starts_with("disk.restored-");
        assert_eq!(remove_abandoned(folder.path(), is_target).unwrap(), [abandoned]);
        assert_eq!(names(folder.path()).len(), 6);
        living.finish().unwrap();
        assert!(place("disk.restored-1").is_file() && others.iter().all(|path| path.is_file()));
        assert!(link.is_symlink());
    }

    #[test]
    fn a_taken_name_is_refused_at_once_and_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let partial = PartialFile::create(&path, false).unwrap();
        fs::write(&path, "someone else's").unwrap();
        assert!(matches!(write(&path, false, b"x"), Err(RestoreError::TargetExists { .. })));
        assert!(matches!(partial.finish(), Err(RestoreError::TargetExists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"someone else's");
        assert_eq!(names(folder.path()), ["disk"]);
    }

    #[test]
    fn force_replaces_a_file_through_its_symlink_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("disk"), folder.path().join("link"));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("disk", &link).unwrap();
        write(&link, true, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_fresh_file_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        write(&path, false, b"x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn only_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let refused = write(folder.path(), true, b"x").unwrap_err();
        assert!(matches!(refused, RestoreError::NotATarget { found: "a directory", .. }), "{refused}");
        let dangling = folder.path().join("dangling");
        symlink("nowhere", &dangling).unwrap();
        assert!(matches!(write(&dangling, false, b"x"), Err(RestoreError::TargetExists { .. })));
    }

    #[test]
    fn the_longest_name_still_has_a_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("n".repeat(255)), false, b"x").unwrap();
    }
}
