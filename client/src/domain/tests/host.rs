//! The double as a hypervisor.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::machine::{Mood, NAME};
use super::world::{Interruption, World};
use crate::hypervisor::{
    Backing, BlockJob, Definition, Domain, Hypervisor, HypervisorError, Overlay, PullRequest, Written,
};

/// What a killed run panics with.
pub(super) struct Killed;

/// All that a backup acts on.
#[derive(Clone)]
pub(super) struct Host(pub Arc<Mutex<World>>);

pub(super) fn failed(message: &str) -> HypervisorError {
    HypervisorError::Failed { command: "double".into(), message: message.into() }
}

impl Host {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A moment at which anything may happen.
    pub fn moment(&self) {
        let killed = self.world().pass();
        if killed {
            std::panic::panic_any(Killed);
        }
    }

    /// A question begins.
    pub fn ask(&self) -> Result<MutexGuard<'_, World>, HypervisorError> {
        self.moment();
        let mut world = self.world();
        match world.fault {
            Some(Interruption::FailsBefore) => {
                world.fault = None;
                Err(failed("Disconnected"))
            }
            _ => Ok(world),
        }
    }

    /// A change begins; what is to go wrong with it.
    pub fn begin(&self) -> Result<Option<Interruption>, HypervisorError> {
        let mut world = self.ask()?;
        let fault = world.fault.take();
        world.lose_definition = fault == Some(Interruption::NotSaved);
        Ok(fault)
    }

    /// A change has been made.
    pub fn end(&self, fault: Option<Interruption>) -> Result<(), HypervisorError> {
        self.world().lose_definition = false;
        self.moment();
        match fault {
            Some(Interruption::FailsAfter) => Err(failed("it was done, though")),
            _ => Ok(()),
        }
    }

    /// Waits for a merge until it ends, by whatever.
    fn follow_merge(
        &self,
        target: &str,
        pivot: bool,
        fault: Option<Interruption>,
    ) -> Result<(), HypervisorError> {
        loop {
            self.moment();
            let mut world = self.world();
            let Some(disk) = world.machine.disk(target) else { return Err(failed("domain is not running")) };
            if disk.job.is_none() {
                // Without it the process is another one by now.
                return Err(failed("the job vanished"));
            }
            world.advance(target);
            if world.is_ready(target) && pivot {
                drop(world);
                self.moment();
                return match self.world().end_by_pivot(target) {
                    true => Ok(()),
                    false => Err(failed("the job vanished")),
                };
            }
            let job = &mut world.machine.disk(target).unwrap().job;
            if job.is_none() {
                return Ok(());
            }
            if fault == Some(Interruption::Partly) {
                *job = None;
                return Err(failed("the job was ended"));
            }
        }
    }

    /// The guest's file systems are frozen, if its agent does so.
    fn quiesce(&self) -> Result<(), HypervisorError> {
        let mut world = self.world();
        let mood = world.machine.agent;
        let Some(process) = &mut world.machine.process else { return Err(failed("domain is not running")) };
        match mood {
            Mood::Absent | Mood::Dead | Mood::Refuses => Err(failed("Guest agent is not responding")),
            Mood::Hangs => {
                process.freeze_pending = true;
                Err(failed("guest agent command timed out"))
            }
            Mood::Answers | Mood::Lies | Mood::Stuck => {
                process.frozen = true;
                Ok(())
            }
        }
    }

    /// Gives disks their overlays: all, or as many as said.
    fn switch(&self, overlays: &[Overlay], count: usize) -> Result<(), HypervisorError> {
        let mut world = self.world();
        let World { images, machine, .. } = &mut *world;
        for overlay in overlays {
            let disk = machine.disk(&overlay.target).ok_or_else(|| failed("domain is not running"))?;
            if disk.job.is_some() || images.contains(&overlay.path) {
                return Err(failed("a job, or a file in the way"));
            }
        }
        for overlay in overlays.iter().take(count) {
            let World { images, machine, .. } = &mut *world;
            let disk = machine.disk(&overlay.target).unwrap();
            let below = disk.chain[0].clone();
            images.create(&overlay.path, "qcow2", images.get(&below).blocks, Some(&below));
            disk.chain.insert(0, overlay.path.clone());
            let new = Backing { path: overlay.path.clone(), format: "qcow2".into() };
            world.follow(&overlay.target, |layers| {
                if layers[0].path == below {
                    layers.insert(0, new);
                }
            });
        }
        world.frozen_at = world.sequence;
        Ok(())
    }

    fn thawed(&self) -> Result<(), HypervisorError> {
        let mut world = self.world();
        let mood = world.machine.agent;
        let Some(process) = &mut world.machine.process else { return Err(failed("domain is not running")) };
        match mood {
            Mood::Absent | Mood::Dead | Mood::Hangs | Mood::Stuck => {
                Err(failed("Guest agent is not responding"))
            }
            Mood::Answers | Mood::Refuses | Mood::Lies => {
                process.frozen = false;
                match mood {
                    Mood::Lies => Err(failed("unable to thaw")),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl Hypervisor for Host {
    fn domains(&self) -> Result<Vec<String>, HypervisorError> {
        let world = self.ask()?;
        Ok(world.domain().map(|domain| domain.name).into_iter().collect())
    }

    fn domain(&self, name: &str) -> Result<Domain, HypervisorError> {
        let world = self.ask()?;
        let missing = || HypervisorError::NoDomain { domain: name.to_owned() };
        world.domain().filter(|domain| domain.name == name).ok_or_else(missing)
    }

    fn uri(&self) -> Result<String, HypervisorError> {
        Ok("test:///double".to_owned())
    }

    fn is_stuck(&self, _: &str) -> Result<bool, HypervisorError> {
        let world = self.ask()?;
        Ok(world.stuck && world.machine.process.is_some())
    }

    fn is_saved(&self, _: &str) -> Result<bool, HypervisorError> {
        let world = self.ask()?;
        Ok(world.saved && world.machine.process.is_none())
    }

    fn snapshots(&self, _: &str) -> Result<Vec<String>, HypervisorError> {
        Ok(self.ask()?.known_snapshots.clone())
    }

    fn checkpoints(&self, _: &str) -> Result<Vec<String>, HypervisorError> {
        Ok(self.ask()?.known_checkpoints.iter().cloned().collect())
    }

    fn domain_job(&self, _: &str) -> Result<Option<String>, HypervisorError> {
        let world = self.ask()?;
        let pull = world.machine.process.iter().find_map(|process| process.pull.as_ref());
        Ok(world.domain_job.clone().or(pull.map(|_| "Backup".to_owned())))
    }

    fn block_job(&self, _: &str, target: &str) -> Result<Option<BlockJob>, HypervisorError> {
        let mut world = self.ask()?;
        let job = world.machine.disk(target).and_then(|disk| disk.job.clone());
        world.jobs_go_on();
        Ok(job.map(|job| {
            let own = if job.active { "Active Block Commit" } else { "Block Commit" };
            BlockJob { kind: job.foreign.unwrap_or(own).to_owned(), ready: job.ready }
        }))
    }

    fn capacity(&self, _: &str, target: &str) -> Result<u64, HypervisorError> {
        let world = self.ask()?;
        Ok(world.guest.get(target).map_or(0, |disk| disk.len() as u64 * world.size_factor))
    }

    fn agent_answers(&self, _: &str, _: Duration) -> Result<bool, HypervisorError> {
        let world = self.ask()?;
        let answers = matches!(world.machine.agent, Mood::Answers | Mood::Refuses | Mood::Lies | Mood::Stuck);
        Ok(answers && world.machine.process.is_some() && !world.machine.frozen())
    }

    fn freeze(
        &self,
        _: &str,
        overlays: &[Overlay],
        quiesce: Option<Duration>,
    ) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        if quiesce.is_some() {
            self.quiesce()?;
            self.moment();
        }
        let count = if fault == Some(Interruption::Partly) { 1 } else { overlays.len() };
        let switched = self.switch(overlays, count);
        self.moment();
        let thawed = if quiesce.is_some() { self.thawed() } else { Ok(()) };
        self.end(fault)?;
        match fault {
            Some(Interruption::NotSaved) => Err(failed("cannot save the definition")),
            Some(Interruption::Partly) => Err(failed("only some disks were frozen")),
            _ => switched.and(thawed),
        }
    }

    fn quiesce(&self, _: &str, _: Duration) -> Result<(), HypervisorError> {
        Host::quiesce(self)
    }

    fn begin_pull(&self, _: &str, request: &PullRequest) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        self.world().begin_pull(request, fault).map_err(failed)?;
        self.end(fault)
    }

    fn pull_socket(&self, _: &str) -> Result<Option<PathBuf>, HypervisorError> {
        let world = self.ask()?;
        let pull = world.machine.process.iter().find_map(|process| process.pull.as_ref());
        Ok(pull.map(|pull| pull.request.socket.clone()))
    }

    fn end_pull(&self, _: &str) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        self.world().end_pull(fault).map_err(failed)?;
        self.end(fault)
    }

    fn begin_checkpoint(&self, _: &str, checkpoint: &str, targets: &[&str]) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        self.world().begin_checkpoint(checkpoint, targets).map_err(failed)?;
        self.end(fault)
    }

    fn written_since(&self, _: &str, checkpoint: &str) -> Result<Written, HypervisorError> {
        let mut world = self.ask()?;
        world.written_since(checkpoint).map_err(failed)
    }

    fn forget_checkpoint(&self, _: &str, checkpoint: &str) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        if !self.world().known_checkpoints.remove(checkpoint) {
            return Err(failed("no domain checkpoint with that name"));
        }
        self.end(fault)
    }

    fn know_checkpoint(&self, _: &str, checkpoint: &str, targets: &[&str]) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        self.world().know_checkpoint(checkpoint, targets).map_err(failed)?;
        self.end(fault)
    }

    fn remove_checkpoint(&self, _: &str, checkpoint: &str, targets: &[&str]) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        if self.world().machine.process.is_none() {
            return Err(failed("domain is not running"));
        }
        self.world().known_checkpoints.insert(checkpoint.to_owned());
        self.moment();
        if fault == Some(Interruption::Partly) {
            return Err(failed("disconnected"));
        }
        let removed = self.world().remove_bitmaps(checkpoint, targets);
        self.moment();
        self.world().known_checkpoints.remove(checkpoint);
        removed.map_err(failed)?;
        self.end(fault)
    }

    fn thaw(&self, _: &str, _: Duration) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        let thawed = self.thawed();
        self.end(fault)?;
        thawed
    }

    fn commit(&self, _: &str, target: &str, base: &Path, top: &Path) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        self.world().begin_merge(target, base, Some(top)).map_err(failed)?;
        self.follow_merge(target, false, fault)?;
        self.end(fault)
    }

    fn commit_active(&self, _: &str, target: &str, base: &Path) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        self.world().begin_merge(target, base, None).map_err(failed)?;
        self.follow_merge(target, true, fault)?;
        self.end(fault)
    }

    fn pivot(&self, _: &str, target: &str) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        if !self.world().end_by_pivot(target) {
            return Err(failed("no job that is ready"));
        }
        self.end(fault)
    }

    fn commit_stopped(&self, overlay: &Path, base: &Backing) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        let layers = {
            let mut world = self.world();
            let chain = world.images.chain(overlay);
            let place = chain.iter().position(|layer| *layer == base.path);
            let layers = place.map(|place| chain[..place].to_vec()).ok_or_else(|| failed("no such base"))?;
            if world.machine.is_open(overlay) || world.machine.is_open(&base.path) {
                return Err(failed("Failed to get \"write\" lock"));
            }
            world.files_locked = true;
            let blocks = world.images.get(overlay).blocks;
            world.images.grow(&base.path, blocks);
            layers
        };
        let mut copied = 0;
        while let Some((block, value)) = {
            let world = self.world();
            world.images.unmerged(&layers, &base.path)
        } {
            if fault == Some(Interruption::Partly) && copied == 1 {
                self.world().files_locked = false;
                return Err(failed("interrupted"));
            }
            self.world().images.write(&base.path, block, value);
            copied += 1;
            self.moment();
        }
        self.world().files_locked = false;
        self.end(fault)
    }

    fn define(&self, xml: &str) -> Result<(), HypervisorError> {
        let fault = self.begin()?;
        let definition = Definition::parse(NAME, xml)?;
        {
            let mut world = self.world();
            let writing = |target: &str, path: Option<PathBuf>| {
                path.as_deref() == definition.disk(target).and_then(|disk| disk.source.path())
            };
            let disks = world.machine.process.iter().flat_map(|process| &process.disks);
            if !disks.clone().all(|disk| writing(&disk.target, disk.chain.first().cloned())) {
                // The guest was started right now.
                world.unsaved = true;
            }
            world.may_leave |= world.machine.process.is_some();
            if fault == Some(Interruption::NotSaved) {
                world.unsaved = true;
            } else if world.machine.inactive.is_some() {
                world.machine.inactive = Some(xml.to_owned());
            }
        }
        self.end(fault)
    }
}
