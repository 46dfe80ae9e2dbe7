//! Long work, started and asked after.

use axum::response::Response;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::timeout;
use underlay_store::id::JobId;
use underlay_store::snapshot::Timestamp;
use underlay_store::wire::{JobRequest, JobState, JobStatus, Phase};

use super::answer::{Refusal, done, json};
use super::call::{Call, malformed};
use crate::config::JobKind;
use crate::jobs::{Origin, Outcome, WAIT, Work, next};

/// What is planned, what runs, what ran.
#[derive(Serialize, JsonSchema)]
pub(super) struct Listed {
    planned: Vec<Planned>,
    history: Vec<Run>,
}

#[derive(Serialize, JsonSchema)]
struct Planned {
    job: String,
    kind: JobKind,
    when: String,
    next: Timestamp,
    running: bool,
}

#[derive(Serialize, JsonSchema)]
struct Run {
    job: String,
    kind: JobKind,
    id: JobId,
    planned: bool,
    state: Outcome,
    started: Timestamp,
    ended: Option<Timestamp>,
    told: String,
    phase: Option<Phase>,
}

pub(super) async fn list(call: Call) -> Result<Response, Refusal> {
    call.repository().await?;
    let hosted = call.hosted()?;
    let (jobs, now, zone) = (&call.server.jobs, Timestamp::now(), TimeZone::system());
    let entries = jobs.history().all().into_iter().rev().filter(|entry| entry.repository == hosted.name());
    let history: Vec<Run> = entries
        .map(|entry| Run {
            phase: if entry.state == Outcome::Running { jobs.phase(entry.id) } else { None },
            job: entry.job,
            kind: entry.kind,
            id: entry.id,
            planned: entry.planned,
            state: entry.state,
            started: entry.started,
            ended: entry.ended,
            told: entry.told,
        })
        .collect();
    let is_running =
        |job: &str| history.iter().any(|run| run.planned && run.job == job && run.state == Outcome::Running);
    let planned = hosted.jobs().iter().map(|job| Planned {
        job: job.name.clone(),
        kind: job.kind,
        when: job.schedule.to_string(),
        next: next(jobs.history(), hosted.name(), job, now, &zone),
        running: is_running(&job.name),
    });
    let planned = planned.collect();
    Ok(json(&Listed { planned, history }))
}

pub(super) async fn start(mut call: Call) -> Result<Response, Refusal> {
    let job = call.parameter("job", JobId::from_hex)?;
    let repository = call.repository().await?;
    let request: JobRequest = call.json().await?;
    if let JobRequest::Gc(request) = &request {
        request.validate().map_err(malformed)?;
    }
    let work = Work::Asked(request);
    let name = call.hosted()?.name();
    let origin = Origin::client(name, &work);
    call.server.jobs.start(&repository, job, work, origin)?;
    Ok(done())
}

/// Answers as soon as there is more to tell than was seen, or it has ended, or after a while.
pub(super) async fn status(call: Call) -> Result<Response, Refusal> {
    let job = call.parameter("job", JobId::from_hex)?;
    let seen = call.number("seen")?.unwrap_or(0);
    let repository = call.repository().await?;
    let mut status = call.server.jobs.status(repository.id(), job)?;
    // Of what has ended there is no news to wait for.
    let has_news = |status: &JobStatus| status.version > seen || !matches!(status.state, JobState::Running);
    let _ = timeout(WAIT, status.wait_for(has_news)).await;
    let now = status.borrow().clone();
    Ok(json(&now))
}

pub(super) async fn stop(call: Call) -> Result<Response, Refusal> {
    let job = call.parameter("job", JobId::from_hex)?;
    let repository = call.repository().await?;
    call.server.jobs.stop(repository.id(), job);
    Ok(done())
}
