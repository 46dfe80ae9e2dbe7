//! What must hold when the storm is over, whatever happened in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use underlay_store::authority::Authority;
use underlay_store::catalog::{Catalog, Location, PackState};
use underlay_store::check::{CheckOptions, CheckReport, Finding};
use underlay_store::error::{Error, Result};
use underlay_store::gc::GcOptions;
use underlay_store::id::{ChunkId, NodeId, PackName, SnapshotId};
use underlay_store::names::{self, ObjectName};
use underlay_store::pack::{self, PackId, PackKind};
use underlay_store::progress::Silent;
use underlay_store::repository::{Access, Repository};

use crate::client::{Process, Reader, Trouble, rebuild, rebuilt_repository};
use crate::world::DAY;

/// A gap that is known. A snapshot's object can arrive in the bucket long after its writer was shut out or its host lost the catalog,
/// when a collection has already removed what it refers to, or before its writer could say so and some of it rotted. Whoever owns the repository then leaves it alone; but an owner or reader
/// who sees it for the first time, with an empty catalog or after a takeover, lists it, and it cannot be restored. Nobody was ever told that it is
/// there. `UNDERLAY_STRAYS=1` makes this a failure.
fn is_stray(process: &Process, id: &SnapshotId) -> bool {
    let core = process.world.core();
    let told_of = core.model.snapshots.get(id).is_none_or(|record| record.acknowledged);
    let may_be_lost = core.collections > 0 || core.is_doubted(id);
    !told_of && may_be_lost && std::env::var_os("UNDERLAY_STRAYS").is_none()
}

/// Takes the repository over for good and compares it with what was promised.
pub async fn judge(process: Process) {
    if let Err(error) = judge_all(&process).await {
        process.world.complain(format!("after the storm: {}", chain(&error)));
    }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(below) = source {
        text += &format!(": {below}");
        source = below.source();
    }
    text
}

async fn judge_all(process: &Process) -> Result<()> {
    let repository = process.open(Access::TakeOver).await?;
    let listed = snapshots(process, &repository).await?;
    let decided = decided(process)?;
    restored(process, &repository, &listed, &decided).await?;
    let report = repository.check(&CheckOptions { scrub: true, ..CheckOptions::default() }, &Silent).await?;
    checked(process, &listed, &report);
    rebuilt(process, &listed).await?;
    elsewhere(process, &listed, &decided).await?;
    emptied(process, &repository, &listed).await
}

/// A check finds what is lost, and nothing else.
fn checked(process: &Process, listed: &BTreeMap<SnapshotId, Bytes>, report: &CheckReport) {
    let core = process.world.core();
    let troubled = core.bucket.ledger.troubled;
    let doubted = |id| troubled && core.is_doubted(id);
    let told: BTreeSet<SnapshotId> = report.affected.iter().map(|each| each.snapshot).collect();
    let unseen = |id: &&SnapshotId| core.has_rotted(id) && !told.contains(*id);
    let unseen: Vec<SnapshotId> = listed.keys().filter(unseen).copied().collect();
    let untouched: Vec<_> = told.iter().filter(|id| !doubted(id)).copied().collect();
    drop(core);
    let untouched: Vec<_> = untouched.into_iter().filter(|id| !is_stray(process, id)).collect();
    let expected = |finding: &&Finding| match ObjectName::parse(&finding.object) {
        Some(ObjectName::Snapshot(id)) => process.world.core().may_list_again(&id),
        _ => false,
    };
    let unfounded = !troubled && told.is_empty() && !report.findings.iter().all(|finding| expected(&finding));
    if !untouched.is_empty() || unfounded {
        process.world.complain(format!("check finds damage: {:?} {untouched:?}", report.findings));
    }
    if !unseen.is_empty() {
        let core = process.world.core();
        let places: Vec<_> = unseen.iter().map(|id| core.describe_doubted(id)).collect();
        drop(core);
        process.world.complain(format!("check does not see what {unseen:?} lost: {places:?}"));
    }
}

/// Once everything is dropped, a collection leaves nothing of what the catalog knows.
async fn emptied(
    process: &Process,
    repository: &Repository,
    listed: &BTreeMap<SnapshotId, Bytes>,
) -> Result<()> {
    for id in listed.keys() {
        if let Some(record) = process.world.core().model.snapshots.get_mut(id) {
            record.forget_begun.get_or_insert(u64::MAX);
        }
        repository.protect(*id, false).await?;
        repository.forget(*id).await?;
    }
    let options = GcOptions { dry_run: false, max_unused: 0.0, lease: Duration::ZERO };
    process.world.core().clock += DAY;
    repository.gc(&options, &Silent).await?;
    let Some(catalog) = process.catalog() else { return Ok(()) };
    for kind in [PackKind::Data, PackKind::Nodes] {
        for pack in catalog.packs(kind)? {
            process.world.complain(format!("{} survives everything", names::pack(kind, &pack.name)));
        }
    }
    Ok(())
}

