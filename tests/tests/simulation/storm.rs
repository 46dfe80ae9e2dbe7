//! What the actors of a run do, chosen by its seed.

use std::time::Duration;

use underlay_store::authority::Authority;
use underlay_store::check::CheckOptions;
use underlay_store::error::Error;
use underlay_store::gc::GcOptions;
use underlay_store::id::SnapshotId;
use underlay_store::names;
use underlay_store::progress::Silent;
use underlay_store::repository::{Access, Repository};

use crate::client::{Plan, Process, Reader, Trouble, backup};
use crate::damage::{self, Judging};
use crate::random::Random;
use crate::schedule::Script;
use crate::world::{Sabotage, World};

/// How the processes of a run behave.
#[derive(Clone, Copy)]
pub struct Manners {
    /// How often, in thousandths, who was told that the repository is somebody else's takes it over.
    greed: u64,
    /// They drop and collect more than they back up.
    tidy: bool,
}

/// The commands of one lane: processes that follow one another on `host`.
pub fn lane(mut random: Random, host: usize, mut left: usize, manners: Manners) -> Script {
    Box::new(move |world, lane| {
        left = left.checked_sub(1)?;
        let process = Process::begin(world, lane, host);
        let number = process.number;
        let random = random.fork();
        Some((number, Box::pin(command(process, random, manners))))
    })
}

async fn command(process: Process, mut random: Random, manners: Manners) {
    let access = {
        let mut core = process.world.core();
        let told_off = std::mem::take(&mut core.hosts[process.host].told_off);
        // The second host begins by taking over.
        match told_off || process.host > 0 {
            true if random.chance(manners.greed) => {
                core.takeovers += 1;
                Access::TakeOver
            }
            _ => Access::Write,
        }
    };
    let kind = match random.below(100) {
        0..30 if manners.tidy => 12 + random.below(12),
        30..50 if manners.tidy => 37 + random.below(10),
        kind => kind,
    };
    if kind < 12 {
        return restore(&process, &mut random).await;
    }
    let Ok(repository) = process.open(access).await else { return };
    match kind {
        12..26 => forget(&process, &repository, &mut random).await,
        26..32 => protect(&process, &repository, &mut random).await,
        32..37 => {
            let options = CheckOptions { scrub: random.chance(300), ..CheckOptions::default() };
            let _ = process.heed(repository.check(&options, &Silent).await);
        }
        37..47 => collect(&process, &repository, &mut random).await,
        47..52 if process.world.core().weather.sabotage == Some(Sabotage::SweepUnknown) => {
            sweep_unknown(&process).await;
        }
        47..52 => damage::repair(&process, &repository, &mut random).await,
        52..58 if process.world.core().bucket.ledger.troubled => {
            damage::verify(&process, &repository, &mut random).await;
        }
        58..61 if process.world.core().weather.lies => {
            damage::lie(&process, &repository, &mut random).await;
        }
        _ => {
            for _ in 0..=random.below(2) {
                let mut id = [0; 16];
                random.fill(&mut id);
                let plan = Plan {
                    vm: format!("vm{}", random.below(3)),
                    snapshot: SnapshotId::new(id),
                    random: random.fork(),
                    disk: None,
                };
                let _ = backup(&process, &repository, plan).await;
            }
        }
    }
}

/// Any snapshot that was ever acknowledged, dropped ones too.
fn some_snapshot(world: &World, random: &mut Random) -> Option<SnapshotId> {
    let core = world.core();
    let known: Vec<SnapshotId> =
        core.model.snapshots.iter().filter(|(_, record)| record.acknowledged).map(|(id, _)| *id).collect();
    (!known.is_empty()).then(|| *random.pick(&known))
}

pub async fn restore(process: &Process, random: &mut Random) {
    let Some(id) = some_snapshot(&process.world, random) else { return };
    let Ok(repository) = process.open(Access::Read).await else { return };
    let Some(record) = process.world.core().model.snapshots.get(&id).cloned() else { return };
    let mut reader = Reader::default();
    for (root, disk) in record.disks {
        match reader.disk(&repository, root).await {
            Ok(found) if found == disk => {}
            Ok(_) => process.world.complain(format!("{id} was restored with other content")),
            Err(Trouble::Wrong(what)) => process.world.complain(format!("{id}: {what}")),
            Err(Trouble::Store(error)) if error.is_damage() => {
                let core = process.world.core();
                let dropped = core.model.snapshots[&id].forget_begun.is_some();
                // A reader that was opened before others took over, or repacked, may look in the wrong place.
                let alone =
                    core.takeovers == 0 && core.collections == 0 && core.hosts.iter().all(|h| h.losses == 0);
                let doubted = core.is_doubted(&id);
                drop(core);
                if !dropped && alone && !doubted {
                    process.world.complain(format!("{id} cannot be restored: {error}"));
                }
                return;
            }
            Err(Trouble::Store(_)) => return,
        }
    }
}

