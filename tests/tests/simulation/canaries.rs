//! The harness notices rules that are broken on purpose.

use std::time::Duration;

use underlay_store::authority::Authority;
use underlay_store::cut::REGION;
use underlay_store::gc::GcOptions;
use underlay_store::id::SnapshotId;
use underlay_store::progress::Silent;
use underlay_store::repository::Access;
use underlay_store::sabotage::Rule;

use crate::client::{Plan, backup};
use crate::disk::Disk;
use crate::random::Random;
use crate::schedule::{Schedule, Threads};
use crate::storm::forget_one;
use crate::world::{Sabotage, Weather};
use crate::{Outcome, judge, new_world, storm_in};

/// Seeds tried for each.
const PATIENCE: u64 = 2000;

/// The weather in which a broken rule shows: what else could happen would only hide it.
fn weather(sabotage: Sabotage, random: &mut Random) -> Weather {
    let drawn = Weather::draw(random);
    let calm = Weather { conditional: drawn.conditional, tidy: true, ..Weather::calm() };
    match sabotage {
        Sabotage::FailureIsEmpty => Weather { half_list: 500, catalog_loss: 4, ..calm },
        Sabotage::Rule(Rule::ReadKeepers) => Weather { rot: 15, ..calm },
        Sabotage::Rule(Rule::ClaimAnew) => Weather { removal: 8, ..calm },
        _ => Weather { rot: 0, faulty: 0, lies: false, put_back: 0, ..drawn },
    }
}

fn outcome(seed: u64, sabotage: Sabotage, broken: bool, threads: &Threads) -> Outcome {
    let mut random = Random::new(seed);
    let weather = weather(sabotage, &mut random);
    storm_in(seed, random, Weather { sabotage: broken.then_some(sabotage), ..weather }, threads)
}

/// The oracle complains about this within some seeds, and about nothing else.
fn caught(sabotage: Sabotage) {
    let threads = Threads::new();
    let found = (0..PATIENCE).find_map(|seed| {
        let broken = outcome(seed, sabotage, true, &threads);
        let noticed =
            !broken.complaints.is_empty() && outcome(seed, sabotage, false, &threads).complaints.is_empty();
        noticed.then(|| (seed, broken.complaints.join("; ")))
    });
    let (seed, complaints) =
        found.unwrap_or_else(|| panic!("{sabotage:?} went unnoticed for {PATIENCE} seeds"));
    #[expect(clippy::print_stdout, reason = "how soon it was noticed")]
    {
        println!("{sabotage:?} was noticed after {} seeds: {complaints}", seed + 1);
    }
}

#[test]
fn data_acknowledged_before_it_is_durable() {
    caught(Sabotage::EarlyData);
}

#[test]
fn a_snapshot_before_its_nodes() {
    caught(Sabotage::EarlyNodes);
}

#[test]
fn unknown_packs_taken_for_garbage() {
    caught(Sabotage::SweepUnknown);
}

#[test]
fn claims_not_looked_at() {
    caught(Sabotage::BlindToClaims);
}

#[test]
fn a_failed_listing_taken_for_an_empty_one() {
    caught(Sabotage::FailureIsEmpty);
}

#[test]
fn an_object_deleted_before_its_tombstone() {
    caught(Sabotage::DeleteFirst);
}

#[test]
fn a_lost_answer_taken_for_an_acknowledgement() {
    caught(Sabotage::HopefulCommit);
}

#[test]
fn a_delete_that_is_only_pretended() {
    caught(Sabotage::LazyDelete);
}

#[test]
fn pins_not_marked() {
    caught(Sabotage::Rule(Rule::MarkPins));
}

#[test]
fn packs_of_open_sessions_collected() {
    caught(Sabotage::Rule(Rule::KeepSessionPacks));
}

#[test]
fn no_second_mark() {
    caught(Sabotage::Rule(Rule::MarkAgain));
}

#[test]
fn what_is_on_its_way_out_still_offered() {
    caught(Sabotage::Rule(Rule::OfferOnlyLive));
}

#[test]
fn commits_not_proven() {
    caught(Sabotage::Rule(Rule::Prove));
}

#[test]
fn deletions_without_a_look_at_the_claim() {
    caught(Sabotage::Rule(Rule::ReadClaimAgain));
}

#[test]
fn deletions_that_are_not_recorded() {
    caught(Sabotage::Rule(Rule::RecordDeletions));
}

#[test]
fn keepers_that_are_not_read() {
    caught(Sabotage::Rule(Rule::ReadKeepers));
}

#[test]
fn a_new_catalog_under_an_old_claim() {
    caught(Sabotage::Rule(Rule::ClaimAnew));
}

/// A disk comes back after it was dropped, while part of what it consisted of was kept for another. `broken`: its dead nodes are
/// still offered. Whether the oracle complains.
fn comes_back(seed: u64, broken: bool, threads: &Threads) -> bool {
    let rule = broken.then_some(Sabotage::Rule(Rule::HideDeadNodes));
    let world = new_world(seed, Weather { distinct: true, sabotage: rule, ..Weather::calm() }, threads);
    Schedule::alone(&world, threads, 0, move |process| {
        Box::pin(async move {
            let region = |word| vec![(1 + (word % 2) as usize, word), (3, 0), (2, word + 2)];
            let disk = |first, second| Disk {
                size: 2 * REGION as u64,
                regions: [(0, region(first)), (1, region(second))].into(),
            };
            let repository = process.open(Access::Write).await.unwrap();
            let mut random = Random::new(seed);
            for (number, (first, second)) in [(1, 1001), (101, 1001), (1, 1001)].into_iter().enumerate() {
                let (snapshot, random) = (SnapshotId::new([number as u8; 16]), random.fork());
                let plan = Plan { vm: "vm".into(), snapshot, random, disk: Some(disk(first, second)) };
                backup(&process, &repository, plan).await.unwrap();
                if number == 1 {
                    forget_one(&process, &repository, SnapshotId::new([0; 16])).await;
                    let options = GcOptions { dry_run: false, max_unused: 1.0, lease: Duration::ZERO };
                    repository.gc(&options, &Silent).await.unwrap();
                }
            }
        })
    });
    judge(&world, threads, 0);
    !crate::outcome(&world).complaints.is_empty()
}

#[test]
fn dead_nodes_still_offered() {
    let threads = Threads::new();
    assert!((0..20).any(|seed| comes_back(seed, true, &threads)), "it went unnoticed");
    assert!(!(0..20).any(|seed| comes_back(seed, false, &threads)), "it is not the rule that is noticed");
}
