//! From whatever an interrupted backup left to a sound state.
//!
//! | the record says | the running domain | what is done |
//! |---|---|---|
//! | freezing or frozen | writes to the overlay | the disk is given back to the frozen layer; the next backup freezes anew |
//! | freezing or frozen | writes to the frozen layer | the overlay, if there is one, is set aside |
//! | merging, rotate | writes to the overlay | the merge is done again, or found done |
//! | merging, pivot | writes to the overlay | the disk is given back |
//! | anything | has other layers by now | they stay; what underlay made is remembered as such |
//!
//! A stopped domain cannot be asked to merge. With rotate its chain is whole and stays as it is: the next backup of the running
//! domain merges all overlays at once. With pivot the overlay is merged with `qemu-img`, for whoever manages the domain starts it
//! from its original file.

use crate::hypervisor::{Domain, HypervisorError};
use crate::state::StateError;

use super::merge::{Merging, chain};
use super::record::{DomainRecord, FrozenDisk, Operation, Phase, Standing, Strategy};
use super::{DomainError, Lifecycle};

/// A domain can stop or start while it is brought in order; then it is looked at again.
const LOOKS: usize = 5;

/// What became of one domain.
#[derive(Debug)]
pub struct Recovered {
    /// Its name.
    pub domain: String,
    /// What was done, a sentence each; empty if nothing had to be.
    pub actions: Result<Vec<String>, DomainError>,
}

