use proptest::prelude::*;

use super::*;

fn snapshot(number: u8, time: &str) -> Candidate {
    let time = Timestamp::parse(time).unwrap();
    Candidate { snapshot: SnapshotId::new([number; 16]), time, protected: false, good: true }
}

fn kept(candidates: &[Candidate], policy: &Policy) -> Vec<(u8, Vec<Reason>)> {
    let decided = apply_policy(candidates, policy, &TimeZone::UTC).unwrap();
    let kept = decided.into_iter().filter(|(_, reasons)| !reasons.is_empty());
    kept.map(|(candidate, reasons)| (candidate.snapshot.as_bytes()[0], reasons)).collect()
}

#[test]
fn each_rule_keeps_the_newest_of_its_periods() {
    let all = [
        snapshot(1, "2024-12-31T23:00:00.000Z"),
        snapshot(2, "2025-01-01T00:00:00.000Z"),
        snapshot(3, "2025-01-05T10:00:00.000Z"),
        snapshot(4, "2025-01-06T10:00:00.000Z"),
        snapshot(5, "2025-01-06T10:59:59.999Z"),
        snapshot(6, "2025-01-06T11:00:00.000Z"),
    ];
    let policy = |change: fn(&mut Policy)| {
        let mut policy = Policy::default();
        change(&mut policy);
        kept(&all, &policy)
    };
    use Reason::{Daily, Hourly, Last, Monthly, Newest, Weekly, Within, Yearly};
    assert_eq!(policy(|p| p.last = Some(2)), [(6, vec![Newest, Last]), (5, vec![Last])]);
    assert_eq!(policy(|p| p.hourly = Some(2)), [(6, vec![Newest, Hourly]), (5, vec![Hourly])]);
    assert_eq!(policy(|p| p.daily = Some(3)), [(6, vec![Newest, Daily]), (3, vec![Daily]), (2, vec![Daily])]);
    // The week of Monday the 6th, and that from December 30 to January 5.
    assert_eq!(policy(|p| p.weekly = Some(9)), [(6, vec![Newest, Weekly]), (3, vec![Weekly])]);
    assert_eq!(policy(|p| p.monthly = Some(9)), [(6, vec![Newest, Monthly]), (1, vec![Monthly])]);
    assert_eq!(policy(|p| p.yearly = Some(1)), [(6, vec![Newest, Yearly])]);
    let within = policy(|p| p.within = Some("1d 1h".parse().unwrap()));
    assert_eq!(within, [(6, vec![Newest, Within]), (5, vec![Within]), (4, vec![Within]), (3, vec![Within])]);
    assert_eq!(policy(|p| p.last = Some(0)), [(6, vec![Newest])]);
    assert!(policy(|_| ()).iter().all(|(_, reasons)| reasons.contains(&Reason::Unlimited)));
}

#[test]
fn what_is_damaged_meets_no_rule_and_what_is_protected_stays() {
    let mut all = [
        snapshot(1, "2025-01-01T00:00:00.000Z"),
        snapshot(2, "2025-01-02T00:00:00.000Z"),
        snapshot(3, "2025-01-03T00:00:00.000Z"),
    ];
    all[2].good = false;
    all[0].protected = true;
    let policy = Policy { last: Some(1), ..Policy::default() };
    assert_eq!(kept(&all, &policy), [(2, vec![Reason::Newest, Reason::Last]), (1, vec![Reason::Protected])]);
}

#[test]
fn days_are_those_of_the_time_zone() {
    let all = [snapshot(1, "2025-06-01T21:30:00.000Z"), snapshot(2, "2025-06-01T22:30:00.000Z")];
    let policy = Policy { daily: Some(2), ..Policy::default() };
    assert_eq!(kept(&all, &policy).len(), 1);
    let east = TimeZone::fixed(jiff::tz::offset(2));
    let decided = apply_policy(&all, &policy, &east).unwrap();
    assert!(decided.iter().all(|(_, reasons)| !reasons.is_empty()));
}

proptest! {
    #[test]
    fn a_policy_never_empties_and_more_of_it_never_keeps_less(
        times in proptest::collection::vec((0i64..200_000, any::<bool>(), any::<bool>()), 0..40),
        counts in proptest::array::uniform6(proptest::option::of(0u32..6)),
    ) {
        let all: Vec<Candidate> = times
            .iter()
            .enumerate()
            .map(|(number, (minutes, good, protected))| Candidate {
                snapshot: SnapshotId::new([number as u8; 16]),
                time: Timestamp::from_milliseconds(1_700_000_000_000 + minutes * 600_000).unwrap(),
                protected: *protected,
                good: *good,
            })
            .collect();
        let [last, hourly, daily, weekly, monthly, yearly] = counts;
        let policy = Policy { last, hourly, daily, weekly, monthly, yearly, within: None };
        let decided = apply_policy(&all, &policy, &TimeZone::UTC).unwrap();
        prop_assert_eq!(decided.len(), all.len());
        let stays = |decided: &[(Candidate, Vec<Reason>)], id| {
            decided.iter().any(|(each, reasons)| each.snapshot == id && !reasons.is_empty())
        };
        if let Some(newest) = all.iter().filter(|each| each.good).max_by_key(|each| (each.time, each.snapshot)) {
            prop_assert!(stays(&decided, newest.snapshot));
        }
        prop_assert!(all.iter().all(|each| !each.protected || stays(&decided, each.snapshot)));
        if policy.is_empty() {
            return Ok(());
        }
        let more = |count: Option<u32>| Some(count.unwrap_or(0) + 1);
        let larger = Policy {
            last: more(last), hourly: more(hourly), daily: more(daily),
            weekly: more(weekly), monthly: more(monthly), yearly: more(yearly), within: None,
        };
        let larger = apply_policy(&all, &larger, &TimeZone::UTC).unwrap();
        for (each, reasons) in &decided {
            prop_assert!(reasons.is_empty() || stays(&larger, each.snapshot));
        }
        // What was let go of makes no difference to what stays when the same policy is applied again.
        let rest: Vec<Candidate> =
            decided.iter().filter(|(_, reasons)| !reasons.is_empty()).map(|(each, _)| *each).collect();
        let again = apply_policy(&rest, &policy, &TimeZone::UTC).unwrap();
        prop_assert!(again.iter().all(|(_, reasons)| !reasons.is_empty()), "a second run forgets more");
    }
}
