//! What is told when somebody scrapes.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use jiff::tz::TimeZone;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::repository::Repository;
use underlay_store::snapshot::Timestamp;

use super::Metrics;
use super::exposition::{Exposition, Kind};
use crate::hosted::Hosted;
use crate::jobs::{Outcome, next};
use crate::server::Server;

type Name = (&'static str, Kind, &'static str);

const REQUESTS: Name = ("underlay_http_requests_total", Kind::Counter, "Requests that were answered.");
const DURATION: Name = (
    "underlay_http_request_duration_seconds",
    Kind::Summary,
    "From a request's head until its answer began.",
);
const RECEIVED: Name = ("underlay_http_received_bytes_total", Kind::Counter, "Bytes of bodies that came.");
const SENT: Name = ("underlay_http_sent_bytes_total", Kind::Counter, "Bytes of bodies of answers.");
const ASKED: Name = ("underlay_chunks_asked_total", Kind::Counter, "Chunks that backups asked for.");
const KNOWN: Name =
    ("underlay_chunks_known_total", Kind::Counter, "Of those, the ones that were stored already.");
const STORED: Name = ("underlay_packs_stored_total", Kind::Counter, "Packs that backups stored.");
const MEMORY: Name = ("underlay_body_memory_bytes", Kind::Gauge, "Memory that bodies and answers take now.");
const MEMORY_LIMIT: Name =
    ("underlay_body_memory_limit_bytes", Kind::Gauge, "Memory that bodies and answers may take.");
const UP: Name = ("underlay_repository_up", Kind::Gauge, "1: it can be used. 0: it cannot, see the log.");
const SESSIONS: Name = ("underlay_sessions_open", Kind::Gauge, "Backups under way.");
const PACKS: Name = ("underlay_packs", Kind::Gauge, "Packs in the repository.");
const PACK_BYTES: Name = ("underlay_pack_bytes", Kind::Gauge, "Bytes of those: what the repository takes.");
const CHUNKS: Name = ("underlay_chunks", Kind::Gauge, "Chunks that are stored.");
const CHUNK_BYTES: Name = ("underlay_chunk_plain_bytes", Kind::Gauge, "Bytes of those before compression.");
const DAMAGED: Name = ("underlay_snapshots_damaged", Kind::Gauge, "Snapshots that are marked as damaged.");
const NEVER_READ: Name =
    ("underlay_packs_never_read", Kind::Gauge, "Packs that no scrub has read since they were stored.");
const UNREAD_SINCE: Name = (
    "underlay_pack_unread_since_timestamp_seconds",
    Kind::Gauge,
    "When the pack was stored or read that waits longest for a scrub.",
);
const VM_SNAPSHOTS: Name = ("underlay_vm_snapshots", Kind::Gauge, "Snapshots of a machine.");
const VM_NEWEST: Name =
    ("underlay_vm_newest_snapshot_timestamp_seconds", Kind::Gauge, "Time of a machine's newest snapshot.");
const JOB_SUCCESS: Name = (
    "underlay_job_last_success_timestamp_seconds",
    Kind::Gauge,
    "When a scheduled job last ended well; missing if it never did.",
);
const JOB_DURATION: Name =
    ("underlay_job_last_duration_seconds", Kind::Gauge, "How long the last run took that ended.");
const JOB_FAILED: Name =
    ("underlay_job_failed", Kind::Gauge, "1: the last run that ended failed, was cut off, or found damage.");
const JOB_RUNNING: Name = ("underlay_job_running", Kind::Gauge, "1: it runs now.");
const JOB_NEXT: Name = ("underlay_job_next_timestamp_seconds", Kind::Gauge, "When it is due next.");

