//! Bitmaps that a crash has made unsound. None of ours stays in a disk for long: while a disk has one, `qemu-img resize` refuses it, and
//! so does whatever resizes disks by it.

use crate::hypervisor::{Domain, HypervisorError};

use super::record::DomainRecord;
use super::tracking::{MARK, witness_of};
use super::{DomainError, Lifecycle};

impl Lifecycle<'_> {
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
        let mut pair = [known.checkpoint.clone(), witness_of(&known.checkpoint)].into_iter();
        let told = pair.try_for_each(|bitmap| self.hands.know_checkpoint(name, &bitmap, &targets));
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
