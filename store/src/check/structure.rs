//! The keyless check.

use std::collections::HashSet;

use super::documents::documents;
use super::loss::Loss;
use super::packs::{Packs, packs};
use super::trees::Trees;
use super::{Affected, CheckOptions, CheckReport, Ground};
use crate::catalog::Retired;
use crate::id::{PackName, Root};
use crate::names::{self, ObjectName};
use crate::progress::Progress;
use crate::snapshot::Snapshot;
use crate::{Error, Result};

/// What a check found, and what may be done about it.
pub(crate) struct Checked {
    pub report: CheckReport,
    pub loss: Loss,
    /// All snapshots that can be read.
    pub snapshots: Vec<Snapshot>,
    /// Snapshots whose objects in the bucket are missing, or not what the catalog holds.
    pub unstored: Vec<Snapshot>,
    /// The catalog itself is damaged: nothing that it says was taken at its word.
    pub catalog_is_damaged: bool,
}

/// Compares the catalog with the bucket, reads the packs that `options` ask for, and walks every snapshot's trees down to the chunks'
/// locations. What is found is recorded if `ground` says so.
///
/// # Errors
/// Only what stops the check itself, such as a failed listing. Damage is in the report.
pub(crate) async fn check(
    ground: &Ground<'_>,
    options: &CheckOptions,
    progress: &dyn Progress,
) -> Result<Checked> {
    let mut checked = Checked {
        report: CheckReport::default(),
        loss: Loss::default(),
        snapshots: Vec::new(),
        unstored: Vec::new(),
        catalog_is_damaged: false,
    };
    for fault in ground.catalog.faults()? {
        checked.report.find("catalog", fault);
        checked.catalog_is_damaged = true;
    }
    if checked.catalog_is_damaged {
        let notice = "nothing else was checked, for all of it needs the catalog";
        checked.report.notices.push(notice.to_owned());
        return Ok(checked);
    }
    documents(ground, &mut checked.report).await?;
    let packs = packs(ground, options, progress, &mut checked.report).await?;
    let before = checked.report.clone();
    loop {
        walk(ground, &packs, progress, &mut checked).await?;
        // What was dropped meanwhile may have lost its packs: that is no damage.
        if checked.loss.total().is_empty() || !any_dropped(ground, &checked.snapshots)? {
            break;
        }
        checked.report = before.clone();
    }
    affected(&mut checked);
    let mut needed: HashSet<PackName> = lost_places(&checked.loss).iter().map(pack_of).collect();
    needed.extend(&checked.loss.at_risk);
    let mut bad: Vec<_> = packs.bad.into_values().collect();
    bad.sort_unstable_by_key(|pack| pack.id);
    for pack in bad {
        match pack.known && !needed.contains(&pack.id.name) {
            false => checked.report.find(pack.id.to_string(), pack.what),
            // The alarm was raised when it was found.
            true => checked.report.notices.push(format!(
                "{}: {}; all that snapshots need of it lies elsewhere, too",
                pack.id, pack.what
            )),
        }
    }
    if ground.record && !packs.catalog_differs {
        let nodes: Vec<Retired> = checked.loss.node_places.values().flatten().copied().collect();
        checked.report.retired += ground.catalog.retire(&nodes)?;
        ground.catalog.set_affected_roots(&checked.report.roots, true)?;
    }
    checked.catalog_is_damaged = packs.catalog_differs;
    Ok(checked)
}

/// Walks the trees of all snapshots.
async fn walk(
    ground: &Ground<'_>,
    packs: &Packs,
    progress: &dyn Progress,
    checked: &mut Checked,
) -> Result<()> {
    checked.snapshots.clear();
    checked.unstored.clear();
    snapshots(ground, checked).await?;
    let mut trees = Trees::new(ground, packs);
    progress.phase("snapshots", Some(checked.snapshots.len() as u64));
    let mut roots: Vec<Root> = Vec::new();
    for snapshot in &checked.snapshots {
        checked.report.snapshots += 1;
        for root in snapshot.roots() {
            trees.walk(root, &mut checked.report).await?;
            roots.push(*root);
        }
        progress.advance(1);
    }
    roots.sort_unstable();
    roots.dedup();
    checked.loss = trees.finish(&roots, &mut checked.report).await?;
    roots.retain(|root| checked.loss.touches(root));
    checked.report.roots = roots;
    Ok(())
}

fn any_dropped(ground: &Ground<'_>, snapshots: &[Snapshot]) -> Result<bool> {
    for snapshot in snapshots {
        if !ground.catalog.has_snapshot(snapshot.snapshot)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lost_places(loss: &Loss) -> Vec<Retired> {
    loss.chunk_places.values().chain(loss.node_places.values()).flatten().copied().collect()
}

fn pack_of(place: &Retired) -> PackName {
    match place {
        Retired::Pack(pack) | Retired::Place { pack, .. } => *pack,
    }
}

fn affected(checked: &mut Checked) {
    for snapshot in &checked.snapshots {
        for disk in snapshot.disks.iter().filter(|disk| checked.loss.touches(&disk.root)) {
            let lost = checked.loss.of(&disk.root);
            if lost.is_empty() {
                continue;
            }
            checked.report.affected.push(Affected {
                snapshot: snapshot.snapshot,
                vm: snapshot.vm.clone(),
                disk: disk.name.clone(),
                chunks: lost.chunks.len() as u64,
                nodes: lost.nodes.len() as u64,
            });
        }
    }
}

/// Compares the snapshots that the catalog knows with their objects.
async fn snapshots(ground: &Ground<'_>, checked: &mut Checked) -> Result<()> {
    let Ground { backend, catalog, repository, .. } = ground;
    let report = &mut checked.report;
    let stored = catalog.snapshots()?;
    for (name, _) in backend.list(names::SNAPSHOTS).await? {
        let Some(ObjectName::Snapshot(id)) = ObjectName::parse(&name) else { continue };
        if stored.iter().any(|(known, _)| *known == id) {
            continue;
        }
        let bytes = match backend.get(&name).await {
            // Dropped since it was listed.
            Err(Error::Missing { .. }) => continue,
            other => other?,
        };
        if catalog.has_snapshot(id)? {
            // Committed since.
            continue;
        }
        match Snapshot::peek(&id, repository, &bytes) {
            Ok(_) => report.notices.push(format!("{name} was never acknowledged, and is not listed")),
            Err(error) => report.find(name, error.to_string()),
        }
    }
    for (id, cataloged) in stored {
        let name = names::snapshot(&id);
        let object = backend.get(&name).await;
        if !catalog.has_snapshot(id)? {
            // Dropped meanwhile, and its packs may go.
            continue;
        }
        let snapshot = Snapshot::peek(&id, repository, &cataloged);
        let wrong = match object {
            Ok(bytes) if bytes == cataloged => None,
            Ok(_) => Some("it is not what was committed".to_owned()),
            Err(error) if error.is_damage() => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        if let Some(what) = &wrong {
            report.find(name.clone(), what.clone());
        }
        match snapshot {
            Ok(snapshot) => {
                checked.unstored.extend(wrong.is_some().then(|| snapshot.clone()));
                checked.snapshots.push(snapshot);
            }
            Err(error) => report.find(name, error.to_string()),
        }
    }
    Ok(())
}
