//! Giving disks back: from a root in the repository to a file, a device or a stream.
//!
//! Two halves meet at [`DiskOutput`]. The executor ([`restore`]) walks a tree in windows, finds out where the window's
//! chunks lie, reads packs in few large pieces, decrypts and verifies every chunk on worker threads and hands it to the
//! output at every place where the disk has it. The outputs know nothing of repositories:
//!
//! | output | is | order | zeros |
//! |---|---|---|---|
//! | [`RawFile`] | a sparse file | any | holes |
//! | [`Qcow2File`] | a flattened image of version 3 | any | unallocated clusters |
//! | [`BlockDevice`] | an existing device, overwritten | any | really zeroed |
//! | [`StreamOutput`] | a pipe | ascending | filled in |
//! | [`Qcow2Stream`] | a flattened image into a pipe | ascending | unallocated clusters |
//! | [`VerifyOutput`] | nothing: for reading without keeping | any | none |
//!
//! Files grow under a temporary name and take their own only when they are whole and on disk: a restore that fails or is
//! stopped leaves no half image behind. What one leaves that is killed, [`remove_abandoned`] finds.

mod affected;
mod allocation;
mod damage;
mod decode;
mod device;
mod error;
mod execute;
mod fetch;
mod flush;
mod gather;
mod headers;
mod partial;
mod private_file;
mod qcow2;
mod raw;
mod stream;
mod target;
#[cfg(test)]
mod testing;
mod verify;
mod verify_output;
mod vouch;
mod walk;

use std::path::Path;

use underlay_store::cut::{BLOCK, is_zero};

pub use damage::Hole;
pub use device::BlockDevice;
pub use error::RestoreError;
pub use execute::{Environment, RestoreOptions, RestoreStatistics, restore, restore_with_holes};
pub use partial::remove_abandoned;
pub use private_file::PrivateFile;
pub use qcow2::{Qcow2File, Qcow2Plan, Qcow2Stream};
pub use raw::RawFile;
pub use stream::StreamOutput;
pub use target::{OutputFormat, create_output};
pub use verify::{VerifyReport, verify};
pub use verify_output::VerifyOutput;
pub use vouch::{VouchReport, vouch};

/// Takes a disk's bytes in any order, from many threads. What is never written reads as zeros.
///
/// No byte is given twice: outputs skip zeros instead of writing them over something. Dropping an output that was not
/// finished removes what it had made (a device or a stream keeps what it got).
pub trait DiskOutput: Send + Sync {
    /// Takes `data` for `offset`, in bytes of guest address space.
    ///
    /// # Errors
    /// [`RestoreError::OutOfBounds`] if it does not lie within the disk, [`RestoreError::File`] if it cannot be written.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), RestoreError>;

    /// Says that these bytes are zeros. Only an output that held something before has anything to do.
    ///
    /// # Errors
    /// As for [`Self::write_at`].
    fn zero_range(&self, _offset: u64, _length: u64) -> Result<(), RestoreError> {
        Ok(())
    }

    /// Whether writes must come in ascending order, one at a time.
    fn ascending(&self) -> bool {
        false
    }

    /// Makes everything durable and visible under its own name.
    ///
    /// # Errors
    /// [`RestoreError::File`], or [`RestoreError::TargetExists`] if something took the name meanwhile.
    fn finish(self: Box<Self>) -> Result<Finished, RestoreError>;
}

/// What an output has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The disk's size as its reader sees it, in bytes. A qcow2 image's is rounded up to 512.
    pub size: u64,
    /// Bytes of data written, zeros left out.
    pub written: u64,
}

/// Refuses data that does not lie within a disk of `size` bytes.
fn check_bounds(path: &Path, size: u64, offset: u64, length: u64) -> Result<(), RestoreError> {
    if offset.checked_add(length).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(RestoreError::OutOfBounds { path: path.to_owned(), offset, length, size })
}

/// Gives the longest runs of `data` without an all-zero block, each with its offset. Blocks are [`BLOCK`] bytes of guest
/// address space; `data` starts at `offset`.
fn data_runs(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let block_end = move |at: usize| {
        let position = offset + at as u64;
        data.len().min(at + BLOCK - (position % BLOCK as u64) as usize)
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < data.len() && is_zero(&data[at..block_end(at)]) {
            at = block_end(at);
        }
        let start = at;
        while at < data.len() && !is_zero(&data[at..block_end(at)]) {
            at = block_end(at);
        }
        (start < at).then(|| (offset + start as u64, &data[start..at]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn data_runs_hold_every_byte_that_is_not_zero(
            offset in 0u64..10_000,
            blocks in proptest::collection::vec((any::<bool>(), 1usize..3000), 0..20),
        ) {
            let data: Vec<u8> = blocks.iter().flat_map(|&(zero, length)| vec![u8::from(!zero); length]).collect();
            let (mut rebuilt, mut last_end) = (vec![0; data.len()], None);
            for (at, run) in data_runs(offset, &data) {
                prop_assert!(!run.is_empty() && last_end != Some(at));
                let start = (at - offset) as usize;
                rebuilt[start..start + run.len()].copy_from_slice(run);
                last_end = Some(at + run.len() as u64);
                // A run never holds a whole block of zeros.
                for block in at.div_ceil(BLOCK as u64)..(at + run.len() as u64) / BLOCK as u64 {
                    let within = (block * BLOCK as u64 - at) as usize;
                    prop_assert!(!is_zero(&run[within..within + BLOCK]));
                }
            }
            prop_assert_eq!(rebuilt, data);
        }
    }
}
