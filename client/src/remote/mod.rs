//! A repository on a server: [`Authority`] over HTTP. `docs/server.md` is the contract.

mod authority;
mod direct;
mod http;
mod jobs;
mod location;
mod pinned;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::id::{SessionHandle, SessionId, SlotId};
use underlay_store::wire::{NewRepository, NewSlot};
use zeroize::Zeroizing;

use direct::Direct;
pub(crate) use http::is_wrong_server;
use http::{Ask, Http, Method};
pub use location::{Location, is_remote};

/// How to reach a server.
#[derive(Default)]
pub struct RemoteOptions {
    /// What the server takes as proof of who this is.
    pub token: Zeroizing<String>,
    /// `sha256:` and the SHA-256 of the server's certificate in hex; without it, the system's authorities vouch for the server.
    pub fingerprint: Option<String>,
    /// Plain HTTP to other than this very host: everyone on the way can read the token.
    pub allow_http: bool,
    /// Turns true when the user asks to stop: nothing is tried again then.
    pub stopping: Option<watch::Receiver<bool>>,
}

impl std::fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteOptions").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// A repository on a server.
#[derive(Debug)]
pub struct RemoteAuthority {
    http: Http,
    /// What the server calls the sessions by which this process knows them.
    sessions: Mutex<HashMap<SessionId, SessionHandle>>,
    direct: Direct,
}

impl RemoteAuthority {
    /// A repository at `https://host:port/name`. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Location`] if that is no such URL, or plain HTTP is not allowed; [`Error::Unreachable`] if there can be no TLS.
    pub fn new(location: &str, options: &RemoteOptions) -> Result<Self, Error> {
        let parsed = Location::parse(location)?;
        if parsed.is_plain() && !parsed.is_loopback() && !options.allow_http {
            let reason = "over plain HTTP everyone on the way can read the token and change what is said: use https, or \
                          --allow-http"
                .to_owned();
            return Err(Error::Location { location: location.to_owned(), reason });
        }
        Ok(Self { http: Http::new(parsed, options)?, sessions: Mutex::default(), direct: Direct::default() })
    }

    /// Makes the repository, in the place that the server's configuration names.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; [`Error::NoRepository`] if the server has no place of this name; [`Error::Denied`] without an admin's token.
    pub async fn make(&self, descriptor: Bytes, slots: Vec<(SlotId, Bytes)>) -> Result<(), Error> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let slots = slots.iter().map(|(slot, document)| NewSlot { slot: *slot, document: text(document) });
        let new = NewRepository { descriptor: text(&descriptor), slots: slots.collect() };
        let sent = self.http.send(&Ask::json(Method::PUT, "", &new)?).await;
        match sent.result {
            // The answer to the first attempt was lost.
            Err(Error::AlreadyExists { .. }) if sent.repeated && self.descriptor().await? == descriptor => {
                Ok(())
            }
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, SessionHandle>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path of one of this process's sessions, and what is below it.
    fn session_path(&self, session: SessionId, below: &str) -> Result<String, Error> {
        match self.sessions().get(&session) {
            Some(handle) => Ok(format!("/sessions/{handle}{below}")),
            None => Err(Error::Session { session, state: "unknown" }),
        }
    }
}
