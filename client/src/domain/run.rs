//! One backup of one domain, from the first look to the last merge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use underlay_store::id::{RepositoryId, Root};
use underlay_store::snapshot::Consistency;

use crate::backup::{CapturedDisk, Outcome};
use crate::hypervisor::{Backing, Domain};

use super::merge::Merging;
use super::plan::{self, Facts, SelectedDisk, Selection, Wishes};
use super::record::{Content, DomainRecord, FrozenDisk, Operation, Phase, Strategy};
use super::{Approach, DomainError, Lifecycle, Quiesce, Step, guards};

/// Disks that nobody writes to for the moment, to be read now.
#[derive(Debug)]
pub struct Frozen<'a> {
    /// Their domain, as it was when they were frozen.
    pub domain: &'a Domain,
    /// How consistent they are.
    pub consistency: Consistency,
    /// The disks, in the order of the definition.
    pub disks: Vec<FrozenChain>,
    /// Writable disks left out by request.
    pub excluded: &'a [String],
}

/// A disk to read.
#[derive(Clone, Debug)]
pub struct FrozenChain {
    /// Its target, such as `vda`.
    pub target: String,
    /// Its bus, such as `virtio`.
    pub bus: Option<String>,
    /// The topmost layer to read.
    pub layer: Backing,
    /// Files that libvirt vouches for as its layers.
    pub chain: BTreeSet<PathBuf>,
    /// Where the running domain shows it, if the files are not to be read.
    pub live: Option<LiveExport>,
}

/// A disk that a running domain shows as it was at one moment; its export is named by its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveExport {
    /// The socket.
    pub socket: PathBuf,
    /// What the disk held when the bitmap [`DIRTY_BITMAP`](crate::hypervisor::DIRTY_BITMAP) of that export was begun.
    pub since: Option<Root>,
}

/// Reads frozen disks into a repository.
pub trait Capture: Send + Sync {
    /// The repository.
    fn repository(&self) -> RepositoryId;

    /// Commits one snapshot of all these disks. Durable when it returns.
    ///
    /// # Errors
    /// Nothing is committed.
    fn capture(&self, frozen: &Frozen<'_>) -> Result<Outcome, DomainError>;
}

/// A domain that was backed up.
#[derive(Debug)]
pub struct DomainOutcome {
    /// The snapshot.
    pub outcome: Outcome,
    /// How consistent it is.
    pub consistency: Consistency,
    /// How; `None` if it was stopped.
    pub strategy: Option<Approach>,
    /// What is left to do: layers that could not be brought together, which the next recovery tries again, or a guest that is not
    /// well. The snapshot is safe.
    pub unfinished: Option<DomainError>,
}

impl Lifecycle<'_> {
    /// Backs up one domain. Blocks.
    ///
    /// # Errors
    /// Nothing is committed, and the disks are given back, or the error says that they are not.
    pub fn backup(
        &self,
        name: &str,
        wishes: &Wishes,
        quiesce: Quiesce,
        capture: &dyn Capture,
    ) -> Result<DomainOutcome, DomainError> {
        let domain = self.hands.domain(name)?;
        let _lock = self.lock(&domain)?;
        let mut record = self.record(&domain)?;
        let actions = self.recover_record(name, &mut record)?;
        self.tell(name, &actions);
        let domain = self.hands.domain(name)?;
        let selection = self.select(&domain, wishes)?;
        plan::changes(&record, &selection).iter().for_each(|change| self.notice(name, change));
        if !domain.is_running() {
            return self.backup_stopped(&domain, &record, &selection, capture);
        }
        if wishes.strategy == Some(Approach::Bitmap) {
            return self.backup_by_bitmap(&domain, &mut record, &selection, wishes, quiesce, capture);
        }
        let operation = self.operation(&domain, &selection, &record, wishes)?;
        // What happens to bitmaps while layers are made and merged is for libvirt to know.
        self.stop_tracking(name, &mut record)?;
        let strategy = operation.strategy.into();
        let read = self.freeze(&domain, &mut record, operation, quiesce).and_then(|consistency| {
            Ok((
                consistency,
                self.read_frozen(&domain, &record, &selection, consistency, capture, &|_| None)?,
            ))
        });
        let (consistency, outcome) = match read {
            Ok(read) => read,
            Err(error) => {
                let error = self.unwind(name, &mut record, error);
                self.thaw_at_last(name, &mut record);
                if let Err(error) = self.expect_not_stuck(name) {
                    self.notice(name, &error.to_string());
                }
                return Err(error);
            }
        };
        let together = self.bring_together(name, &mut record, &outcome, capture.repository(), wishes);
        let thawed = if record.thaw_pending { self.thaw(name, &mut record) } else { Ok(()) };
        let unfinished = together.and(thawed).and_then(|()| self.expect_not_stuck(name)).err();
        Ok(DomainOutcome { outcome, consistency, strategy: Some(strategy), unfinished })
    }

