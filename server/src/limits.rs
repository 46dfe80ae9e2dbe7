//! What one client may take away from others: memory, requests, sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use underlay_store::id::SessionId;
use underlay_store::wire::{Problem, kind};

use crate::config::Limits;

/// Memory is counted in pieces of so many bytes.
const PIECE: u64 = 64 << 10;
/// A session that was not used for so long does not count any more.
const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);

/// Memory that was set aside for one request; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    _of_all: OwnedSemaphorePermit,
    _of_token: OwnedSemaphorePermit,
}

/// What a token takes up.
#[derive(Debug)]
pub(crate) struct Share {
    requests: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    sessions: Mutex<HashMap<SessionId, Instant>>,
}

/// What all tokens take up.
#[derive(Debug)]
pub(crate) struct Shares {
    limits: Limits,
    memory: Arc<Semaphore>,
    of: Mutex<HashMap<[u8; 8], Arc<Share>>>,
}

impl Shares {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            memory: Arc::new(Semaphore::new(pieces(limits.memory) as usize)),
            of: Mutex::default(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Memory that is set aside now, and all there is to set aside, in bytes.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let left = self.memory.available_permits() as u64 * PIECE;
        (self.limits.memory.saturating_sub(left), self.limits.memory)
    }

    /// What this token takes up. Only tokens that exist are ever asked for.
    pub(crate) fn of(&self, token: [u8; 8]) -> Arc<Share> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let half = pieces(self.limits.memory / 2) as usize;
        let share = of.entry(token).or_insert_with(|| {
            Arc::new(Share {
                requests: Arc::new(Semaphore::new(self.limits.requests_per_token as usize)),
                memory: Arc::new(Semaphore::new(half)),
                sessions: Mutex::default(),
            })
        });
        Arc::clone(share)
    }

    /// Sets memory aside, of which one token never has more than half. Waits for it, but not for ever.
    ///
    /// # Errors
    /// Too much at once.
    pub(crate) async fn reserve(&self, share: &Share, bytes: u64) -> Result<Reserved, Problem> {
        // More than there is can only be had in turn: what is larger than half counts as half.
        let pieces = pieces(bytes.min(self.limits.memory / 2));
        let wait = async {
            let of_token = Arc::clone(&share.memory).acquire_many_owned(pieces).await.ok()?;
            let of_all = Arc::clone(&self.memory).acquire_many_owned(pieces).await.ok()?;
            Some(Reserved { _of_all: of_all, _of_token: of_token })
        };
        let patience = Duration::from_secs(u64::from(self.limits.wait_seconds));
        let reserved = timeout(patience, wait).await.ok().flatten();
        reserved.ok_or_else(|| too_many("the server has no memory left for this; others use it"))
    }

    /// Counts a session that this token opens.
    ///
    /// # Errors
    /// Too many at once.
    pub(crate) fn opens(&self, share: &Share, session: SessionId) -> Result<(), Problem> {
        let mut sessions = share.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, used| used.elapsed() < FORGOTTEN);
        let most = self.limits.sessions_per_token as usize;
        if !sessions.contains_key(&session) && sessions.len() >= most {
            return Err(too_many(format!("this token has {most} sessions open, and may have no more")));
        }
        sessions.insert(session, Instant::now());
        Ok(())
    }
}

impl Share {
    /// Counts a request, as long as the permit lives.
    ///
    /// # Errors
    /// Too many at once.
    pub(crate) fn request(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = Arc::clone(&self.requests).try_acquire_owned();
        permit.map_err(|_| too_many("this token has too many requests under way"))
    }

    /// A session is used; after a restart of the server it counts again from then on.
    pub(crate) fn uses(&self, session: SessionId) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(session, Instant::now());
    }

    /// A session has ended.
    pub(crate) fn ends(&self, session: SessionId) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }
}

fn pieces(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX).clamp(1, 1 << 28)
}

fn too_many(what: impl Into<String>) -> Problem {
    Problem::new(429, kind::TOO_MANY, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_token_never_has_all_memory() {
        let shares = Shares::new(Limits { memory: 256 << 20, wait_seconds: 1, ..Limits::default() });
        let (greedy, other) = (shares.of([1; 8]), shares.of([2; 8]));
        let held = shares.reserve(&greedy, u64::MAX).await.unwrap();
        let refused = shares.reserve(&greedy, 64 << 20).await.unwrap_err();
        assert_eq!(refused.status, 429);
        shares.reserve(&other, 64 << 20).await.unwrap();
        drop(held);
        shares.reserve(&greedy, 64 << 20).await.unwrap();
    }

    #[test]
    fn sessions_and_requests_are_counted() {
        let shares =
            Shares::new(Limits { sessions_per_token: 1, requests_per_token: 1, ..Limits::default() });
        let share = shares.of([1; 8]);
        let (one, two) = (SessionId::new([1; 16]), SessionId::new([2; 16]));
        shares.opens(&share, one).unwrap();
        shares.opens(&share, one).unwrap();
        assert_eq!(shares.opens(&share, two).unwrap_err().status, 429);
        shares.opens(&shares.of([2; 8]), two).unwrap();
        share.ends(one);
        shares.opens(&share, two).unwrap();
        let request = share.request().unwrap();
        assert_eq!(share.request().unwrap_err().status, 429);
        drop(request);
        drop(share.request().unwrap());
    }
}
