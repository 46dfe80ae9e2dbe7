//! A policy that the server applies itself, without keys: `docs/security.md` says what that can be made to do.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Span;
use jiff::tz::TimeZone;
use underlay_store::authority::Authority;
use underlay_store::id::SnapshotId;
use underlay_store::progress::Progress;
use underlay_store::repository::Repository;
use underlay_store::snapshot::Timestamp;
use underlay_store::snapshot::retention::{Candidate, Policy, apply_policy};
use underlay_store::wire::ForgetReport;
use underlay_store::{Error, Result};

use crate::config::Forget;
use crate::tokens::fits;

/// Drops what the policy does not keep.
pub(super) async fn forget(
    repository: &Repository,
    options: &Forget,
    progress: &dyn Progress,
) -> Result<ForgetReport> {
    let committed = repository.committed_here().await?;
    let protected: BTreeSet<SnapshotId> = repository.protected().await?.into_iter().collect();
    let marked: BTreeSet<SnapshotId> =
        repository.marked().await?.into_iter().map(|marked| marked.snapshot).collect();
    let stored = repository.snapshots().await?.len();
    let zone = TimeZone::system();
    let mut machines: BTreeMap<&str, Vec<Candidate>> = BTreeMap::new();
    for snapshot in &committed {
        machines.entry(&snapshot.vm).or_default().push(Candidate {
            snapshot: snapshot.snapshot,
            time: Timestamp::from_milliseconds(snapshot.time_ms)?,
            protected: protected.contains(&snapshot.snapshot),
            good: !marked.contains(&snapshot.snapshot),
        });
    }
    let newest = machines.values().flatten().map(|candidate| candidate.time).max();
    let passed_over = stored.saturating_sub(committed.len()) as u64;
    let mut report = ForgetReport { passed_over, ..ForgetReport::default() };
    let Some(newest) = newest else { return Ok(report) };
    machines.retain(|vm, _| options.machines.iter().any(|pattern| fits(pattern, vm)));
    let mut going = Vec::new();
    for candidates in machines.values() {
        let gone = decide(candidates, &options.policy, &options.within, newest, &zone)?;
        report.kept += (candidates.len() - gone.len()) as u64;
        going.extend(gone);
    }
    progress.phase("forget", Some(going.len() as u64));
    for snapshot in going {
        match repository.forget(snapshot).await {
            Ok(()) => report.dropped.push(snapshot),
            // Somebody protected it meanwhile.
            Err(Error::Protected { .. }) => report.kept += 1,
            Err(error) => return Err(error),
        }
        progress.advance(1);
    }
    Ok(report)
}

/// Which snapshots of one machine go: those that the policy lets go of both with and without what was committed `within` a time before
/// the repository's newest. So what is younger than that, which may be forged, has no say.
fn decide(
    candidates: &[Candidate],
    policy: &Policy,
    within: &Span,
    newest: Timestamp,
    zone: &TimeZone,
) -> Result<Vec<SnapshotId>> {
    let start = newest.as_jiff().to_zoned_datetime(zone.clone()).checked_sub(*within);
    // Nothing is older than all times.
    let Ok(start) = start.map(|start| start.timestamp()) else { return Ok(Vec::new()) };
    let settled: Vec<Candidate> =
        candidates.iter().filter(|candidate| candidate.time.as_jiff() < start).copied().collect();
    let with: BTreeSet<SnapshotId> = let_go(candidates, policy, zone)?.into_iter().collect();
    let without = let_go(&settled, policy, zone)?;
    Ok(without.into_iter().filter(|snapshot| with.contains(snapshot)).collect())
}

/// Oldest first, as they should go.
fn let_go(candidates: &[Candidate], policy: &Policy, zone: &TimeZone) -> Result<Vec<SnapshotId>> {
    let decided = apply_policy(candidates, policy, zone)?;
    let going = decided.into_iter().rev().filter(|(_, reasons)| reasons.is_empty());
    Ok(going.map(|(candidate, _)| candidate.snapshot).collect())
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    const DAY: i64 = 86_400_000;

    fn candidate(n: u8, day: i64) -> Candidate {
        let time = Timestamp::from_milliseconds(day * DAY + i64::from(n)).unwrap();
        Candidate { snapshot: SnapshotId::new([n; 16]), time, protected: false, good: true }
    }

    fn going(candidates: &[Candidate], policy: &Policy, newest: i64) -> Vec<u8> {
        let newest = Timestamp::from_milliseconds(newest * DAY + 255).unwrap();
        let within = policy.within.unwrap();
        let gone = decide(candidates, policy, &within, newest, &TimeZone::UTC).unwrap();
        gone.into_iter().map(|snapshot| snapshot.as_bytes()[0]).collect()
    }

    fn policy(daily: Option<u32>) -> Policy {
        Policy { daily, within: Some(10.days()), ..Policy::default() }
    }

    #[test]
    fn what_is_old_and_kept_by_no_rule_goes() {
        let many: Vec<Candidate> = (0..40).map(|n| candidate(n, i64::from(n))).collect();
        // The newest forged one of all could be of day 39: days up to 28 are judged without those from 29 on, too.
        assert_eq!(going(&many, &policy(None), 39), (0..=19).collect::<Vec<u8>>());
        assert_eq!(going(&many, &policy(Some(14)), 39), (0..=15).collect::<Vec<u8>>());
    }

    #[test]
    fn what_was_committed_lately_has_no_say() {
        // A machine that was switched off on day 20; on day 400 somebody commits as many as he likes.
        let good: Vec<Candidate> = (0..20).map(|n| candidate(n, i64::from(n))).collect();
        let before = going(&good, &policy(Some(3)), 400);
        let forged: Vec<Candidate> = (100..200).map(|n| candidate(n, 400)).collect();
        let all = [good.clone(), forged].concat();
        assert_eq!(going(&all, &policy(Some(3)), 400), before);
        assert!(!before.contains(&19) && !before.contains(&10), "{before:?}");
        let last = Policy { last: Some(1), within: Some(10.days()), ..Policy::default() };
        assert!(!going(&all, &last, 400).contains(&19));
        // Found out too late: then they count.
        assert!(going(&all, &last, 420).contains(&19));
    }

    #[test]
    fn protected_ones_stay_and_damaged_ones_do_not_count() {
        let mut some: Vec<Candidate> = (0..5).map(|n| candidate(n, i64::from(n))).collect();
        some[0].protected = true;
        some[4].good = false;
        let one = Policy { last: Some(1), within: Some(1.days()), ..Policy::default() };
        assert_eq!(going(&some, &one, 100), [1, 2]);
    }
}
