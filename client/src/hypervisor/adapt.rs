//! Making a kept definition fit where its disks were restored to, under its own identity or a new one. Pure: the caller brings
//! the randomness.
//!
//! What is not named here stays as it is, to the byte.
//!
//! | part | own identity | new identity |
//! |---|---|---|
//! | `<name>`, `<uuid>`, the UUID in `<sysinfo>` | stay | new (without a new name the name stays) |
//! | `<genid>` | new: the guest runs again from an earlier point, and is to notice | new |
//! | MAC addresses, Open vSwitch port ids | stay | new |
//! | names of interfaces that libvirt gave (`vnet3`) | stay | dropped, libvirt gives others |
//! | sockets that QEMU would make for virtio channels | stay | dropped, libvirt puts them elsewhere |
//! | Nova's `<metadata>` | stays | dropped: Nova knows no such machine. Anybody else's stays |
//! | `<seclabel>`, host devices, fixed ports, files and sockets of consoles | stay | stay: what they name is the administrator's choice |
//! | restored disks: source, format, layers below | of the new file | of the new file |
//! | writable disks that were not restored | dropped | dropped |
//! | CD-ROMs, floppies, read-only disks | stay | stay |
//! | firmware variables that were restored | of the new file | of the new file |
//! | firmware variables that were not | stay | path dropped: libvirt makes new ones from the template |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::edit::{Edits, escaped, is_expressible};
use super::nova::is_novas;
use super::parse::{child, elements, is};
use super::{Backing, HypervisorError};

/// What is to change in a definition.
#[derive(Clone, Debug)]
pub struct Adaptation {
    /// Who the domain will be.
    pub identity: RestoredAs,
    /// Random bytes. All that is new at random is made of them: with the same seed it is the same.
    pub seed: [u8; 32],
    /// Where restored disks lie now, by target, and in which format. Absolute paths.
    pub disks: BTreeMap<String, Backing>,
    /// Where the restored firmware variables lie now, if there are some: byte for byte what they were. An absolute path.
    pub nvram: Option<PathBuf>,
}

/// Who a restored domain is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoredAs {
    /// The machine it was.
    Itself,
    /// Another machine, beside which the old one can live.
    Another {
        /// Its name; `None` is the old one's.
        name: Option<String>,
    },
}

/// A definition that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapted {
    /// The definition.
    pub xml: String,
    /// The domain's name in it.
    pub name: String,
    /// The domain's UUID in it.
    pub uuid: String,
    /// Targets of disks that are no longer in it, for they were not restored.
    pub removed: Vec<String>,
    /// The domain has an emulated TPM, whose state lies elsewhere.
    pub has_tpm: bool,
}

/// Changes the inactive definition `xml` of the domain `domain`.
///
/// # Errors
/// [`HypervisorError::Definition`] if it is no definition of a domain; [`HypervisorError::NotAdaptable`] if it cannot name
/// these files in a way that the guest would see what it saw.
pub fn adapt(domain: &str, xml: &str, adaptation: &Adaptation) -> Result<Adapted, HypervisorError> {
    let broken = |problem: String| HypervisorError::Definition { domain: domain.to_owned(), problem };
    let document = Document::parse(xml).map_err(|error| broken(error.to_string()))?;
    let mut adapter = Adapter { domain, xml, adaptation, edits: Edits::new(xml) };
    let (name, uuid, removed) = adapter.adapt(document.root_element())?;
    let has_tpm = devices(document.root_element(), "tpm").flat_map(|tpm| child(tpm, "backend"));
    let has_tpm = has_tpm.into_iter().any(|backend| backend.attribute("type") == Some("emulator"));
    let xml = adapter.edits.apply().map_err(|at| broken(format!("two changes meet at byte {at}")))?;
    Document::parse(&xml).map_err(|error| broken(format!("once it is changed, {error}")))?;
    Ok(Adapted { xml, name, uuid, removed, has_tpm })
}

/// One adaptation at work.
struct Adapter<'a> {
    domain: &'a str,
    xml: &'a str,
    adaptation: &'a Adaptation,
    edits: Edits<'a>,
}

