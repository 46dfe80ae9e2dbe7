//! Backing up the disks of libvirt domains.

pub mod kept;
