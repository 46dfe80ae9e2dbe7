//! Answers, and what is answered instead.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use serde::Serialize;
use underlay_store::Error;
use underlay_store::wire::Problem;

use crate::hosted::Hosted;
use crate::limits::{Reserved, Share};

const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Long answers go out in pieces of so many bytes.
const PIECE: usize = 256 << 10;

/// Why a request is not done.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The repository's error.
    Error(Error),
    /// Anything else.
    Problem(Problem),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl Refusal {
    /// Draws the consequences: what was lost is let go of.
    pub(super) fn noted(self, share: &Share, hosted: Option<&Hosted>) -> Self {
        match &self {
            Self::Error(Error::OwnedElsewhere { .. }) => {
                if let Some(hosted) = hosted {
                    hosted.lost();
                }
            }
            Self::Error(Error::Session { session, state }) if *state != "committing" => share.ends(*session),
            Self::Error(error @ (Error::Backend { .. } | Error::Catalog { .. } | Error::File { .. })) => {
                tracing::error!(error = error as &dyn std::error::Error, "a request failed");
            }
            _ => {}
        }
        self
    }

    /// If this is damage, it is in what the client sent and not in what the server keeps.
    pub(super) fn of_sender(self) -> Self {
        match self {
            Self::Error(error) if error.is_damage() => {
                let mut problem = Problem::of(&error, false);
                problem.status = 422;
                Self::Problem(problem)
            }
            other => other,
        }
    }

    /// As it is told; with `sources`, also what libraries and the operating system said.
    pub(super) fn into_problem(self, sources: bool) -> Problem {
        match self {
            Self::Error(error) => Problem::of(&error, sources),
            Self::Problem(problem) if sources => problem,
            Self::Problem(problem) => problem.without_sources(),
        }
    }
}

/// A problem as an answer.
pub(crate) fn problem_answer(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = answer(status, PROBLEM, json_bytes(problem).into());
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

/// Done, and nothing to tell.
pub(super) fn done() -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

pub(super) fn json(value: &impl Serialize) -> Response {
    answer(StatusCode::OK, JSON, json_bytes(value).into())
}

/// A document, as stored.
pub(super) fn document(bytes: Bytes) -> Response {
    answer(StatusCode::OK, JSON, bytes.into())
}

pub(super) fn binary(bytes: Vec<u8>) -> Response {
    answer(StatusCode::OK, BINARY, bytes.into())
}

/// A long answer, whose memory counts until it is sent.
pub(super) fn reserved(bytes: Bytes, reserved: Reserved) -> Response {
    let length = HeaderValue::from(bytes.len());
    let pieces = stream::unfold((bytes, reserved), |(mut rest, reserved)| async move {
        if rest.is_empty() {
            return None;
        }
        let piece = rest.split_to(PIECE.min(rest.len()));
        Some((Ok::<_, std::convert::Infallible>(piece), (rest, reserved)))
    });
    let mut answer = answer(StatusCode::OK, BINARY, Body::from_stream(pieces));
    answer.headers_mut().insert(header::CONTENT_LENGTH, length);
    answer
}

fn answer(status: StatusCode, kind: HeaderValue, body: Body) -> Response {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn json_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what the server tells is made of maps with text keys")
}
