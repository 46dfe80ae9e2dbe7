//! Which dirty bitmaps are believed, and what becomes of those that are not.
//!
//! Every backup begins two bitmaps: first the one that the next backup reads by, then, together with the pull, its *witness*. Bits never leave a
//! bitmap, so the older of two has noted all that the younger has. Whoever removes the older one and makes it again under its name makes it the
//! younger: then its witness has noted more, or the same, and in that case nothing is missing. A witness that is made again harms nobody.
//!
//! A bitmap is believed only if the files are the same, libvirt finds both bitmaps in all of them and sound, the witness does not contradict, and
//! a snapshot still holds what the disks held when they were begun.

use std::collections::{BTreeMap, BTreeSet};

use underlay_store::id::RepositoryId;

use crate::backup::Outcome;
use crate::hypervisor::{HypervisorError, Written};

use super::plan::{self, SelectedDisk, Selection};
use super::record::{DomainRecord, FileIdentity, TrackedDisk, Tracking};
use super::{DomainError, Lifecycle};

/// Every checkpoint's name begins with this.
pub(super) const MARK: &str = "underlay-";
/// A witness is called like the bitmap that it vouches for, and this.
const WITNESS: &str = "-witness";
/// How often removing a bitmap is tried.
const ATTEMPTS: usize = 2;
/// How often a bitmap and its witness are compared while the guest writes.
const LOOKS: usize = 3;

impl Lifecycle<'_> {
    /// The bitmaps to read by, if they are to be believed. libvirt knows their checkpoint then.
    pub(super) fn tracked(
        &self,
        name: &str,
        record: &DomainRecord,
        selection: &Selection,
        repository: RepositoryId,
    ) -> Result<Option<Tracking>, DomainError> {
        let Some(known) = &record.tracking else { return Ok(None) };
        let problem = if known.repository != repository {
            Some("the bitmaps belong to backups to another repository".to_owned())
        } else {
            self.changed_file(known, selection)?
        };
        let problem = problem.or_else(|| {
            let targets: Vec<&str> = selection.disks.iter().map(|disk| disk.target.as_str()).collect();
            [known.checkpoint.clone(), witness_of(&known.checkpoint)].iter().find_map(|checkpoint| {
                let told = self.hands.know_checkpoint(name, checkpoint, &targets);
                told.err().map(|error| format!("the bitmap {checkpoint} cannot be used ({error})"))
            })
        });
        if let Some(problem) = problem {
            self.notice(name, &format!("{problem}: all of its disks is read"));
            return Ok(None);
        }
        Ok(Some(known.clone()))
    }

    /// The first disk that is not what it was when its bitmap was begun.
    fn changed_file(&self, known: &Tracking, selection: &Selection) -> Result<Option<String>, DomainError> {
        for disk in &selection.disks {
            let target = &disk.target;
            match known.disks.get(target) {
                None => return Ok(Some(format!("disk {target} has no bitmap"))),
                Some(tracked) if self.hands.file(&disk.active.path)? != tracked.file => {
                    return Ok(Some(format!("disk {target} is another file than before")));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// The files of the disks, by target.
    pub(super) fn files(&self, selection: &Selection) -> Result<BTreeMap<String, FileIdentity>, DomainError> {
        let file = |disk: &SelectedDisk| Ok((disk.target.clone(), self.hands.file(&disk.active.path)?));
        selection.disks.iter().map(file).collect()
    }

    /// `tracked`, unless its witness contradicts. Both are known to libvirt.
    pub(super) fn vouched(&self, name: &str, tracked: Option<Tracking>) -> Option<Tracking> {
        let known = tracked?;
        let checkpoint = &known.checkpoint;
        let problem = match self.has_noted_all(name, &known) {
            Ok(true) => return Some(known),
            Ok(false) => format!("the bitmap {checkpoint} was made again under its name"),
            Err(error) => format!("the bitmap {checkpoint} cannot be compared with its witness ({error})"),
        };
        self.notice(name, &format!("{problem}: all of its disks is read"));
        None
    }

    /// Whether a bitmap has noted as much as its witness.
    ///
    /// They are asked one after the other. If the guest, which is not frozen, writes so much meanwhile that it cannot be told, the bitmap is
    /// believed: what it may lack is no more than that.
    fn has_noted_all(&self, name: &str, known: &Tracking) -> Result<bool, HypervisorError> {
        for _ in 0..LOOKS {
            let before = self.hands.written_since(name, &known.checkpoint)?;
            let witness = self.hands.written_since(name, &witness_of(&known.checkpoint))?;
            if covers(known, &before, &witness) {
                return Ok(true);
            }
            if !covers(known, &self.hands.written_since(name, &known.checkpoint)?, &witness) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Drops libvirt's records of all checkpoints of ours; their bitmaps stay.
    pub(super) fn forget_checkpoints(&self, name: &str, record: &DomainRecord) -> Result<(), DomainError> {
        for checkpoint in self.hands.checkpoints(name)? {
            if is_ours(record, &checkpoint) {
                self.hands.forget_checkpoint(name, &checkpoint)?;
            }
        }
        Ok(())
    }

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
            // All disks at once; then each by itself, for some may not have it.
            for bitmap in [checkpoint.clone(), witness_of(checkpoint)] {
                if self.hands.remove_checkpoint(name, &bitmap, &targets).is_ok() {
                    continue;
                }
                for target in &targets {
                    if !self.remove_bitmap(name, &bitmap, target)? {
                        left.insert(checkpoint.clone());
                    }
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
}

/// A name for a new checkpoint.
pub(super) fn new_checkpoint() -> String {
    format!("{MARK}{}", plan::nonce())
}

/// The name of the witness of a bitmap.
pub(super) fn witness_of(checkpoint: &str) -> String {
    format!("{checkpoint}{WITNESS}")
}

/// Whether a bitmap has noted as much as its witness in every disk.
fn covers(known: &Tracking, noted: &Written, witness: &Written) -> bool {
    let mut disks = known.disks.keys().map(|target| (noted.get(target), witness.get(target)));
    disks.all(|(noted, witness)| witness.is_some() && noted >= witness)
}

/// Whether a checkpoint is one that this record knows of.
fn is_ours(record: &DomainRecord, checkpoint: &str) -> bool {
    let current = record.pull.as_ref().map(|pull| &pull.checkpoint);
    let tracked = record.tracking.as_ref().map(|known| &known.checkpoint);
    let base = checkpoint.strip_suffix(WITNESS).unwrap_or(checkpoint);
    let known = current.into_iter().chain(tracked).chain(&record.stale_checkpoints);
    checkpoint.starts_with(MARK) && known.into_iter().any(|known| known == base)
}

/// What is known once a snapshot holds what was read.
pub(super) fn tracking(
    checkpoint: &str,
    outcome: &Outcome,
    files: BTreeMap<String, FileIdentity>,
    repository: RepositoryId,
) -> Tracking {
    let disks = files.into_iter().filter_map(|(target, file)| {
        let read = outcome.disks.iter().find(|read| read.name == target)?;
        Some((target, TrackedDisk { file, root: read.root }))
    });
    Tracking { checkpoint: checkpoint.to_owned(), repository, disks: disks.collect() }
}
