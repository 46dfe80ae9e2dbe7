//! The harness notices rules that are broken on purpose.

use underlay_store::sabotage::Rule;

use crate::schedule::Threads;
use crate::storm;
use crate::world::Sabotage;

/// Seeds tried for each.
const PATIENCE: u64 = 2000;

/// The oracle complains about this within some seeds.
fn caught(sabotage: Sabotage) {
    let threads = Threads::new();
    let found = (0..PATIENCE).find_map(|seed| {
        let outcome = storm(seed, &threads, Some(sabotage));
        // It is the broken rule that is noticed, and nothing else.
        let noticed = !outcome.complaints.is_empty() && storm(seed, &threads, None).complaints.is_empty();
        noticed.then(|| (seed, outcome.complaints.join("; ")))
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

#[test]
fn dead_nodes_still_offered() {
    caught(Sabotage::Rule(Rule::HideDeadNodes));
}
