//! Dirty bitmaps and pulls of the double, as QEMU 10 and libvirt 11 have them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::images::{BLOCK, Bitmap, Content};
use super::machine::Process;
use super::world::{Interruption, World};
use crate::domain::record::{DomainRecord, Tracking};
use crate::hypervisor::PullRequest;

/// How a guest's process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It stores its bitmaps.
    Orderly,
    /// It does not, and those in the files say so.
    Killed,
    /// libvirt, too, has no time to tidy up.
    Crash,
}

/// A pull under way.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub request: PullRequest,
    /// What the guest had written last when it began.
    pub sequence: u64,
    pub disks: BTreeMap<String, ShownDisk>,
}

#[derive(Clone, Debug)]
pub(super) struct ShownDisk {
    pub content: Content,
    /// What was written since the checkpoint before.
    pub dirty: Option<BTreeSet<u64>>,
}

impl World {
    /// What becomes of bitmaps, of a pull and of libvirt's records when a process ends.
    pub fn close(&mut self, process: &Process, ending: Ending) {
        for disk in &process.disks {
            // Those of a layer that is not written were stored before.
            let Some(image) = self.images.files.get_mut(&disk.chain[0]) else { continue };
            if ending != Ending::Orderly {
                image.bitmaps.retain(|_, bitmap| bitmap.stored);
            }
            for bitmap in image.bitmaps.values_mut() {
                bitmap.stored = true;
                bitmap.unsound |= ending != Ending::Orderly;
            }
        }
        if let Some(pull) = &process.pull {
            self.tidy_up(&pull.request, ending);
        }
        if self.machine.inactive.is_none() {
            self.known_checkpoints.clear();
        }
    }

    /// QEMU removes its socket unless it is killed, libvirt the scratch files unless it is.
    fn tidy_up(&mut self, request: &PullRequest, ending: Ending) {
        if ending == Ending::Orderly {
            self.others.remove(&request.socket);
        }
        if ending != Ending::Crash {
            self.others.retain(|path| request.disks.iter().all(|disk| disk.scratch != *path));
        }
    }

