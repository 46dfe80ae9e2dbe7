//! What others do to a domain between backups.

use std::path::{Path, PathBuf};

use super::machine::LiveDisk;
use super::world::{BASE, World};
use crate::hypervisor::Backing;

impl World {
    fn targets(&self) -> Vec<String> {
        self.guest.keys().cloned().collect()
    }

    fn has_jobs(&self) -> bool {
        let mut processes = self.machine.process.iter();
        processes.any(|process| process.pull.is_some() || process.disks.iter().any(|disk| disk.job.is_some()))
    }

    /// `virsh blockpull`: all layers, or all above the bottommost, go into the active one.
    pub fn pull(&mut self, all: bool) {
        if self.has_jobs() {
            return;
        }
        for target in self.targets() {
            let Some(disk) = self.machine.disk(&target) else { return };
            let chain = disk.chain.clone();
            let keep = if all { chain.len() } else { chain.len() - 1 };
            if keep < 2 {
                continue;
            }
            let (active, bottom) = (chain[0].clone(), chain.get(keep).cloned());
            for block in 0..self.images.get(&active).blocks {
                let holder = chain[..keep].iter().find_map(|path| self.images.get(path).data.get(&block));
                if let Some(value) = holder.copied() {
                    self.images.write(&active, block, value);
                }
            }
            let below = bottom.as_ref().map(|path| self.images.as_backing(path));
            self.images.change(&active).backing.clone_from(&below);
            self.machine.disk(&target).unwrap().chain.drain(1..keep);
            self.machine.change_persistent(&target, |layers| layers.truncate(1));
            self.foreign = true;
        }
    }

    /// `qemu-img commit` of a stopped domain's active layer.
    pub fn commit_offline(&mut self) {
        // Where a definition names layers that are none any more, it would bring them back above newer data.
        if self.machine.process.is_some() || self.unsaved {
            return;
        }
        for (_, layers) in self.machine.persistent() {
            let active = &layers[0].path;
            let chain = self.images.chain(active);
            let Some(below) = chain.get(1).filter(|below| **below != Path::new(BASE)) else { continue };
            let blocks = self.images.get(active).blocks;
            self.images.grow(below, blocks);
            for (block, value) in self.images.get(active).data.clone() {
                self.images.write(below, block, value);
            }
            self.images.change(active).data.clear();
        }
    }

    /// `virsh snapshot-create-as --disk-only --no-metadata`.
    pub fn snapshot(&mut self) {
        if self.has_jobs() || self.machine.process.is_none() {
            return;
        }
        for target in self.targets() {
            let active = self.machine.disk(&target).unwrap().chain[0].clone();
            let path = PathBuf::from(format!("/vm/admin-{target}-{}.qcow2", self.sequence));
            if self.images.contains(&path) {
                return;
            }
            self.images.create(&path, "qcow2", self.images.get(&active).blocks, Some(&active));
            self.machine.disk(&target).unwrap().chain.insert(0, path.clone());
            let new = Backing { path, format: "qcow2".into() };
            self.machine.change_persistent(&target, |layers| layers.insert(0, new));
            self.foreign = true;
        }
    }

    /// Files are changed inside the image of a stopped domain.
    pub fn edit_offline(&mut self) {
        if self.machine.process.is_some() || self.forked {
            return;
        }
        self.sequence += 1;
        for (target, layers) in self.machine.persistent() {
            for (block, value) in [(0, self.sequence), (3, self.sequence * 10 + 9)] {
                self.images.write(&layers[0].path, block, value);
                self.guest.get_mut(&target).unwrap()[block as usize] = value;
            }
        }
        self.history.insert(self.sequence, self.guest.clone());
    }

    /// Files are changed in the layer below the active one of a stopped domain, as nobody ever should.
    pub fn edit_below(&mut self) {
        if self.machine.process.is_some() || self.forked {
            return;
        }
        for (target, layers) in self.machine.persistent() {
            let chain = self.starting_chain(&layers);
            for below in chain[1..].iter().filter(|path| **path != Path::new(BASE)) {
                let value = 7_000_000 + self.images.get(below).inode;
                self.images.write(below, 5, value);
            }
            self.guest.insert(target, self.images.view(&chain));
        }
        self.history.insert(self.sequence, self.guest.clone());
    }

    /// `virsh blockresize`.
    pub fn resize(&mut self) {
        if self.has_jobs() || self.machine.process.is_none() {
            return;
        }
        let target = self.targets().swap_remove(0);
        let active = self.machine.disk(&target).unwrap().chain[0].clone();
        let blocks = self.images.get(&active).blocks + 2;
        if blocks < 12 && !self.machine.frozen() {
            self.images.grow(&active, blocks);
            self.guest.get_mut(&target).unwrap().resize(blocks as usize, 0);
            self.guest_writes();
        }
    }

    /// `virsh attach-disk --persistent`.
    pub fn attach(&mut self) {
        let target = "vdc".to_owned();
        if self.machine.process.is_none() || self.guest.contains_key(&target) || self.machine.frozen() {
            return;
        }
        let path = PathBuf::from("/vm/web-vdc.qcow2");
        self.images.create(&path, "qcow2", 4, None);
        let backing = self.images.as_backing(&path);
        let mut disks = self.machine.persistent();
        self.machine.originals.push((target.clone(), backing.clone()));
        disks.push((target.clone(), vec![backing]));
        self.machine.set_persistent(disks);
        let process = self.machine.process.as_mut().unwrap();
        process.disks.push(LiveDisk { target: target.clone(), chain: vec![path], job: None });
        self.guest.insert(target, vec![0; 4]);
        self.guest_writes();
    }
}
