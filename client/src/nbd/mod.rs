//! Reads disks that a server exports over NBD on a unix socket, as QEMU does for a running machine.
//!
//! A client of the protocol's fixed new style, for reading only and without TLS: which parts of a disk hold data or
//! changed since a bitmap was made, and the bytes. The server is trusted little: every length is bounded before
//! memory is taken for it, an answer holds what was asked for, once and whole, and nothing is waited for longer
//! than the caller says. Damage is an error, never zeros.
//!
//! `message`, `status` and `filled` take and return values; `handshake` and `connection` work on any stream.

mod connection;
mod error;
mod export;
mod extents;
mod filled;
mod handshake;
mod message;
mod status;

pub use error::NbdError;
pub use export::Export;
pub use extents::Extents;

/// The context that tells data from holes: [`HOLE`] and [`ZERO`].
pub const ALLOCATION: &str = "base:allocation";
/// A flag of [`ALLOCATION`]: no storage is taken.
pub const HOLE: u32 = 1;
/// A flag of [`ALLOCATION`]: reads as zeros for certain.
pub const ZERO: u32 = 2;
/// The flag of a dirty bitmap's context: written since the bitmap was made.
pub const DIRTY: u32 = 1;

const DIRTY_BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";

/// The context of QEMU's dirty bitmap `name`, whose flag is [`DIRTY`].
#[must_use]
pub fn dirty_bitmap(name: &str) -> String {
    format!("{DIRTY_BITMAP_PREFIX}{name}")
}

/// A run of a disk, in bytes, in which none of `N` contexts changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent<const N: usize> {
    pub offset: u64,
    /// Never 0.
    pub length: u64,
    /// What each context says, in the order in which they were asked for.
    pub flags: [u32; N],
}

impl<const N: usize> Extent<N> {
    /// The first byte after the run.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// What was asked of a server and received from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests for data.
    pub reads: u64,
    /// Requests for what contexts say.
    pub statuses: u64,
    /// Bytes of the disk that came over the socket.
    pub data_bytes: u64,
    /// Bytes of the disk that the server described as a hole, without sending zeros.
    pub hole_bytes: u64,
}

#[cfg(test)]
mod tests;
