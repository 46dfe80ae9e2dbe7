//! One connection: how long it may keep still.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::config::Limits;

/// What is known of a connection. Requests find it in their extensions.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: SocketAddr,
    since: Instant,
    head: Duration,
    idle: Duration,
    /// A request with a valid token has come.
    known: AtomicBool,
    active: AtomicUsize,
    /// When the last request ended.
    quiet: Mutex<Instant>,
}

impl Connection {
    pub(crate) fn new(peer: SocketAddr, limits: &Limits) -> Arc<Self> {
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
        let now = Instant::now();
        Arc::new(Self {
            peer,
            since: now,
            head: seconds(limits.head_seconds),
            idle: seconds(limits.idle_seconds),
            known: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            quiet: Mutex::new(now),
        })
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// A request with a valid token is under way, as long as the guard lives.
    pub(crate) fn request(self: &Arc<Self>) -> Request {
        self.known.store(true, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        Request(Arc::clone(self))
    }

    /// Returns when the connection has kept still for too long: nobody with a token uses it.
    pub(crate) async fn is_still(&self) {
        loop {
            let active = self.active.load(Ordering::Relaxed) > 0;
            let quiet = *self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
            let end = match (self.known.load(Ordering::Relaxed), active) {
                (false, _) => self.since + self.head,
                (true, true) => Instant::now() + self.idle,
                (true, false) => quiet + self.idle,
            };
            if !active && end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// A request under way.
pub(crate) struct Request(Arc<Connection>);

impl Drop for Request {
    fn drop(&mut self) {
        *self.0.quiet.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn only_who_has_a_token_may_keep_still() {
        let limits = Limits { head_seconds: 1, idle_seconds: 2, ..Limits::default() };
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let stranger = Connection::new(peer, &limits);
        timeout(Duration::from_millis(1800), stranger.is_still()).await.unwrap();
        let known = Connection::new(peer, &limits);
        let request = known.request();
        timeout(Duration::from_secs(3), known.is_still()).await.unwrap_err();
        drop(request);
        timeout(Duration::from_secs(1), known.is_still()).await.unwrap_err();
        timeout(Duration::from_secs(3), known.is_still()).await.unwrap();
    }
}