impl Adapter<'_> {
    fn adapt(&mut self, root: Node) -> Result<(String, String, Vec<String>), HypervisorError> {
        if !is(root, "domain") {
            return Err(self.broken(format!("it is a <{}>", root.tag_name().name())));
        }
        let (name, uuid) = self.identity(root)?;
        let removed = self.disks(root)?;
        self.firmware_variables(root)?;
        if let Some(genid) = child(root, "genid").filter(|genid| !content(*genid).is_empty()) {
            self.edits.set_content(genid, &self.random_uuid("genid", 0));
        }
        if self.is_new() {
            self.interfaces(root);
            self.channels(root);
            self.metadata(root);
        }
        Ok((name, uuid, removed))
    }

    fn is_new(&self) -> bool {
        self.adaptation.identity != RestoredAs::Itself
    }

    fn identity(&mut self, root: Node) -> Result<(String, String), HypervisorError> {
        let part = |name: &str| child(root, name).ok_or_else(|| self.broken(format!("it has no <{name}>")));
        let (name_node, uuid_node) = (part("name")?, part("uuid")?);
        let (mut name, mut uuid) = (content(name_node), content(uuid_node).trim().to_owned());
        if let RestoredAs::Another { name: Some(new) } = &self.adaptation.identity {
            if !is_expressible(new) {
                return Err(self.broken(format!("it cannot have the name {new:?}")));
            }
            self.edits.set_content(name_node, &escaped(new));
            name.clone_from(new);
        }
        if self.is_new() {
            uuid = self.random_uuid("uuid", 0);
            self.edits.set_content(uuid_node, &uuid);
            // libvirt refuses a definition whose guest would be told another UUID.
            let told =
                elements(&root).filter(|node| is(*node, "sysinfo")).flat_map(|node| child(node, "system"));
            let told = told.flat_map(|system| elements(&system)).filter(|node| is(*node, "entry"));
            for entry in told.filter(|entry| entry.attribute("name") == Some("uuid")) {
                self.edits.set_content(entry, &uuid);
            }
        }
        Ok((name, uuid))
    }

    /// Adapts or removes every disk that the guest can write to. Those removed.
    fn disks(&mut self, root: Node) -> Result<Vec<String>, HypervisorError> {
        let (mut removed, mut found) = (Vec::new(), Vec::new());
        for disk in devices(root, "disk") {
            let target = child(disk, "target").and_then(|target| target.attribute("dev")).unwrap_or_default();
            let removable = matches!(disk.attribute("device"), Some("cdrom" | "floppy"));
            match self.adaptation.disks.get_key_value(target) {
                Some((target, _)) if found.contains(&target) => {
                    return Err(self.broken(format!("two disks are called {target}")));
                }
                Some((target, file)) => {
                    found.push(target);
                    self.disk(disk, target, file)?;
                }
                None if removable || child(disk, "readonly").is_some() => {}
                None => {
                    removed.push(target.to_owned());
                    self.edits.remove(disk);
                }
            }
        }
        match self.adaptation.disks.keys().find(|target| !found.contains(target)) {
            Some(missing) => Err(self.broken(format!("it has no disk {missing}"))),
            None => Ok(removed),
        }
    }

    /// Makes a disk start from a file of its own.
    fn disk(&mut self, disk: Node, target: &str, file: &Backing) -> Result<(), HypervisorError> {
        let sources: Vec<_> = elements(&disk).filter(|node| is(*node, "source")).collect();
        let [source, others @ ..] = sources.as_slice() else {
            return Err(self.broken(format!("disk {target} has no source")));
        };
        let encrypted = self.stays_encrypted(disk, target, file)?;
        let path = self.path(&file.path)?;
        let decryption = child(*source, "encryption").filter(|_| encrypted);
        self.edits.replace(
            *source,
            match decryption {
                Some(decryption) => {
                    format!("<source file='{path}'>{}</source>", &self.xml[decryption.range()])
                }
                None => format!("<source file='{path}'/>"),
            },
        );
        others.iter().for_each(|source| self.edits.remove(*source));
        if disk.has_attribute("type") {
            self.edits.set_attribute(disk, "type", "file");
        }
        match child(disk, "driver") {
            Some(driver) => self.driver(driver, &file.format),
            None => {
                let driver = format!("<driver name='qemu' type='{}'/>", escaped(&file.format));
                self.edits.insert_before(*source, &driver);
            }
        }
        let of_the_old_file = ["backingStore", "mirror", "auth"];
        let old = elements(&disk).filter(|part| of_the_old_file.iter().any(|name| is(*part, name)));
        old.for_each(|part| self.edits.remove(part));
        Ok(())
    }

    fn driver(&mut self, driver: Node, format: &str) {
        self.edits.set_attribute(driver, "type", format);
        if format != "qcow2" {
            // libvirt takes these for qcow2 only.
            self.edits.remove_attribute(driver, "discard_no_unref");
            child(driver, "metadata_cache").into_iter().for_each(|cache| self.edits.remove(cache));
        }
    }

    /// Whether QEMU is to decrypt the new file as it did the old one: what was backed up is what lies in the file, and the
    /// guest is to see what it saw.
    fn stays_encrypted(&self, disk: Node, target: &str, file: &Backing) -> Result<bool, HypervisorError> {
        if !disk.descendants().any(|node| is(node, "encryption")) {
            return Ok(false);
        }
        let format = child(disk, "driver").and_then(|driver| driver.attribute("type"));
        match (format.unwrap_or("raw"), file.format.as_str()) {
            ("raw", "raw") => Ok(true),
            (old, _) => Err(HypervisorError::NotAdaptable {
                domain: self.domain.to_owned(),
                problem: format!("QEMU decrypts disk {target}, which only a raw file can be the same for"),
                hint: (old == "raw").then_some("give --format raw"),
            }),
        }
    }

    fn firmware_variables(&mut self, root: Node) -> Result<(), HypervisorError> {
        let os = child(root, "os");
        let nvram = os.and_then(|os| child(os, "nvram"));
        match (&self.adaptation.nvram, nvram) {
            (Some(path), Some(nvram)) => {
                let path = self.path(path)?;
                if nvram.has_attribute("type") {
                    self.edits.set_attribute(nvram, "type", "file");
                    self.edits.set_content(nvram, &format!("<source file='{path}'/>"));
                } else {
                    self.edits.set_content(nvram, &path);
                }
            }
            (Some(path), None) => {
                // libvirt had not written down yet where it had put them.
                let xml = format!("<nvram>{}</nvram>", self.path(path)?);
                let kind = os.and_then(|os| child(os, "type"));
                let kind = kind.ok_or_else(|| self.broken("it has no <os> with a <type>".into()))?;
                self.edits.insert_before(kind, &xml);
            }
            // They belong to the old machine.
            (None, Some(nvram)) if self.is_new() && nvram.has_children() => {
                self.edits.remove_attribute(nvram, "type");
                self.edits.set_content(nvram, "");
            }
            (None, _) => {}
        }
        Ok(())
    }

    fn interfaces(&mut self, root: Node) {
        for (number, interface) in devices(root, "interface").enumerate() {
            if let Some(mac) = child(interface, "mac") {
                self.edits.set_attribute(mac, "address", &self.random_mac(number));
            }
            if let Some(target) = child(interface, "target").filter(|target| is_given_by_libvirt(*target)) {
                self.edits.remove(target);
            }
            let port = child(interface, "virtualport").and_then(|port| child(port, "parameters"));
            if let Some(parameters) = port.filter(|parameters| parameters.has_attribute("interfaceid")) {
                self.edits.set_attribute(parameters, "interfaceid", &self.random_uuid("interfaceid", number));
            }
        }
    }

    fn channels(&mut self, root: Node) {
        for channel in devices(root, "channel").filter(|channel| channel.attribute("type") == Some("unix")) {
            let virtio =
                child(channel, "target").is_some_and(|target| target.attribute("type") == Some("virtio"));
            let source = child(channel, "source").filter(|source| source.attribute("mode") == Some("bind"));
            if let Some(source) = source.filter(|_| virtio) {
                self.edits.remove(source);
            }
        }
    }

    fn metadata(&mut self, root: Node) {
        let parts = child(root, "metadata").into_iter().flat_map(|metadata| elements(&metadata));
        parts.filter(|part| is_novas(*part)).for_each(|part| self.edits.remove(part));
    }

    fn random<const N: usize>(&self, what: &str, number: usize) -> [u8; N] {
        let mut bytes = [0; N];
        let mut hasher = blake3::Hasher::new_keyed(&self.adaptation.seed);
        hasher.update(what.as_bytes()).update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn random_uuid(&self, what: &str, number: usize) -> String {
        let mut bytes: [u8; 16] = self.random(what, number);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let digits = hex::encode(bytes);
        let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
        groups.map(|group| &digits[group]).join("-")
    }

    /// An address of the kind that QEMU's machines have. No two of one domain are the same.
    fn random_mac(&self, number: usize) -> String {
        let [a, b, c, ..] =
            u32::from_le_bytes(self.random("mac", 0)).wrapping_add(number as u32).to_le_bytes();
        format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
    }

    /// A path as it stands in the new definition.
    fn path(&self, path: &Path) -> Result<String, HypervisorError> {
        let text = path.to_str().filter(|text| is_expressible(text)).filter(|_| path.is_absolute());
        text.map(escaped).ok_or_else(|| HypervisorError::NotAdaptable {
            domain: self.domain.to_owned(),
            problem: format!("it cannot name the file {path:?}"),
            hint: Some("choose another folder"),
        })
    }

    fn broken(&self, problem: String) -> HypervisorError {
        HypervisorError::Definition { domain: self.domain.to_owned(), problem }
    }
}

/// Devices of one kind.
fn devices<'a>(root: Node<'a, 'a>, kind: &'static str) -> impl Iterator<Item = Node<'a, 'a>> {
    let devices = child(root, "devices").into_iter().flat_map(|devices| elements(&devices));
    devices.filter(move |device| is(*device, kind))
}

/// An element's text, whatever comments stand in it.
fn content(node: Node) -> String {
    node.children().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

/// Whether an interface's name is one that libvirt chose for one run.
fn is_given_by_libvirt(target: Node) -> bool {
    let number = target.attribute("dev").and_then(|name| name.strip_prefix("vnet"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
