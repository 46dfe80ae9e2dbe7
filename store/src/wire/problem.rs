//! Errors on the wire: `application/problem+json`, with what it takes to make the same error of it again.

use std::error::Error as StdError;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::words::word;
use crate::Error;
use crate::id::{SessionId, SnapshotId};

/// What stands before the kind in `type`.
const URN: &str = "urn:underlay:problem:";
/// Sources told of one error.
const SOURCES: usize = 8;

/// Kinds of problems that are no error of a repository.
pub mod kind {
    /// No valid token.
    pub const UNAUTHORIZED: &str = "unauthorized";
    /// The token may not do this.
    pub const FORBIDDEN: &str = "forbidden";
    /// There is no such path or method.
    pub const NO_ROUTE: &str = "no-route";
    /// The request means nothing.
    pub const MALFORMED: &str = "malformed";
    /// The body is too long.
    pub const TOO_LARGE: &str = "too-large";
    /// The body comes too slowly.
    pub const TOO_SLOW: &str = "too-slow";
    /// Too much at once.
    pub const TOO_MANY: &str = "too-many";
    /// The server stops.
    pub const INTERRUPTED: &str = "interrupted";
    /// There is no such job.
    pub const NO_JOB: &str = "no-job";
    /// Nobody is sent to the bucket of this repository.
    pub const NOT_DIRECT: &str = "not-direct";
    /// Anything else.
    pub const FAILED: &str = "failed";
}

/// What went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Problem {
    /// `urn:underlay:problem:` and the kind.
    #[serde(rename = "type")]
    pub urn: String,
    /// What a person reads.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    #[serde(flatten)]
    members: Box<Members>,
}

/// What it takes to make the same error of it again. Fields that a kind does not have are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
struct Members {
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    known: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<SnapshotId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
}

impl Problem {
    /// A problem that is no error of a repository.
    pub fn new(status: u16, kind: &str, title: impl Into<String>) -> Self {
        Self { urn: format!("{URN}{kind}"), title: title.into(), status, ..Self::default() }
    }

    /// The same without what libraries and the operating system said.
    #[must_use]
    pub fn without_sources(mut self) -> Self {
        self.members.sources.clear();
        self
    }

    /// What kind of problem it is.
    pub fn kind(&self) -> &str {
        self.urn.strip_prefix(URN).unwrap_or(&self.urn)
    }

    /// The problem that tells of `error`; with `sources`, also what libraries and the operating system said.
    pub fn of(error: &Error, sources: bool) -> Self {
        let (status, kind) = status_and_kind(error);
        let mut problem = Self::new(status, kind, error.to_string());
        let members = &mut problem.members;
        let text = |text: &str| Some(text.to_owned());
        match error {
            Error::Damaged { object, what } => (members.object, members.what) = (text(object), text(what)),
            Error::Missing { object } => members.object = text(object),
            Error::Version { object, found, known } => {
                (members.object, members.found, members.known) = (text(object), Some(*found), Some(*known));
            }
            Error::Backend { action, object, .. } => {
                (members.action, members.object) = (text(action), text(object));
            }
            Error::Catalog { path, action, .. } => problem.of_file(error, path, action),
            Error::File { path, action, .. } => problem.of_file(error, path, action),
            Error::InUse { path } => problem.of_file(error, path, "use"),
            Error::Key { object, reason } => {
                (members.object, members.reason) = (text(object), text(reason));
            }
            Error::OwnedElsewhere { host, generation } => {
                (members.host, members.generation) = (text(host), Some(*generation));
            }
            Error::Session { session, state } => {
                (members.session, members.state) = (Some(*session), text(state));
            }
            Error::Unproven { snapshot, reason } => {
                (members.snapshot, members.reason) = (Some(*snapshot), text(reason));
            }
            Error::Invalid { what, value, rule } => {
                (members.what, members.value, members.rule) = (text(what), text(value), text(rule));
            }
            Error::NoSnapshot { wanted } => members.wanted = text(wanted),
            Error::AmbiguousSnapshot { wanted, count } => {
                (members.wanted, members.count) = (text(wanted), Some(*count as u64));
            }
            Error::Protected { snapshot } => members.snapshot = Some(*snapshot),
            Error::Busy { what } => members.what = text(what),
            _ => {}
        }
        if sources {
            let mut source = StdError::source(error);
            while let Some(next) = source.filter(|_| problem.members.sources.len() < SOURCES) {
                problem.members.sources.push(next.to_string());
                source = next.source();
            }
        }
        problem
    }

