//! The routes. All are built from three tables, and nobody reaches a repository but through [`dispatch`].

mod answer;
mod call;
mod content;
mod direct;
mod jobs;
mod keys;
mod own;
mod read;
mod sessions;
mod snapshots;
mod table;
mod verify;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::header;
use axum::response::Response;
use axum::routing::{MethodFilter, get, on};
use futures::FutureExt;
use underlay_store::snapshot::Timestamp;
use underlay_store::wire::{Problem, kind};

pub use content::{Content, Layout, Query, Refused, SchemaOf};
pub use own::{Asker, OWN_ROUTES, OwnRoute};
pub use table::{Machines, ROUTES, Route};

use crate::connection::Connection;
use crate::page::PAGES;
use crate::server::Server;
use crate::tokens::{Scope, Token};
pub(crate) use answer::problem_answer;
use call::Call;

/// The prefix of every route of a repository.
pub const REPOSITORIES: &str = "/v1/repositories/{repository}";

/// The variable parts of a path.
type Parameters = Result<RawPathParams, RawPathParamsRejection>;

/// Everything the server answers.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let mut router = Router::new();
    for route in OWN_ROUTES {
        let handler =
            async |State(server): State<Arc<Server>>, request: Request| (route.run)(server, request).await;
        router = router.route(route.path, get(handler));
    }
    for page in PAGES {
        let filter = MethodFilter::try_from(page.method.clone()).expect("the table has usual methods");
        let handler =
            async |State(server): State<Arc<Server>>, request: Request| (page.run)(server, request).await;
        router = router.route(page.path, on(filter, handler));
    }
    for route in ROUTES {
        let filter = MethodFilter::try_from(route.method.clone()).expect("the table has usual methods");
        let path = format!("{REPOSITORIES}{}", route.path);
        let handler =
            async move |State(server): State<Arc<Server>>, parameters: Parameters, request: Request| {
                match parameters {
                    Ok(parameters) => dispatch(route, server, parameters, request).await,
                    // Bytes that are no text name nothing.
                    Err(_) => unknown(State(server), request).await,
                }
            };
        router = router.route(&path, on(filter, handler));
    }
    router.fallback(unknown).method_not_allowed_fallback(unknown).with_state(server)
}

/// A path or method that is none: nothing but that is told, and only to who has a token.
async fn unknown(State(server): State<Arc<Server>>, request: Request) -> Response {
    match authenticate(&server, &request) {
        Some(_) => problem_answer(&Problem::new(404, kind::NO_ROUTE, "there is no such path or method")),
        None => problem_answer(&unauthorized()),
    }
}

/// Counts what is answered.
async fn dispatch(
    route: &'static Route,
    server: Arc<Server>,
    parameters: RawPathParams,
    request: Request,
) -> Response {
    let (started, counted) = (Instant::now(), Arc::clone(&server));
    let answer = decide(route, server, parameters, request).await;
    let announced = answer.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
    let length = announced.or_else(|| answer.body().size_hint().exact()).unwrap_or(0);
    let path = if route.path.is_empty() { "/" } else { route.path };
    let (method, status) = (route.method.as_str(), answer.status().as_u16());
    counted.metrics.answered(method, path, status, started.elapsed(), length);
    answer
}

/// Authenticates, authorises, limits; only then does the handler run.
async fn decide(
    route: &'static Route,
    server: Arc<Server>,
    parameters: RawPathParams,
    request: Request,
) -> Response {
    let started = Instant::now();
    let Some(token) = authenticate(&server, &request) else {
        let peer = request.extensions().get::<Arc<Connection>>().map(|connection| connection.peer());
        tracing::info!(path = route.path, method = %route.method, ?peer, "no valid token");
        return problem_answer(&unauthorized());
    };
    let _used = request.extensions().get::<Arc<Connection>>().map(|connection| connection.request());
    let token_id = token.id;
    let sources = token.has_any(&[Scope::Maintain, Scope::Admin]);
    let outcome = match Call::new(route, server, token, &parameters, request) {
        Ok(call) => {
            let (share, hosted) = (Arc::clone(&call.share), call.hosted().ok().cloned());
            let done = AssertUnwindSafe((route.run)(call)).catch_unwind().await;
            done.unwrap_or_else(|_| Err(made_a_mistake().into()))
                .map_err(|refusal| refusal.noted(&share, hosted.as_deref()).into_problem(sources))
        }
        Err(problem) => Err(problem),
    };
    let answer = match outcome {
        Ok(answer) => answer,
        Err(problem) => problem_answer(&problem),
    };
    let (status, ms) = (answer.status().as_u16(), started.elapsed().as_millis());
    match status {
        500.. => tracing::warn!(token = %token_id, method = %route.method, path = route.path, status, ms),
        400.. => tracing::info!(token = %token_id, method = %route.method, path = route.path, status, ms),
        _ => tracing::debug!(token = %token_id, method = %route.method, path = route.path, status, ms),
    }
    answer
}

fn authenticate(server: &Server, request: &Request) -> Option<Arc<Token>> {
    let text = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    server.tokens.authenticate(text.strip_prefix("Bearer ")?, Timestamp::now())
}

fn unauthorized() -> Problem {
    Problem::new(401, kind::UNAUTHORIZED, "this needs a valid token")
}

fn made_a_mistake() -> Problem {
    Problem::new(500, kind::FAILED, "the server made a mistake; its log says more")
}