    /// A guest whose overlay found no room while it was frozen does not run, whatever became of its backup.
    pub(super) fn expect_not_stuck(&self, name: &str) -> Result<(), DomainError> {
        match self.hands.is_stuck(name) {
            Ok(true) => Err(DomainError::Unsound {
                domain: name.to_owned(),
                problem: "it is paused, for one of its disks could not be written".into(),
                hint: format!(
                    "make room where its disks and overlays lie, then let it go on: `virsh resume {name}`"
                ),
            }),
            // One that has stopped or is gone meanwhile is not paused.
            Ok(false) | Err(_) => Ok(()),
        }
    }

    /// A guest that may still be frozen when its backup has failed is told of, for the error says something else.
    pub(super) fn thaw_at_last(&self, name: &str, record: &mut DomainRecord) {
        if record.thaw_pending
            && let Err(error) = self.thaw(name, record)
        {
            self.notice(name, &error.to_string());
        }
    }

    pub(super) fn select(&self, domain: &Domain, wishes: &Wishes) -> Result<Selection, DomainError> {
        let selection = plan::select(&domain.name, domain.current()?, &wishes.exclude)?;
        guards::guard_definitions(domain, &selection)?;
        for target in &selection.skipped {
            self.notice(&domain.name, &format!("disk {target} is read-only and is not backed up"));
        }
        Ok(selection)
    }

    /// The operation that freezes a running domain's disks, if nothing stands in its way.
    pub(super) fn operation(
        &self,
        domain: &Domain,
        selection: &Selection,
        record: &DomainRecord,
        wishes: &Wishes,
    ) -> Result<Operation, DomainError> {
        let facts = self.facts(&domain.name, selection)?;
        self.planned(domain, selection, record, wishes, &facts)
    }

    /// What else there is about a running domain that could stand in the way.
    pub(super) fn facts(&self, name: &str, selection: &Selection) -> Result<Facts, DomainError> {
        let mut facts = Facts {
            snapshots: self.hands.snapshots(name)?,
            checkpoints: self.hands.checkpoints(name)?,
            domain_job: self.hands.domain_job(name)?,
            block_jobs: BTreeMap::new(),
        };
        for disk in &selection.disks {
            if let Some(job) = self.hands.block_job(name, &disk.target)? {
                facts.block_jobs.insert(disk.target.clone(), job);
            }
        }
        Ok(facts)
    }

    pub(super) fn planned(
        &self,
        domain: &Domain,
        selection: &Selection,
        record: &DomainRecord,
        wishes: &Wishes,
        facts: &Facts,
    ) -> Result<Operation, DomainError> {
        let strategy = match guards::guard(domain, facts, wishes)? {
            Approach::Pivot => Strategy::Pivot,
            Approach::Rotate | Approach::Bitmap => Strategy::Rotate,
        };
        let operation = plan::operation(domain, selection, record, strategy, wishes, &plan::nonce())?;
        let mut wanted = Vec::new();
        for disk in &operation.disks {
            let folder = disk.overlay.parent().unwrap_or(Path::new("/"));
            let size = self.hands.capacity(&domain.name, &disk.target)?;
            wanted.push((folder.to_owned(), self.hands.free_space(folder)?, size));
        }
        guards::guard_space(&domain.name, &wanted)?;
        Ok(operation)
    }

    fn backup_stopped(
        &self,
        domain: &Domain,
        record: &DomainRecord,
        selection: &Selection,
        capture: &dyn Capture,
    ) -> Result<DomainOutcome, DomainError> {
        let consistency = match self.hands.is_saved(&domain.name)? {
            true => {
                self.notice(
                    &domain.name,
                    "its memory is saved, and with it what its guest had not written: this backup is crash-consistent",
                );
                Consistency::Crash
            }
            false => Consistency::Offline,
        };
        let outcome = self.read_frozen(domain, record, selection, consistency, capture, &|_| None)?;
        Ok(DomainOutcome { outcome, consistency, strategy: None, unfinished: None })
    }

