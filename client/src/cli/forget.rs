//! `underlay forget` and `underlay protect`.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use jiff::Span;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use underlay_store::id::SnapshotId;
use underlay_store::names::ObjectName;
use underlay_store::snapshot::retention::{Candidate, Policy, Reason, apply_policy};

use super::App;
use super::open::{Opened, Snapshots};
use super::owning::Owning;
use super::report::Failure;
use super::text::{count, say, table};

/// Drop snapshots: those named, or those that a policy does not keep.
///
/// A policy works on each machine by itself, newest first; snapshots that lost data do not count. The newest good snapshot of a machine always stays, and so do protected ones.
/// Times are those the repository assigned, days and weeks those of this host's time zone. A dropped snapshot is gone at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay forget web@2026-11-23T17\n  \
                        underlay forget --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run\n  \
                        underlay forget --vm web --keep-last 3 --keep-within 30d")]
pub(super) struct Forget {
    /// VM@latest, VM@2026-11-23T17 (the beginning of its time), or the beginning of its id
    #[arg(conflicts_with = "policy", required_unless_present = "policy")]
    snapshots: Vec<String>,
    #[command(flatten)]
    policy: Keep,
    /// Only snapshots of this machine; can be given several times
    #[arg(long, value_name = "NAME", conflicts_with = "snapshots")]
    vm: Vec<String>,
    /// Say what would go and why the rest stays, and drop nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    owning: Owning,
}

/// What a policy keeps.
#[derive(Debug, Args)]
#[group(id = "policy", multiple = true)]
struct Keep {
    /// The newest N snapshots
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// The newest of each of the newest N hours that have one
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// The same for days
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// For weeks, which begin on Monday
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// For months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// For years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
    /// All that are at most this much older than the machine's newest, such as 30d, 12h or '1y 6mo'
    #[arg(long, value_name = "TIME", value_parser = positive_span)]
    keep_within: Option<Span>,
}

fn positive_span(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    if span.is_negative() { Err("a time to keep is not negative".to_owned()) } else { Ok(span) }
}

/// Protect a snapshot: no policy and no command drops it until that is lifted.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  underlay protect web@2026-11-23T17\n  underlay protect --off web@2026-11-23T17"
)]
pub(super) struct Protect {
    /// VM@latest, VM@2026-11-23T17 (the beginning of its time), or the beginning of its id
    snapshot: String,
    /// Lift the protection
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    owning: Owning,
}

/// What is decided about one snapshot.
struct Verdict {
    snapshot: SnapshotId,
    vm: String,
    time: String,
    /// Why it stays; none if it goes.
    reasons: Vec<Reason>,
}

impl Protect {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(self.owning.writing())?;
        let snapshots = app.snapshots(&opened)?;
        let snapshot = snapshots.select(&self.snapshot)?;
        app.wait(opened.authority.protect(snapshot.snapshot, !self.off))?;
        let protected = if self.off { "no longer protected" } else { "protected" };
        match app.global.json {
            true => say(json!({ "snapshot": snapshot.snapshot, "protected": !self.off })),
            false => say(format!(
                "snapshot {} of {} at {} is {protected}",
                snapshot.snapshot, snapshot.vm, snapshot.time
            )),
        }
    }
}

