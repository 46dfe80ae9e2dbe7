use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::qemu::Format;
use crate::{Error, Result};

/// UEFI firmware without secure boot, and the variables a new machine starts with.
const UEFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const UEFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// A domain to be defined: 512 MiB of memory, one processor, no hardware virtualisation, a guest agent's channel, a
/// serial console, BIOS firmware, no network; it boots from its first disk.
#[derive(Clone, Debug)]
pub struct DomainSpec {
    pub(super) name: String,
    uuid: Option<String>,
    disks: Vec<DiskSpec>,
    devices: String,
    metadata: String,
    mac: Option<String>,
    nvram: Option<PathBuf>,
}

/// One disk of a domain.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// `vda` and the like are virtio disks, `sda` and the like SCSI. Names may leave gaps.
    pub target: String,
    /// The image file.
    pub path: PathBuf,
    /// How the file encodes the disk.
    pub format: Format,
    /// Whether what the guest discards becomes a hole.
    pub discard: bool,
}

impl DomainSpec {
    /// A domain without disks.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            uuid: None,
            disks: Vec::new(),
            devices: String::new(),
            metadata: String::new(),
            mac: None,
            nvram: None,
        }
    }

    /// With that UUID, not a random one.
    #[must_use]
    pub fn uuid(self, uuid: &str) -> Self {
        Self { uuid: Some(uuid.to_owned()), ..self }
    }

    /// With one more disk, which ignores discards.
    #[must_use]
    pub fn disk(self, target: &str, path: &Path, format: Format) -> Self {
        self.disk_spec(DiskSpec { target: target.to_owned(), path: path.to_owned(), format, discard: false })
    }

    /// With one more disk.
    #[must_use]
    pub fn disk_spec(mut self, disk: DiskSpec) -> Self {
        self.disks.push(disk);
        self
    }

    /// With UEFI firmware that keeps its variables in the file `nvram`, made when the machine first starts.
    #[must_use]
    pub fn uefi(mut self, nvram: &Path) -> Self {
        self.nvram = Some(nvram.to_owned());
        self
    }

    /// With a network card at that address, behind QEMU's own user-mode network.
    #[must_use]
    pub fn network(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self
    }

    /// With XML inside `<metadata>`, such as Nova's. Replaces what was there.
    #[must_use]
    pub fn metadata(mut self, xml: &str) -> Self {
        xml.clone_into(&mut self.metadata);
        self
    }

    /// With more XML inside `<devices>`.
    #[must_use]
    pub fn device(mut self, xml: &str) -> Self {
        self.devices.push_str(xml);
        self
    }

    /// What `virsh define` takes. The serial console goes to the file `console`.
    pub(super) fn xml(&self, console: &Path) -> Result<String> {
        let firmware = self.nvram.as_ref().map(|nvram| {
            format!(
                "<loader readonly='yes' type='pflash'>{UEFI_CODE}</loader>\
                 <nvram template='{UEFI_VARIABLES}'>{}</nvram>",
                escaped(&nvram.display().to_string())
            )
        });
        let mut devices = String::new();
        for (at, disk) in self.disks.iter().enumerate() {
            devices.push_str(&disk.xml(at == 0)?);
        }
        if self.disks.iter().any(|disk| disk.target.starts_with("sd")) {
            devices.push_str("<controller type='scsi' model='virtio-scsi'/>\n");
        }
        if let Some(mac) = &self.mac {
            let mac = escaped(mac);
            let _ = writeln!(
                devices,
                "<interface type='user'><mac address='{mac}'/><model type='virtio'/></interface>"
            );
        }
        let uuid = self.uuid.as_ref().map(|uuid| format!("<uuid>{}</uuid>", escaped(uuid)));
        Ok(format!(
            "<domain type='qemu'>\n<name>{}</name>{}\n<metadata>{}</metadata>\n\
             <memory unit='MiB'>512</memory>\n<vcpu>1</vcpu>\n\
             <os><type arch='x86_64' machine='pc'>hvm</type>{}</os>\n\
             <features><acpi/></features>\n<cpu mode='maximum'/>\n<clock offset='utc'/>\n\
             <devices>\n<emulator>/usr/bin/qemu-system-x86_64</emulator>\n{devices}{}\n\
             <serial type='file'><source path='{}'/><target port='0'/></serial>\n\
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\n\
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\n\
             <memballoon model='none'/>\n</devices>\n</domain>\n",
            escaped(&self.name),
            uuid.unwrap_or_default(),
            self.metadata,
            firmware.unwrap_or_default(),
            self.devices,
            escaped(&console.display().to_string()),
        ))
    }
}

impl DiskSpec {
    fn xml(&self, first: bool) -> Result<String> {
        let bus = match self.target.get(..2) {
            Some("vd") => "virtio",
            Some("sd") => "scsi",
            _ => return Err(Error::new(format!("{}: disks are vd* or sd*", self.target))),
        };
        Ok(format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{}'{}/><source file='{}'/>\
             <target dev='{}' bus='{bus}'/>{}</disk>\n",
            self.format.name(),
            if self.discard { " discard='unmap'" } else { "" },
            escaped(&self.path.display().to_string()),
            escaped(&self.target),
            if first { "<boot order='1'/>" } else { "" },
        ))
    }
}

/// Text as XML writes it between tags and between quotes.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}
