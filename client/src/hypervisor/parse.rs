//! Reading libvirt's XML.
//!
//! What is not understood is never taken for something simple: a disk that is no plain file or device, a layer that lies on
//! the network, part of a file used as a disk: each is told in libvirt's own words.

use std::path::PathBuf;

use roxmltree::{Document, Node};

use super::HypervisorError;
use super::definition::{Agent, Backing, Definition, DiskKind, DomainDisk, Firmware, Mirror, Source};
use super::nova::{instance, is_novas};

/// The port of QEMU's guest agent.
const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// Who a definition is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    /// The domain's name.
    pub(super) name: String,
    /// Its UUID.
    pub(super) uuid: String,
    /// It runs: libvirt gives a number to running domains only.
    pub(super) running: bool,
}

/// Reads who the definition is about.
pub(super) fn subject(domain: &str, xml: &str) -> Result<Subject, HypervisorError> {
    let fail = |problem: String| HypervisorError::Definition { domain: domain.to_owned(), problem };
    let document = Document::parse(xml).map_err(|error| fail(error.to_string()))?;
    let root = domain_element(&document).map_err(fail)?;
    let text = |name: &str| {
        let found = child(root, name).and_then(|node| node.text());
        found.map(str::to_owned).ok_or_else(|| fail(format!("it has no <{name}>")))
    };
    Ok(Subject { name: text("name")?, uuid: text("uuid")?, running: root.attribute("id").is_some() })
}

/// Reads a definition.
pub(super) fn definition(domain: &str, xml: &str) -> Result<Definition, HypervisorError> {
    let fail = |problem: String| HypervisorError::Definition { domain: domain.to_owned(), problem };
    let document = Document::parse(xml).map_err(|error| fail(error.to_string()))?;
    let root = domain_element(&document).map_err(fail)?;
    let devices: Vec<_> = child(root, "devices").iter().flat_map(elements).collect();
    let of_kind = |name: &'static str| devices.iter().copied().filter(move |node| is(*node, name));
    Ok(Definition {
        xml: xml.to_owned(),
        disks: of_kind("disk").map(disk).collect::<Result<_, _>>().map_err(fail)?,
        agent: of_kind("channel").find_map(agent).unwrap_or(Agent::Absent),
        firmware: child(root, "os").and_then(firmware),
        nova: child(root, "metadata").iter().flat_map(elements).find(|part| is_novas(*part)).map(instance),
    })
}

fn domain_element<'a>(document: &'a Document<'a>) -> Result<Node<'a, 'a>, String> {
    let root = document.root_element();
    if is(root, "domain") { Ok(root) } else { Err(format!("it is a <{}>", root.tag_name().name())) }
}

fn disk(node: Node) -> Result<DomainDisk, String> {
    let target = child(node, "target");
    let name = target.and_then(|target| target.attribute("dev")).filter(|name| !name.is_empty());
    let name = name.ok_or("a disk has no target")?;
    let in_disk = |problem: String| format!("disk {name}: {problem}");
    let kind = match node.attribute("device") {
        None | Some("disk") => DiskKind::Disk,
        Some("cdrom") => DiskKind::Cdrom,
        Some("floppy") => DiskKind::Floppy,
        Some("lun") => DiskKind::Lun,
        Some(other) => return Err(in_disk(format!("{other:?} is no kind of disk"))),
    };
    Ok(DomainDisk {
        target: name.to_owned(),
        bus: target.and_then(|target| owned(target, "bus")),
        kind,
        source: source(node),
        format: child(node, "driver").and_then(|driver| owned(driver, "type")),
        read_only: child(node, "readonly").is_some(),
        shareable: child(node, "shareable").is_some(),
        transient: child(node, "transient").is_some(),
        encrypted: node.descendants().any(|inside| is(inside, "encryption")),
        backing: backing(node).map_err(in_disk)?,
        mirror: child(node, "mirror").map(mirror),
    })
}

