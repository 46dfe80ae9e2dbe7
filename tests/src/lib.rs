//! The kit that underlay's whole-system tests stand on: real guests, a real QEMU, real S3 servers, real rivals.
//!
//! Whatever is slow to make is built once into a [`cache`] outside the source tree and shared by every test process.
//! Nothing here is a stand-in: where a part is missing, the test fails and says what installs it.
//!
//! A suite that needs such parts is a file `tests/tests/real_*.rs`; a test in it that boots a guest is named `guest_*`,
//! so that not more than two run at a time (`.config/nextest.toml`).

/// The folder of built parts: one atomic build per recipe, whoever asks first.
pub mod cache;
/// A headless Chromium, spoken to over a pipe.
pub mod chromium;
/// Running external programs: captured output, and errors that quote it.
pub mod commands;
/// A compute node of a real OpenStack, with a repository for its instances.
pub mod compute_node;
/// What every authority must do, in this process or behind a server.
pub mod conformance;
/// Programs compiled from the crate registry.
pub mod crates;
/// The package archive that this machine is already configured for.
pub mod debian;
/// The one error type of the kit.
pub mod error;
/// Golden repositories: written once, read for ever.
pub mod golden;
/// A bootable Debian guest, its overlays, and changes to its file system without booting it.
pub mod guest;
/// Processes that stand still until the test lets them go on.
pub mod held;
/// A host with a guest of two disks that is backed up.
pub mod host;
/// Images of every kind that underlay reads.
pub mod images;
/// The first process of a PID namespace, which ends with the test.
mod keeper;
/// Snapshots of domains, made without a hypervisor.
pub mod kept;
/// A repository in a temporary folder, with a plain reader to compare with.
pub mod lab;
/// A libvirtd for each test, with real guests under it.
pub mod libvirt;
/// Free addresses, and who answers there.
pub mod loopback;
/// Mounts that end with the test that made them.
pub mod mounts;
/// OpenAPI documents, judged by others' programs.
pub mod openapi;
/// An OpenStack on loopback: identity and images, and compute with real guests.
pub mod openstack;
/// The Debian packages that the tests need.
pub mod packages;
/// The program `underlay`, run as a user runs it.
pub mod program;
/// A proxy before a real service, which does to chosen requests what a bad line or a hostile host would.
pub mod proxy;
/// Python programs from PyPI, each set in an environment of its own.
pub mod python;
/// Booting a disk image and reading its serial console.
pub mod qemu;
/// Other backup programs, to measure against.
pub mod rivals;
/// S3 servers on loopback.
pub mod s3;

/// The server, in this process or as a program.
pub mod server;

pub use error::{Error, Result};
