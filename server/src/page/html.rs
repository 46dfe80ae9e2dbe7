//! Pages as bytes, and the headers that keep them to themselves.

use askama::Template;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;

use super::shown::{Alarm, Figure, Shown};
use super::timeline::Timeline;

/// Nothing from elsewhere, no scripts, nobody's frame.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What is around every page.
#[derive(Clone)]
pub(super) struct Around {
    /// When it was made, in UTC.
    pub(super) now: String,
    /// What the visitor's token is called.
    pub(super) visitor: String,
}

#[derive(Template)]
#[template(path = "login.html")]
pub(super) struct Login {
    pub(super) wrong: bool,
}

#[derive(Template)]
#[template(path = "index.html")]
pub(super) struct Index {
    pub(super) around: Around,
    pub(super) alarms: Vec<Alarm>,
    pub(super) repositories: Vec<Shown>,
}

#[derive(Template)]
#[template(path = "repository.html")]
pub(super) struct RepositoryPage {
    pub(super) around: Around,
    pub(super) shown: Shown,
}

/// A snapshot in a list.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) time: String,
    pub(super) ago: String,
    pub(super) disks: String,
    pub(super) size: String,
    pub(super) read: String,
    pub(super) new: String,
    pub(super) uploaded: String,
    pub(super) consistency: &'static str,
    /// `plain`, `protected` or `damaged`.
    pub(super) kind: &'static str,
}

#[derive(Template)]
#[template(path = "machine.html")]
pub(super) struct MachinePage {
    pub(super) around: Around,
    pub(super) repository: String,
    pub(super) link: String,
    pub(super) name: String,
    pub(super) line: Timeline,
    pub(super) figures: Vec<Figure>,
    pub(super) rows: Vec<Row>,
    /// Snapshots that are not in the list.
    pub(super) more: usize,
}

#[derive(Template)]
#[template(path = "nothing.html")]
pub(super) struct Nothing {
    pub(super) around: Around,
}

pub(super) fn page(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => answer(status, "text/html; charset=utf-8", text),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a page cannot be made");
            answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", "the log says more\n")
        }
    }
}

pub(super) fn style() -> Response {
    const STYLE: &str = include_str!("../../templates/style.css");
    let mut answer = answer(StatusCode::OK, "text/css; charset=utf-8", STYLE);
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=300"));
    answer
}

/// Elsewhere on this server.
pub(super) fn go_to(place: &'static str) -> Response {
    let mut answer = answer(StatusCode::SEE_OTHER, "text/plain; charset=utf-8", "");
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static(place));
    answer
}

pub(super) fn answer(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}
