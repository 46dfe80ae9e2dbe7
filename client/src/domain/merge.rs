//! Bringing layers together again: overlays one layer down, disks back to their original files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::hypervisor::{Backing, Domain, DomainDisk, redirect};

use super::record::{Content, FrozenDisk, Merge, Standing, layers_above};
use super::{DomainError, Lifecycle};

/// How often a merge that changed nothing is tried.
const ATTEMPTS: usize = 2;

/// What came of an attempt to bring a disk's layers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merging {
    /// They are merged, and what is no longer needed is gone.
    Done,
    /// The domain has stopped: there is nothing running that could merge them.
    Stopped,
    /// Somebody else has changed the disk's layers meanwhile; they were left alone.
    Changed(Standing),
}

/// What became of a merge that somebody had begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    /// There was none.
    Nothing,
    /// It is over, one way or the other.
    Waited,
    /// It gave the disk back to the layer that it merged into.
    Pivoted,
}

impl Lifecycle<'_> {
    /// Brings a rotated disk's layers together as far as that is wanted, once their content is in a snapshot.
    pub(super) fn bring_down(&self, name: &str, disk: &FrozenDisk) -> Result<Merging, DomainError> {
        if let Some(merge) = &disk.merge {
            return self.merge_down(name, disk, merge);
        }
        let domain = self.hands.domain(name)?;
        let Some(live) = &domain.live else { return Ok(Merging::Stopped) };
        let now = live.disk(&disk.target);
        Ok(match disk.writes_to_overlay(now) {
            true => Merging::Done,
            false => Merging::Changed(disk.standing(now)),
        })
    }

    /// Merges a disk's overlays one layer down, once their content is in a snapshot.
    fn merge_down(&self, name: &str, disk: &FrozenDisk, merge: &Merge) -> Result<Merging, DomainError> {
        let (mut as_read, mut merged_here) = (false, false);
        let mut failure = None;
        for attempt in 0.. {
            let domain = self.hands.domain(name)?;
            let Some(live) = &domain.live else { return Ok(Merging::Stopped) };
            let now = live.disk(&disk.target);
            let standing = disk.standing(now);
            let Some(now) = now.filter(|_| disk.writes_to_overlay(now)) else {
                return Ok(Merging::Changed(standing));
            };
            let chain = chain(now);
            if disk.is_merged(now) {
                // A merge that this run has not seen from its beginning to its end may have been another one.
                if let (Some(content), true) = (&disk.content, as_read && merged_here) {
                    self.remember(name, merge, &chain, content);
                }
                let domain = self.correct_chain(domain, disk, merge)?;
                // QEMU does not wait until the overlay's header, which names another layer now, has come to rest.
                self.hands.flush(&disk.overlay)?;
                self.remove_unused_all(&domain, &merge.overlays)?;
                return Ok(Merging::Done);
            }
            let expected = std::iter::once(&disk.overlay).chain(&merge.overlays).map(PathBuf::as_path);
            if layers_above(now, &merge.into.path).is_none_or(|above| !above.into_iter().eq(expected)) {
                return Ok(Merging::Changed(standing));
            }
            if attempt >= ATTEMPTS {
                return Err(failure.unwrap_or_else(|| not_merged(name, disk)));
            }
            if self.settle(name, &disk.target)? != Settled::Nothing {
                merged_here = false;
                continue;
            }
            as_read |= self.are_what_was_read(disk, merge, &chain);
            let committed = self.hands.commit(name, &disk.target, &merge.into.path, &disk.frozen.path);
            merged_here = committed.is_ok();
            failure = committed.err().map(DomainError::from);
        }
        Err(not_merged(name, disk))
    }

    /// Whether all layers that are about to become one are what was backed up. If that cannot be found out, they are not.
    fn are_what_was_read(&self, disk: &FrozenDisk, merge: &Merge, chain: &BTreeSet<PathBuf>) -> bool {
        let Some(content) = &disk.content else { return false };
        let above = merge.overlays.iter().map(|path| Backing { path: path.clone(), format: "qcow2".into() });
        let frozen = std::iter::once(disk.frozen.clone()).chain(above.skip(1));
        let layers: Vec<_> = frozen.chain(std::iter::once(merge.into.clone())).collect();
        layers.len() == content.layers.len()
            && layers
                .iter()
                .zip(&content.layers)
                .all(|(layer, read)| self.hands.identity(layer, chain).is_ok_and(|now| now == *read))
    }

    /// A memo that cannot be written costs reading, nothing else.
    fn remember(&self, name: &str, merge: &Merge, chain: &BTreeSet<PathBuf>, content: &Content) {
        if let Err(error) = self.hands.remember(&merge.into, chain, content) {
            self.notice(name, &format!("{error}: the next backup reads {} again", merge.into.path.display()));
        }
    }

    /// Gives a disk back to the layer that was frozen: merges the overlay into it while the guest runs.
    pub(super) fn give_back(&self, name: &str, disk: &FrozenDisk) -> Result<Merging, DomainError> {
        let (mut failure, mut merged_here) = (None, false);
        for attempt in 0.. {
            let domain = self.hands.domain(name)?;
            let Some(live) = &domain.live else { return Ok(Merging::Stopped) };
            match disk.standing(live.disk(&disk.target)) {
                Standing::Original => {
                    if !merged_here {
                        // It may have been started from there: what the overlay holds is not for us to judge.
                        return Ok(Merging::Changed(Standing::Original));
                    }
                    let domain = self.correct_inactive(domain, disk)?;
                    // While that was written, it may have been started from the overlay.
                    if disk.is_given_back(&domain) {
                        self.remove_unused(&domain, &disk.overlay)?;
                        return Ok(Merging::Done);
                    }
                    continue;
                }
                Standing::Frozen => {}
                other => return Ok(Merging::Changed(other)),
            }
            if attempt >= ATTEMPTS {
                break;
            }
            let settled = self.settle(name, &disk.target)?;
            if settled != Settled::Nothing {
                merged_here = settled == Settled::Pivoted;
                continue;
            }
            let committed = self.hands.commit_active(name, &disk.target, &disk.frozen.path);
            merged_here = committed.is_ok();
            failure = committed.err().map(DomainError::from);
        }
        Err(failure.unwrap_or_else(|| not_merged(name, disk)))
    }

    /// Merges a stopped domain's overlay into the layer that was frozen, and makes the domain start from that.
    pub(super) fn give_back_stopped(&self, domain: Domain, disk: &FrozenDisk) -> Result<(), DomainError> {
        self.expect_not_saved(&domain)?;
        for path in [&disk.overlay, &disk.frozen.path] {
            self.expect_unused(&domain.name, path)?;
        }
        self.hands.commit_stopped(&disk.overlay, &disk.frozen)?;
        // That takes its time, in which the domain may have been started, or defined anew.
        let domain = self.hands.domain(&domain.name)?;
        match domain.is_running() {
            true => Ok(()),
            false => self.correct_inactive(domain, disk).map(drop),
        }
    }

    /// Makes the inactive definition name the frozen layer where it names the overlay; the domain as it is then.
    pub(super) fn correct_inactive(&self, domain: Domain, disk: &FrozenDisk) -> Result<Domain, DomainError> {
        let Some(inactive) = &domain.inactive else { return Ok(domain) };
        if !disk.writes_to_overlay(inactive.disk(&disk.target)) {
            return Ok(domain);
        }
        let xml = redirect(&domain.name, &inactive.xml, &disk.target, &disk.frozen)?;
        let defined = self.hands.define(&xml);
        let now = self.hands.domain(&domain.name)?;
        let named = now.inactive.as_ref().and_then(|inactive| inactive.disk(&disk.target));
        match disk.writes_to_overlay(named) {
            false => Ok(now),
            true => Err(defined.err().map_or_else(|| not_merged(&domain.name, disk), DomainError::from)),
        }
    }

    /// Makes the inactive definition name no layer that was merged, as it does if libvirt did not save it or did not know how the
    /// chain goes on; the domain as it is then.
    fn correct_chain(&self, domain: Domain, disk: &FrozenDisk, merge: &Merge) -> Result<Domain, DomainError> {
        let Some(inactive) = &domain.inactive else { return Ok(domain) };
        let now = inactive.disk(&disk.target).filter(|now| disk.writes_to_overlay(Some(now)));
        let names = |now: &DomainDisk| now.backing.iter().any(|layer| merge.overlays.contains(&layer.path));
        if !now.is_some_and(names) {
            return Ok(domain);
        }
        let overlay = Backing { path: disk.overlay.clone(), format: "qcow2".into() };
        let xml = redirect(&domain.name, &inactive.xml, &disk.target, &overlay)?;
        if let Err(error) = self.hands.define(&xml) {
            // The chain is whole all the same: what was merged holds nothing that is not further down.
            self.notice(&domain.name, &format!("{error}: files that were merged stay until the next backup"));
        }
        Ok(self.hands.domain(&domain.name)?)
    }

    /// Waits for a merge that somebody began on a disk, and ends it.
    fn settle(&self, name: &str, target: &str) -> Result<Settled, DomainError> {
        let started = Instant::now();
        let mut settled = Settled::Nothing;
        while let Some(job) = self.hands.block_job(name, target)? {
            if !job.kind.to_ascii_lowercase().contains("commit") {
                return Err(super::plan::refused(
                    name,
                    format!("disk {target} has a block job that underlay did not begin ({})", job.kind),
                    "`virsh blockjob` shows it; wait for it, or end it with --abort",
                ));
            }
            settled = Settled::Waited;
            if job.ready {
                // If that fails, the job is still there, or it is gone: the next look tells.
                match self.hands.pivot(name, target) {
                    Ok(()) => settled = Settled::Pivoted,
                    Err(error) => tracing::debug!(%error, "pivot of disk {target}"),
                }
            }
            if started.elapsed() >= self.patience.job {
                return Err(DomainError::Unsound {
                    domain: name.to_owned(),
                    problem: format!("the merge of disk {target} does not end"),
                    hint: format!(
                        "`virsh blockjob {name} {target}` shows how far it is; `underlay recover` goes on"
                    ),
                });
            }
            std::thread::sleep(self.patience.poll);
        }
        Ok(settled)
    }

    /// Removes files that no definition of the domain names and nobody has open.
    pub(super) fn remove_unused_all(&self, domain: &Domain, paths: &[PathBuf]) -> Result<(), DomainError> {
        paths.iter().try_for_each(|path| self.remove_unused(domain, path))
    }

    /// Removes a file of ours that no definition of the domain names and nobody has open. If a definition names it, it stays.
    pub(super) fn remove_unused(&self, domain: &Domain, path: &Path) -> Result<(), DomainError> {
        if domain.names_file(path) || !self.hands.exists(path)? {
            return Ok(());
        }
        self.expect_unused(&domain.name, path)?;
        self.hands.remove(path)
    }

    /// Renames an overlay that must never be used again, so that nobody takes it for a layer. If a definition names it, it stays.
    pub(super) fn quarantine(&self, domain: &Domain, path: &Path) -> Result<Option<PathBuf>, DomainError> {
        if domain.names_file(path) || !self.hands.exists(path)? {
            return Ok(None);
        }
        if !domain.is_running() {
            self.expect_not_saved(domain)?;
        }
        self.expect_unused(&domain.name, path)?;
        self.hands.set_aside(path).map(Some)
    }

    /// Keeps the layers of a stopped domain as they are if its next start goes on with what its memory knew of them.
    fn expect_not_saved(&self, domain: &Domain) -> Result<(), DomainError> {
        match self.hands.is_saved(&domain.name)? {
            true => Err(DomainError::Unsound {
                domain: domain.name.clone(),
                problem: "its memory is saved, and goes on with the layers that were active then".into(),
                hint: "start it, then `underlay recover`".into(),
            }),
            false => Ok(()),
        }
    }

    /// Waits a moment for a file to be closed.
    pub(super) fn expect_unused(&self, name: &str, path: &Path) -> Result<(), DomainError> {
        let started = Instant::now();
        while self.hands.is_open(path)? {
            if started.elapsed() >= self.patience.close {
                return Err(DomainError::Unsound {
                    domain: name.to_owned(),
                    problem: format!(
                        "{} is in use, although no definition of the domain says so",
                        path.display()
                    ),
                    hint: "find out by whom (`lslocks`, `fuser`) before anything else is done to this domain"
                        .into(),
                });
            }
            std::thread::sleep(self.patience.poll);
        }
        Ok(())
    }
}

/// All files of a disk's chain.
pub(super) fn chain(disk: &DomainDisk) -> BTreeSet<PathBuf> {
    let below = disk.backing.iter().map(|layer| layer.path.clone());
    disk.source.path().map(Path::to_owned).into_iter().chain(below).collect()
}

fn not_merged(name: &str, disk: &FrozenDisk) -> DomainError {
    DomainError::Unsound {
        domain: name.to_owned(),
        problem: format!("the overlay of disk {} was not merged, and libvirt did not say why", disk.target),
        hint: "look at libvirtd's log; `underlay recover` tries again".into(),
    }
}
