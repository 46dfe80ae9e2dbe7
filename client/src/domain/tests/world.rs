//! The whole host of the double, and what may happen to it at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use underlay_store::id::Root;

use super::bitmaps::Ending;
use super::images::{BLOCK, Content, Images};
use super::machine::{LiveDisk, Machine, Mood, NAME, Process, Told};
use crate::domain::Step;
use crate::hypervisor::{Definition, Domain};
use crate::state::Memo;

pub(super) const BASE: &str = "/base/debian.qcow2";

/// What interrupts a backup or a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interruption {
    /// underlay is killed.
    Kill,
    /// So is everything else.
    HostCrash,
    /// The guest's process ends.
    GuestStops,
    /// It is killed.
    GuestDies,
    /// It ends and is started again, or is started.
    GuestRestarts,
    /// Nova starts the guest anew from its original files.
    NovaRestarts,
    /// The next call fails and has done nothing.
    FailsBefore,
    /// The next change fails, although it has been made.
    FailsAfter,
    /// The next change is not saved in the inactive definition.
    NotSaved,
    /// The next change is made in part, and fails.
    Partly,
}

/// How the host is laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub disks: usize,
    /// Original files are raw, without a base.
    pub raw: bool,
    pub nova: bool,
    pub transient: bool,
    pub agent: Mood,
}

impl Default for Layout {
    fn default() -> Self {
        Self { disks: 1, raw: false, nova: false, transient: false, agent: Mood::Answers }
    }
}

#[derive(Debug)]
pub(super) struct World {
    pub images: Images,
    pub machine: Machine,
    /// What the guest wrote: every disk's content.
    pub guest: BTreeMap<String, Content>,
    /// Grows with every write, and stands in block 0 of every disk.
    pub sequence: u64,
    pub history: BTreeMap<u64, BTreeMap<String, Content>>,
    /// Sequence number when the disks were frozen last.
    pub frozen_at: u64,
    /// What the guest starts from is not what it wrote last, and that is nobody's fault who could help it.
    pub forked: bool,
    /// Files, by inode, that hold what only they hold.
    pub must_survive: BTreeSet<u64>,
    pub journal: BTreeMap<String, String>,
    pub locks: BTreeSet<String>,
    pub memos: BTreeMap<u64, Memo>,
    /// The repository: content of every tree.
    pub trees: BTreeMap<Root, Content>,
    pub snapshots: usize,
    /// Moments passed, and what happens at which.
    pub clock: usize,
    pub interruptions: Vec<(usize, Interruption)>,
    /// What happens to the next call.
    pub fault: Option<Interruption>,
    /// Guests cannot start: somebody holds locks on their files.
    pub files_locked: bool,
    /// Somebody else changed layers.
    pub foreign: bool,
    /// libvirt did not save a definition some time.
    pub unsaved: bool,
    /// A definition was corrected so that it names no more than the active layer: if underlay is killed and the guest stopped right
    /// then, nobody can tell from definitions any more whether a layer was merged, and its file stays.
    pub may_leave: bool,
    /// The next definition will not be saved.
    pub lose_definition: bool,
    pub random: u64,
    /// Steps taken.
    pub taken: BTreeSet<Step>,
    // What guards look at.
    pub known_snapshots: Vec<String>,
    pub known_checkpoints: BTreeSet<String>,
    /// What else lies beside the images: scratch files and sockets.
    pub others: BTreeSet<PathBuf>,
    pub domain_job: Option<String>,
    pub free: u64,
    /// The memory of the stopped domain is kept.
    pub saved: bool,
    /// The running domain is paused for a layer that could not be written.
    pub stuck: bool,
    pub size_factor: u64,
}

