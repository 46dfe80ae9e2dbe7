//! What is backed up: disks of real guests, made once and kept in the kit's cache, and disks derived from them.

mod disks;
mod guests;

pub use disks::{Disks, flat, nonzero_bytes};
pub use guests::{GUESTS, Guest, guests};
