//! Merging layers of a running domain, a block at a time, whoever asked for it.

use std::path::Path;

use super::machine::Copying;
use super::world::World;

impl World {
    /// Begins to merge what lies above `base`, up to `top`; the active layer if `top` is none. What is in the way, if
    /// something is.
    pub fn begin_merge(&mut self, target: &str, base: &Path, top: Option<&Path>) -> Result<(), &'static str> {
        let disk = self.machine.disk(target).ok_or("domain is not running")?;
        if disk.job.is_some() {
            return Err("disk already in active block job");
        }
        let active = top.is_none();
        let top = top.unwrap_or(&disk.chain[0]).to_owned();
        let place = |path: &Path| disk.chain.iter().position(|layer| layer == path);
        match (place(&top), place(base)) {
            (Some(top), Some(base)) if top < base && (top > 0) != active => {}
            _ => return Err("no such layers in the chain"),
        }
        let blocks = self.images.get(&top).blocks;
        let job = Copying { active, base: base.to_owned(), top, ready: false, foreign: None };
        self.machine.disk(target).unwrap().job = Some(job);
        if self.images.get(base).blocks < blocks {
            self.images.grow(base, blocks);
        }
        Ok(())
    }

    /// A block is copied. A merge below the active layer ends by itself when there is none left; that of the active one is
    /// ready then.
    pub fn advance(&mut self, target: &str) {
        let Some(disk) = self.machine.disk(target) else { return };
        let chain = disk.chain.clone();
        let Some(job) = disk.job.clone().filter(|job| job.foreign.is_none()) else { return };
        let place = |path: &Path| chain.iter().position(|layer| layer == path).unwrap();
        let layers = &chain[place(&job.top)..place(&job.base)];
        if let Some((block, value)) = self.images.unmerged(layers, &job.base) {
            self.images.write(&job.base, block, value);
        } else if job.active {
            self.machine.disk(target).unwrap().job.as_mut().unwrap().ready = true;
        } else {
            self.finish(target, &job);
        }
    }

    /// Whether the job on a disk is ready to pivot.
    pub fn is_ready(&mut self, target: &str) -> bool {
        self.machine.disk(target).and_then(|disk| disk.job.as_ref()).is_some_and(|job| job.ready)
    }

    fn finish(&mut self, target: &str, job: &Copying) {
        let base = self.images.as_backing(&job.base);
        let disk = self.machine.disk(target).unwrap();
        let top = disk.chain.iter().position(|layer| *layer == job.top).unwrap();
        let bottom = disk.chain.iter().position(|layer| *layer == job.base).unwrap();
        disk.job = None;
        disk.chain.drain(top..bottom);
        let merged_above = disk.chain[top - 1].clone();
        self.images.change(&merged_above).backing = Some(base);
        let (top, base) = (job.top.clone(), job.base.clone());
        let known = self
            .machine
            .persistent()
            .into_iter()
            .any(|(disk, layers)| disk == target && layers.iter().any(|layer| layer.path == base));
        self.may_leave |= !known;
        self.follow(target, |layers| {
            let place = |path: &Path| layers.iter().position(|layer| layer.path == path);
            match (place(&top), place(&base)) {
                (Some(top), Some(base)) => drop(layers.drain(top..base)),
                // libvirt forgets a chain that is not the one it runs with.
                _ => layers.truncate(1),
            }
        });
    }

    /// Ends a job that is ready; whether there was one.
    pub fn end_by_pivot(&mut self, target: &str) -> bool {
        if !self.is_ready(target) {
            return false;
        }
        let disk = self.machine.disk(target).unwrap();
        let job = disk.job.take().unwrap();
        let place = disk.chain.iter().position(|layer| *layer == job.base).unwrap();
        let above: Vec<_> = disk.chain.drain(..place).collect();
        while let Some((block, value)) = self.images.unmerged(&above, &job.base) {
            self.images.write(&job.base, block, value);
        }
        let base = self.images.as_backing(&job.base);
        self.follow(target, |layers| {
            if layers[0].path == job.top {
                match layers.iter().position(|layer| layer.path == job.base) {
                    Some(place) => drop(layers.drain(..place)),
                    None => *layers = vec![base],
                }
            }
        });
        true
    }

    /// All jobs go on, whoever began them.
    pub fn jobs_go_on(&mut self) {
        let disks = self.machine.process.iter().flat_map(|process| &process.disks);
        let targets: Vec<_> = disks.map(|disk| disk.target.clone()).collect();
        targets.iter().for_each(|target| self.advance(target));
    }
}