impl World {
    pub fn new(layout: Layout, seed: u64) -> Self {
        let mut images = Images::default();
        images.create(Path::new(BASE), "qcow2", 6, None);
        for block in 1..4 {
            images.write(Path::new(BASE), block, 900 + block);
        }
        let mut machine = Machine {
            nova: layout.nova,
            inactive: (!layout.transient).then(String::new),
            process: None,
            originals: Vec::new(),
            devices: String::new(),
            agent: layout.agent,
        };
        let mut guest = BTreeMap::new();
        for target in ["vda", "vdb"].into_iter().take(layout.disks) {
            let (format, base) = if layout.raw { ("raw", None) } else { ("qcow2", Some(Path::new(BASE))) };
            let path = PathBuf::from(format!("/vm/web-{target}.{format}"));
            images.create(&path, format, 6, base);
            machine.originals.push((target.to_owned(), images.as_backing(&path)));
            guest.insert(target.to_owned(), images.view(&images.chain(&path)));
        }
        machine.set_persistent(machine.at_first());
        let mut world = Self {
            images,
            machine,
            guest,
            sequence: 0,
            history: BTreeMap::new(),
            frozen_at: 0,
            forked: false,
            must_survive: BTreeSet::new(),
            journal: BTreeMap::new(),
            locks: BTreeSet::new(),
            memos: BTreeMap::new(),
            trees: BTreeMap::new(),
            snapshots: 0,
            clock: 0,
            interruptions: Vec::new(),
            fault: None,
            files_locked: false,
            foreign: false,
            unsaved: false,
            may_leave: false,
            lose_definition: false,
            random: seed | 1,
            taken: BTreeSet::new(),
            known_snapshots: Vec::new(),
            known_checkpoints: BTreeSet::new(),
            others: BTreeSet::new(),
            domain_job: None,
            free: 1 << 40,
            saved: false,
            stuck: false,
            size_factor: BLOCK,
        };
        world.start();
        world.guest_writes();
        world
    }

    /// A number below `limit`, the same in every run.
    pub fn choose(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % limit
    }

    /// One moment passes. Whether underlay is killed in it.
    pub fn pass(&mut self) -> bool {
        if self.choose(3) == 0 {
            self.guest_writes();
        }
        let now = self.clock;
        self.clock += 1;
        let due: Vec<_> =
            self.interruptions.iter().filter(|(at, _)| *at == now).map(|(_, what)| *what).collect();
        let mut killed = false;
        for what in due {
            match what {
                Interruption::Kill => killed = true,
                Interruption::HostCrash => {
                    self.end(Ending::Crash);
                    killed = true;
                }
                Interruption::GuestStops => self.stop(),
                Interruption::GuestDies => self.end(Ending::Killed),
                Interruption::GuestRestarts => {
                    self.stop();
                    self.start();
                }
                Interruption::NovaRestarts => self.nova_restarts(),
                fault => self.fault = Some(fault),
            }
        }
        killed
    }

    /// The guest writes to all disks in lock-step: a block each, or discards it.
    pub fn guest_writes(&mut self) {
        if self.machine.process.as_ref().is_none_or(|process| process.frozen) {
            return;
        }
        let mut writes = Vec::new();
        self.sequence += 1;
        for (number, target) in self.guest.keys().cloned().collect::<Vec<_>>().into_iter().enumerate() {
            let block = 1 + self.choose(self.guest[&target].len() as u64 - 1);
            let value = match self.choose(4) {
                0 => 0,
                _ => self.sequence * 10 + number as u64,
            };
            writes.push((target.clone(), 0, self.sequence));
            writes.push((target, block, value));
        }
        for (target, block, value) in writes {
            let active = self.machine.disk(&target).map(|disk| disk.chain[0].clone());
            let active = active.unwrap_or_else(|| panic!("the guest has no disk {target}"));
            self.images.write(&active, block, value);
            self.guest.get_mut(&target).unwrap()[block as usize] = value;
        }
        self.history.insert(self.sequence, self.guest.clone());
    }

    /// The chain that a disk starts with: what its definition names, then what the last of these names.
    pub fn starting_chain(&self, told: &[crate::hypervisor::Backing]) -> Vec<PathBuf> {
        let mut chain: Vec<PathBuf> = told.iter().map(|layer| layer.path.clone()).collect();
        let last = chain.pop().expect("a disk has a layer");
        chain.extend(self.images.chain(&last));
        chain
    }

    /// What each disk holds when the domain is started.
    fn starting_view(&self) -> BTreeMap<String, Content> {
        let disks = self.machine.persistent().into_iter();
        disks.map(|(target, told)| (target, self.images.view(&self.starting_chain(&told)))).collect()
    }