    /// Reads what nobody writes to now and commits it.
    pub(super) fn read_frozen(
        &self,
        domain: &Domain,
        record: &DomainRecord,
        selection: &Selection,
        consistency: Consistency,
        capture: &dyn Capture,
        live: &dyn Fn(&SelectedDisk) -> Option<LiveExport>,
    ) -> Result<Outcome, DomainError> {
        let mut frozen = frozen(domain, record, selection, consistency);
        for (disk, selected) in frozen.disks.iter_mut().zip(&selection.disks) {
            disk.live = live(selected);
        }
        self.hands.step(Step::Capture, || capture.capture(&frozen))
    }

    /// Merges layers, now that their content is in a snapshot.
    fn bring_together(
        &self,
        name: &str,
        record: &mut DomainRecord,
        outcome: &Outcome,
        repository: RepositoryId,
        wishes: &Wishes,
    ) -> Result<(), DomainError> {
        let Some(mut operation) = record.operation.clone() else { return Ok(()) };
        operation.phase = Phase::Merging;
        for disk in &mut operation.disks {
            let read = outcome.disks.iter().find(|read| read.name == disk.target);
            disk.content = read.and_then(|read| content(disk, read, repository));
        }
        record.operation = Some(operation.clone());
        self.hands.store(record)?;
        for disk in &operation.disks {
            let merging = match operation.strategy {
                Strategy::Pivot => self.give_back(name, disk)?,
                Strategy::Rotate => self.bring_down(name, disk)?,
            };
            match (merging, operation.strategy) {
                (Merging::Done, Strategy::Rotate) => self.note_rotated(name, record, disk)?,
                (Merging::Done, Strategy::Pivot) => self.note_layers(name, record, disk)?,
                // What it was found to be is a matter for recovery, which looks again.
                (Merging::Stopped | Merging::Changed(_), _) => {
                    let actions = self.recover_disks(name, record)?;
                    self.tell(name, &actions);
                    return Ok(());
                }
            }
        }
        record.operation = None;
        let excluded = |target: &String| wishes.exclude.contains(target);
        record.disks.retain(|target, _| {
            excluded(target) || operation.disks.iter().any(|disk| disk.target == *target)
        });
        self.hands.store(record)?;
        Ok(())
    }

    /// After a failure: gives the disks back, and forgets the operation. The error to report.
    pub(super) fn unwind(&self, name: &str, record: &mut DomainRecord, first: DomainError) -> DomainError {
        match self.recover_disks(name, record) {
            Ok(actions) => self.tell(name, &actions),
            Err(second) => {
                return DomainError::NotGivenBack { first: Box::new(first), second: Box::new(second) };
            }
        }
        first
    }

    fn tell(&self, name: &str, actions: &[String]) {
        actions.iter().for_each(|action| self.notice(name, action));
    }
}

fn frozen<'a>(
    domain: &'a Domain,
    record: &DomainRecord,
    selection: &'a Selection,
    consistency: Consistency,
) -> Frozen<'a> {
    let disks = selection.disks.iter().chain(&selection.still).map(|disk| FrozenChain {
        target: disk.target.clone(),
        bus: disk.bus.clone(),
        layer: disk.active.clone(),
        chain: chain_of(disk, record),
        live: None,
    });
    Frozen { domain, consistency, disks: disks.collect(), excluded: &selection.excluded }
}

/// Files that libvirt names, or named when the domain ran last, as layers of a disk.
fn chain_of(disk: &SelectedDisk, record: &DomainRecord) -> BTreeSet<PathBuf> {
    let known = record.disks.get(&disk.target).map(|known| known.layers.clone()).unwrap_or_default();
    disk.below.iter().map(|layer| layer.path.clone()).chain(known).collect()
}

/// What was read of the layer that will be merged, and below the one that takes it.
fn content(disk: &FrozenDisk, read: &CapturedDisk, repository: RepositoryId) -> Option<Content> {
    let merge = disk.merge.as_ref()?;
    let root = read.layers.last()?.root;
    let into = read.layers.len().checked_sub(1 + merge.overlays.len())?;
    let below = into.checked_sub(1).map(|below| read.layers[below].root);
    let layers = read.layers[into..].iter().rev().map(|layer| layer.identity.clone()).collect();
    Some(Content { repository, layers, root, below })
}
