//! What this host knows of a domain between backups, and what it was about to do when it was last heard of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use underlay_store::id::{RepositoryId, Root};

use crate::hypervisor::{Backing, Domain, DomainDisk};
use crate::image::LayerIdentity;

/// Version of the record that this build writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// All that is known of one domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainRecord {
    /// [`VERSION`].
    pub version: u32,
    /// The domain's name when it was last seen.
    pub name: String,
    /// Its UUID, by which it is known.
    pub uuid: String,
    /// The hypervisor that ran it when it was last seen.
    pub hypervisor: String,
    /// Its disks, by target.
    pub disks: BTreeMap<String, DiskRecord>,
    /// Its guest's file systems may be frozen, and nobody has seen them thawed since.
    pub thaw_pending: bool,
    /// What was begun and is not known to be complete.
    pub operation: Option<Operation>,
    /// Since when the hypervisor notes what the guest writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// A pull that was begun and is not known to be over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<Pull>,
    /// Checkpoints that are of no use any more, and whose bitmaps may still be there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub stale_checkpoints: BTreeSet<String>,
}

/// A dirty bitmap in every disk, and what the disks held when it was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracking {
    /// What the bitmaps are called, and the checkpoint that they belong to.
    pub checkpoint: String,
    /// The repository that holds what the disks held.
    pub repository: RepositoryId,
    /// The disks, by target.
    pub disks: BTreeMap<String, TrackedDisk>,
}

/// A disk with a dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackedDisk {
    /// The file with the bitmap.
    pub file: FileIdentity,
    /// What the disk held when it was begun.
    pub root: Root,
}

/// A file, whatever becomes of its content: another one under its name is another one here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// Its path.
    pub path: PathBuf,
    /// The file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970, if the file system tells.
    pub born: Option<u64>,
}

/// A pull that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    /// The checkpoint that began with it.
    pub checkpoint: String,
    /// Where it offers its exports.
    pub socket: PathBuf,
    /// Files that hold what the guest overwrites meanwhile.
    pub scratch: Vec<PathBuf>,
}

/// What is known of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// The layer into which overlays are merged: frozen now, and this domain's own, for it was its active layer before.
    pub anchor: Option<Backing>,
    /// Overlays that underlay made and that may still hold the guest's data.
    pub overlays: BTreeSet<PathBuf>,
    /// Files that libvirt named as this disk's layers when it ran last.
    pub layers: BTreeSet<PathBuf>,
}

/// How disks are frozen and given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The guest stays in the new overlay, and the overlay before is merged one layer down
    Rotate,
    /// The guest goes back to its original file after every backup
    Pivot,
}

/// How far an operation has come. Each is recorded before anything of it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The disks are being frozen, the guest's file systems too, perhaps.
    Freezing,
    /// The disks are frozen; no snapshot in a repository holds them yet, as far as is known.
    Frozen,
    /// The snapshot is committed; layers are being merged.
    Merging,
}

/// One backup of a running domain, as far as its disks are concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Part of the name of every overlay it makes.
    pub nonce: String,
    /// How.
    pub strategy: Strategy,
    /// How far.
    pub phase: Phase,
    /// Its disks.
    pub disks: Vec<FrozenDisk>,
}

/// A disk that is frozen, or about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrozenDisk {
    /// The disk, such as `vda`.
    pub target: String,
    /// Its active layer before, which is backed up.
    pub frozen: Backing,
    /// Its active layer after.
    pub overlay: PathBuf,
    /// What is merged once the snapshot is committed; only with [`Strategy::Rotate`].
    pub merge: Option<Merge>,
    /// What was read; known from [`Phase::Merging`] on.
    pub content: Option<Content>,
}

/// Overlays that go one layer down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// The layer that takes their data.
    pub into: Backing,
    /// The overlays, the frozen one first. Removed when they are merged.
    pub overlays: Vec<PathBuf>,
}

/// What a frozen layer was found to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The repository that holds it.
    pub repository: RepositoryId,
    /// What the files were when they were read: that of the frozen layer and those below it, down to the one that takes the data.
    pub layers: Vec<LayerIdentity>,
    /// What the disk holds as seen at the frozen layer.
    pub root: Root,
    /// What the disk holds as seen below the layer that takes the data; `None` if that is the base.
    pub below: Option<Root>,
}

impl DomainRecord {
    /// Nothing known yet.
    pub fn new(name: &str, uuid: &str, hypervisor: &str) -> Self {
        Self {
            version: VERSION,
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            hypervisor: hypervisor.to_owned(),
            disks: BTreeMap::new(),
            thaw_pending: false,
            operation: None,
            tracking: None,
            pull: None,
            stale_checkpoints: BTreeSet::new(),
        }
    }

    /// What is known of a disk, to be changed.
    pub(super) fn disk_mut(&mut self, target: &str) -> &mut DiskRecord {
        self.disks.entry(target.to_owned()).or_default()
    }
}

/// How a disk stands with respect to an operation, by what its definition says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It writes to the layer it wrote to before: it was not frozen, or has been given back.
    Original,
    /// It writes to the overlay, and the frozen layer lies right below.
    Frozen,
    /// It writes to the overlay, and the frozen layer is not right below: merged down, or pulled up into the overlay.
    Detached,
    /// The overlay lies somewhere below the active layer: somebody put another one on top.
    Buried,
    /// The disk is gone, or writes to something else altogether.
    Elsewhere,
}

impl FrozenDisk {
    /// How the disk stands in a definition that names whole chains, as live ones do. An inactive definition may end its
    /// chain early: see [`FrozenDisk::writes_to_overlay`].
    pub(super) fn standing(&self, disk: Option<&DomainDisk>) -> Standing {
        let Some(disk) = disk else { return Standing::Elsewhere };
        let active = disk.source.path();
        if active == Some(&self.frozen.path) {
            return Standing::Original;
        }
        if active == Some(&self.overlay) {
            let nearest = disk.backing.first().map(|layer| &layer.path);
            return if nearest == Some(&self.frozen.path) { Standing::Frozen } else { Standing::Detached };
        }
        match disk.backing.iter().any(|layer| layer.path == self.overlay) {
            true => Standing::Buried,
            false => Standing::Elsewhere,
        }
    }

    /// Whether a running domain writes to the layer that it wrote to before.
    pub(super) fn is_given_back(&self, domain: &Domain) -> bool {
        let live = domain.live.as_ref();
        live.is_some_and(|live| self.standing(live.disk(&self.target)) == Standing::Original)
    }

    /// Whether a definition's active layer is the overlay.
    pub(super) fn writes_to_overlay(&self, disk: Option<&DomainDisk>) -> bool {
        disk.and_then(|disk| disk.source.path()) == Some(&self.overlay)
    }

    /// Whether the layers to merge have been: the overlay lies right above the layer that takes their data.
    pub(super) fn is_merged(&self, disk: &DomainDisk) -> bool {
        let nearest = disk.backing.first().map(|layer| &layer.path);
        self.merge.as_ref().is_some_and(|merge| nearest == Some(&merge.into.path))
    }
}

/// Whether the layers above `anchor` are, from the active one on, all of `overlays`; those layers.
pub(super) fn layers_above<'a>(disk: &'a DomainDisk, anchor: &Path) -> Option<Vec<&'a Path>> {
    let below = disk.backing.iter().position(|layer| layer.path == anchor)?;
    let backing = disk.backing[..below].iter().map(|layer| layer.path.as_path());
    Some(disk.source.path().into_iter().chain(backing).collect())
}