/// What a disk, a backing store or a mirror says about where its content is.
pub(super) fn source(node: Node) -> Source {
    let kind = node.attribute("type").unwrap_or("file");
    let Some(source) = child(node, "source") else {
        return if ["file", "block"].contains(&kind) {
            Source::Empty
        } else {
            Source::Other(kind.to_owned())
        };
    };
    let part = child(source, "slices").is_some();
    let words = |attributes: &[&str]| {
        let values: Vec<_> = attributes.iter().filter_map(|name| source.attribute(*name)).collect();
        values.join("/")
    };
    let told = match kind {
        "file" | "block" => {
            let path = source.attribute(if kind == "file" { "file" } else { "dev" }).unwrap_or_default();
            match (path, part) {
                ("", _) => return Source::Empty,
                (path, false) if kind == "file" => return Source::File(PathBuf::from(path)),
                (path, false) => return Source::Block(PathBuf::from(path)),
                (path, true) => format!("part of {path}"),
            }
        }
        "network" => {
            let protocol = source.attribute("protocol").unwrap_or_default();
            format!("{protocol} {}", words(&["name"]))
        }
        "volume" => words(&["pool", "volume"]),
        _ => words(&["dir", "dev", "path", "type"]),
    };
    Source::Other(format!("{kind} {told}").trim_end().to_owned())
}

/// The chain below a disk, the nearest first. libvirt ends a chain that it has read itself with an empty element.
fn backing(disk: Node) -> Result<Vec<Backing>, String> {
    let mut chain = Vec::new();
    let mut layer = child(disk, "backingStore");
    while let Some(node) = layer.filter(|node| node.attribute("type").is_some()) {
        let path = path_or_words(node).ok_or("a layer below it has no source")?;
        let format = child(node, "format").and_then(|format| owned(format, "type"));
        let format = format.ok_or_else(|| format!("layer {} has no format", path.display()))?;
        chain.push(Backing { path, format });
        layer = child(node, "backingStore");
    }
    Ok(chain)
}

fn mirror(node: Node) -> Mirror {
    let target = source(node).path().map(ToOwned::to_owned);
    Mirror {
        job: node.attribute("job").unwrap_or("copy").to_owned(),
        target: target.or_else(|| node.attribute("file").map(PathBuf::from)),
        ready: node.attribute("ready") == Some("yes"),
    }
}

/// The path of a file or device; of anything else, what libvirt says about it.
fn path_or_words(node: Node) -> Option<PathBuf> {
    match source(node) {
        Source::File(path) | Source::Block(path) => Some(path),
        Source::Other(words) => Some(PathBuf::from(words)),
        Source::Empty => None,
    }
}

fn agent(channel: Node) -> Option<Agent> {
    let port = child(channel, "target").filter(|target| target.attribute("name") == Some(AGENT_PORT))?;
    Some(match port.attribute("state") {
        Some("connected") => Agent::Connected,
        _ => Agent::Disconnected,
    })
}

/// UEFI firmware with variables. Without them (`stateless`), or with a BIOS, there is nothing to keep.
fn firmware(os: Node) -> Option<Firmware> {
    let loader = child(os, "loader");
    if loader.is_some_and(|loader| loader.attribute("stateless") == Some("yes")) {
        return None;
    }
    if let Some(nvram) = child(os, "nvram") {
        let text = nvram.text().map(str::trim).filter(|text| !text.is_empty()).map(PathBuf::from);
        let named = || child(nvram, "source").and_then(|_| path_or_words(nvram));
        return Some(Firmware { nvram: named().or(text) });
    }
    let flash = loader.is_some_and(|loader| loader.attribute("type") == Some("pflash"));
    (flash || os.attribute("firmware") == Some("efi")).then_some(Firmware { nvram: None })
}

/// The first child of that name; libvirt's own elements have no namespace.
pub(super) fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    elements(&node).find(|child| is(*child, name))
}

pub(super) fn elements<'a>(node: &Node<'a, 'a>) -> impl Iterator<Item = Node<'a, 'a>> + use<'a> {
    node.children().filter(Node::is_element)
}

pub(super) fn is(node: Node, name: &str) -> bool {
    node.tag_name().name() == name && node.tag_name().namespace().is_none()
}

fn owned(node: Node, attribute: &str) -> Option<String> {
    node.attribute(attribute).map(str::to_owned)
}

#[cfg(test)]
mod tests;
