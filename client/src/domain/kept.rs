//! What a snapshot keeps of a domain besides its disks, sealed to the restore key.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use underlay_store::snapshot::PrivateMetadata;

use crate::hypervisor::NovaInstance;

/// Name under which it lies in the private metadata.
const FIELD: &str = "domain";
/// Name under which an instance of Nova lies there.
pub const INSTANCE: &str = "instance";

/// Name of the snapshot's disk that holds the firmware's variables. No disk of a domain can have it: libvirt's targets are
/// letters and digits that begin with the bus.
pub const NVRAM_DISK: &str = "nvram";

/// What Nova calls its configuration drive.
pub const CONFIG_DRIVE: &str = "disk.config";

/// A domain as it was when it was backed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDomain {
    /// Its name on the hypervisor; the snapshot's VM may have another.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// The hypervisor's URI; `None` was the default one.
    pub hypervisor: Option<String>,
    /// Its inactive definition, with its secrets; a transient domain's live one.
    pub xml: String,
    /// The disks that were backed up, in the order of the definition.
    pub disks: Vec<KeptDisk>,
    /// Targets of its writable disks that were left out by request.
    pub excluded: Vec<String>,
    /// Where the firmware's variables lay, if it has them: they are the snapshot's disk [`NVRAM_DISK`].
    pub nvram: Option<PathBuf>,
}

/// A disk as its domain had it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDisk {
    /// Its target, which is its name in the snapshot.
    pub target: String,
    /// Its bus, such as `virtio`.
    pub bus: Option<String>,
    /// The file or device that was frozen.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
}

impl KeptDomain {
    /// Puts it into a snapshot's metadata.
    pub fn put(&self, metadata: &mut PrivateMetadata) {
        let value = serde_json::to_value(self).expect("a domain serializes");
        metadata.extra.insert(FIELD.to_owned(), value);
    }

    /// Finds it in a snapshot's metadata; `None` if that snapshot was not made of a domain.
    ///
    /// # Errors
    /// The reason, if another version of underlay wrote it in a way that this one does not understand.
    pub fn find(metadata: &PrivateMetadata) -> Result<Option<Self>, serde_json::Error> {
        metadata.extra.get(FIELD).map(|value| serde_json::from_value(value.clone())).transpose()
    }
}

/// Puts an instance of Nova into a snapshot's metadata.
pub fn put_instance(instance: &NovaInstance, metadata: &mut PrivateMetadata) {
    let value = serde_json::to_value(instance).expect("an instance serializes");
    metadata.extra.insert(INSTANCE.to_owned(), value);
}

/// Finds an instance of Nova in a snapshot's metadata; `None` if that snapshot was made of something else.
///
/// # Errors
/// The reason, if another version of underlay wrote it in a way that this one does not understand.
pub fn find_instance(metadata: &PrivateMetadata) -> Result<Option<NovaInstance>, serde_json::Error> {
    metadata.extra.get(INSTANCE).map(|value| serde_json::from_value(value.clone())).transpose()
}
