//! Whether somebody uses an image: QEMU's own locks tell.
//!
//! QEMU and its tools hold read locks (open file description locks; QEMU's `file-posix` driver) on single bytes of an image: one
//! for each permission that they use, one for each that they do not share. Before they use a permission they look whether
//! somebody does not share it.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// The first byte for permissions in use.
const USED: i64 = 100;
/// The first byte for permissions that are not shared.
const NOT_SHARED: i64 = 200;
/// The permission to write, as a bit number.
const WRITE: i64 = 1;
/// How many permissions there may be: QEMU knows five.
const PERMISSIONS: i64 = 64;

/// Whether a process has the image open for writing. File systems without such locks answer no.
pub(super) fn has_writer(file: &File) -> io::Result<bool> {
    is_locked(file, USED + WRITE, 1)
}

/// Makes QEMU and its tools refuse to open the image for writing for as long as `file` is open. File systems without such locks
/// do not keep anybody out.
pub(super) fn keep_writers_out(file: &File) -> io::Result<()> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, NOT_SHARED + WRITE, 1))) {
        Ok(_) | Err(Errno::EINVAL | Errno::ENOLCK | Errno::ENOTSUP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether QEMU or one of its tools has the image open, for reading or writing. File systems without such locks answer no.
///
/// # Errors
/// If the file cannot be opened, or asked.
pub fn is_open_in_qemu(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    Ok(is_locked(&file, USED, PERMISSIONS)? || is_locked(&file, NOT_SHARED, PERMISSIONS)?)
}

fn is_locked(file: &File, first: i64, bytes: i64) -> io::Result<bool> {
    let mut found = lock(libc::F_WRLCK, first, bytes);
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)) {
        Ok(_) => Ok(found.l_type != libc::F_UNLCK as i16),
        Err(Errno::EINVAL | Errno::ENOLCK | Errno::ENOTSUP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn lock(kind: i32, first: i64, bytes: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: first,
        l_len: bytes,
        l_pid: 0,
    }
}
