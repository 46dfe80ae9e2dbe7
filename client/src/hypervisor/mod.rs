//! Virtual machines as their hypervisor knows them: what there is, freezing disks, merging layers back.
//!
//! [`Hypervisor`] is small on purpose: everything above it decides from what [`Hypervisor::domain`] reads back, never from
//! an exit code alone, because a hypervisor can fail after it did what was asked. [`Virsh`] is the real one.

mod adapt;
mod define;
mod definition;
mod edit;
mod error;
mod nova;
mod parse;
mod program;
mod pull;
mod redirect;
mod virsh;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use adapt::{Adaptation, Adapted, RestoredAs, adapt};
pub use define::{DefineError, define_new, ensure_free};
pub use definition::{Agent, Backing, Definition, DiskKind, DomainDisk, Firmware, Mirror, Source};
pub use error::HypervisorError;
pub use nova::{NovaFlavor, NovaInstance};
pub use pull::{DIRTY_BITMAP, PullRequest, PulledDisk};
pub use redirect::redirect;
pub use virsh::Virsh;

/// A domain, as read at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its name, unique on this hypervisor.
    pub name: String,
    /// Its UUID, in the usual notation.
    pub uuid: String,
    /// What it is now; `None` unless a hypervisor process runs it (paused counts as running).
    pub live: Option<Definition>,
    /// What it will be when it starts next; `None` if it is transient.
    pub inactive: Option<Definition>,
}

impl Domain {
    /// Whether a process runs it, paused or not.
    pub fn is_running(&self) -> bool {
        self.live.is_some()
    }

    /// The definition that counts now: the live one of a running domain.
    ///
    /// # Errors
    /// [`HypervisorError::NoDefinition`] for a domain that has neither.
    pub fn current(&self) -> Result<&Definition, HypervisorError> {
        self.live
            .as_ref()
            .or(self.inactive.as_ref())
            .ok_or_else(|| HypervisorError::NoDefinition { domain: self.name.clone() })
    }

    /// The instance that it is, if OpenStack Nova made it.
    pub fn instance(&self) -> Option<&NovaInstance> {
        self.live.iter().chain(&self.inactive).find_map(|definition| definition.nova.as_ref())
    }

    /// Whether either definition names the file as a layer of any disk.
    pub fn names_file(&self, path: &Path) -> bool {
        let definitions = self.live.iter().chain(&self.inactive);
        definitions.flat_map(|definition| &definition.disks).any(|disk| {
            disk.source.path() == Some(path) || disk.backing.iter().any(|layer| layer.path == path)
        })
    }
}

/// One disk to freeze: what it writes to from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The disk, such as `vda`.
    pub target: String,
    /// The new qcow2 file. Does not exist yet.
    pub path: PathBuf,
}

/// A job that copies between layers of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockJob {
    /// What kind, in the hypervisor's words, such as `Block Commit` or `Active Block Commit`.
    pub kind: String,
    /// It has copied all there was, and waits to be told to pivot.
    pub ready: bool,
}

/// Bytes that dirty bitmaps have noted as written, by disk.
pub type Written = BTreeMap<String, u64>;

/// What drives virtual machines.
///
/// Every method that changes something may have done so although it fails: read the domain again.
pub trait Hypervisor: Send + Sync {
    /// Which hypervisor this is, such as `qemu:///system`, whatever it was called by.
    fn uri(&self) -> Result<String, HypervisorError>;

    /// Names of all domains, running or not, sorted.
    fn domains(&self) -> Result<Vec<String>, HypervisorError>;

    /// Reads one domain. [`HypervisorError::NoDomain`] if there is none of that name.
    fn domain(&self, name: &str) -> Result<Domain, HypervisorError>;

