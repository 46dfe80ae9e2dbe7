//! What can end a backup.

use crate::image::ImageError;
use crate::nbd::NbdError;
use crate::state::StateError;

/// Why a backup failed. Nothing was committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The repository failed.
    #[error(transparent)]
    Store(#[from] underlay_store::Error),
    /// An image cannot be read, or changed meanwhile.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A running machine's disk cannot be read.
    #[error(transparent)]
    Live(#[from] NbdError),
    /// What this host remembers cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Data that should not have changed did; what was known was wrong. Handled by reading all of it.
    #[error("disk {disk}: unchanged data at byte {offset} is not what the last backup stored")]
    MemoContradicted {
        /// The disk.
        disk: String,
        /// Byte of guest address space.
        offset: u64,
    },
    /// A job without a disk.
    #[error("there is no disk to back up")]
    NoDisk,
}

impl BackupError {
    /// What the user can do next, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint().map(str::to_owned),
            Self::Image(error) => error.hint(),
            Self::Live(error) => error.hint(),
            _ => None,
        }
    }
}
