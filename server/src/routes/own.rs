//! What is asked of the server itself, and not of one of its repositories.

use std::fmt;
use std::sync::{Arc, LazyLock};

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use underlay_store::wire::kind;

use super::answer::{document, problem_answer};
use super::call::forbidden;
use super::content::Refused;
use super::{authenticate, unauthorized};
use crate::connection::Connection;
use crate::metrics::scrape;
use crate::openapi;
use crate::server::Server;
use crate::tokens::Scope;

/// A route of the server itself. All are asked with GET.
pub struct OwnRoute {
    /// The path, all of it.
    pub path: &'static str,
    /// The handler's name.
    pub name: &'static str,
    /// What it tells, in a line.
    pub summary: &'static str,
    /// Who may ask.
    pub asker: Asker,
    /// What kind of text it answers.
    pub media_type: &'static str,
    /// A status that is no success and is told in the same kind of text, and what it means.
    pub or_else: Option<(u16, &'static str)>,
    pub(super) run: fn(Arc<Server>, Request) -> BoxFuture<'static, Response>,
}

/// Who may ask the server something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Everyone.
    Everyone,
    /// Who has a valid token.
    Known,
    /// Who has a token with this scope, for all machines.
    Trusted(Scope),
}

impl Asker {
    /// What else is answered to who may not.
    pub fn refuses(self) -> &'static [Refused] {
        match self {
            Self::Everyone => &[],
            Self::Known => &[(401, kind::UNAUTHORIZED)],
            Self::Trusted(_) => &[(401, kind::UNAUTHORIZED), (403, kind::FORBIDDEN)],
        }
    }
}

impl fmt::Debug for OwnRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every route of the server itself.
pub static OWN_ROUTES: &[OwnRoute] = &[
    OwnRoute {
        path: "/healthz",
        name: "healthz",
        summary: "The server runs",
        asker: Asker::Everyone,
        media_type: TEXT,
        or_else: None,
        run: |_, _| Box::pin(async { "ok\n".into_response() }),
    },
    OwnRoute {
        path: "/readyz",
        name: "readyz",
        summary: "Every configured repository can be used",
        asker: Asker::Everyone,
        media_type: TEXT,
        or_else: Some((503, "A repository cannot be opened.")),
        run: |server, _| Box::pin(ready(server)),
    },
    OwnRoute {
        path: "/metrics",
        name: "metrics",
        summary: "For Prometheus; the configuration can open it to everyone",
        asker: Asker::Trusted(Scope::Maintain),
        media_type: PROMETHEUS,
        or_else: None,
        run: |server, request| Box::pin(metrics(server, request)),
    },
    OwnRoute {
        path: "/v1/openapi.json",
        name: "openapi",
        summary: "This document",
        asker: Asker::Known,
        media_type: "application/json",
        or_else: None,
        run: |server, request| Box::pin(async move { described(&server, &request) }),
    },
];

async fn ready(server: Arc<Server>) -> Response {
    match server.is_ready().await {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "a repository cannot be opened\n").into_response(),
    }
}

async fn metrics(server: Arc<Server>, request: Request) -> Response {
    let text = match authenticate(&server, &request) {
        _ if server.metrics_are_public => scrape(&server, |_| true).await,
        None => return problem_answer(&unauthorized()),
        Some(token) if !(token.has_any(&[Scope::Maintain]) && token.covers_all_machines()) => {
            let what = "this needs a token with the scope maintain, for all machines";
            return problem_answer(&forbidden(what));
        }
        Some(token) => {
            let _used = request.extensions().get::<Arc<Connection>>().map(|connection| connection.request());
            scrape(&server, |name| token.covers_repository(name)).await
        }
    };
    ([(header::CONTENT_TYPE, PROMETHEUS)], text).into_response()
}

/// Nothing below `/v1` answers who has no token: this is no exception, though it tells nothing that the documentation does not.
fn described(server: &Server, request: &Request) -> Response {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| openapi::document().to_string().into());
    if authenticate(server, request).is_none() {
        return problem_answer(&unauthorized());
    }
    let _used = request.extensions().get::<Arc<Connection>>().map(|connection| connection.request());
    document(DOCUMENT.clone())
}
