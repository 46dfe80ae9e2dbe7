//! Bitmaps that are of no use any more. None of ours stays in a disk for long: after a crash of QEMU they are unsound, and while a disk
//! has an unsound one, `qemu-img resize` refuses it, and so does whatever resizes disks by it.

use std::collections::BTreeSet;

use crate::hypervisor::{Domain, HypervisorError};

use super::pull::MARK;
use super::record::DomainRecord;
use super::{DomainError, Lifecycle};

/// How often removing a bitmap is tried.
const ATTEMPTS: usize = 2;

impl Lifecycle<'_> {
    /// Removes bitmaps that are of no use any more. Only a running domain's can be; the others wait.
    pub(super) fn remove_stale_checkpoints(
        &self,
        name: &str,
        record: &mut DomainRecord,
    ) -> Result<(), DomainError> {
        if record.stale_checkpoints.is_empty() {
            return Ok(());
        }
        let domain = self.hands.domain(name)?;
        let Some(live) = &domain.live else { return Ok(()) };
        let disks = live.disks.iter();
        let targets: Vec<&str> =
            disks.filter(|disk| !disk.read_only).map(|disk| disk.target.as_str()).collect();
        let mut left = BTreeSet::new();
        for checkpoint in &record.stale_checkpoints {
            // Each disk by itself: some may not have it.
            for target in &targets {
                if !self.remove_bitmap(name, checkpoint, target)? {
                    left.insert(checkpoint.clone());
                }
            }
        }
        if !left.is_empty() {
            self.forget_checkpoints(name, record)?;
        }
        record.stale_checkpoints = left;
        self.hands.store(record)?;
        Ok(())
    }

    /// Removes a bitmap from one disk; whether it is surely gone. One that cannot be removed and is not sound either may never have been
    /// there, but only if that is found twice, and the domain runs: a failure proves nothing.
    fn remove_bitmap(&self, name: &str, checkpoint: &str, target: &str) -> Result<bool, DomainError> {
        for _ in 0..ATTEMPTS {
            let Err(error) = self.hands.remove_checkpoint(name, checkpoint, &[target]) else {
                return Ok(true);
            };
            if self.hands.know_checkpoint(name, checkpoint, &[target]).is_ok() {
                let notice = format!("{error}: the bitmap {checkpoint} of disk {target} stays for now");
                self.notice(name, &notice);
                return Ok(false);
            }
        }
        Ok(self.hands.domain(name)?.is_running())
    }

    /// Stops believing the bitmaps, because something else is about to be done to the disks, and removes them.
    pub(super) fn stop_tracking(&self, name: &str, record: &mut DomainRecord) -> Result<(), DomainError> {
        let Some(known) = record.tracking.take() else { return Ok(()) };
        record.stale_checkpoints.insert(known.checkpoint);
        self.hands.store(record)?;
        self.remove_stale_checkpoints(name, record)
    }

    /// Removes bitmaps that a crash has made unsound; what was done.
    pub(super) fn remove_unsound_bitmaps(
        &self,
        name: &str,
        record: &mut DomainRecord,
    ) -> Result<Option<String>, DomainError> {
        if record.tracking.is_none() && record.stale_checkpoints.is_empty() {
            return Ok(None);
        }
        let domain = self.hands.domain(name)?;
        let removed = match domain.is_running() {
            true => self.remove_unsound_of_running(&domain, record)?,
            false => self.remove_unsound_of_stopped(&domain)?,
        };
        Ok(removed.then(|| {
            "bitmaps that are not sound any more were removed; the next backup reads all of its disks"
                .to_owned()
        }))
    }

    fn remove_unsound_of_running(
        &self,
        domain: &Domain,
        record: &mut DomainRecord,
    ) -> Result<bool, DomainError> {
        let name = &domain.name;
        let Some(known) = record.tracking.clone() else {
            self.remove_stale_checkpoints(name, record)?;
            return Ok(false);
        };
        let disks = domain.live.iter().flat_map(|live| &live.disks).map(|disk| disk.target.as_str());
        let targets: Vec<&str> = disks.filter(|target| known.disks.contains_key(*target)).collect();
        let told = self.hands.know_checkpoint(name, &known.checkpoint, &targets);
        self.forget_checkpoints(name, record)?;
        match told {
            Ok(()) => Ok(false),
            Err(HypervisorError::Failed { .. }) => self.stop_tracking(name, record).map(|()| true),
            Err(error) => Err(error.into()),
        }
    }

    /// Those of other hosts, too, whose disk came here.
    fn remove_unsound_of_stopped(&self, domain: &Domain) -> Result<bool, DomainError> {
        let mut removed = false;
        let disks = domain.inactive.iter().flat_map(|definition| &definition.disks);
        for disk in disks.filter(|disk| !disk.read_only && disk.format.as_deref() == Some("qcow2")) {
            let Some(path) = disk.source.path() else { continue };
            if !self.hands.exists(path)? {
                continue;
            }
            for bitmap in self.hands.unsound_bitmaps(path)? {
                if bitmap.starts_with(MARK) {
                    self.hands.remove_bitmap(path, &bitmap)?;
                    removed = true;
                }
            }
        }
        Ok(removed)
    }
}
