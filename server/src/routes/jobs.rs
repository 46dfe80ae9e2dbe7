//! Long work, started and asked after.

use axum::response::Response;
use tokio::time::timeout;
use underlay_store::id::JobId;
use underlay_store::wire::JobRequest;

use super::answer::{Refusal, done, json};
use super::call::Call;
use crate::jobs::WAIT;

pub(super) async fn start(mut call: Call) -> Result<Response, Refusal> {
    let job = call.parameter("job", JobId::from_hex)?;
    let repository = call.repository().await?;
    let request: JobRequest = call.json().await?;
    call.server.jobs.start(&repository, job, request)?;
    Ok(done())
}

/// Answers as soon as there is more to tell than was seen, or after a while.
pub(super) async fn status(call: Call) -> Result<Response, Refusal> {
    let job = call.parameter("job", JobId::from_hex)?;
    let seen = call.number("seen")?.unwrap_or(0);
    let repository = call.repository().await?;
    let mut status = call.server.jobs.status(repository.id(), job)?;
    let _ = timeout(WAIT, status.wait_for(|status| status.version > seen)).await;
    let now = status.borrow().clone();
    Ok(json(&now))
}

pub(super) async fn stop(call: Call) -> Result<Response, Refusal> {
    let job = call.parameter("job", JobId::from_hex)?;
    let repository = call.repository().await?;
    call.server.jobs.stop(repository.id(), job);
    Ok(done())
}
