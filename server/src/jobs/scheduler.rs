//! What the server does by itself, when it is due.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use underlay_store::Error;
use underlay_store::check::CheckOptions;
use underlay_store::gc::GcOptions;
use underlay_store::id::JobId;
use underlay_store::snapshot::Timestamp;
use underlay_store::wire::{GcRequest, JobRequest};

use super::{Entry, History, Origin, Outcome, Work};
use crate::config::{JobConfig, JobKind};
use crate::hosted::Hosted;
use crate::server::Server;

/// Looks again no later than this: clocks may have been set.
const LONGEST: Duration = Duration::from_secs(20);
const SHORTEST: Duration = Duration::from_millis(200);
/// What cannot be begun is tried again after so long.
const RETRY: Duration = Duration::from_secs(10);
/// How long a repository may take to open before the next job's turn comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// What was cut off so often in a row waits for its next time.
const CUT_OFF: usize = 3;

/// When the job is next, from what is known of it; a time that has passed means now.
pub(crate) fn next(
    history: &History,
    repository: &str,
    job: &JobConfig,
    now: Timestamp,
    zone: &TimeZone,
) -> Timestamp {
    let (runs, since) = history.of_planned(repository, &job.name, now);
    next_after(&runs, since, job, zone)
}

/// `runs` are the job's, newest first.
pub(super) fn next_after(runs: &[Entry], since: Timestamp, job: &JobConfig, zone: &TimeZone) -> Timestamp {
    let cut_off = runs.iter().take_while(|run| run.state == Outcome::CutOff).count();
    match runs.first() {
        Some(last) if (1..CUT_OFF).contains(&cut_off) => last.started,
        Some(last) => job.schedule.next(last.started, zone),
        None => job.schedule.next(since, zone),
    }
}

/// Begins what is due, until the server ends.
pub(crate) async fn run(server: Arc<Server>, mut stopping: watch::Receiver<bool>) {
    loop {
        let (zone, mut pause) = (TimeZone::system(), LONGEST);
        for hosted in server.all_hosted() {
            for job in hosted.jobs() {
                let now = Timestamp::now();
                let at = next(server.jobs.history(), hosted.name(), job, now, &zone);
                let left = u64::try_from(at.as_milliseconds() - now.as_milliseconds()).unwrap_or(0);
                let wait = match left {
                    0 if begin(&server, hosted, job).await => continue,
                    0 => RETRY,
                    left => Duration::from_millis(left),
                };
                pause = pause.min(wait);
            }
        }
        tokio::select! {
            () = sleep(pause.max(SHORTEST)) => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
    }
}

/// Whether it has begun. It stays due otherwise.
async fn begin(server: &Server, hosted: &Hosted, job: &JobConfig) -> bool {
    let Ok(Ok(repository)) = timeout(PATIENCE, hosted.repository()).await else { return false };
    let origin = Origin { repository: hosted.name().to_owned(), job: job.name.clone(), planned: true };
    match server.jobs.start(&repository, JobId::random(), work(job), origin) {
        Ok(()) => true,
        // Another of its kind runs: its turn comes.
        Err(Error::Busy { .. }) => false,
        Err(error) => {
            tracing::error!(job = %job.name, error = &error as &dyn std::error::Error, "cannot begin");
            false
        }
    }
}

fn work(job: &JobConfig) -> Work {
    let gc = GcOptions { max_unused: job.max_unused, ..GcOptions::default() };
    match (job.kind, &job.forget) {
        (JobKind::Forget, Some(forget)) => Work::Forget(forget.clone()),
        (JobKind::Gc, _) => Work::Asked(JobRequest::Gc(GcRequest::from(&gc))),
        (JobKind::Scrub, _) => Work::Asked(JobRequest::Check(CheckOptions {
            scrub: true,
            budget: job.budget,
            ..CheckOptions::default()
        })),
        _ => Work::Asked(JobRequest::Check(CheckOptions { suspects: true, ..CheckOptions::default() })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn daily() -> JobConfig {
        let text = "listen = \"127.0.0.1:1\"\nstate = \"/s\"\n[[repository]]\nname = \"vms\"\nlocation = \"/r\"\n\
                    [[repository.job]]\nkind = \"check\"\nevery = \"1d\"\n";
        Config::parse(text).unwrap().repositories.remove(0).jobs.remove(0)
    }

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_milliseconds(hours * 3_600_000).unwrap()
    }

    fn run(state: Outcome, hours: i64) -> Entry {
        let (repository, job) = ("vms".to_owned(), "check".to_owned());
        let (id, told) = (JobId::new([1; 16]), String::new());
        let started = at(hours);
        Entry { repository, job, kind: JobKind::Check, id, planned: true, state, started, ended: None, told }
    }

    #[test]
    fn what_was_missed_is_due_once_and_what_was_cut_off_at_once() {
        let next = |runs: &[Entry]| next_after(runs, at(0), &daily(), &TimeZone::UTC);
        assert_eq!(next(&[]), at(24), "a new job waits for its first time");
        assert_eq!(next(&[run(Outcome::Done, 30)]), at(54));
        for ended in [Outcome::Failed, Outcome::Stopped, Outcome::Damaged] {
            assert_eq!(next(&[run(ended, 30), run(Outcome::CutOff, 29)]), at(54));
        }
        assert_eq!(next(&[run(Outcome::CutOff, 30)]), at(30));
        let twice = [run(Outcome::CutOff, 31), run(Outcome::CutOff, 30), run(Outcome::Done, 6)];
        assert_eq!(next(&twice), at(31));
        let thrice = [run(Outcome::CutOff, 32), run(Outcome::CutOff, 31), run(Outcome::CutOff, 30)];
        assert_eq!(next(&thrice), at(56), "it may be what ends the server");
    }
}
