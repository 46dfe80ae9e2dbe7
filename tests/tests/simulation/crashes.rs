//! Every moment at which a process can die, one after the other: before and after each request, before and after each commit of
//! the catalog.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use underlay_store::authority::Authority;
use underlay_store::error::{Error, Result};
use underlay_store::gc::GcOptions;
use underlay_store::id::SnapshotId;
use underlay_store::progress::Silent;
use underlay_store::repository::Access;

use crate::client::{Plan, Process, backup};
use crate::random::Random;
use crate::schedule::{Schedule, Threads};
use crate::storm::{forget_one, restore};
use crate::world::{Ambush, Weather, World};
use crate::{Outcome, judge, new_world, outcome};

/// What is done, in this order; each step again until it succeeds.
#[derive(Clone, Copy, Debug)]
enum Step {
    Backup,
    Protect,
    Unprotect,
    Forget,
    Collect,
    Restore,
}

const SCENARIO: [Step; 10] = [
    Step::Backup,
    Step::Backup,
    Step::Protect,
    Step::Backup,
    Step::Unprotect,
    Step::Forget,
    Step::Collect,
    Step::Backup,
    Step::Collect,
    Step::Restore,
];

async fn act(process: &Process, step: Step, mut random: Random) -> Result<()> {
    if let Step::Restore = step {
        restore(process, &mut random).await;
        return Ok(());
    }
    let repository = process.open(Access::Write).await?;
    let first = {
        let core = process.world.core();
        let mut records: Vec<_> = core.model.snapshots.iter().filter(|(_, r)| r.acknowledged).collect();
        records.sort_by_key(|(_, record)| record.made);
        records.first().map(|(id, _)| **id)
    };
    match (step, first) {
        (Step::Backup, _) => {
            let mut id = [0; 16];
            random.fill(&mut id);
            backup(
                process,
                &repository,
                Plan { vm: "vm".into(), snapshot: SnapshotId::new(id), random, disk: None },
            )
            .await
        }
        (Step::Collect, _) => {
            let options = GcOptions { dry_run: false, max_unused: 0.0, lease: Duration::ZERO };
            repository.gc(&options, &Silent).await.map(drop)
        }
        (Step::Protect, Some(id)) => repository.protect(id, true).await,
        (Step::Unprotect, Some(id)) => repository.protect(id, false).await,
        (Step::Forget, Some(id)) => match forget_one(process, &repository, id).await {
            true => Ok(()),
            false => Err(Error::Interrupted),
        },
        _ => Ok(()),
    }
}

/// Plays the scenario with a death at point `at`. True if there was such a point.
fn play(seed: u64, at: u64, threads: &Threads) -> (bool, Outcome) {
    let world = new_world(seed, Weather::calm(), threads);
    world.core().ambush = Ambush { at: Some(at), ..Ambush::default() };
    let done = Arc::new(AtomicUsize::new(0));
    let mut attempts = 0;
    let mut schedule = Schedule::new(&world, threads);
    let progress = Arc::clone(&done);
    schedule.add(Box::new(move |world: &Arc<World>, lane| {
        let at = progress.load(Ordering::Relaxed);
        attempts += 1;
        if at == SCENARIO.len() || attempts > 3 * SCENARIO.len() {
            return None;
        }
        let process = Process::begin(world, lane, 0);
        let (number, progress) = (process.number, Arc::clone(&progress));
        let random = Random::new(seed << 8 | attempts as u64);
        let work = async move {
            if act(&process, SCENARIO[at], random).await.is_ok() {
                progress.fetch_add(1, Ordering::Relaxed);
            }
        };
        Some((number, Box::pin(work)))
    }));
    schedule.run();
    if done.load(Ordering::Relaxed) < SCENARIO.len() {
        world.complain("the scenario cannot be finished");
    }
    let struck = world.core().ambush.struck;
    judge(&world, threads, 0);
    (struck, outcome(&world))
}

#[test]
fn a_death_at_every_moment() {
    let threads = Threads::new();
    for seed in 0..2 {
        for at in 0.. {
            let (struck, outcome) = play(seed, at, &threads);
            assert!(
                outcome.complaints.is_empty(),
                "seed {seed}, death at point {at}: {}\n{}",
                outcome.complaints.join("; "),
                outcome.tail
            );
            if !struck {
                assert!(at > 100, "only {at} moments");
                break;
            }
        }
    }
}
