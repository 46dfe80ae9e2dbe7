//! What a backup of a domain is going to do. Pure: from what was read to what will be done, or to why not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::hypervisor::{Backing, BlockJob, Definition, DiskKind, Domain, DomainDisk, Source};

use super::DomainError;
use super::kept::CONFIG_DRIVE;
use super::record::{DiskRecord, DomainRecord, FrozenDisk, Merge, Operation, Phase, Strategy, layers_above};

/// Every overlay's name holds this, followed by the operation's nonce.
const MARK: &str = ".underlay-";
/// Bytes of randomness in an overlay's name.
const NONCE: usize = 4;
/// Bytes of a file's name that an overlay's name keeps.
const LONGEST_STEM: usize = 120;

/// How a running domain is backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Approach {
    /// The guest stays in the new overlay, and the overlay before is merged one layer down
    Rotate,
    /// The guest goes back to its original file after every backup
    Pivot,
    /// No layer is made: QEMU notes what the guest writes, and shows the disks as they were at one moment; qcow2 disks only
    Bitmap,
}

impl From<Strategy> for Approach {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Rotate => Self::Rotate,
            Strategy::Pivot => Self::Pivot,
        }
    }
}

/// What the user wants.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// How; `None` is rotate, or pivot if another manager regenerates the definition.
    pub strategy: Option<Approach>,
    /// Where overlays go; `None` is beside each disk.
    pub overlay_folder: Option<PathBuf>,
    /// Writable disks that are left out.
    pub exclude: Vec<String>,
}

/// What else was found out about the domain.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub snapshots: Vec<String>,
    pub checkpoints: Vec<String>,
    pub domain_job: Option<String>,
    /// By target.
    pub block_jobs: BTreeMap<String, BlockJob>,
}

/// What will be read, and of which definition.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    /// Disks to back up, in the order of the definition.
    pub disks: Vec<SelectedDisk>,
    /// Writable disks left out by request.
    pub excluded: Vec<String>,
    /// Disks left out because nothing of the guest's is on them.
    pub skipped: Vec<String>,
    /// Disks that are read and never frozen, for nobody writes to them.
    pub still: Vec<SelectedDisk>,
}

/// A disk to back up.
#[derive(Clone, Debug)]
pub(super) struct SelectedDisk {
    pub target: String,
    pub bus: Option<String>,
    /// The active layer.
    pub active: Backing,
    /// The layers below, the nearest first, as far as libvirt names them.
    pub below: Vec<Backing>,
    /// It lies on a block device.
    pub on_device: bool,
}

/// Chooses the disks that a backup holds.
pub(super) fn select(
    domain: &str,
    definition: &Definition,
    exclude: &[String],
) -> Result<Selection, DomainError> {
    let refuse = |reason: String, hint: &str| refused(domain, reason, hint);
    if let Some(unknown) = exclude.iter().find(|target| definition.disk(target).is_none()) {
        let targets: Vec<_> = definition.disks.iter().map(|disk| disk.target.as_str()).collect();
        return Err(refuse(
            format!("it has no disk {unknown} to leave out"),
            &format!("its disks are {}", targets.join(", ")),
        ));
    }
    let mut selection = Selection::default();
    for disk in &definition.disks {
        let removable = matches!(disk.kind, DiskKind::Cdrom | DiskKind::Floppy);
        if definition.nova.is_some() && is_config_drive(disk) && !exclude.contains(&disk.target) {
            selection.still.push(selected(domain, disk)?);
            continue;
        }
        if removable || disk.source == Source::Empty {
            continue;
        }
        if disk.read_only {
            selection.skipped.push(disk.target.clone());
        } else if exclude.contains(&disk.target) {
            selection.excluded.push(disk.target.clone());
        } else {
            selection.disks.push(selected(domain, disk)?);
        }
    }
    match selection.disks.is_empty() {
        true => Err(refuse("it has no disk to back up".into(), "`virsh domblklist` shows its disks")),
        false => Ok(selection),
    }
}

/// Whether it is the CD-ROM by which Nova tells an instance what it is to be: it belongs to the instance, unlike any other.
fn is_config_drive(disk: &DomainDisk) -> bool {
    let name = disk.source.path().and_then(Path::file_name);
    disk.kind == DiskKind::Cdrom && name.is_some_and(|name| name == CONFIG_DRIVE)
}

fn selected(domain: &str, disk: &DomainDisk) -> Result<SelectedDisk, DomainError> {
    let target = &disk.target;
    let leave_out =
        format!("leave it out with --exclude-disk {target}, and back it up from inside the guest");
    let refuse = |reason: String| Err(refused(domain, format!("disk {target} {reason}"), &leave_out));
    if disk.kind == DiskKind::Lun {
        return refuse("is a SCSI device passed through to the guest".into());
    }
    if disk.shareable {
        return refuse("is shared with other domains that write to it, too".into());
    }
    if disk.transient {
        return refuse("drops what the guest writes when it stops".into());
    }
    if disk.encrypted {
        // What lies below an encrypted layer would be read as it is stored, and what lies above it in the clear.
        return refuse("is encrypted by QEMU (LUKS)".into());
    }
    let (path, on_device) = match &disk.source {
        Source::File(path) => (path, false),
        Source::Block(path) => (path, true),
        Source::Empty => return refuse("is empty".into()),
        Source::Other(what) => return refuse(format!("is neither a file nor a block device ({what})")),
    };
    let format = match disk.format.as_deref() {
        Some(format @ ("raw" | "qcow2")) => format.to_owned(),
        Some(other) => return refuse(format!("has the format {other}, which cannot be read")),
        None => return refuse("has no format in the domain's definition (<driver type=…>)".into()),
    };
    Ok(SelectedDisk {
        target: target.clone(),
        bus: disk.bus.clone(),
        active: Backing { path: path.clone(), format },
        below: disk.backing.clone(),
        on_device,
    })
}

