//! What came of a job, in a line.

use underlay_store::check::CheckReport;
use underlay_store::wire::{JobState, kind};

use super::Outcome;
use crate::text::{bytes, count};

/// How a job that ended so is recorded.
pub(super) fn told(state: &JobState) -> (Outcome, String) {
    match state {
        JobState::Running => (Outcome::Running, String::new()),
        JobState::Collected(report) if report.damaged.is_empty() && report.missing == 0 => {
            let what = format!("freed {}, {} stay", bytes(report.freed()), count(report.kept.packs, "pack"));
            (Outcome::Done, what)
        }
        JobState::Collected(report) => {
            let what = match report.damaged.first() {
                Some(first) => format!("{}: {first}", count(report.damaged.len() as u64, "damaged pack")),
                None => format!("{} that snapshots need are missing", count(report.missing, "chunk or node")),
            };
            (Outcome::Damaged, what)
        }
        JobState::Checked(report) => checked(report),
        JobState::Repaired(report) => {
            let (_, found) = checked(&report.check);
            let marked = report.marked.len() as u64;
            let outcome = if marked > 0 { Outcome::Damaged } else { Outcome::Done };
            (outcome, format!("{found}; {} newly marked as damaged", count(marked, "snapshot")))
        }
        JobState::Forgotten(report) => {
            let mut what =
                format!("{} dropped, {} kept", count(report.dropped.len() as u64, "snapshot"), report.kept);
            if report.passed_over > 0 {
                what = format!("{what}, {} passed over: not committed by this server", report.passed_over);
            }
            (Outcome::Done, what)
        }
        JobState::Failed(problem) if problem.kind() == kind::INTERRUPTED => {
            (Outcome::CutOff, "the server ended meanwhile".to_owned())
        }
        JobState::Failed(problem) => (Outcome::Failed, problem.title.clone()),
    }
}

fn checked(report: &CheckReport) -> (Outcome, String) {
    let read = report.scrub.as_ref().map_or_else(String::new, |scrub| {
        format!("; {} read, {}", count(scrub.packs, "pack"), bytes(scrub.bytes))
    });
    if report.is_sound() {
        let looked = format!("{} and {}", count(report.snapshots, "snapshot"), count(report.packs, "pack"));
        return (Outcome::Done, format!("{looked} are sound{read}"));
    }
    let first = report
        .findings
        .first()
        .map_or_else(String::new, |finding| format!(": {}: {}", finding.object, finding.what));
    let affected = count(report.affected.len() as u64, "disk");
    (
        Outcome::Damaged,
        format!("{}, {affected} affected{first}{read}", count(report.findings.len() as u64, "finding")),
    )
}
