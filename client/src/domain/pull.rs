//! Backing up a running domain by dirty bitmaps: no layer is made, none is merged.
//!
//! ```text
//! bitmap   base <- A(active)       pull     base <- A(active), shown as it was      nothing is merged      base <- A(active)
//! ```
//!
//! QEMU notes in a bitmap what the guest writes. A *pull* shows the disks as they are at one moment, with what was written since the moment
//! before, and begins the next bitmap. The hypervisor's records of checkpoints are dropped as soon as it is under way, for they would
//! be in the way of whoever else manages the domain; it is told of the old one again when it is needed.
//!
//! Which bitmaps are believed is a matter of [`tracking`](super::tracking). All else is answered by reading all of the disks.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use underlay_store::snapshot::Consistency;

use crate::hypervisor::{Domain, HypervisorError, PullRequest, PulledDisk};

use super::plan::{self, SelectedDisk, Selection};
use super::record::{DomainRecord, Pull, Tracking};
use super::run::{Capture, DomainOutcome, LiveExport};
use super::tracking::{new_checkpoint, tracking, witness_of};
use super::{Approach, DomainError, Lifecycle, Quiesce, Wishes, guards};

/// libvirt removes the files of a pull a moment after it ended.
const LINGERING: Duration = Duration::from_secs(2);
/// Bytes of a path that a socket can have.
const LONGEST_SOCKET: usize = 107;