    /// Folders of the server are nobody's business.
    fn of_file(&mut self, error: &Error, path: &Path, action: &str) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.title = error.to_string().replace(&path.display().to_string(), &name);
        (self.members.object, self.members.action) = (Some(name), Some(action.to_owned()));
    }

    /// The error that `server` told of; `location` is the repository as the user named it.
    pub fn into_error(self, server: &str, location: &str) -> Error {
        let title = self.title.clone();
        self.known_error(location).unwrap_or_else(|other| match other.kind() {
            kind::UNAUTHORIZED | kind::FORBIDDEN => Error::Denied { server: server.to_owned(), what: title },
            _ => Error::Server { server: server.to_owned(), what: title },
        })
    }

    /// The repository's error; the problem itself if it is none, or lacks what it should have.
    fn known_error(self, location: &str) -> Result<Error, Box<Self>> {
        let copy = self.clone();
        self.parts(location).ok_or_else(|| Box::new(copy))
    }

    fn parts(self, location: &str) -> Option<Error> {
        let kind = self.kind().to_owned();
        let members = self.members;
        let source = || members.sources.join(": ").into();
        let file_source = || std::io::Error::other(members.sources.join(": "));
        let location = location.to_owned();
        Some(match kind.as_str() {
            "no-repository" => Error::NoRepository { location },
            "already-exists" => Error::AlreadyExists { location },
            "damaged" => Error::Damaged { object: members.object?, what: members.what? },
            "missing" => Error::Missing { object: members.object? },
            "version" => {
                Error::Version { object: members.object?, found: members.found?, known: members.known? }
            }
            "backend" => Error::Backend {
                action: word(members.action.as_deref()?, "use"),
                source: source(),
                object: members.object?,
            },
            "catalog" => Error::Catalog {
                action: word(members.action.as_deref()?, "use the database"),
                source: source(),
                path: members.object?.into(),
            },
            "file" => Error::File {
                action: word(members.action.as_deref()?, "use"),
                source: file_source(),
                path: members.object?.into(),
            },
            "in-use" => Error::InUse { path: members.object?.into() },
            "key" => Error::Key { object: members.object?, reason: members.reason? },
            "owned-elsewhere" => {
                Error::OwnedElsewhere { host: members.host?, generation: members.generation? }
            }
            "session" => {
                Error::Session { session: members.session?, state: word(members.state.as_deref()?, "lost") }
            }
            "unproven" => Error::Unproven { snapshot: members.snapshot?, reason: members.reason? },
            "invalid" => Error::Invalid {
                what: word(members.what.as_deref()?, "value"),
                value: members.value?,
                rule: members.rule?,
            },
            "no-snapshot" => Error::NoSnapshot { wanted: members.wanted? },
            "ambiguous" => Error::AmbiguousSnapshot {
                wanted: members.wanted?,
                count: usize::try_from(members.count?).ok()?,
            },
            "protected" => Error::Protected { snapshot: members.snapshot? },
            "busy" => Error::Busy { what: word(members.what.as_deref()?, "this") },
            _ => return None,
        })
    }
}

fn status_and_kind(error: &Error) -> (u16, &'static str) {
    match error {
        Error::NoRepository { .. } => (404, "no-repository"),
        Error::AlreadyExists { .. } => (409, "already-exists"),
        Error::Damaged { .. } => (500, "damaged"),
        Error::Missing { .. } => (404, "missing"),
        Error::Version { .. } => (500, "version"),
        Error::Backend { .. } => (502, "backend"),
        Error::Catalog { .. } => (500, "catalog"),
        Error::File { .. } => (500, "file"),
        Error::InUse { .. } => (503, "in-use"),
        Error::Key { .. } => (422, "key"),
        Error::OwnedElsewhere { .. } => (409, "owned-elsewhere"),
        Error::Session { .. } => (409, "session"),
        Error::Unproven { .. } => (422, "unproven"),
        Error::Invalid { .. } => (422, "invalid"),
        Error::NoSnapshot { .. } => (404, "no-snapshot"),
        Error::AmbiguousSnapshot { .. } => (409, "ambiguous"),
        Error::Protected { .. } => (409, "protected"),
        Error::Busy { .. } => (409, "busy"),
        Error::Interrupted => (503, kind::INTERRUPTED),
        Error::Denied { .. } => (403, kind::FORBIDDEN),
        Error::Location { .. }
        | Error::WrongPassphrase { .. }
        | Error::NeedsRestoreKey
        | Error::Unreachable { .. }
        | Error::Server { .. }
        | Error::EncodeCheck => (500, kind::FAILED),
    }
}
