//! Deterministic simulation: clients, hosts and a bad network around one object store, in an order that a seed decides.
//!
//! A run that fails prints its seed, the end of its trace, and the command that plays it again.
//! `UNDERLAY_SEEDS=N` runs so many seeds, `UNDERLAY_FIRST_SEED=N` from there on; `UNDERLAY_SEED=N` is the one that `replay` plays.

#![allow(clippy::unwrap_used)]

mod bucket;
mod canaries;
mod client;
mod crashes;
mod damage;
mod disk;
mod ledger;
mod model;
mod oracle;
mod random;
mod schedule;
mod storm;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use underlay_store::cut::CutParameters;
use underlay_store::repository::Repository;
use underlay_store::snapshot::{Descriptor, Timestamp};

use crate::disk::{REPOSITORY, keys};
use crate::random::Random;
use crate::schedule::{Schedule, Threads};
use crate::world::{Event, Sabotage, Weather, World};

/// How a run went.
struct Outcome {
    complaints: Vec<String>,
    trace: Vec<Event>,
    tail: String,
    steps: u64,
    acknowledged: usize,
}

/// A repository in an empty store, and two hosts.
fn new_world(seed: u64, weather: Weather, threads: &Threads) -> Arc<World> {
    threads.reseed(seed, weather.sabotage.and_then(Sabotage::rule));
    let world = World::new(seed, Weather::calm(), REPOSITORY);
    if weather.put_back > 0 {
        world.use_files();
    }
    world.add_host();
    world.add_host();
    let descriptor = Descriptor {
        repository: REPOSITORY,
        created: Timestamp::from_milliseconds(0).unwrap(),
        public_key: keys().restore.backup().public_key(),
        cut: CutParameters::default(),
    };
    let text = Bytes::from(descriptor.seal(keys().restore.backup()).unwrap());
    Schedule::alone(&world, threads, 0, |process| {
        Box::pin(async move { Repository::init(&process.backend(), text, Vec::new()).await.unwrap() })
    });
    world.core().weather = weather;
    world
}

fn outcome(world: &World) -> Outcome {
    let tail = world.tail(number("UNDERLAY_TAIL").unwrap_or(400) as usize);
    let core = world.core();
    Outcome {
        complaints: core.complaints.clone(),
        trace: core.trace.clone(),
        tail,
        steps: core.step,
        acknowledged: core.model.snapshots.values().filter(|record| record.acknowledged).count(),
    }
}

/// Faults end, what was on its way arrives, one owner looks at it all.
fn judge(world: &Arc<World>, threads: &Threads, host: usize) {
    {
        let mut core = world.core();
        core.weather = Weather { conditional: core.weather.conditional, ..Weather::calm() };
        core.land(true);
        core.ambush.at = None;
    }
    Schedule::alone(world, threads, host, |process| Box::pin(oracle::judge(process)));
}

fn storm(seed: u64, threads: &Threads) -> Outcome {
    let mut random = Random::new(seed);
    let weather = Weather::draw(&mut random);
    storm_in(seed, random, weather, threads)
}

/// A run in that weather.
fn storm_in(seed: u64, mut random: Random, weather: Weather, threads: &Threads) -> Outcome {
    let tidy = weather.tidy;
    let world = new_world(seed, weather, threads);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut schedule = Schedule::new(&world, threads);
        storm::lanes(&mut random, tidy).into_iter().for_each(|lane| schedule.add(lane));
        schedule.run();
        judge(&world, threads, usize::from(random.chance(300)));
    }));
    if let Err(panic) = ran {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.complain(format!("panic: {}", text.unwrap_or_default()));
    }
    outcome(&world)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the seeds `part`, `part + PARTS`, …
fn seeds(part: u64) {
    const PARTS: u64 = 4;
    let (first, count) =
        (number("UNDERLAY_FIRST_SEED").unwrap_or(0), number("UNDERLAY_SEEDS").unwrap_or(2000));
    let threads = Threads::new();
    let (mut failed, mut steps, mut acknowledged) = (Vec::new(), 0, 0);
    for seed in (first..first + count).filter(|seed| seed % PARTS == part) {
        let outcome = storm(seed, &threads);
        steps += outcome.steps;
        acknowledged += outcome.acknowledged;
        if !outcome.complaints.is_empty() {
            failed.push((seed, outcome));
        }
    }
    assert!(acknowledged as u64 > count / PARTS, "hardly anything was backed up");
    report(&failed);
    let _ = steps;
}

/// Fails with what there is to say about seeds that did.
fn report(failed: &[(u64, Outcome)]) {
    let Some((seed, outcome)) = failed.first() else { return };
    let all: Vec<String> =
        failed.iter().map(|(seed, outcome)| format!("{seed}: {}", outcome.complaints.join("; "))).collect();
    panic!(
        "{} seeds failed:\n{}\n\nThe trace of {seed} ends:\n{}\nReplay it with\n  \
         UNDERLAY_SEED={seed} cargo nextest run -p underlay-tests --test simulation replay --no-capture",
        failed.len(),
        all.join("\n"),
        outcome.tail,
    );
}

#[test]
fn storms_0() {
    seeds(0);
}

#[test]
fn storms_1() {
    seeds(1);
}

#[test]
fn storms_2() {
    seeds(2);
}

#[test]
fn storms_3() {
    seeds(3);
}

#[test]
fn replay() {
    let Some(seed) = number("UNDERLAY_SEED") else { return };
    let outcome = storm(seed, &Threads::new());
    report(
        &[(seed, outcome)]
            .into_iter()
            .filter(|(_, outcome)| !outcome.complaints.is_empty())
            .collect::<Vec<_>>(),
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    let threads = Threads::new();
    for seed in 0..20 {
        let (a, b) = (storm(seed, &threads), storm(seed, &Threads::new()));
        let differs = a.trace.iter().zip(&b.trace).position(|(a, b)| a != b);
        assert_eq!(differs.map(|at| (&a.trace[at], &b.trace[at])), None, "seed {seed}");
        assert_eq!(a.trace.len(), b.trace.len(), "seed {seed}");
    }
}
