use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::Virsh;
use crate::commands::wait_until;
use crate::{Error, Result};

/// A domain of a [`super::Libvirtd`]. Dropping this does nothing to the domain.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) virsh: Virsh,
    pub(super) name: String,
    uuid: String,
    console: PathBuf,
}

/// Which of a domain's two definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definition {
    /// What runs now; of a domain that does not run, what would.
    Live,
    /// What will run after the next start.
    Inactive,
}

impl Machine {
    pub(super) fn existing(virsh: Virsh, name: &str, console: PathBuf) -> Result<Self> {
        let uuid = virsh.run(["domuuid", name])?.trim().to_owned();
        Ok(Self { virsh, name: name.to_owned(), uuid, console })
    }

    /// The domain's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The domain's UUID.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Switches the machine on.
    pub fn start(&self) -> Result<()> {
        self.virsh.run(["start", &self.name]).map(drop)
    }

    /// Takes the machine's power away: the guest has no say, QEMU still closes its files.
    pub fn destroy(&self) -> Result<()> {
        self.virsh.run(["destroy", &self.name]).map(drop)
    }

    /// Removes a persistent domain that is not running; its disks stay.
    pub fn undefine(&self) -> Result<()> {
        self.virsh.run(["undefine", "--keep-nvram", &self.name]).map(drop)
    }

    /// Whether a QEMU runs it, paused or not.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.virsh.run(["list", "--uuid"])?.lines().any(|uuid| uuid.trim() == self.uuid))
    }

    /// Waits until the machine is off.
    pub fn wait_until_off(&self) -> Result<()> {
        wait_until("the guest switching off", Duration::from_secs(120), || Ok(!self.is_running()?))
    }

    /// One of the domain's definitions, as XML.
    pub fn dump_xml(&self, which: Definition) -> Result<String> {
        match which {
            Definition::Live => self.virsh.run(["dumpxml", &self.name]),
            Definition::Inactive => self.virsh.run(["dumpxml", "--inactive", &self.name]),
        }
    }

    /// The layers of one disk, top first, as the live definition names them.
    pub fn chain(&self, target: &str) -> Result<Vec<PathBuf>> {
        let disk = format!("//disk[target/@dev='{target}']");
        let sources = ["", "//backingStore"]
            .map(|layer| format!("{disk}{layer}/source/@file | {disk}{layer}/source/@dev"))
            .join(" | ");
        let layers = attributes(&self.virsh.run(["dumpxml", &self.name, "--xpath", &sources])?);
        if layers.is_empty() {
            return Err(Error::new(format!("{} has no disk {target}", self.name)));
        }
        Ok(layers.into_iter().map(PathBuf::from).collect())
    }

    /// Process id of the machine's QEMU.
    pub fn qemu_pid(&self) -> Result<u32> {
        for entry in fs::read_dir("/proc")?.flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = words.split(|&byte| byte == 0);
            let is_qemu = words.next().is_some_and(|program| program.ends_with(b"qemu-system-x86_64"));
            if let (Some(id), true) = (id, is_qemu && words.any(|word| word == self.uuid.as_bytes())) {
                return Ok(id);
            }
        }
        Err(Error::new(format!("no QEMU runs {}", self.name)))
    }

    /// What the serial console has shown since the machine was last started.
    #[must_use]
    pub fn console(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&text).replace('\r', "")
    }
}

/// Values of the attributes that virsh prints one a line, in the order of the document.
fn attributes(printed: &str) -> Vec<String> {
    let quoted = printed.lines().filter_map(|line| line.split_once("=\"")?.1.strip_suffix('"'));
    quoted.map(plain).collect()
}

/// What an attribute's text stands for. virsh writes some characters by name, and by number what is not ASCII.
fn plain(text: &str) -> String {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(';').unwrap_or((part, ""));
        let number = name.strip_prefix("#x").and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match name {
            "lt" => plain.push('<'),
            "gt" => plain.push('>'),
            "quot" => plain.push('"'),
            "amp" => plain.push('&'),
            _ => plain.extend(number.and_then(char::from_u32)),
        }
        plain.push_str(rest);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_virsh_prints_them() {
        let printed = " file=\"/a &amp;lt; b=c\"\n dev=\"/dev/&#xE9;&quot;&#x2603;\"\n\n";
        assert_eq!(attributes(printed), ["/a &lt; b=c", "/dev/é\"☃"]);
    }
}
