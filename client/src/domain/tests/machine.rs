//! The double's domain: its definitions, the process that runs it, and its guest.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::bitmaps::Shown;
use crate::hypervisor::{Backing, Definition};

pub(super) const NAME: &str = "web";
pub(super) const UUID: &str = "8ba6a0f4-0000-4000-8000-000000000001";

/// How the guest's agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// The domain has no channel.
    Absent,
    /// Nobody at the other end.
    Dead,
    Answers,
    /// Connected, and does not answer; what it was told to freeze it freezes when it goes on.
    Hangs,
    /// Fails to freeze.
    Refuses,
    /// Says that thawing failed although it did not.
    Lies,
    /// Freezes, and stops answering then.
    Stuck,
}

/// Copying between the layers of a disk.
#[derive(Clone, Debug)]
pub(super) struct Copying {
    pub active: bool,
    pub base: PathBuf,
    pub top: PathBuf,
    pub ready: bool,
    /// Begun by somebody else, in libvirt's words.
    pub foreign: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) struct LiveDisk {
    pub target: String,
    /// The active layer first.
    pub chain: Vec<PathBuf>,
    pub job: Option<Copying>,
}

/// A running domain.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub disks: Vec<LiveDisk>,
    /// The guest's file systems are frozen.
    pub frozen: bool,
    /// They will be when the agent comes to it.
    pub freeze_pending: bool,
    /// What it shows.
    pub pull: Option<Shown>,
}

#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub nova: bool,
    /// `None` for a transient domain.
    pub inactive: Option<String>,
    pub process: Option<Process>,
    /// Targets and the files they have when their manager starts them.
    pub originals: Vec<(String, Backing)>,
    /// Other devices, as XML.
    pub devices: String,
    pub agent: Mood,
}

/// A disk as XML tells of it.
pub(super) struct Told {
    pub target: String,
    /// The active layer first.
    pub layers: Vec<Backing>,
    /// Layers end here, and not where the last one says.
    pub complete: bool,
    /// The mirror: where to, and whether it is ready.
    pub mirror: Option<(Backing, bool)>,
}

impl Machine {
    pub fn inactive_definition(&self) -> Option<Definition> {
        self.inactive.as_ref().map(|xml| Definition::parse(NAME, xml).expect("the double's XML is sound"))
    }

    /// The layers that the inactive definition names for each disk.
    pub fn persistent(&self) -> Vec<(String, Vec<Backing>)> {
        let Some(definition) = self.inactive_definition() else { return self.at_first() };
        let known = definition.disks.into_iter().filter(|disk| self.original(&disk.target).is_some());
        let told = known.filter_map(|disk| {
            let path = disk.source.path()?.to_owned();
            let active = Backing { path, format: disk.format? };
            Some((disk.target, std::iter::once(active).chain(disk.backing).collect()))
        });
        told.collect()
    }

    pub fn at_first(&self) -> Vec<(String, Vec<Backing>)> {
        self.originals.iter().map(|(target, backing)| (target.clone(), vec![backing.clone()])).collect()
    }

    pub fn original(&self, target: &str) -> Option<&Backing> {
        self.originals.iter().find(|(known, _)| known == target).map(|(_, backing)| backing)
    }

    pub fn set_persistent(&mut self, disks: Vec<(String, Vec<Backing>)>) {
        if self.inactive.is_some() {
            let told = disks.into_iter().map(|(target, layers)| Told {
                target,
                layers,
                complete: false,
                mirror: None,
            });
            self.inactive = Some(self.xml(&told.collect::<Vec<_>>(), false));
        }
    }

    /// Changes the layers that the inactive definition names for one disk.
    pub fn change_persistent(&mut self, target: &str, change: impl FnOnce(&mut Vec<Backing>)) {
        let mut disks = self.persistent();
        if let Some((_, layers)) = disks.iter_mut().find(|(named, _)| named == target) {
            change(layers);
        }
        self.set_persistent(disks);
    }

    pub fn disk(&mut self, target: &str) -> Option<&mut LiveDisk> {
        self.process.as_mut()?.disks.iter_mut().find(|disk| disk.target == target)
    }

    pub fn frozen(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.frozen)
    }

    /// Whether any definition or process uses the file.
    pub fn uses(&self, path: &Path) -> bool {
        let live = self.process.iter().flat_map(|process| &process.disks);
        let persistent = if self.inactive.is_some() { self.persistent() } else { Vec::new() };
        live.flat_map(|disk| &disk.chain).any(|layer| layer == path)
            || persistent.iter().flat_map(|(_, layers)| layers).any(|layer| layer.path == path)
    }

    pub fn is_open(&self, path: &Path) -> bool {
        let pulls = self.process.iter().filter_map(|process| process.pull.as_ref());
        if pulls.flat_map(|pull| &pull.request.disks).any(|disk| disk.scratch == path) {
            return true;
        }
        let live = self.process.iter().flat_map(|process| &process.disks);
        live.flat_map(|disk| &disk.chain).any(|layer| layer == path)
    }

    pub fn xml(&self, disks: &[Told], live: bool) -> String {
        let id = if live { " id='3'" } else { "" };
        let nova = "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'/>";
        let metadata = if self.nova { nova } else { "" };
        let mut xml = format!(
            "<domain type='qemu'{id}><name>{NAME}</name><uuid>{UUID}</uuid><metadata>{metadata}</metadata><devices>"
        );
        disks.iter().for_each(|disk| told(&mut xml, disk));
        if self.agent != Mood::Absent {
            let state = match (live, self.agent) {
                (false, _) => "",
                (true, Mood::Dead) => " state='disconnected'",
                (true, _) => " state='connected'",
            };
            write!(
                xml,
                "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'{state}/></channel>"
            )
            .unwrap();
        }
        xml + &self.devices + "</devices></domain>"
    }
}

fn told(xml: &mut String, disk: &Told) {
    let (active, below) = disk.layers.split_first().expect("a disk has an active layer");
    let (path, format) = (active.path.display(), &active.format);
    write!(
        xml,
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/>"
    )
    .unwrap();
    for layer in below {
        let (path, format) = (layer.path.display(), &layer.format);
        write!(xml, "<backingStore type='file'><format type='{format}'/><source file='{path}'/>").unwrap();
    }
    if disk.complete {
        xml.push_str("<backingStore/>");
    }
    xml.push_str(&"</backingStore>".repeat(below.len()));
    if let Some((onto, ready)) = &disk.mirror {
        let (path, format) = (onto.path.display(), &onto.format);
        let ready = if *ready { " ready='yes'" } else { "" };
        write!(xml, "<mirror type='file' job='active-commit'{ready}><format type='{format}'/>").unwrap();
        write!(xml, "<source file='{path}'/></mirror>").unwrap();
    }
    write!(xml, "<target dev='{}' bus='virtio'/></disk>", disk.target).unwrap();
}