impl Lifecycle<'_> {
    /// Brings interrupted backups to a sound state: those of one domain, or of all. A domain that cannot be brought in order
    /// keeps nobody from the others.
    ///
    /// # Errors
    /// Only what keeps all of them from being looked at.
    pub fn recover(&self, only: Option<&str>) -> Result<Vec<Recovered>, DomainError> {
        let mut done = Vec::new();
        let uri = self.hands.uri()?;
        for record in self.hands.records()? {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    done.extend(self.recover_unreadable(error, only)?);
                    continue;
                }
            };
            let name = match self.hands.domain(&record.name) {
                Ok(domain) if domain.uuid == record.uuid => Some(domain.name),
                Ok(_) | Err(HypervisorError::NoDomain { .. })
                    if record.operation.is_none() && record.pull.is_none() =>
                {
                    continue;
                }
                Ok(_) | Err(HypervisorError::NoDomain { .. }) => self.hands.name_of(&record.uuid)?,
                Err(error) => return Err(error.into()),
            };
            let domain = name.as_ref().unwrap_or(&record.name).clone();
            if only.is_none_or(|only| only == domain) {
                let actions = match &name {
                    Some(name) => self.recover_domain(name),
                    None if record.hypervisor != uri => Err(elsewhere(&domain, &record.hypervisor)),
                    None => self.recover_gone(&record.uuid, &domain),
                };
                done.push(Recovered { domain, actions });
            }
        }
        if let (Some(only), true) = (only, done.is_empty()) {
            let domain = self.hands.domain(only)?.name;
            done.push(Recovered { domain, actions: Ok(Vec::new()) });
        }
        Ok(done)
    }

    /// A domain whose record cannot be read: whether anything was begun is not known.
    fn recover_unreadable(
        &self,
        error: StateError,
        only: Option<&str>,
    ) -> Result<Option<Recovered>, DomainError> {
        let uuid = error.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let domain = self.hands.name_of(&uuid)?.unwrap_or(uuid);
        let is_meant = only.is_none_or(|only| only == domain);
        Ok(is_meant.then(|| Recovered { domain, actions: Err(error.into()) }))
    }

    /// A domain that is not defined any more: its files are left alone, and named for as long as they are there.
    fn recover_gone(&self, uuid: &str, name: &str) -> Result<Vec<String>, DomainError> {
        let _lock = self.hands.lock(uuid)?.ok_or_else(|| DomainError::Busy { domain: name.to_owned() })?;
        let Some(mut record) = self.hands.load(uuid)? else { return Ok(Vec::new()) };
        if record.operation.is_none() && record.pull.is_none() {
            return Ok(Vec::new());
        }
        let mut left = Vec::new();
        for disk in record.operation.iter().flat_map(|operation| &operation.disks) {
            let merged = disk.merge.iter().flat_map(|merge| &merge.overlays);
            for overlay in std::iter::once(&disk.overlay).chain(merged) {
                if self.hands.exists(overlay)? {
                    left.push(overlay.display().to_string());
                }
            }
        }
        if !left.is_empty() {
            return Err(gone(name, &left));
        }
        record.operation = None;
        // The guest never wrote to what a pull leaves behind.
        if let Some(pull) = record.pull.take() {
            for file in pull.scratch {
                if self.hands.exists(&file)? && !self.hands.is_open(&file)? {
                    self.hands.remove(&file)?;
                }
            }
            if self.hands.exists(&pull.socket)? {
                self.hands.remove(&pull.socket)?;
            }
        }
        record.thaw_pending = false;
        self.hands.store(&record)?;
        Ok(vec!["it is not defined any more, and nothing is left of its interrupted backup".to_owned()])
    }

    fn recover_domain(&self, name: &str) -> Result<Vec<String>, DomainError> {
        let domain = self.hands.domain(name)?;
        let _lock = self.lock(&domain)?;
        let mut record = self.record(&domain)?;
        let interrupted = record.operation.is_some() || record.pull.is_some();
        let mut actions = self.recover_record(&domain.name, &mut record)?;
        if interrupted && actions.is_empty() {
            actions.push("an interrupted backup had changed nothing yet".to_owned());
        }
        actions.extend(self.remove_unsound_bitmaps(&domain.name, &mut record)?);
        Ok(actions)
    }

    /// Brings one domain to a sound state; what was done. The caller holds the lock.
    pub(super) fn recover_record(
        &self,
        name: &str,
        record: &mut DomainRecord,
    ) -> Result<Vec<String>, DomainError> {
        let mut actions = Vec::new();
        let mut thawed = Ok(());
        if record.thaw_pending {
            thawed = self.thaw(name, record);
            if thawed.is_ok() {
                actions.push("the guest's file systems were thawed".to_owned());
            }
        }
        actions.extend(self.recover_pull(name, record)?);
        // A guest that cannot be thawed now is no reason to leave its disks as they are.
        actions.extend(self.recover_disks(name, record)?);
        thawed.map(|()| actions)
    }

    /// Brings the disks of an unfinished operation to a sound state and forgets it; what was done.
    pub(super) fn recover_disks(
        &self,
        name: &str,
        record: &mut DomainRecord,
    ) -> Result<Vec<String>, DomainError> {
        let mut actions = Vec::new();
        let Some(operation) = record.operation.clone() else { return Ok(actions) };
        for disk in &operation.disks {
            actions.extend(self.recover_disk(name, record, &operation, disk)?);
        }
        record.operation = None;
        self.hands.store(record)?;
        Ok(actions)
    }

    fn recover_disk(
        &self,
        name: &str,
        record: &mut DomainRecord,
        operation: &Operation,
        disk: &FrozenDisk,
    ) -> Result<Option<String>, DomainError> {
        for _ in 0..LOOKS {
            let domain = self.hands.domain(name)?;
            let target = &disk.target;
            if !domain.is_running() {
                if self.recover_stopped(domain, record, operation, disk)? {
                    continue;
                }
                return Ok(Some(format!(
                    "disk {target}: found its domain stopped, and its layers are whole"
                )));
            }
            let merging = match (operation.phase, operation.strategy) {
                (Phase::Merging, Strategy::Rotate) => self.bring_down(name, disk)?,
                _ => self.give_back(name, disk)?,
            };
            match merging {
                Merging::Stopped => continue,
                Merging::Done
                    if operation.phase == Phase::Merging && operation.strategy == Strategy::Rotate =>
                {
                    self.note_rotated(name, record, disk)?;
                    let merged = disk.merge.is_some();
                    return Ok(merged.then(|| format!("disk {target}: its overlay is merged one layer down")));
                }
                Merging::Done => {
                    let path = disk.frozen.path.display();
                    return Ok(Some(format!("disk {target}: given back to {path}")));
                }
                Merging::Changed(Standing::Original) => {
                    let domain = self.correct_inactive(self.hands.domain(name)?, disk)?;
                    // While that was written, it may have been started from the overlay.
                    if disk.is_given_back(&domain) {
                        return self.set_aside(&domain, disk);
                    }
                }
                Merging::Changed(standing) => return self.adopt(name, record, disk, standing),
            }
        }
        Err(DomainError::Unsound {
            domain: name.to_owned(),
            problem: "it starts and stops all the time".into(),
            hint: "run `underlay recover` when it has come to rest".into(),
        })
    }

    /// Sets the overlay of a disk aside that does not use it.
    fn set_aside(&self, domain: &Domain, disk: &FrozenDisk) -> Result<Option<String>, DomainError> {
        let stale = self.quarantine(domain, &disk.overlay)?;
        Ok(stale.map(|stale| {
            format!(
                "disk {}: does not use {} any more; what is in it is out of date, and was set aside as {}",
                disk.target,
                disk.overlay.display(),
                stale.display()
            )
        }))
    }

    /// Accepts the layers that somebody else has made of a disk.
    fn adopt(
        &self,
        name: &str,
        record: &mut DomainRecord,
        disk: &FrozenDisk,
        standing: Standing,
    ) -> Result<Option<String>, DomainError> {
        let target = &disk.target;
        if standing == Standing::Elsewhere {
            // Where it went, and who uses the overlay now, is not for us to know.
            let left = self.hands.exists(&disk.overlay)?;
            return Ok(left.then(|| {
                format!(
                    "disk {target}: is not among the domain's disks any more, or has other files; {} was left alone",
                    disk.overlay.display()
                )
            }));
        }
        self.note_rotated(name, record, disk)?;
        Ok(Some(format!("disk {target}: its layers were changed by somebody else; they stay as they are")))
    }

    /// A domain that is off. Whether it must be looked at again.
    fn recover_stopped(
        &self,
        domain: Domain,
        record: &mut DomainRecord,
        operation: &Operation,
        disk: &FrozenDisk,
    ) -> Result<bool, DomainError> {
        let name = domain.name.clone();
        let Some(inactive) = &domain.inactive else { return Ok(true) };
        let now = inactive.disk(&disk.target);
        match (disk.writes_to_overlay(now), operation.strategy) {
            (true, Strategy::Pivot) => {
                self.give_back_stopped(domain, disk)?;
                let domain = self.hands.domain(&name)?;
                // It may have been started meanwhile, from the overlay.
                let running = domain.is_running();
                if !running {
                    self.quarantine(&domain, &disk.overlay)?;
                }
                return Ok(running);
            }
            (true, Strategy::Rotate) => {
                note_overlay(record, disk);
                // What libvirt has merged it does not name any more.
                let merged = operation.phase == Phase::Merging && now.is_some_and(|now| disk.is_merged(now));
                if let (Some(merge), true) = (&disk.merge, merged) {
                    self.remove_unused_all(&domain, &merge.overlays)?;
                }
            }
            (false, _) => {
                let writes_to_frozen = now.and_then(|now| now.source.path()) == Some(&disk.frozen.path);
                if !writes_to_frozen {
                    note_overlay(record, disk);
                } else if let Some(stale) = self.quarantine(&domain, &disk.overlay)? {
                    self.notice(
                        &name,
                        &format!(
                            "disk {} starts from {}; if the guest wrote anything after it was frozen, that is only in {}",
                            disk.target,
                            disk.frozen.path.display(),
                            stale.display()
                        ),
                    );
                }
            }
        }
        Ok(false)
    }

    /// Records how a disk stands now that it writes to the overlay for good.
    pub(super) fn note_rotated(
        &self,
        name: &str,
        record: &mut DomainRecord,
        disk: &FrozenDisk,
    ) -> Result<(), DomainError> {
        note_overlay(record, disk);
        self.note_layers(name, record, disk)
    }

    /// Records which layers a running domain's disk has.
    pub(super) fn note_layers(
        &self,
        name: &str,
        record: &mut DomainRecord,
        disk: &FrozenDisk,
    ) -> Result<(), DomainError> {
        let domain = self.hands.domain(name)?;
        let known = record.disk_mut(&disk.target);
        if let Some(now) = domain.live.as_ref().and_then(|live| live.disk(&disk.target)) {
            let layers = chain(now);
            // One that only the inactive definition names, because it was not saved, comes back with the next start.
            known.overlays.retain(|overlay| layers.contains(overlay) || domain.names_file(overlay));
            known.layers = layers;
        }
        Ok(())
    }
}

fn elsewhere(name: &str, hypervisor: &str) -> DomainError {
    DomainError::Unsound {
        domain: name.to_owned(),
        problem: format!("a backup of it was interrupted on another hypervisor, {hypervisor}"),
        hint: format!("`underlay recover --connect {hypervisor}` brings it in order"),
    }
}

fn note_overlay(record: &mut DomainRecord, disk: &FrozenDisk) {
    let known = record.disk_mut(&disk.target);
    known.overlays.insert(disk.overlay.clone());
    match &disk.merge {
        Some(merge) => {
            known.overlays.extend(merge.overlays.iter().cloned());
            known.anchor = Some(merge.into.clone());
        }
        // The layer that was frozen was this domain's own: what comes later may be merged into it.
        None => known.anchor = Some(disk.frozen.clone()),
    }
}

fn gone(name: &str, left: &[String]) -> DomainError {
    DomainError::Unsound {
        domain: name.to_owned(),
        problem: format!(
            "this hypervisor does not know it any more, and a backup of it was interrupted; the guest may have written to {}",
            left.join(", ")
        ),
        hint: "define it again with these files, or remove them if it is gone for good".into(),
    }
}