/// Everything about the server, and about the repositories whose names `is_shown` takes.
pub(crate) async fn scrape(server: &Server, is_shown: impl Fn(&str) -> bool) -> String {
    let mut text = Exposition::default();
    counters(&server.metrics, &mut text);
    let (used, limit) = server.shares.memory();
    text.add(MEMORY, "", &[], float(used));
    text.add(MEMORY_LIMIT, "", &[], float(limit));
    for hosted in server.all_hosted().filter(|hosted| is_shown(hosted.name())) {
        jobs(server, hosted, &mut text);
        let up = match hosted.repository().await {
            Ok(repository) => match repository_figures(hosted.name(), &repository, &mut text).await {
                Ok(()) => 1.0,
                Err(error) => {
                    tracing::error!(
                        repository = hosted.name(),
                        error = &error as &dyn std::error::Error,
                        "no figures"
                    );
                    0.0
                }
            },
            Err(_) => 0.0,
        };
        text.add(UP, "", &[("repository", hosted.name())], up);
    }
    text.text()
}

fn counters(metrics: &Metrics, text: &mut Exposition) {
    for (name, counter) in [
        (RECEIVED, &metrics.received),
        (SENT, &metrics.sent),
        (ASKED, &metrics.chunks_asked),
        (KNOWN, &metrics.chunks_known),
        (STORED, &metrics.packs_stored),
    ] {
        text.add(name, "", &[], float(counter.load(Ordering::Relaxed)));
    }
    let requests = metrics.requests.lock().unwrap_or_else(PoisonError::into_inner);
    for ((method, route, status), (number, took)) in requests.iter() {
        let status = status.to_string();
        let labels = [("method", method.as_str()), ("route", route), ("status", &status)];
        text.add(REQUESTS, "", &labels, float(*number));
        text.add(DURATION, "_sum", &labels, took.as_secs_f64());
        text.add(DURATION, "_count", &labels, float(*number));
    }
}

fn jobs(server: &Server, hosted: &Hosted, text: &mut Exposition) {
    let (history, now, zone) = (server.jobs.history(), Timestamp::now(), TimeZone::system());
    for job in hosted.jobs() {
        let (runs, _) = history.of_planned(hosted.name(), &job.name, now);
        let labels = [("repository", hosted.name()), ("job", &job.name), ("kind", job.kind.name())];
        let runs_now = runs.iter().any(|run| run.state == Outcome::Running);
        text.add(JOB_RUNNING, "", &labels, f64::from(u8::from(runs_now)));
        text.add(
            JOB_NEXT,
            "",
            &labels,
            seconds(next(history, hosted.name(), job, now, &zone).as_milliseconds()),
        );
        let last = runs.iter().find(|run| run.state != Outcome::Running);
        let failed = last.is_some_and(|run| run.state.needs_attention());
        text.add(JOB_FAILED, "", &labels, f64::from(u8::from(failed)));
        let took = last.and_then(|run| Some(run.ended?.as_milliseconds() - run.started.as_milliseconds()));
        if let Some(took) = took {
            text.add(JOB_DURATION, "", &labels, seconds(took));
        }
        let success = runs.iter().find(|run| run.state == Outcome::Done).and_then(|run| run.ended);
        if let Some(success) = success {
            text.add(JOB_SUCCESS, "", &labels, seconds(success.as_milliseconds()));
        }
    }
}

async fn repository_figures(name: &str, repository: &Repository, text: &mut Exposition) -> Result<(), Error> {
    let (totals, overview) = (repository.totals().await?, repository.overview().await?);
    let damaged = repository.marked().await?.len() as u64;
    let labels = [("repository", name)];
    for (metric, value) in [
        (SESSIONS, overview.sessions.len() as u64),
        (PACKS, totals.packs),
        (PACK_BYTES, totals.pack_bytes),
        (CHUNKS, totals.chunks),
        (CHUNK_BYTES, totals.plain_bytes),
        (DAMAGED, damaged),
        (NEVER_READ, overview.never_read),
    ] {
        text.add(metric, "", &labels, float(value));
    }
    if let Some(since) = overview.unread_since_ms {
        text.add(UNREAD_SINCE, "", &labels, seconds(since));
    }
    for machine in &overview.machines {
        let labels = [("repository", name), ("vm", &machine.vm)];
        text.add(VM_SNAPSHOTS, "", &labels, float(machine.snapshots));
        text.add(VM_NEWEST, "", &labels, seconds(machine.newest_ms));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn float(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "exact for hundreds of thousands of years")]
fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}
