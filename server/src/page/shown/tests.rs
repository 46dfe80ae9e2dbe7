use std::collections::BTreeMap;
use std::time::Instant;

use underlay_store::catalog::{Overview, SnapshotHead, Totals};
use underlay_store::id::{JobId, SnapshotId};
use underlay_store::snapshot::{Statistics, Timestamp};

use super::super::gather::{Snapshots, Whole};
use super::*;

const NOW: i64 = 1_795_000_000_000;
const HOUR: i64 = 3600 * 1000;

fn snapshot(number: u32, vm: &str, time_ms: i64) -> SnapshotHead {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_le_bytes());
    SnapshotHead { snapshot: SnapshotId::new(id), vm: vm.to_owned(), time_ms }
}

fn known(snapshots: Vec<SnapshotHead>) -> Known {
    let took = Statistics { disk_bytes: 10 << 30, bytes_new: 1 << 20, ..Statistics::default() };
    let newest = snapshots.iter().map(|head| (head.vm.clone(), took)).collect();
    let snapshots = Snapshots { heads: snapshots, ..Snapshots::default() };
    Known { snapshots, newest, whole: None, upkeep: None }
}

fn facts(known: Known) -> Facts {
    Facts { name: "vms".to_owned(), known: Ok(known) }
}

fn entry(job: &str, kind: JobKind, state: Outcome, hours_ago: i64) -> Entry {
    let at = |ms| Timestamp::from_milliseconds(ms).unwrap();
    let (started, ended) = (at(NOW - hours_ago * HOUR), Some(at(NOW - hours_ago * HOUR + 90_000)));
    let (repository, told) = ("vms".to_owned(), "so it was".to_owned());
    Entry {
        repository,
        job: job.to_owned(),
        kind,
        id: JobId::new([1; 16]),
        planned: true,
        state,
        started,
        ended,
        told,
    }
}

fn upkeep(runs: Vec<Entry>) -> Upkeep {
    let planned = ["gc", "scrub"].map(|job| Planned {
        job: job.to_owned(),
        kind: "gc",
        when: "every day".to_owned(),
        next: Timestamp::from_milliseconds(NOW + HOUR).unwrap(),
    });
    Upkeep { overview: Overview::default(), planned: planned.into(), runs, phases: BTreeMap::new() }
}

fn alarms(facts: &Facts) -> Vec<String> {
    let shown = shown(facts, NOW).alarms;
    shown.into_iter().map(|alarm| format!("{}: {}", alarm.what, alarm.told)).collect()
}

#[test]
fn a_backup_is_late_by_what_is_usual_for_its_machine() {
    let every = |hours: i64, last: i64, many: i64| -> Vec<i64> {
        (0..many).rev().map(|n| NOW - (last + n * hours) * HOUR).collect()
    };
    assert_eq!(late(&every(24, 40, 9), NOW), "");
    assert_eq!(
        late(&every(24, 50, 9), NOW),
        "no backup for 2 d 2 h, usually every 24 h".replace("24 h", "1 d")
    );
    assert_eq!(late(&every(1, 4, 9), NOW), "no backup for 4 h, usually every 60 min");
    assert_eq!(late(&every(1, 3, 9), NOW), "");
    assert_eq!(late(&every(24, 900, 3), NOW), "", "two gaps tell nothing");
    assert_eq!(late(&[], NOW), "");
    let snapshots = every(24, 50, 9).into_iter().zip(0..).map(|(time, n)| snapshot(n, "a/b", time)).collect();
    assert_eq!(alarms(&facts(known(snapshots))), ["vms / a/b: no backup for 2 d 2 h, usually every 1 d"]);
}

#[test]
fn the_last_run_of_each_job_counts_and_damage_comes_first() {
    let runs = vec![
        entry("gc", JobKind::Gc, Outcome::Running, 0),
        entry("scrub", JobKind::Scrub, Outcome::Done, 1),
        entry("gc", JobKind::Gc, Outcome::Failed, 2),
        entry("scrub", JobKind::Scrub, Outcome::Damaged, 3),
        entry("check", JobKind::Check, Outcome::Failed, 4),
    ];
    let mut known = known(vec![snapshot(1, "vm", NOW - HOUR), snapshot(2, "vm", NOW)]);
    known.snapshots.damaged.insert(snapshot(1, "", 0).snapshot);
    known.upkeep = Some(upkeep(runs));
    let facts = facts(known);
    assert_eq!(alarms(&facts), ["vms: 1 snapshot lost data", "vms / gc: failed: so it was"]);
    let shown = shown(&facts, NOW);
    let last = shown.figures.iter().find(|figure| figure.name == "Last check").unwrap();
    assert_eq!((last.value.as_str(), last.note.as_str()), ("60 min ago", "scrub: done"));
    assert_eq!((shown.runs.len(), shown.runs[0].state, shown.runs[2].bad), (5, "running", true));
}

#[test]
fn what_is_not_known_is_not_shown() {
    let bare = shown(&facts(known(Vec::new())), NOW);
    let names: Vec<&str> = bare.figures.iter().map(|figure| figure.name).collect();
    assert_eq!(names, ["Machines", "Snapshots", "Last backup"]);
    assert!(bare.jobs.is_empty() && bare.runs.is_empty() && bare.machines.is_empty());
    let new = shown(&Facts { name: "new".to_owned(), known: Err(Unavailable::New) }, NOW);
    assert!(new.new && new.alarms.is_empty());
    let why = "its claim is another's".to_owned();
    let broken = Facts { name: "old".to_owned(), known: Err(Unavailable::Broken(why)) };
    assert_eq!(alarms(&broken), ["old: cannot be opened: its claim is another's"]);
}

#[test]
fn sums_are_told_in_two_digits() {
    let mut known = known(vec![snapshot(1, "vm", NOW)]);
    let totals = Totals { packs: 1, pack_bytes: 1 << 30, ..Totals::default() };
    known.whole = Some(Whole { totals, disk_bytes: 48 << 30 });
    let shown = shown(&facts(known), NOW);
    let saved = shown.figures.iter().find(|figure| figure.name == "Saved").unwrap();
    assert_eq!((saved.value.as_str(), saved.note.as_str()), ("48\u{d7}", "48.0 GiB as full copies"));
    assert_eq!((times(3, 2), times(1_000_000, 1)), ("1.5\u{d7}".to_owned(), "over 1000\u{d7}".to_owned()));
}

#[test]
fn a_hundred_machines_with_a_thousand_snapshots_each_are_shown_at_once() {
    let snapshots: Vec<SnapshotHead> = (0..100_000)
        .map(|n| snapshot(n, &format!("vm{}", n % 100), NOW - i64::from(100_000 - n) * HOUR / 100))
        .collect();
    let facts = facts(known(snapshots));
    let started = Instant::now();
    let shown = shown(&facts, NOW);
    let took = started.elapsed();
    assert_eq!((shown.machines.len(), shown.machines[0].snapshots), (100, 1000));
    assert!(took.as_secs() < 2, "{took:?}");
}