impl Forget {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(self.owning.writing_unless(self.dry_run))?;
        let snapshots = app.snapshots(&opened)?;
        let damaged = snapshots.report_damaged();
        let verdicts = match self.snapshots.is_empty() {
            true => self.by_policy(app, &opened, &snapshots)?,
            false => self.named(&snapshots)?,
        };
        let going: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.reasons.is_empty()).collect();
        if !self.dry_run {
            for verdict in &going {
                app.stop_if_asked()?;
                // Not to be left half-way: whoever has dropped a snapshot from the catalog deletes it.
                app.runtime.block_on(opened.authority.forget(verdict.snapshot))?;
            }
        }
        self.tell(app, &verdicts, going.len())?;
        if damaged > 0 && self.snapshots.is_empty() && !app.global.json {
            say(format!(
                "{} cannot be believed and stay; name them to drop them",
                count(damaged as u64, "snapshot")
            ))?;
        }
        Ok(())
    }

    fn named(&self, snapshots: &Snapshots) -> Result<Vec<Verdict>, Failure> {
        let mut seen = BTreeSet::new();
        let mut verdicts = Vec::new();
        for wanted in &self.snapshots {
            let verdict = match snapshots.select(wanted) {
                Ok(snapshot) => Verdict {
                    snapshot: snapshot.snapshot,
                    vm: snapshot.vm.clone(),
                    time: snapshot.time.to_string(),
                    reasons: Vec::new(),
                },
                // A damaged one is nobody's, and can be named by its id alone.
                Err(failure) => match damaged_of_id(snapshots, wanted) {
                    Some(snapshot) => {
                        Verdict { snapshot, vm: "?".into(), time: "?".into(), reasons: Vec::new() }
                    }
                    None => return Err(failure),
                },
            };
            if seen.insert(verdict.snapshot) {
                verdicts.push(verdict);
            }
        }
        Ok(verdicts)
    }

    fn by_policy(&self, app: &App, opened: &Opened, snapshots: &Snapshots) -> Result<Vec<Verdict>, Failure> {
        let protected = app.wait(opened.authority.protected())?;
        let marks = app.marks(opened)?;
        let keep = &self.policy;
        let policy = Policy {
            last: keep.keep_last,
            hourly: keep.keep_hourly,
            daily: keep.keep_daily,
            weekly: keep.keep_weekly,
            monthly: keep.keep_monthly,
            yearly: keep.keep_yearly,
            within: keep.keep_within,
        };
        let mut of_vm: BTreeMap<&str, Vec<Candidate>> = BTreeMap::new();
        for snapshot in &snapshots.sound {
            if self.vm.is_empty() || self.vm.contains(&snapshot.vm) {
                of_vm.entry(&snapshot.vm).or_default().push(Candidate {
                    snapshot: snapshot.snapshot,
                    time: snapshot.time,
                    protected: protected.contains(&snapshot.snapshot),
                    good: !marks.contains_key(&snapshot.snapshot),
                });
            }
        }
        if let Some(unknown) = self.vm.iter().find(|vm| !of_vm.contains_key(vm.as_str())) {
            return Err(Failure::usage(format!("there are no snapshots of {unknown}"))
                .hint("`underlay list` shows what there is"));
        }
        let mut verdicts = Vec::new();
        for (vm, candidates) in of_vm {
            let decided = apply_policy(&candidates, &policy, &TimeZone::system())?;
            verdicts.extend(decided.into_iter().map(|(candidate, reasons)| Verdict {
                snapshot: candidate.snapshot,
                vm: vm.to_owned(),
                time: candidate.time.to_string(),
                reasons,
            }));
        }
        Ok(verdicts)
    }

    fn tell(&self, app: &App, verdicts: &[Verdict], going: usize) -> Result<(), Failure> {
        if app.global.json {
            let verdicts = verdicts.iter().map(|verdict| {
                json!({
                    "snapshot": verdict.snapshot,
                    "vm": verdict.vm,
                    "time": verdict.time,
                    "kept": !verdict.reasons.is_empty(),
                    "reasons": verdict.reasons,
                })
            });
            return say(json!({ "dry_run": self.dry_run, "snapshots": Value::from_iter(verdicts) }));
        }
        let rows: Vec<Vec<String>> = verdicts.iter().map(|verdict| self.row(verdict)).collect();
        table(&["SNAPSHOT", "VM", "TIME", "VERDICT"], &rows)?;
        let done = if self.dry_run { "would be dropped" } else { "dropped" };
        say(format!("{} {done}, {} kept", count(going as u64, "snapshot"), verdicts.len() - going))
    }

    fn row(&self, verdict: &Verdict) -> Vec<String> {
        let reasons: Vec<String> =
            verdict.reasons.iter().map(|reason| format!("{reason:?}").to_lowercase()).collect();
        let told = match (reasons.is_empty(), self.dry_run) {
            (false, _) => format!("stays: {}", reasons.join(", ")),
            (true, true) => "would go".to_owned(),
            (true, false) => "gone".to_owned(),
        };
        vec![verdict.snapshot.to_string()[..12].to_owned(), verdict.vm.clone(), verdict.time.clone(), told]
    }
}

/// The damaged snapshot whose whole id this is.
fn damaged_of_id(snapshots: &Snapshots, wanted: &str) -> Option<SnapshotId> {
    let ids = snapshots.damaged.iter().filter_map(|damaged| match ObjectName::parse(&damaged.name) {
        Some(ObjectName::Snapshot(snapshot)) => Some(snapshot),
        _ => None,
    });
    ids.into_iter().find(|snapshot| snapshot.to_string() == wanted.to_ascii_lowercase())
}
