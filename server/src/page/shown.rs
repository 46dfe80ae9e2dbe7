//! From what is known to what is shown. Pure.

use std::collections::BTreeMap;

use underlay_store::wire::Phase;

use super::gather::{Facts, Known, Planned, Unavailable, Upkeep};
use super::timeline::{Kind, Timeline, timeline};
use super::words::{ago, in_query, moment, span};
use crate::config::JobKind;
use crate::jobs::{Entry, Outcome};
use crate::text::{bytes, count};

/// Days of the lines of snapshots.
pub(super) const DAYS: i64 = 30;
/// Gaps between backups that tell what is usual.
const GAPS: usize = 10;
/// Fewer of them tell nothing.
const FEWEST_GAPS: usize = 3;
/// A backup that is late by less is not worth mentioning, in milliseconds.
const GRACE: i64 = 3600 * 1000;
/// Runs of jobs that are shown.
const RUNS: usize = 15;

/// Something that somebody should look at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Alarm {
    /// The repository, and the machine or job in it.
    pub(super) what: String,
    pub(super) told: String,
    pub(super) link: String,
}

/// A number and what it is of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) note: String,
}

pub(super) fn figure(name: &'static str, value: impl Into<String>, note: impl Into<String>) -> Figure {
    Figure { name, value: value.into(), note: note.into() }
}

/// A machine in a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) link: String,
    pub(super) line: Timeline,
    pub(super) snapshots: usize,
    pub(super) newest: String,
    pub(super) newest_at: String,
    /// In words; empty if it is not late.
    pub(super) late: String,
    pub(super) disks: String,
    pub(super) new: String,
}

/// A backup under way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnderWay {
    pub(super) vm: String,
    pub(super) since: String,
    pub(super) heard: String,
    pub(super) stored: String,
}

/// A job that is planned.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) when: String,
    pub(super) next: String,
    /// The last run that ended.
    pub(super) last: Option<Run>,
    /// What it is at, if it runs.
    pub(super) running: String,
}

/// A run of a job.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) job: String,
    pub(super) state: &'static str,
    pub(super) bad: bool,
    pub(super) told: String,
    pub(super) began: String,
    pub(super) began_at: String,
    pub(super) took: String,
}

/// All of one repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) link: String,
    /// Why there is nothing to show.
    pub(super) problem: String,
    /// It is yet to be made.
    pub(super) new: bool,
    pub(super) figures: Vec<Figure>,
    pub(super) line: Timeline,
    pub(super) machines: Vec<Machine>,
    pub(super) under_way: Vec<UnderWay>,
    pub(super) jobs: Vec<Job>,
    pub(super) runs: Vec<Run>,
    pub(super) alarms: Vec<Alarm>,
}

pub(super) fn repository_link(name: &str) -> String {
    format!("/repositories/{name}")
}

fn machine_link(repository: &str, vm: &str) -> String {
    format!("/repositories/{repository}/machine?name={}", in_query(vm))
}

/// What is usual between two backups of a machine: the median of the last gaps; `None` if there are too few.
fn usual_gap(times: &[i64]) -> Option<i64> {
    let last = &times[times.len().saturating_sub(GAPS + 1)..];
    let mut gaps: Vec<i64> = last.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable();
    (gaps.len() >= FEWEST_GAPS).then(|| gaps[gaps.len() / 2])
}

/// Says by how much a backup is late: there was none for more than twice the usual time.
fn late(times: &[i64], now_ms: i64) -> String {
    let (Some(gap), Some(newest)) = (usual_gap(times), times.last()) else { return String::new() };
    match now_ms - newest > 2 * gap + GRACE {
        true => format!("no backup for {}, usually every {}", span(now_ms - newest), span(gap)),
        false => String::new(),
    }
}

