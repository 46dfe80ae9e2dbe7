use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::runtime::Runtime;
use underlay_client::backup::{BackupOptions, DiskContent, DiskSource, Environment, Job, backup};
use underlay_client::domain::kept::{KeptDisk, KeptDomain};
use underlay_client::image::{Chain, Format, OpenOptions};
use underlay_client::state::Memos;
use underlay_store::authority::Authority;
use underlay_store::backend::{Backend, Options};
use underlay_store::key::file;
use underlay_store::progress::Silent;
use underlay_store::repository::{Access, Repository};
use underlay_store::snapshot::{Consistency, Descriptor, PrivateMetadata};

use crate::program::Underlay;
use crate::{Error, Result};

/// UUID of the domains that [`kept`] makes.
pub const UUID: &str = "3c923692-36d6-467c-b21b-03eb2fcd1a15";

/// A kept domain with these virtio disks; `os` and `devices` are XML that comes inside the elements of that name.
#[must_use]
pub fn kept(name: &str, disks: &[&str], os: &str, devices: &str) -> KeptDomain {
    let element = |disk: &&str| {
        format!(
            "    <disk type='file' device='disk'>\n      <driver name='qemu' type='qcow2'/>\n      \
             <source file='/gone/{disk}.qcow2'/>\n      <target dev='{disk}' bus='virtio'/>\n    </disk>\n"
        )
    };
    let kept = |disk: &&str| KeptDisk {
        target: (*disk).to_owned(),
        bus: Some("virtio".into()),
        path: format!("/gone/{disk}.qcow2").into(),
        format: "qcow2".into(),
    };
    let xml = format!(
        "<domain type='qemu'>\n  <name>{name}</name>\n  <uuid>{UUID}</uuid>\n  <memory unit='MiB'>64</memory>\n  \
         <os>\n    <type arch='x86_64' machine='pc'>hvm</type>\n    {os}\n  </os>\n  <devices>\n    \
         <emulator>/usr/bin/qemu-system-x86_64</emulator>\n{}    {devices}\n  </devices>\n</domain>\n",
        disks.iter().map(element).collect::<String>(),
    );
    KeptDomain {
        name: name.into(),
        uuid: UUID.into(),
        hypervisor: None,
        xml,
        disks: disks.iter().map(kept).collect(),
        excluded: Vec::new(),
        nvram: None,
    }
}

/// Makes a snapshot as one of a domain looks, without any hypervisor: of raw images, each under the name of its disk.
/// The snapshot's id.
///
/// # Errors
/// What opening the repository or the backup reports.
pub fn back_up(underlay: &Underlay, domain: &KeptDomain, images: &[(&str, &Path)]) -> Result<String> {
    made(underlay, domain, images)
        .map_err(|error| Error::new(format!("a snapshot of {}: {error}", domain.name)))
}

fn made(
    underlay: &Underlay,
    domain: &KeptDomain,
    images: &[(&str, &Path)],
) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let runtime = Runtime::new()?;
    let backend = Backend::open(&underlay.location, Options::default())?;
    let repository = runtime.block_on(Repository::open(backend, &underlay.state, Access::Write))?;
    let bytes = runtime.block_on(repository.descriptor())?;
    let id = Descriptor::peek(&bytes)?.repository;
    let key = file::read(&underlay.key_file, &id)?;
    let descriptor = Descriptor::open(&bytes, key.backup())?;
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    let disks = images.iter().map(|(name, path)| {
        let content = DiskContent::Layers(Chain::open(path, &options)?);
        Ok(DiskSource { name: (*name).to_owned(), content })
    });
    let disks = disks.collect::<std::result::Result<_, Box<dyn std::error::Error>>>()?;
    let mut private = PrivateMetadata { host: "a host".into(), ..PrivateMetadata::default() };
    domain.put(&mut private);
    let environment = Environment {
        authority: Arc::new(repository) as Arc<dyn Authority>,
        descriptor: &descriptor,
        key: key.backup(),
        memos: &Memos::new(&underlay.state, id),
        runtime: runtime.handle().clone(),
        progress: &Silent,
        cancel: &AtomicBool::new(false),
    };
    let job = Job { vm: domain.name.clone(), disks, consistency: Consistency::Offline, private };
    Ok(backup(&environment, job, &BackupOptions::default())?.snapshot.to_string())
}
