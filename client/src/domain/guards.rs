//! What must not be touched, and why not. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::hypervisor::Domain;

use super::DomainError;
use super::plan::{Approach, Facts, Selection, Wishes, list, refused};
use super::steps::FreeSpace;

/// Room for an overlay: this share of the disk's size, within bounds, in bytes.
const SPACE_SHARE: u64 = 10;
const LEAST_SPACE: u64 = 64 << 20;
const MOST_SPACE: u64 = 10 << 30;

/// The strategy for a running domain, if it may be touched at all.
pub(super) fn guard(domain: &Domain, facts: &Facts, wishes: &Wishes) -> Result<Approach, DomainError> {
    let name = &domain.name;
    let refuse = |reason: String, hint: &str| Err(refused(name, reason, hint));
    if let Some(job) = &facts.domain_job {
        return refuse(
            format!("a job is running on it ({job}): a migration, a save or a backup by somebody else"),
            "`virsh domjobinfo` shows it; try again when it is done",
        );
    }
    if let Some((target, job)) = facts.block_jobs.first_key_value() {
        return refuse(
            format!("disk {target} has a block job already ({})", job.kind),
            "`virsh blockjob` shows it; wait for it, or end it with --abort",
        );
    }
    if !facts.snapshots.is_empty() {
        return refuse(
            format!(
                "libvirt keeps snapshots of it ({}), whose files must not be merged",
                list(&facts.snapshots)
            ),
            "remove them with `virsh snapshot-delete`, or back it up while it is shut down",
        );
    }
    if !facts.checkpoints.is_empty() {
        return refuse(
            format!(
                "libvirt keeps checkpoints of it ({}): another backup tool tracks changes in its disks",
                list(&facts.checkpoints)
            ),
            "remove them with `virsh checkpoint-delete`, or back it up while it is shut down",
        );
    }
    let strategy = match (wishes.strategy, domain.instance().is_some()) {
        (Some(Approach::Rotate), true) => {
            return refuse(
                "OpenStack Nova manages it and would start it from its original file".into(),
                "leave --strategy out: such domains are given back to their original files",
            );
        }
        (Some(strategy), _) => strategy,
        (None, true) => Approach::Pivot,
        (None, false) => Approach::Rotate,
    };
    if domain.inactive.is_none() && strategy == Approach::Rotate {
        return refuse(
            "it is transient: whoever starts it again would not know of its overlay".into(),
            "make it permanent with `virsh define`, or use --strategy pivot",
        );
    }
    Ok(strategy)
}

/// Refuses disks that cannot have a dirty bitmap.
pub(super) fn guard_bitmaps(domain: &str, selection: &Selection) -> Result<(), DomainError> {
    match selection.disks.iter().find(|disk| disk.active.format != "qcow2") {
        None => Ok(()),
        Some(disk) => Err(refused(
            domain,
            format!("disk {} is {}, and only qcow2 keeps dirty bitmaps", disk.target, disk.active.format),
            "leave it out with --exclude-disk, or use another strategy",
        )),
    }
}

/// Refuses disks whose live and inactive definitions do not name the same file: one of them would be frozen, the other
/// started.
pub(super) fn guard_definitions(domain: &Domain, selection: &Selection) -> Result<(), DomainError> {
    let (Some(_), Some(inactive)) = (&domain.live, &domain.inactive) else { return Ok(()) };
    for disk in &selection.disks {
        let persistent = inactive.disk(&disk.target).and_then(|disk| disk.source.path());
        if persistent != Some(&disk.active.path) {
            let named = persistent.map_or("nothing".to_owned(), |path| path.display().to_string());
            let active = disk.active.path.display();
            let below = persistent.is_some_and(|path| disk.below.iter().any(|layer| layer.path == *path));
            let hint = match below {
                true => format!(
                    "do not stop it before the definition names {active} (`virsh edit`), or the disk falls back to what \
                     it was when that layer was made"
                ),
                false => "the definition was changed, or the disk attached for this run only: stop and start the domain, \
                          or make both the same with `virsh edit`"
                    .to_owned(),
            };
            return Err(refused(
                &domain.name,
                format!("disk {} writes to {active} now, and to {named} after the next start", disk.target),
                &hint,
            ));
        }
    }
    Ok(())
}

/// Bytes that must be free for the overlay of a disk of `size` bytes.
pub(super) fn space_for_overlay(size: u64) -> u64 {
    (size / SPACE_SHARE).clamp(LEAST_SPACE, MOST_SPACE)
}

/// Refuses if a file system has less room than its overlays may need. `wanted` has a folder, its free space and the size of a
/// disk whose overlay goes there.
pub(super) fn guard_space(domain: &str, wanted: &[(PathBuf, FreeSpace, u64)]) -> Result<(), DomainError> {
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    for (folder, space, size) in wanted {
        let needed = needed.entry(space.device).or_default();
        *needed += space_for_overlay(*size);
        if space.bytes < *needed {
            return Err(refused(
                domain,
                format!(
                    "{} has {} MiB free, and its overlays may need {} MiB while the backup runs",
                    folder.display(),
                    space.bytes >> 20,
                    *needed >> 20
                ),
                "make room, or put overlays elsewhere with --overlay-dir",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_need_room_in_proportion() {
        assert_eq!(space_for_overlay(0), LEAST_SPACE);
        assert_eq!(space_for_overlay(10 << 30), 1 << 30);
        assert_eq!(space_for_overlay(1 << 50), MOST_SPACE);
        let space = |bytes| FreeSpace { device: 1, bytes };
        let disk = |bytes| (PathBuf::from("/vm"), space(bytes), 10u64 << 30);
        assert!(guard_space("web", &[disk(2 << 30), disk(2 << 30)]).is_ok());
        let error = guard_space("web", &[disk(2 << 30), disk(2 << 30), disk(2 << 30)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "domain web: /vm has 2048 MiB free, and its overlays may need 3072 MiB while the backup runs"
        );
    }
}