pub(super) fn shown(facts: &Facts, now_ms: i64) -> Shown {
    let mut shown = Shown {
        name: facts.name.clone(),
        link: repository_link(&facts.name),
        problem: String::new(),
        new: false,
        figures: Vec::new(),
        line: timeline(&[], DAYS, now_ms),
        machines: Vec::new(),
        under_way: Vec::new(),
        jobs: Vec::new(),
        runs: Vec::new(),
        alarms: Vec::new(),
    };
    let known = match &facts.known {
        Ok(known) => known,
        Err(Unavailable::New) => return Shown { new: true, ..shown },
        Err(Unavailable::Broken(why)) => {
            let (what, link) = (facts.name.clone(), shown.link.clone());
            let alarms = vec![Alarm { what, told: format!("cannot be opened: {why}"), link }];
            return Shown { problem: why.clone(), alarms, ..shown };
        }
    };
    let all = known.snapshots.places();
    let mut by_machine: BTreeMap<&str, Vec<(i64, Kind)>> = BTreeMap::new();
    for (head, place) in known.snapshots.heads.iter().zip(&all) {
        by_machine.entry(&head.vm).or_default().push(*place);
    }
    shown.line = timeline(&all, DAYS, now_ms);
    shown.machines = by_machine.iter().map(|(vm, times)| machine(facts, known, vm, times, now_ms)).collect();
    shown.figures = figures(known, &all, now_ms);
    if let Some(upkeep) = &known.upkeep {
        show_upkeep(&mut shown, upkeep, now_ms);
    }
    shown.alarms = alarms(&shown, known, &all);
    shown
}

fn machine(facts: &Facts, known: &Known, vm: &str, snapshots: &[(i64, Kind)], now_ms: i64) -> Machine {
    let times: Vec<i64> = snapshots.iter().map(|(time, _)| *time).collect();
    let newest = times.last().copied().unwrap_or(now_ms);
    let took = known.newest.get(vm);
    Machine {
        name: vm.to_owned(),
        link: machine_link(&facts.name, vm),
        line: timeline(snapshots, DAYS, now_ms),
        snapshots: snapshots.len(),
        newest: ago(newest, now_ms),
        newest_at: moment(newest),
        late: late(&times, now_ms),
        disks: took.map_or_else(String::new, |took| bytes(took.disk_bytes)),
        new: took.map_or_else(String::new, |took| bytes(took.bytes_new)),
    }
}

/// How many times larger; two digits.
fn times(whole: u64, part: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let ratio = whole as f64 / part.max(1) as f64;
    match ratio {
        _ if ratio < 9.95 => format!("{ratio:.1}\u{d7}"),
        _ if ratio < 999.5 => format!("{ratio:.0}\u{d7}"),
        _ => "over 1000\u{d7}".to_owned(),
    }
}

fn figures(known: &Known, all: &[(i64, Kind)], now_ms: i64) -> Vec<Figure> {
    let disks = known.newest.values().map(|took| took.disk_bytes).sum();
    let protected = all.iter().filter(|(_, kind)| *kind == Kind::Protected).count();
    let special = if protected > 0 { format!("{protected} protected") } else { String::new() };
    let newest = all.last().map_or_else(|| "never".to_owned(), |(time, _)| ago(*time, now_ms));
    let mut figures = vec![
        figure("Machines", known.newest.len().to_string(), format!("{} of disks", bytes(disks))),
        figure("Snapshots", all.len().to_string(), special),
        figure("Last backup", newest, all.last().map_or_else(String::new, |(time, _)| moment(*time))),
    ];
    if let Some(whole) = &known.whole {
        let stored = whole.totals.pack_bytes;
        figures.push(figure("Stored", bytes(stored), count(whole.totals.packs, "pack")));
        if stored > 0 && whole.disk_bytes > 0 {
            figures.push(figure(
                "Saved",
                times(whole.disk_bytes, stored),
                format!("{} as full copies", bytes(whole.disk_bytes)),
            ));
        }
    }
    if let Some(upkeep) = &known.upkeep {
        let overview = &upkeep.overview;
        let never = match overview.never_read {
            0 => String::new(),
            never => format!("{} never read", count(never, "pack")),
        };
        let since =
            overview.unread_since_ms.map_or_else(|| "nothing".to_owned(), |since| span(now_ms - since));
        figures.push(figure("Longest unread", since, never));
        figures.push(last_check(upkeep, now_ms));
    }
    figures
}