/// Randomness for the names of what one operation makes.
pub(super) fn nonce() -> String {
    hex::encode(underlay_store::key::random_bytes::<NONCE>())
}

/// The operation that freezes these disks.
pub(super) fn operation(
    domain: &Domain,
    selection: &Selection,
    record: &DomainRecord,
    strategy: Strategy,
    wishes: &Wishes,
    nonce: &str,
) -> Result<Operation, DomainError> {
    let definition = domain.current()?;
    let mut disks = Vec::new();
    for disk in &selection.disks {
        let folder = match (&wishes.overlay_folder, disk.on_device) {
            (Some(folder), _) => folder.as_path(),
            (None, false) => disk.active.path.parent().unwrap_or(Path::new("/")),
            (None, true) => {
                return Err(refused(
                    &domain.name,
                    format!("disk {} is a block device, beside which no overlay can lie", disk.target),
                    "name a folder for overlays with --overlay-dir",
                ));
            }
        };
        let known = record.disks.get(&disk.target);
        let merge = match (strategy, known, definition.disk(&disk.target)) {
            (Strategy::Rotate, Some(known), Some(now)) => merge(known, now),
            _ => None,
        };
        disks.push(FrozenDisk {
            target: disk.target.clone(),
            frozen: disk.active.clone(),
            overlay: folder.join(overlay_name(&disk.active.path, &disk.target, nonce)),
            merge,
            content: None,
        });
    }
    Ok(Operation { nonce: nonce.to_owned(), strategy, phase: Phase::Freezing, disks })
}

/// What goes one layer down: all layers above the anchor, if every one of them is an overlay of ours.
fn merge(known: &DiskRecord, now: &DomainDisk) -> Option<Merge> {
    let anchor = known.anchor.as_ref()?;
    let above = layers_above(now, &anchor.path)?;
    if !above.iter().all(|layer| known.overlays.contains(*layer)) {
        return None;
    }
    // The format as libvirt has it now: QEMU opens the layer with that.
    let into = now.backing.iter().find(|layer| layer.path == anchor.path)?.clone();
    Some(Merge { into, overlays: above.into_iter().map(Path::to_owned).collect() })
}

/// `web.qcow2` and `web.vda.underlay-1234.qcow2` become `web.vda.underlay-5678.qcow2`.
fn overlay_name(active: &Path, target: &str, nonce: &str) -> String {
    let name = active.file_name().unwrap_or_default().to_string_lossy();
    let stem = match name.find(MARK) {
        Some(mark) => {
            name[..mark].strip_suffix(target).and_then(|stem| stem.strip_suffix('.')).unwrap_or(&name[..mark])
        }
        None => name.rsplit_once('.').map_or(&*name, |(stem, _)| stem),
    };
    let mut end = stem.len().min(LONGEST_STEM);
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}.{target}{MARK}{nonce}.qcow2", &stem[..end])
}

/// What has changed about the disks since the last backup, for the user to know.
pub(super) fn changes(record: &DomainRecord, selection: &Selection) -> Vec<String> {
    let now = |target: &str| selection.disks.iter().any(|disk| disk.target == target);
    let gone = record.disks.keys().filter(|target| !now(target));
    let gone = gone.map(|target| format!("disk {target} was in the last backup and is not in this one"));
    let new = selection.disks.iter().filter(|disk| !record.disks.contains_key(&disk.target));
    let new = new.map(|disk| format!("disk {} was not in the last backup: it is read whole", disk.target));
    let strange = selection.disks.iter().filter_map(|disk| strange_overlays(record, disk));
    match record.disks.is_empty() {
        true => strange.collect(),
        false => gone.chain(new).chain(strange).collect(),
    }
}

/// What to say of overlays that have come to a disk since the last backup, and that no record here knows: they are never merged.
fn strange_overlays(record: &DomainRecord, disk: &SelectedDisk) -> Option<String> {
    let known = record.disks.get(&disk.target);
    let is_strange = |path: &Path| {
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().contains(MARK));
        ours && known.is_none_or(|known| !known.overlays.contains(path) && !known.layers.contains(path))
    };
    let layers = std::iter::once(&disk.active).chain(&disk.below).map(|layer| layer.path.as_path());
    let strange: Vec<_> =
        layers.filter(|path| is_strange(path)).map(|path| path.display().to_string()).collect();
    let target = &disk.target;
    (!strange.is_empty()).then(|| {
        format!(
            "disk {target} has overlays that underlay made and this state folder knows nothing of; they stay as its layers: {}. \
             Use one state folder for all backups of a domain: with several, every backup adds a layer",
            list(&strange)
        )
    })
}

pub(super) fn refused(domain: &str, reason: String, hint: &str) -> DomainError {
    DomainError::Refused { domain: domain.to_owned(), reason, hint: hint.to_owned() }
}

pub(super) fn list(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(3).map(String::as_str).collect();
    let more = if names.len() > 3 { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests;
