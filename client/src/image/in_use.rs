//! Whether somebody writes to an image: QEMU's own locks tell.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// QEMU holds a read lock on one byte of an image for each permission it uses, from this offset on.
const PERMISSIONS: i64 = 100;
/// The permission to write, as a bit number.
const WRITE: i64 = 1;

/// Whether a process has the image open for writing, by the locks that QEMU and its tools take (open file description
/// locks; QEMU's `file-posix` driver). File systems without such locks answer no.
pub(super) fn has_writer(file: &File) -> io::Result<bool> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: PERMISSIONS + WRITE,
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)) {
        Ok(_) => Ok(lock.l_type != libc::F_UNLCK as i16),
        Err(Errno::EINVAL | Errno::ENOLCK | Errno::ENOTSUP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