impl Lifecycle<'_> {
    /// Backs up a running domain by dirty bitmaps.
    pub(super) fn backup_by_bitmap(
        &self,
        domain: &Domain,
        record: &mut DomainRecord,
        selection: &Selection,
        wishes: &Wishes,
        quiesce: Quiesce,
        capture: &dyn Capture,
    ) -> Result<DomainOutcome, DomainError> {
        let name = &domain.name;
        let was_stuck = self.hands.is_stuck(name)?;
        let checkpoint = new_checkpoint();
        let mut request = self.pull_request(domain, selection, wishes, &checkpoint)?;
        let with_agent = self.asks_agent(domain, quiesce)?;
        // From here on libvirt may know checkpoints of ours.
        record.pull = Some(Pull {
            checkpoint: checkpoint.clone(),
            socket: request.socket.clone(),
            scratch: request.disks.iter().map(|disk| disk.scratch.clone()).collect(),
        });
        record.thaw_pending = with_agent;
        self.hands.store(record)?;
        let begun = self.tracked(name, record, selection, capture.repository()).and_then(|tracked| {
            self.begin_pull(name, record, &checkpoint, &mut request, with_agent.then_some(quiesce), tracked)
        });
        let read = begun.and_then(|(consistency, tracked)| {
            let exports = |disk: &SelectedDisk| {
                let since = tracked.as_ref().and_then(|known| known.disks.get(&disk.target));
                Some(LiveExport { socket: request.socket.clone(), since: since.map(|disk| disk.root) })
            };
            let files = self.files(selection)?;
            let outcome = self.read_while_it_runs(name, was_stuck, || {
                self.read_frozen(domain, record, selection, consistency, capture, &exports)
            })?;
            // A disk that was replaced meanwhile has another bitmap, or none.
            let files = files
                .into_iter()
                .filter(|(_, file)| self.hands.file(&file.path).is_ok_and(|now| now == *file));
            Ok((consistency, tracking(&checkpoint, &outcome, files.collect(), capture.repository()), outcome))
        });
        match read {
            Ok((consistency, tracking, outcome)) => {
                if let Some(old) = record.tracking.take() {
                    record.stale_checkpoints.insert(old.checkpoint);
                }
                record.tracking = Some(tracking);
                let ended = self.end_pull(name, record);
                let thawed = if record.thaw_pending { self.thaw(name, record) } else { Ok(()) };
                let unfinished = ended.and(thawed).and_then(|()| self.expect_not_stuck(name)).err();
                Ok(DomainOutcome { outcome, consistency, strategy: Some(Approach::Bitmap), unfinished })
            }
            Err(error) => {
                // What began with it is of no use: no snapshot holds what the disks held then.
                record.stale_checkpoints.insert(checkpoint);
                let error = match self.end_pull(name, record) {
                    Ok(()) => error,
                    Err(second) => {
                        DomainError::PullNotEnded { first: Box::new(error), second: Box::new(second) }
                    }
                };
                self.thaw_at_last(name, record);
                if let Err(error) = self.expect_not_stuck(name) {
                    self.notice(name, &error.to_string());
                }
                Err(error)
            }
        }
    }

    /// What is asked for, without what came before.
    pub(super) fn pull_request(
        &self,
        domain: &Domain,
        selection: &Selection,
        wishes: &Wishes,
        checkpoint: &str,
    ) -> Result<PullRequest, DomainError> {
        guards::guard(domain, &self.facts(&domain.name, selection)?, wishes)?;
        guards::guard_bitmaps(&domain.name, selection)?;
        let folder = |disk: &SelectedDisk| match &wishes.overlay_folder {
            Some(folder) => folder.clone(),
            None => disk.active.path.parent().unwrap_or(Path::new("/")).to_owned(),
        };
        if let (None, Some(disk)) =
            (&wishes.overlay_folder, selection.disks.iter().find(|disk| disk.on_device))
        {
            return Err(plan::refused(
                &domain.name,
                format!("disk {} is a block device, beside which no file can lie", disk.target),
                "name a folder for what the guest overwrites meanwhile with --overlay-dir",
            ));
        }
        let mut wanted = Vec::new();
        let mut disks = Vec::new();
        for disk in &selection.disks {
            let (target, folder) = (&disk.target, folder(disk));
            let size = self.hands.capacity(&domain.name, target)?;
            wanted.push((folder.clone(), self.hands.free_space(&folder)?, size));
            let scratch = folder.join(format!("{checkpoint}.{target}.scratch"));
            disks.push(PulledDisk { target: target.clone(), scratch });
        }
        guards::guard_space(&domain.name, &wanted)?;
        let socket = self.socket(domain, wishes, &folder(&selection.disks[0]), checkpoint)?;
        Ok(PullRequest { checkpoint: witness_of(checkpoint), since: None, socket, disks })
    }

    /// A place where QEMU can make a socket: the folder that the user names, the domain's own, or beside the first disk.
    fn socket(
        &self,
        domain: &Domain,
        wishes: &Wishes,
        beside: &Path,
        checkpoint: &str,
    ) -> Result<PathBuf, DomainError> {
        let own = match &wishes.overlay_folder {
            None => self.hands.run_folder(&domain.name)?,
            Some(_) => None,
        };
        let own = own.filter(|folder| self.hands.exists(folder).unwrap_or(false));
        let folder = own.or_else(|| wishes.overlay_folder.clone()).unwrap_or_else(|| beside.to_owned());
        let socket = folder.join(format!("{checkpoint}.sock"));
        match socket.as_os_str().len() {
            0..=LONGEST_SOCKET => Ok(socket),
            length => Err(plan::refused(
                &domain.name,
                format!(
                    "the path of a socket in {} would have {length} bytes, and may have {LONGEST_SOCKET}",
                    folder.display()
                ),
                "name a folder with a shorter path by --overlay-dir, in which QEMU may make files",
            )),
        }
    }

    /// Begins the bitmap that the next backup will read by, then the pull with its witness, and drops libvirt's records of checkpoints. What
    /// is exported as written is since `tracked`, if that is still believed. When this fails the pull may be under way.
    fn begin_pull(
        &self,
        name: &str,
        record: &mut DomainRecord,
        checkpoint: &str,
        request: &mut PullRequest,
        agent: Option<Quiesce>,
        tracked: Option<Tracking>,
    ) -> Result<(Consistency, Option<Tracking>), DomainError> {
        let frozen = match agent {
            Some(quiesce) => self.quiesce(name, record, quiesce)?,
            None => false,
        };
        // While the guest is frozen, for then the bitmaps do not change.
        let tracked = self.vouched(name, tracked);
        request.since = tracked.as_ref().map(|known| known.checkpoint.clone());
        let targets: Vec<&str> = request.disks.iter().map(|disk| disk.target.as_str()).collect();
        let begun = self
            .hands
            .begin_checkpoint(name, checkpoint, &targets)
            .and_then(|()| self.hands.begin_pull(name, request));
        // At once: libvirt refuses to undefine a domain with checkpoints, and others do that when they start it anew.
        let forgotten = self.forget_checkpoints(name, record);
        let thawed = if frozen { self.thaw(name, record) } else { Ok(()) };
        begun?;
        forgotten?;
        if let Err(error) = thawed {
            // It stays recorded, and is tried again when the backup is done.
            self.notice(name, &error.to_string());
        }
        Ok((if frozen { Consistency::Filesystem } else { Consistency::Crash }, tracked))
    }

    /// Freezes the guest's file systems, if they can be; whether they are.
    fn quiesce(&self, name: &str, record: &mut DomainRecord, quiesce: Quiesce) -> Result<bool, DomainError> {
        let Err(error) = self.hands.quiesce(name, self.patience.quiesce) else { return Ok(true) };
        self.go_on_unfrozen(name, record, &error, quiesce)?;
        Ok(false)
    }

    /// Ends a pull that was begun, wherever it is, and removes what it leaves behind. What is recorded otherwise stays.
    pub(super) fn end_pull(&self, name: &str, record: &mut DomainRecord) -> Result<(), DomainError> {
        // Whether or not that can be written down, the pull ends: its files grow for as long as it lasts.
        let stored = self.hands.store(record);
        let Some(pull) = record.pull.clone() else { return Ok(stored?) };
        let domain = self.domain_unless_gone(name)?;
        if let Some(domain) = &domain {
            if domain.is_running() && self.hands.pull_socket(name)?.as_deref() == Some(&pull.socket) {
                self.hands.end_pull(name)?;
            }
            self.forget_checkpoints(name, record)?;
        }
        stored?;
        for file in &pull.scratch {
            self.remove_left_over(name, file)?;
        }
        // Nobody listens there any more; it cannot be asked for locks.
        if self.hands.exists(&pull.socket)? {
            self.hands.remove(&pull.socket)?;
        }
        record.pull = None;
        self.hands.store(record)?;
        if domain.is_none() {
            return Ok(());
        }
        self.remove_stale_checkpoints(name, record)
    }

    /// The domain; `None` if it is gone. Whoever makes it anew undefines it first, and for a moment there is none.
    fn domain_unless_gone(&self, name: &str) -> Result<Option<Domain>, DomainError> {
        let started = Instant::now();
        loop {
            let may_come_back = started.elapsed() < self.patience.close.min(LINGERING);
            match self.hands.domain(name) {
                Err(HypervisorError::NoDomain { .. } | HypervisorError::Failed { .. }) if may_come_back => {
                    std::thread::sleep(self.patience.poll);
                }
                Err(HypervisorError::NoDomain { .. }) => return Ok(None),
                read => return Ok(Some(read?)),
            }
        }
    }

    /// Removes a file of a pull that libvirt has not removed itself, which takes it a moment. No definition ever names it.
    fn remove_left_over(&self, name: &str, path: &Path) -> Result<(), DomainError> {
        let started = Instant::now();
        while self.hands.exists(path)? && started.elapsed() < self.patience.close.min(LINGERING) {
            std::thread::sleep(self.patience.poll);
        }
        if !self.hands.exists(path)? {
            return Ok(());
        }
        self.expect_unused(name, path)?;
        self.hands.remove(path)
    }

    /// Brings an interrupted pull in order; what was done.
    pub(super) fn recover_pull(
        &self,
        name: &str,
        record: &mut DomainRecord,
    ) -> Result<Option<String>, DomainError> {
        let Some(pull) = record.pull.clone() else {
            // A run that was killed while it removed a bitmap has left libvirt's record of it.
            if record.tracking.is_some() || !record.stale_checkpoints.is_empty() {
                self.forget_checkpoints(name, record)?;
            }
            self.remove_stale_checkpoints(name, record)?;
            return Ok(None);
        };
        // Whether a snapshot holds what the disks held then is not known.
        if record.tracking.as_ref().is_none_or(|known| known.checkpoint != pull.checkpoint) {
            record.stale_checkpoints.insert(pull.checkpoint.clone());
        }
        self.end_pull(name, record)?;
        Ok(Some("an interrupted pull of its disks is ended".to_owned()))
    }
}