/// What is listed is what was acknowledged, give or take what nobody was told of.
async fn snapshots(process: &Process, repository: &Repository) -> Result<BTreeMap<SnapshotId, Bytes>> {
    let mut listed = BTreeMap::new();
    for document in repository.snapshots().await? {
        let Some(ObjectName::Snapshot(id)) = ObjectName::parse(&document.name) else {
            process.world.complain(format!("{} is listed", document.name));
            continue;
        };
        listed.insert(id, document.bytes);
    }
    let core = process.world.core();
    let mut complaints = Vec::new();
    for (id, record) in core.model.owed() {
        if !listed.contains_key(&id) {
            complaints.push(format!("{id} was acknowledged and is not listed"));
        }
        if core.bucket.peek(&names::snapshot(&id)) != Some(&record.document) {
            complaints.push(format!("{id} was acknowledged and its object is not in the bucket"));
        }
    }
    for (id, document) in &listed {
        match core.model.snapshots.get(id) {
            None => complaints.push(format!("{id} is listed and nobody has made it")),
            Some(record) if record.document != document => {
                complaints.push(format!("{id} is listed with another document"));
            }
            Some(_) if core.may_list_again(id) => {}
            Some(record) if record.forgotten => complaints.push(format!("{id} was dropped and is listed")),
            Some(_) if !core.bucket.written.contains(&names::snapshot(id)) => {
                complaints.push(format!("{id} is listed and its object was never stored"));
            }
            Some(_) => {}
        }
    }
    drop(core);
    complaints.into_iter().for_each(|what| process.world.complain(what));
    Ok(listed)
}

/// Packs of which a collection that counts has decided that they go, by the owner's catalog.
fn decided(process: &Process) -> Result<BTreeSet<String>> {
    let Some(catalog) = process.catalog() else { return Ok(BTreeSet::new()) };
    let mut decided = BTreeSet::new();
    for kind in [PackKind::Data, PackKind::Nodes] {
        let going = catalog.packs(kind)?.into_iter().filter(|pack| pack.state == PackState::Deleting);
        decided.extend(going.map(|pack| names::pack(kind, &pack.name)));
    }
    Ok(decided)
}

/// Every listed snapshot can be restored, to the byte.
async fn restored(
    process: &Process,
    repository: &Repository,
    listed: &BTreeMap<SnapshotId, Bytes>,
    decided: &BTreeSet<String>,
) -> Result<()> {
    let mut reader = Reader::default();
    for id in listed.keys() {
        let Some(record) = process.world.core().model.snapshots.get(id).cloned() else { continue };
        for (root, disk) in record.disks {
            let mut found = reader.disk(repository, root).await;
            let damaged = matches!(&found, Err(Trouble::Store(error)) if error.is_damage());
            if damaged && process.world.core().is_doubted(id) {
                if process.world.core().has_lost(id, decided) {
                    continue;
                }
                // A copy that nobody was told of in time: whoever builds the catalog anew finds it.
                found = reader.disk(&rebuilt_repository(process).await?, root).await;
            }
            match found {
                Ok(found) if found == disk => {}
                Ok(_) => process.world.complain(format!("{id} is restored with other content")),
                Err(Trouble::Wrong(what)) => process.world.complain(format!("{id}: {what}")),
                Err(Trouble::Store(error)) if error.is_damage() && is_stray(process, id) => {}
                Err(Trouble::Store(error)) if error.is_damage() => {
                    let acknowledged = if record.acknowledged { "acknowledged" } else { "not acknowledged" };
                    let doubted = process.world.core().describe_doubted(id);
                    process.world.complain(format!(
                        "{id} ({acknowledged}) cannot be restored: {error}; doubted: {doubted}"
                    ));
                }
                Err(Trouble::Store(error)) => return Err(error),
            }
        }
    }
    Ok(())
}