    pub fn start(&mut self) {
        if self.machine.process.is_some() || self.files_locked {
            return;
        }
        let view = self.starting_view();
        if self.forked {
            self.guest = view;
        } else if self.sequence > 0 {
            assert_eq!(view, self.guest, "the domain starts from what its guest did not write");
        }
        let disks = self.machine.persistent().into_iter().map(|(target, told)| LiveDisk {
            target,
            chain: self.starting_chain(&told),
            job: None,
        });
        let disks: Vec<_> = disks.collect();
        // What is in use again is no copy of something lost.
        let used = disks.iter().flat_map(|disk| &disk.chain);
        for path in used {
            self.must_survive.remove(&self.images.get(path).inode);
        }
        self.machine.process = Some(Process { disks, frozen: false, freeze_pending: false, pull: None });
        self.guest_writes();
        self.forked = false;
    }

    pub fn stop(&mut self) {
        self.end(Ending::Orderly);
    }

    /// The guest's process ends, if there is one.
    pub fn end(&mut self, ending: Ending) {
        let Some(process) = self.machine.process.take() else { return };
        self.close(&process, ending);
        if self.machine.inactive.is_some() && self.starting_view() == self.guest {
            return;
        }
        let excusable = self.unsaved || self.machine.nova || self.machine.inactive.is_none();
        assert!(excusable, "the inactive definition names layers that are not what the guest wrote");
        self.forks(&process);
    }

    /// The guest's agent behaves otherwise from now on. One that goes on does first what it was told before.
    pub fn becomes(&mut self, mood: Mood) {
        if self.machine.agent == Mood::Hangs
            && mood != Mood::Hangs
            && let Some(process) = &mut self.machine.process
        {
            process.frozen |= std::mem::take(&mut process.freeze_pending) && mood != Mood::Dead;
        }
        self.machine.agent = mood;
    }

    fn forks(&mut self, process: &Process) {
        self.forked = true;
        let named: BTreeMap<_, _> = self.machine.persistent().into_iter().collect();
        for disk in &process.disks {
            let active = &disk.chain[0];
            let original =
                self.machine.original(&disk.target).is_some_and(|original| original.path == *active);
            // An overlay that was left comes back, and hides what is in the layers below: nobody can help that.
            let starts =
                named.get(&disk.target).is_some_and(|layers| self.starting_chain(layers).contains(active));
            if !original && !starts {
                self.must_survive.insert(self.images.get(active).inode);
            }
        }
    }

    pub fn nova_restarts(&mut self) {
        // libvirt forgets no domain with checkpoints.
        if !self.machine.nova || self.files_locked || !self.known_checkpoints.is_empty() {
            return self.stop();
        }
        let process = self.machine.process.take();
        process.iter().for_each(|process| self.close(process, Ending::Orderly));
        self.machine.set_persistent(self.machine.at_first());
        if let Some(process) = process.filter(|_| self.starting_view() != self.guest) {
            self.forks(&process);
        } else if self.starting_view() != self.guest {
            self.forked = true;
        }
        self.start();
    }

    /// Who follows a running domain's disk in its inactive definition, unless that is lost.
    pub fn follow(&mut self, target: &str, change: impl FnOnce(&mut Vec<crate::hypervisor::Backing>)) {
        if self.lose_definition {
            self.unsaved = true;
        } else {
            self.machine.change_persistent(target, change);
        }
    }

    /// The domain as libvirt tells of it; `None` if there is none of that name.
    pub fn domain(&self) -> Option<Domain> {
        let live = self.machine.process.as_ref().map(|process| {
            let disks = process.disks.iter().map(|disk| Told {
                target: disk.target.clone(),
                layers: disk.chain.iter().map(|path| self.images.as_backing(path)).collect(),
                complete: true,
                mirror: disk
                    .job
                    .as_ref()
                    .filter(|job| job.active)
                    .map(|job| (self.images.as_backing(&job.base), job.ready)),
            });
            self.machine.xml(&disks.collect::<Vec<_>>(), true)
        });
        let parse = |xml: &str| Definition::parse(NAME, xml).expect("the double's XML is sound");
        let live = live.as_deref().map(parse);
        let inactive = self.machine.inactive.as_deref().map(parse);
        if live.is_none() && inactive.is_none() {
            return None;
        }
        let (name, uuid) = (NAME.to_owned(), super::machine::UUID.to_owned());
        Some(Domain { name, uuid, live, inactive })
    }
}