    /// The active layer of a running domain's disk.
    fn active(&mut self, target: &str) -> Result<PathBuf, &'static str> {
        let disk = self.machine.disk(target).ok_or("domain is not running, or has no such disk")?;
        Ok(disk.chain[0].clone())
    }

    /// The sound bitmap of that name in the active layer of a disk.
    fn sound(&mut self, target: &str, name: &str) -> Result<&mut Bitmap, &'static str> {
        let active = self.active(target)?;
        let bitmaps = &mut self.images.files.get_mut(&active).expect("a layer is there").bitmaps;
        bitmaps.get_mut(name).filter(|bitmap| !bitmap.unsound).ok_or("no such bitmap, or an inconsistent one")
    }

    pub fn begin_pull(
        &mut self,
        request: &PullRequest,
        fault: Option<Interruption>,
    ) -> Result<(), &'static str> {
        let process = self.machine.process.as_ref().ok_or("domain is not running")?;
        if process.pull.is_some() || process.disks.iter().any(|disk| disk.job.is_some()) {
            return Err("another job is active");
        }
        let since = request.since.as_ref();
        if since.is_some_and(|since| !self.known_checkpoints.contains(since)) {
            return Err("no domain checkpoint with that name");
        }
        let mut disks = BTreeMap::new();
        for disk in &request.disks {
            let active = self.active(&disk.target)?;
            let content = self.images.view(&self.images.chain(&active));
            let dirty = match since {
                Some(since) => Some(self.sound(&disk.target, since)?.dirty.clone()),
                None => None,
            };
            if self.images.get(&active).bitmaps.contains_key(&request.checkpoint) {
                return Err("there is a bitmap of that name");
            }
            disks.insert(disk.target.clone(), ShownDisk { content, dirty });
        }
        for disk in &request.disks {
            let active = self.active(&disk.target)?;
            let image = self.images.files.get_mut(&active).expect("a layer is there");
            image.bitmaps.insert(request.checkpoint.clone(), Bitmap::default());
        }
        if fault == Some(Interruption::Partly) {
            return Err("the exports could not be made");
        }
        if !self.lose_definition {
            self.known_checkpoints.insert(request.checkpoint.clone());
        }
        self.others.insert(request.socket.clone());
        self.others.extend(request.disks.iter().map(|disk| disk.scratch.clone()));
        let sequence = self.sequence;
        let shown = Shown { request: request.clone(), sequence, disks };
        self.machine.process.as_mut().expect("it runs").pull = Some(shown);
        Ok(())
    }

    pub fn begin_checkpoint(&mut self, name: &str, targets: &[&str]) -> Result<(), &'static str> {
        for target in targets {
            let active = self.active(target)?;
            if self.images.get(&active).bitmaps.contains_key(name) {
                return Err("there is a bitmap of that name");
            }
        }
        for target in targets {
            let active = self.active(target)?;
            let image = self.images.files.get_mut(&active).expect("a layer is there");
            image.bitmaps.insert(name.to_owned(), Bitmap::default());
        }
        if !self.lose_definition {
            self.known_checkpoints.insert(name.to_owned());
        }
        Ok(())
    }

    /// Bytes that the bitmaps of that name have noted.
    pub fn written_since(&mut self, name: &str) -> Result<BTreeMap<String, u64>, &'static str> {
        if !self.known_checkpoints.contains(name) {
            return Err("no domain checkpoint with that name");
        }
        let mut written = BTreeMap::new();
        for target in self.guest.keys().cloned().collect::<Vec<_>>() {
            if let Ok(bitmap) = self.sound(&target, name) {
                let noted = bitmap.dirty.len() as u64 * BLOCK;
                written.insert(target, noted);
            }
        }
        Ok(written)
    }

    pub fn end_pull(&mut self, fault: Option<Interruption>) -> Result<(), &'static str> {
        let process = self.machine.process.as_mut().ok_or("domain is not running")?;
        let pull = process.pull.take().ok_or("no job is active")?;
        let ending = if fault == Some(Interruption::Partly) { Ending::Crash } else { Ending::Orderly };
        self.tidy_up(&pull.request, ending);
        Ok(())
    }

    /// `checkpoint-create --redefine --redefine-validate`.
    pub fn know_checkpoint(&mut self, name: &str, targets: &[&str]) -> Result<(), &'static str> {
        for target in targets {
            self.sound(target, name)?;
        }
        self.known_checkpoints.insert(name.to_owned());
        Ok(())
    }

    /// Removes bitmaps from all these disks, or from none.
    pub fn remove_bitmaps(&mut self, name: &str, targets: &[&str]) -> Result<(), &'static str> {
        let mut found = Vec::new();
        for target in targets {
            let disk = self.machine.disk(target).ok_or("domain is not running, or has no such disk")?;
            let chain = disk.chain.clone();
            let has = |path: &&PathBuf| self.images.get(path).bitmaps.contains_key(name);
            found.push(chain.iter().find(has).ok_or("no such bitmap in the chain")?.clone());
        }
        for path in found {
            self.images.files.get_mut(&path).expect("a layer is there").bitmaps.remove(name);
        }
        Ok(())
    }

    /// Bitmaps of ours in the disks of a running domain.
    pub fn bitmaps_in_use(&self) -> BTreeSet<String> {
        let disks = self.machine.process.iter().flat_map(|process| &process.disks);
        let images = disks.flat_map(|disk| &disk.chain).map(|path| self.images.get(path));
        images.flat_map(|image| image.bitmaps.keys()).cloned().collect()
    }

    /// A bitmap that is believed covers all that was written since the disk held what it is applied to.
    pub fn expect_believed(&self, tracking: &Tracking) {
        for (target, disk) in &tracking.disks {
            let path: &Path = &disk.file.path;
            let Some(image) = self.images.files.get(path).filter(|image| image.inode == disk.file.inode)
            else {
                continue;
            };
            let Some(bitmap) = image.bitmaps.get(&tracking.checkpoint).filter(|bitmap| !bitmap.unsound)
            else {
                continue;
            };
            let [_, witness] = with_witness(&tracking.checkpoint);
            let witness = image.bitmaps.get(&witness).filter(|witness| !witness.unsound);
            if witness.is_none_or(|witness| witness.dirty.len() > bitmap.dirty.len()) {
                continue;
            }
            let then = &self.trees[&disk.root];
            for (block, now) in (0..).zip(self.images.view(&self.images.chain(path))) {
                let same = now == then.get(block as usize).copied().unwrap_or_default();
                assert!(same || bitmap.dirty.contains(&block), "block {block} of {target} is lost");
            }
        }
    }

    /// Nothing of a pull is left but what the record knows of.
    pub fn expect_no_pull(&self, record: Option<&DomainRecord>) {
        assert_eq!(self.others, BTreeSet::new(), "files of a pull were left behind");
        let ours: Vec<_> =
            self.known_checkpoints.iter().filter(|name| name.starts_with("underlay-")).collect();
        assert!(ours.is_empty(), "libvirt knows checkpoints: {ours:?}");
        let pulls = self.machine.process.iter().filter_map(|process| process.pull.as_ref());
        assert_eq!(pulls.count(), 0, "a pull goes on");
        let tracked = record.and_then(|record| record.tracking.as_ref()).map(|known| &known.checkpoint);
        let stale = record.into_iter().flat_map(|record| &record.stale_checkpoints);
        let known: BTreeSet<_> =
            tracked.into_iter().chain(stale).flat_map(|name| with_witness(name)).collect();
        let left: Vec<_> = self.bitmaps_in_use().difference(&known).cloned().collect();
        assert!(left.is_empty(), "bitmaps that nobody knows of: {left:?}");
    }
}

/// The names of a bitmap and its witness.
pub(super) fn with_witness(name: &str) -> [String; 2] {
    [name.to_owned(), format!("{name}-witness")]
}
