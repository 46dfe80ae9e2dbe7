//! One request that may be made: whose it is, what it asks, and its body.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{RawPathParams, Request};
use axum::http::header;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use underlay_store::id::{SessionHandle, SessionId};
use underlay_store::repository::Repository;
use underlay_store::wire::{Problem, kind};

use super::answer::Refusal;
use super::table::{Machines, Route};
use crate::hosted::Hosted;
use crate::limits::{Reserved, Share};
use crate::server::Server;
use crate::tokens::Token;

/// A request whose token may make it.
pub(super) struct Call {
    pub(super) server: Arc<Server>,
    pub(super) token: Arc<Token>,
    pub(super) share: Arc<Share>,
    /// `None` if the configuration names no such repository.
    hosted: Option<Arc<Hosted>>,
    route: &'static Route,
    parameters: Vec<(String, String)>,
    query: String,
    /// As the client announced it, in bytes.
    length: Option<u64>,
    /// Only ever used by the one who has it all; a body alone cannot be shared.
    body: Mutex<BodyDataStream>,
    _request: OwnedSemaphorePermit,
}

/// A body that is whole, and the memory it takes.
pub(super) struct WholeBody {
    pub(super) bytes: Bytes,
    pub(super) _reserved: Reserved,
}

impl Call {
    /// Finds out whether the token may make this request.
    ///
    /// # Errors
    /// It may not; the same whether or not there is such a repository.
    pub(super) fn new(
        route: &'static Route,
        server: Arc<Server>,
        token: Arc<Token>,
        parameters: &RawPathParams,
        request: Request,
    ) -> Result<Self, Problem> {
        let parameters: Vec<(String, String)> =
            parameters.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let name = parameters.iter().find(|(name, _)| name == "repository").map_or("", |(_, value)| value);
        if !token.covers_repository(name) {
            return Err(forbidden("this token is not for that repository"));
        }
        if !token.has_any(route.needs) {
            let names: Vec<&str> = route.needs.iter().map(|scope| scope.name()).collect();
            return Err(forbidden(format!("this needs a token with the scope {}", names.join(" or "))));
        }
        if route.machines == Machines::All && !token.covers_all_machines() {
            return Err(forbidden(
                "this concerns the whole repository, and the token is for certain machines only",
            ));
        }
        let share = server.shares.of(token.id.0);
        let permit = share.request()?;
        let hosted = server.hosted(name).cloned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        let body: Body = request.into_body();
        let body = Mutex::new(body.into_data_stream());
        Ok(Self { server, token, share, hosted, route, parameters, query, length, body, _request: permit })
    }

    /// The repository.
    pub(super) async fn repository(&self) -> Result<Arc<Repository>, Refusal> {
        Ok(self.hosted()?.repository().await?)
    }

    /// The same with what is known of it besides.
    pub(super) fn hosted(&self) -> Result<&Arc<Hosted>, Refusal> {
        let missing = || Problem::new(404, "no-repository", "there is no such repository");
        Ok(self.hosted.as_ref().ok_or_else(missing)?)
    }

    /// A part of the path.
    pub(super) fn parameter<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Refusal> {
        let value = self.parameters.iter().find(|(parameter, _)| parameter == name);
        let parsed = value.and_then(|(_, value)| parse(value));
        Ok(parsed.ok_or_else(|| malformed(format!("`{name}` in the path is not what it should be")))?)
    }

    /// A number of the query.
    pub(super) fn number(&self, name: &'static str) -> Result<Option<u64>, Refusal> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let Some((_, value)) = pairs.find(|(key, _)| *key == name) else { return Ok(None) };
        let number = value.parse();
        Ok(Some(number.map_err(|_| malformed(format!("`{name}` in the query is no number")))?))
    }

    /// The session that the path's handle means to this token.
    pub(super) async fn session(&self) -> Result<(Arc<Repository>, SessionId), Refusal> {
        let handle = self.parameter("handle", SessionHandle::from_hex)?;
        let repository = self.repository().await?;
        let session = self.token.session(repository.id(), handle);
        Ok((repository, session))
    }

    /// The session has ended: nothing is kept for it any more.
    pub(super) fn ends(&self, session: SessionId) -> Result<(), Refusal> {
        self.share.ends(session);
        self.hosted()?.coming.ends(session);
        Ok(())
    }

    /// The body, all of it.
    pub(super) async fn body(&mut self) -> Result<WholeBody, Refusal> {
        self.body_seen(|_| {}).await
    }

    /// The same; `see` is shown each part as it comes.
    pub(super) async fn body_seen(&mut self, mut see: impl FnMut(&[u8])) -> Result<WholeBody, Refusal> {
        let limit = self.route.limit;
        let too_large =
            || Problem::new(413, kind::TOO_LARGE, format!("at most {limit} bytes are taken here"));
        if self.length.is_some_and(|length| length > limit) {
            return Err(too_large().into());
        }
        let expected = self.length.unwrap_or(limit);
        let reserved = self.server.shares.reserve(&self.share, expected).await?;
        let limits = *self.server.shares.limits();
        let stall = Duration::from_secs(u64::from(limits.stall_seconds));
        let end = Instant::now() + Duration::from_secs(u64::from(limits.body_seconds));
        let too_slow = |_| Problem::new(408, kind::TOO_SLOW, "the body came too slowly");
        let stream = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Room for what was announced is made as it comes.
        let mut whole = BytesMut::new();
        loop {
            let next = timeout_at(end, timeout(stall, stream.next()));
            let Some(part) = next.await.map_err(too_slow)?.map_err(too_slow)? else { break };
            let part = part.map_err(|_| malformed("the body was cut off"))?;
            if (whole.len() + part.len()) as u64 > limit {
                return Err(too_large().into());
            }
            if whole.capacity() - whole.len() < part.len() {
                let room = (2 * whole.len()).clamp(part.len(), expected.max(part.len() as u64) as usize);
                whole.reserve(room);
            }
            self.server.metrics.received(part.len());
            see(&part);
            whole.extend_from_slice(&part);
        }
        Ok(WholeBody { bytes: whole.freeze(), _reserved: reserved })
    }

    /// The body, read as JSON.
    pub(super) async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Refusal> {
        let body = self.body().await?;
        Ok(serde_json::from_slice(&body.bytes).map_err(|error| malformed(format!("the body: {error}")))?)
    }

    /// Does something to its end, even if the client goes away.
    pub(super) async fn carry_through<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, underlay_store::Error>> + Send + 'static,
    ) -> Result<T, Refusal> {
        Ok(self.server.carry_through(work).await?)
    }
}

pub(super) fn malformed(what: impl Into<String>) -> Problem {
    Problem::new(400, kind::MALFORMED, what)
}

pub(super) fn forbidden(what: impl Into<String>) -> Problem {
    Problem::new(403, kind::FORBIDDEN, what)
}