    /// The name of the domain with that UUID, if there is one.
    fn name_of(&self, uuid: &str) -> Result<Option<String>, HypervisorError> {
        for name in self.domains()? {
            match self.domain(&name) {
                Ok(domain) if domain.uuid.eq_ignore_ascii_case(uuid) => return Ok(Some(name)),
                // One that has gone meanwhile is none.
                Ok(_) | Err(HypervisorError::NoDomain { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Whether the hypervisor keeps the memory of this stopped domain (`virsh managedsave`). Its next start goes on with the
    /// layers that were active then, whatever its definition says.
    fn is_saved(&self, domain: &str) -> Result<bool, HypervisorError>;

    /// Whether a running domain is paused because a layer could not be written: its file system was full, most likely.
    fn is_stuck(&self, domain: &str) -> Result<bool, HypervisorError>;

    /// Names of the snapshots the hypervisor keeps records of.
    fn snapshots(&self, domain: &str) -> Result<Vec<String>, HypervisorError>;

    /// Names of the checkpoints (dirty bitmaps) the hypervisor keeps records of.
    fn checkpoints(&self, domain: &str) -> Result<Vec<String>, HypervisorError>;

    /// A job on the whole domain, such as a migration, in the hypervisor's words.
    fn domain_job(&self, domain: &str) -> Result<Option<String>, HypervisorError>;

    /// The job on one disk.
    fn block_job(&self, domain: &str, target: &str) -> Result<Option<BlockJob>, HypervisorError>;

    /// Bytes of a disk as its guest sees it.
    fn capacity(&self, domain: &str, target: &str) -> Result<u64, HypervisorError>;

    /// Whether the guest's agent answers within `patience`. One that has frozen its file systems does not.
    fn agent_answers(&self, domain: &str, patience: Duration) -> Result<bool, HypervisorError>;

    /// Freezes the current layers of all these disks at one moment: each disk goes on in its overlay. With `quiesce` the
    /// guest's file systems are flushed and frozen through its agent meanwhile, waiting at most that long for it.
    /// All disks or none.
    fn freeze(
        &self,
        domain: &str,
        overlays: &[Overlay],
        quiesce: Option<Duration>,
    ) -> Result<(), HypervisorError>;

    /// Flushes and freezes the guest's file systems through its agent, waiting at most `patience` for it.
    fn quiesce(&self, _domain: &str, _patience: Duration) -> Result<(), HypervisorError> {
        Err(HypervisorError::unsupported("freezing file systems"))
    }

    /// Shows disks as they are at this moment, over NBD, while the guest goes on, and begins a checkpoint. Nothing of the disks changes but
    /// for the bitmap. Ends by [`Hypervisor::end_pull`], or with the domain.
    fn begin_pull(&self, _domain: &str, _request: &PullRequest) -> Result<(), HypervisorError> {
        Err(HypervisorError::unsupported("showing disks"))
    }

    /// The folder that belongs to the process of a running domain, in which it may make sockets; `None` if that is not known. It need
    /// not be there.
    fn run_folder(&self, _domain: &str) -> Result<Option<PathBuf>, HypervisorError> {
        Ok(None)
    }

    /// Where the pull that is under way offers its exports, whoever began it; `None` if there is none.
    fn pull_socket(&self, _domain: &str) -> Result<Option<PathBuf>, HypervisorError> {
        Ok(None)
    }

    /// Ends the pull.
    fn end_pull(&self, _domain: &str) -> Result<(), HypervisorError> {
        Err(HypervisorError::unsupported("showing disks"))
    }

    /// Lets a paused domain go on.
    fn resume(&self, _domain: &str) -> Result<(), HypervisorError> {
        Err(HypervisorError::unsupported("letting domains go on"))
    }

    /// Begins a checkpoint by itself, in all these disks at one moment.
    fn begin_checkpoint(
        &self,
        _domain: &str,
        _checkpoint: &str,
        _targets: &[&str],
    ) -> Result<(), HypervisorError> {
        Err(HypervisorError::unsupported("checkpoints"))
    }

    /// What the bitmaps of a checkpoint that is known have noted.
    fn written_since(&self, _domain: &str, _checkpoint: &str) -> Result<Written, HypervisorError> {
        Err(HypervisorError::unsupported("checkpoints"))
    }

    /// Drops the hypervisor's record of a checkpoint, and leaves its bitmaps alone.
    fn forget_checkpoint(&self, _domain: &str, _checkpoint: &str) -> Result<(), HypervisorError> {
        Err(HypervisorError::unsupported("checkpoints"))
    }

    /// Makes the hypervisor know a checkpoint again, if its bitmaps are in all these disks, and sound.
    fn know_checkpoint(
        &self,
        _domain: &str,
        _checkpoint: &str,
        _targets: &[&str],
    ) -> Result<(), HypervisorError> {
        Err(HypervisorError::unsupported("checkpoints"))
    }

    /// Removes a checkpoint, known or not, with its bitmaps in these disks, sound or not. It is known no more, whatever comes of it.
    fn remove_checkpoint(
        &self,
        _domain: &str,
        _checkpoint: &str,
        _targets: &[&str],
    ) -> Result<(), HypervisorError> {
        Err(HypervisorError::unsupported("checkpoints"))
    }

    /// Names of the bitmaps of a qcow2 file that are unsound, because what had them open has died. Nobody has it open now.
    fn unsound_bitmaps(&self, _disk: &Path) -> Result<Vec<String>, HypervisorError> {
        Ok(Vec::new())
    }

    /// Removes a bitmap of a qcow2 file that nobody has open.
    fn remove_bitmap(&self, _disk: &Path, _bitmap: &str) -> Result<(), HypervisorError> {
        Err(HypervisorError::unsupported("bitmaps of files"))
    }

    /// Thaws the guest's file systems, waiting at most `patience` for the agent. Thawing what is not frozen does no harm.
    fn thaw(&self, domain: &str, patience: Duration) -> Result<(), HypervisorError>;

    /// Merges the layers above `base` up to `top`, none of them active, into `base`. Returns when it is done.
    fn commit(&self, domain: &str, target: &str, base: &Path, top: &Path) -> Result<(), HypervisorError>;

    /// Merges all layers above `base` into `base`, which becomes the active layer. Returns when it is done.
    fn commit_active(&self, domain: &str, target: &str, base: &Path) -> Result<(), HypervisorError>;

    /// Ends a [`BlockJob`] that is ready: its base becomes the active layer.
    fn pivot(&self, domain: &str, target: &str) -> Result<(), HypervisorError>;

    /// Merges `overlay` into the layer right below it, which is `base`. Nobody has either open.
    fn commit_stopped(&self, overlay: &Path, base: &Backing) -> Result<(), HypervisorError>;

    /// Defines a domain, or changes the inactive definition of one.
    fn define(&self, xml: &str) -> Result<(), HypervisorError>;
}
