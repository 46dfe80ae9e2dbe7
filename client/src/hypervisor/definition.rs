//! The part of a domain's definition that backups need, read from libvirt's XML.

use std::path::{Path, PathBuf};

use super::HypervisorError;
use super::nova::NovaInstance;
use super::parse;

/// A domain's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The text it was read from.
    pub xml: String,
    /// All its disks, in the order of the definition.
    pub disks: Vec<DomainDisk>,
    /// The channel to the guest's agent.
    pub agent: Agent,
    /// UEFI firmware, if it boots with one.
    pub firmware: Option<Firmware>,
    /// What OpenStack Nova says of it: Nova regenerates the definition whenever it likes.
    pub nova: Option<NovaInstance>,
}

impl Definition {
    /// Reads the definition of the domain `domain` from libvirt's XML, of a running domain or an inactive one.
    ///
    /// # Errors
    /// [`HypervisorError::Definition`] if the text is not XML, no domain, or has a disk without a name.
    pub fn parse(domain: &str, xml: &str) -> Result<Self, HypervisorError> {
        parse::definition(domain, xml)
    }

    /// The disk of that target name.
    pub fn disk(&self, target: &str) -> Option<&DomainDisk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

/// Whether a guest's agent can be talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// The domain has no channel for it.
    Absent,
    /// There is a channel, and nobody at its other end.
    Disconnected,
    /// The guest has opened the channel. Whether it answers is another question.
    Connected,
}

/// Firmware whose variables lie in a file of the domain's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The file with the variables; `None` if it does not exist before the first start. Variables that lie elsewhere than in
    /// a file stand here as [`Backing::path`] has them.
    pub nvram: Option<PathBuf>,
}

/// What a disk is to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// A disk.
    Disk,
    /// A CD-ROM drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A raw SCSI device of the host.
    Lun,
}

/// One disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainDisk {
    /// Its name, such as `vda`.
    pub target: String,
    /// Its bus, such as `virtio`.
    pub bus: Option<String>,
    /// What it is to its guest.
    pub kind: DiskKind,
    /// Its active layer.
    pub source: Source,
    /// Format of the active layer, such as `qcow2`.
    pub format: Option<String>,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Several domains write to it.
    pub shareable: bool,
    /// What is written is dropped when the domain stops.
    pub transient: bool,
    /// QEMU encrypts it, or a layer below.
    pub encrypted: bool,
    /// Layers below the active one, the nearest first, as far as libvirt names them (for a running domain: all).
    pub backing: Vec<Backing>,
    /// A job that copies the active layer.
    pub mirror: Option<Mirror>,
}

/// Where a disk's active layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// A block device of the host.
    Block(PathBuf),
    /// Nothing is inserted.
    Empty,
    /// Something else, in libvirt's words, such as `network rbd pool/image` or `volume pool/name`.
    Other(String),
}

impl Source {
    /// The path, for a file or a block device.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Block(path) => Some(path),
            Self::Empty | Self::Other(_) => None,
        }
    }
}

/// A layer of a chain as libvirt knows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Backing {
    /// The file or block device. A layer that is neither stands here in libvirt's words, such as `network nbd export`: it begins
    /// with no slash, so it is never mistaken for a file that can be opened.
    pub path: PathBuf,
    /// Its format, such as `qcow2` or `raw`.
    pub format: String,
}

/// A job that copies the active layer: libvirt's `<mirror>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// `copy` or `active-commit`.
    pub job: String,
    /// Where it copies to, if a file.
    pub target: Option<PathBuf>,
    /// It has caught up.
    pub ready: bool,
}