/// The last check or scrub that ended, whoever asked for it.
fn last_check(upkeep: &Upkeep, now_ms: i64) -> Figure {
    let mut checks = upkeep.runs.iter().filter(|run| matches!(run.kind, JobKind::Check | JobKind::Scrub));
    match checks.find(|run| run.state != Outcome::Running) {
        Some(run) => {
            let note = format!("{}: {}", run.kind.name(), run.state.name());
            figure("Last check", ago(run.started.as_milliseconds(), now_ms), note)
        }
        None => figure("Last check", "never", ""),
    }
}

fn show_upkeep(shown: &mut Shown, upkeep: &Upkeep, now_ms: i64) {
    shown.under_way = (upkeep.overview.sessions.iter())
        .map(|session| UnderWay {
            vm: session.vm.clone(),
            since: ago(session.opened_ms, now_ms),
            heard: ago(session.heard_ms, now_ms),
            stored: bytes(session.stored_bytes),
        })
        .collect();
    shown.jobs = upkeep.planned.iter().map(|planned| job(planned, upkeep, now_ms)).collect();
    shown.runs = upkeep.runs.iter().take(RUNS).map(|entry| run(entry, now_ms)).collect();
}

fn job(planned: &Planned, upkeep: &Upkeep, now_ms: i64) -> Job {
    let mut runs = upkeep.runs.iter().filter(|run| run.planned && run.job == planned.job);
    let running = runs.clone().find(|run| run.state == Outcome::Running);
    let running = running.map_or_else(String::new, |run| at(upkeep.phases.get(&run.id.to_string())));
    Job {
        name: planned.job.clone(),
        kind: planned.kind,
        when: planned.when.clone(),
        next: ago(planned.next.as_milliseconds().max(now_ms), now_ms),
        last: runs.find(|run| run.state != Outcome::Running).map(|entry| run(entry, now_ms)),
        running,
    }
}

/// What a running job is at.
fn at(phase: Option<&Phase>) -> String {
    match phase {
        Some(Phase { name, total: Some(total), done, .. }) if *total > 0 => {
            format!("{name}, {} %", (*done).min(*total) * 100 / total)
        }
        Some(Phase { name, .. }) => name.clone(),
        None => "running".to_owned(),
    }
}

fn run(entry: &Entry, now_ms: i64) -> Run {
    let began = entry.started.as_milliseconds();
    Run {
        job: entry.job.clone(),
        state: entry.state.name(),
        bad: entry.state.needs_attention(),
        told: entry.told.clone(),
        began: ago(began, now_ms),
        began_at: moment(began),
        took: entry.ended.map_or_else(String::new, |ended| span(ended.as_milliseconds() - began)),
    }
}

fn alarms(shown: &Shown, known: &Known, all: &[(i64, Kind)]) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    let damaged = all.iter().filter(|(_, kind)| *kind == Kind::Damaged).count();
    if damaged > 0 {
        let told = format!("{} lost data", count(damaged as u64, "snapshot"));
        alarms.push(Alarm { what: shown.name.clone(), told, link: shown.link.clone() });
    }
    let mut judged: Vec<(&str, bool)> = Vec::new();
    for entry in known.upkeep.iter().flat_map(Upkeep::lasting) {
        // Of each job, and of each kind that was asked for, only the last run that ended counts.
        if entry.state == Outcome::Running || judged.contains(&(entry.job.as_str(), entry.planned)) {
            continue;
        }
        judged.push((&entry.job, entry.planned));
        if entry.state.needs_attention() {
            let what = format!("{} / {}", shown.name, entry.job);
            let told = format!("{}: {}", entry.state.name(), entry.told);
            alarms.push(Alarm { what, told, link: format!("{}#jobs", shown.link) });
        }
    }
    for machine in shown.machines.iter().filter(|machine| !machine.late.is_empty()) {
        let what = format!("{} / {}", shown.name, machine.name);
        alarms.push(Alarm { what, told: machine.late.clone(), link: machine.link.clone() });
    }
    alarms
}

#[cfg(test)]
mod tests;
