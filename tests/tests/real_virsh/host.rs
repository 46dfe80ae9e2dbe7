//! A libvirtd with machines whose disks have no system, and short ways to say things.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use underlay_client::hypervisor::{Backing, Definition, Hypervisor, HypervisorError, Overlay, Source, Virsh};
use underlay_tests::commands::run;
use underlay_tests::libvirt::Libvirtd;

/// Bytes of every disk.
pub(super) const SIZE: u64 = 64 << 20;
/// A folder that everybody has to be careful with.
const FOLDER: &str = "img dir,x=1 'é\"&<";

/// A libvirtd, what drives it, and a folder for images.
pub(super) struct Host {
    pub libvirtd: Libvirtd,
    pub virsh: Virsh,
    pub folder: PathBuf,
}

impl Host {
    pub fn start() -> Self {
        let libvirtd = Libvirtd::start().unwrap();
        let folder = libvirtd.folder().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        Self { virsh: virsh(libvirtd.uri()), libvirtd, folder }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a qcow2 image, on top of `below`, and writes as `qemu-io` is told.
    pub fn image(&self, name: &str, below: Option<&Path>, written: &[&str]) -> PathBuf {
        let path = self.file(name);
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        arguments.extend(below.iter().flat_map(|below| ["-F", "qcow2", "-b", text(below)]));
        let size = SIZE.to_string();
        run("qemu-img", arguments.into_iter().chain([text(&path), &size])).unwrap();
        for command in written {
            run("qemu-io", ["-f", "qcow2", "-c", command, text(&path)]).unwrap();
        }
        path
    }

    /// Defines a domain with these disks, an empty CD-ROM drive, a channel for an agent that nobody runs, and a secret.
    pub fn define(&self, name: &str, disks: &[(&str, &Path)]) {
        self.virsh.define(&domain_xml(name, disks)).unwrap();
    }

    /// Starts the domain `name`, which virsh may take for something else; its UUID.
    pub fn start_domain(&self, name: &str) -> String {
        let uuid = self.virsh.domain(name).unwrap().uuid;
        self.libvirtd.virsh(["start", &uuid]).unwrap();
        uuid
    }

    pub fn start_job(&self, name: &str, arguments: &[&str]) {
        let arguments = ["blockcommit", "--domain", name, "vda", "--bandwidth", "1"]
            .into_iter()
            .chain(arguments.iter().copied());
        self.libvirtd.virsh(arguments).unwrap();
    }

    pub fn let_job_run(&self, name: &str) {
        self.libvirtd.virsh(["blockjob", "--domain", name, "vda", "--bandwidth", "0"]).unwrap();
    }

    pub fn live(&self, name: &str) -> Definition {
        self.virsh.domain(name).unwrap().live.unwrap()
    }

    /// What each disk writes to, now and after the next start: the same.
    pub fn active_layers(&self, name: &str, targets: [&str; 2]) -> [PathBuf; 2] {
        let domain = self.virsh.domain(name).unwrap();
        let [live, inactive] = [domain.live, domain.inactive].map(|definition| {
            targets.map(|target| match &definition.as_ref().unwrap().disk(target).unwrap().source {
                Source::File(path) => path.clone(),
                other => panic!("{target} is on {other:?}"),
            })
        });
        assert_eq!(live, inactive);
        live
    }
}

pub(super) fn virsh(uri: &str) -> Virsh {
    Virsh::new(Some(uri.to_owned()), Arc::new(AtomicBool::new(false)))
}

pub(super) fn domain_xml(name: &str, disks: &[(&str, &Path)]) -> String {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;");
    let disk = |(target, path): &(&str, &Path)| {
        format!(
            "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='{target}' \
             bus='virtio'/></disk>",
            escaped(text(path))
        )
    };
    let disks: String = disks.iter().map(disk).collect();
    format!(
        "<domain type='qemu'><name>{}</name><memory unit='MiB'>32</memory><os><type arch='x86_64' \
         machine='pc'>hvm</type></os><devices>{disks}<disk type='file' device='cdrom'><target dev='hda' bus='ide'/>\
         </disk><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
         <graphics type='vnc' passwd='secret'><listen type='socket'/></graphics></devices></domain>",
        escaped(name)
    )
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(super) fn layer(path: &Path) -> Backing {
    Backing { path: path.to_owned(), format: "qcow2".to_owned() }
}

pub(super) fn overlay(target: &str, path: &Path) -> Overlay {
    Overlay { target: target.to_owned(), path: path.to_owned() }
}

/// Fails unless the image, with what lies below it, holds these patterns.
pub(super) fn expect(image: &Path, patterns: &[&str]) {
    for pattern in patterns {
        run("qemu-io", ["-r", "-f", "qcow2", "-c", &format!("read {pattern}"), text(image)]).unwrap();
    }
}

pub(super) fn is_missing<T>(result: Result<T, HypervisorError>) -> bool {
    matches!(result, Err(HypervisorError::NoDomain { .. }))
}

pub(super) fn message<T: std::fmt::Debug>(result: Result<T, HypervisorError>) -> String {
    match result.unwrap_err() {
        HypervisorError::Failed { message, .. } => message,
        error => panic!("{error}"),
    }
}