pub async fn forget(process: &Process, repository: &Repository, random: &mut Random) {
    let Some(id) = some_snapshot(&process.world, random) else { return };
    forget_one(process, repository, id).await;
}

pub async fn forget_one(process: &Process, repository: &Repository, id: SnapshotId) -> bool {
    let begun = {
        let mut core = process.world.core();
        let step = core.step;
        let record = core.model.snapshots.get_mut(&id).unwrap();
        let protected = record.protected.is_some_and(|since| since <= step) && !record.unprotect_begun;
        if !protected {
            record.forget_begun.get_or_insert(step);
        }
        (step, protected, core.weather.sabotage == Some(Sabotage::DeleteFirst))
    };
    let (_, protected, delete_first) = begun;
    if delete_first && process.backend().delete(&names::snapshot(&id)).await.is_err() {
        return false;
    }
    let outcome = process.heed(repository.forget(id).await);
    if outcome.is_ok() {
        if process.world.core().is_shut_out(process.number) {
            process.world.complain("a fenced process dropped a snapshot");
        }
        if protected {
            process.world.complain(format!("{id} was dropped though it is protected"));
        }
        process.world.core().model.snapshots.get_mut(&id).unwrap().forgotten = true;
    }
    outcome.is_ok()
}

async fn protect(process: &Process, repository: &Repository, random: &mut Random) {
    let Some(id) = some_snapshot(&process.world, random) else { return };
    let on = random.chance(700);
    if !on {
        process.world.core().model.snapshots.get_mut(&id).unwrap().unprotect_begun = true;
    }
    let outcome = process.heed(repository.protect(id, on).await);
    let mut core = process.world.core();
    let step = core.step;
    let record = core.model.snapshots.get_mut(&id).unwrap();
    match outcome {
        // While it is being dropped, or was unprotected, nothing is promised.
        Ok(()) if on && record.forget_begun.is_none() && !record.unprotect_begun => {
            record.protected = Some(step)
        }
        _ => {}
    }
}

/// Collects with some options or other; often more eagerly than anybody should.
pub async fn collect(process: &Process, repository: &Repository, random: &mut Random) {
    const HOUR: u64 = 3600;
    let options = GcOptions {
        dry_run: random.chance(100),
        max_unused: match process.world.core().weather.tidy {
            true => *random.pick(&[0.0, 1.0, 1.0]),
            false => *random.pick(&[0.0, 0.0, 0.05, 0.5, 1.0]),
        },
        lease: Duration::from_secs(*random.pick(&[0, HOUR, 24 * HOUR, 365 * 24 * HOUR])),
    };
    process.world.core().collections += 1;
    let _judging = Judging::begin(&process.world);
    let _ = process.heed(repository.gc(&options, &Silent).await);
}

/// What no rule of the store allows: packs that are in no catalog are deleted.
async fn sweep_unknown(process: &Process) {
    let backend = process.backend();
    let Some(catalog) = process.catalog() else { return };
    for kind in [underlay_store::pack::PackKind::Data, underlay_store::pack::PackKind::Nodes] {
        let (Ok(listed), Ok(known)) = (backend.list(kind.folder()).await, catalog.packs(kind)) else {
            return;
        };
        for (name, _) in listed {
            if !known.iter().any(|pack| names::pack(kind, &pack.name) == name) {
                let _: Result<(), Error> = backend.delete(&name).await;
            }
        }
    }
}

/// How many lanes and commands: a host alone, one that is visited, or two at war.
pub fn lanes(random: &mut Random, tidy: bool) -> Vec<Script> {
    let mut lanes = Vec::new();
    let (ours, theirs, greed) = match random.below(5) {
        0 | 4 => (3, 0, 0),
        1 => (2, 1, 300),
        2 => (2, 1, 600),
        _ => (1 + random.below(2), 1 + random.below(2), 900),
    };
    let manners = Manners { greed, tidy };
    for (host, count) in [(0, ours), (1, theirs)] {
        for _ in 0..count {
            let commands = 3 + random.index(6) + if tidy { 3 } else { 0 };
            lanes.push(lane(random.fork(), host, commands, manners));
        }
    }
    lanes
}
