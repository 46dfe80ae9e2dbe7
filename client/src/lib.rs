//! The underlay client: reads VM disks, backs them up to a repository, restores them.

pub mod backup;
pub mod cli;
pub mod domain;
pub mod hypervisor;
pub mod image;
pub mod nbd;
pub mod openstack;
pub mod remote;
pub mod restore;
pub mod state;