/// A catalog built from the bucket alone says what the live one says.
///
/// May differ: sessions and what they hold; which packs count as proven; packs that only the rebuilt one knows, left behind by
/// writers that were killed or shut out before they could record them with the present owner; packs on their way out; places of what a
/// collection found dead, which the live one does not name any more. May not differ: the snapshots; every pack that the live one
/// would offer or read from, with its length and every place that it names.
async fn rebuilt(process: &Process, listed: &BTreeMap<SnapshotId, Bytes>) -> Result<()> {
    let (Some(live), fresh) = (process.catalog(), rebuild(process).await?) else {
        process.world.complain("the catalog is gone");
        return Ok(());
    };
    let found: BTreeMap<SnapshotId, Bytes> =
        fresh.snapshots()?.into_iter().map(|(id, bytes)| (id, Bytes::from(bytes))).collect();
    let (mut more, mut less) = differences(&found, listed);
    more.retain(|id| !is_stray(process, id));
    less.retain(|id| !process.world.core().may_list_again(id));
    if !more.is_empty() || !less.is_empty() {
        process.world.complain(format!("a rebuilt catalog lists {more:?} more and {less:?} less"));
    }
    for kind in [PackKind::Data, PackKind::Nodes] {
        let known: BTreeMap<PackName, u64> =
            fresh.packs(kind)?.into_iter().map(|pack| (pack.name, pack.size)).collect();
        for pack in live.packs(kind)? {
            let rotten = process.world.core().bucket.ledger.is_rotten(&names::pack(kind, &pack.name));
            if pack.state != PackState::Live || rotten {
                continue;
            }
            if known.get(&pack.name) != Some(&pack.size) {
                process.world.complain(format!(
                    "{} is in the catalog and not in a rebuilt one",
                    names::pack(kind, &pack.name)
                ));
                continue;
            }
            let Some(ids) = contents(process, PackId::new(kind, pack.name))? else { continue };
            let (live, fresh) =
                (places(&live, kind, pack.name, &ids)?, places(&fresh, kind, pack.name, &ids)?);
            if !live.iter().all(|place| fresh.contains(place)) {
                process.world.complain(format!(
                    "a rebuilt catalog finds other places in {}: {live:?}, not {fresh:?}",
                    pack.name
                ));
            }
        }
    }
    Ok(())
}

fn differences(
    a: &BTreeMap<SnapshotId, Bytes>,
    b: &BTreeMap<SnapshotId, Bytes>,
) -> (Vec<SnapshotId>, Vec<SnapshotId>) {
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (a.keys().copied().collect(), b.keys().copied().collect());
    (a.difference(&b).copied().collect(), b.difference(&a).copied().collect())
}

/// The ids in a pack, as its bytes say.
fn contents(process: &Process, pack: PackId) -> Result<Option<Vec<[u8; 32]>>> {
    let Some(bytes) = process.world.core().bucket.peek(&pack.to_string()).cloned() else {
        process.world.complain(format!("{pack} is in the catalog and not in the bucket"));
        return Ok(None);
    };
    Ok(Some(pack::parse(&pack, &bytes)?.entries.into_iter().map(|entry| entry.id).collect()))
}

/// The places of `ids` within one pack.
fn places(catalog: &Catalog, kind: PackKind, pack: PackName, ids: &[[u8; 32]]) -> Result<Vec<Location>> {
    let all = match kind {
        PackKind::Data => {
            catalog.locate_chunks(&ids.iter().map(|id| ChunkId::new(*id)).collect::<Vec<_>>())?
        }
        PackKind::Nodes => {
            catalog.locate_nodes(&ids.iter().map(|id| NodeId::new(*id)).collect::<Vec<_>>())?
        }
    };
    // Whether it is relied on is known where it was found out, and nowhere else.
    let plain = |place: Location| Location { retired: false, ..place };
    Ok(all.into_iter().flatten().filter(|place| place.pack == pack).map(plain).collect())
}

/// Whoever only reads, from the other host and with its older catalog, sees the same.
async fn elsewhere(
    process: &Process,
    listed: &BTreeMap<SnapshotId, Bytes>,
    decided: &BTreeSet<String>,
) -> Result<()> {
    let other = Process::begin(&process.world, 0, 1 - process.host);
    let reader = other.open(Access::Read).await?;
    let found = snapshots(&other, &reader).await?;
    let (mut more, mut less) = differences(&found, listed);
    more.retain(|id| !is_stray(&other, id) && !process.world.core().may_list_again(id));
    // A host that was asked to drop a snapshot and could not delete its object does not show it any more; others do. So it is with
    // those of its sessions that it shut out.
    let told_of = |id: &SnapshotId| {
        let record = &process.world.core().model.snapshots[id];
        record.acknowledged && record.forget_begun.is_none()
    };
    less.retain(told_of);
    if !more.is_empty() || !less.is_empty() {
        process.world.complain(format!("a reader on the other host sees {more:?} more and {less:?} less"));
    }
    restored(&other, &reader, &found, decided).await
}
