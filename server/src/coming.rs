//! Chunks that are on their way. Several hosts that back up the same base at once should not all send it.
//!
//! Whoever is told that a chunk is missing is expected to send it. A session that asks for the same chunk a little later waits for it
//! to come, but never for one that waits for it itself, be it by way of others: so one of them always goes on. Nothing is promised: what
//! does not come in time is sent twice, and a collection removes one copy. Where writers do not trust each other, only sessions of one
//! writer wait for each other.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::id::{ChunkId, SessionId, WriterId};
use underlay_store::repository::Repository;

/// A chunk is expected for so long after it was asked for, or after the last pack of whoever is to send it.
const PATIENCE: Duration = Duration::from_secs(20);
/// No session waits longer than this in all, whatever others ask for.
const LONGEST: Duration = Duration::from_secs(60);
/// A session that was not heard of for so long is forgotten; nothing is expected of it any more.
const FORGOTTEN: Duration = Duration::from_secs(120);
/// Fewer chunks than this are not worth waiting for.
const WORTH_IT: usize = 32;
/// Chunks expected at once, of all sessions: some 100 bytes each.
const MOST: usize = 1 << 20;

/// What is expected for one repository.
#[derive(Debug, Default)]
pub(crate) struct Coming {
    expected: Mutex<Expected>,
    arrived: Notify,
}

/// Whose uploads help a session: those of one writer in a strict repository, or everybody's.
pub(crate) type Circle = Option<WriterId>;

#[derive(Debug, Default)]
struct Expected {
    sessions: HashMap<SessionId, Asker>,
    /// How many of them ended.
    ended: u64,
    /// Of each circle of sessions that help each other.
    chunks: HashMap<(Circle, ChunkId), Sender>,
}

/// A session that asked for chunks.
#[derive(Clone, Debug)]
struct Asker {
    /// How long it has waited for others.
    waited: Duration,
    /// Whom it waits for now; each as often as it does.
    waits_for: Vec<SessionId>,
    /// When it last asked for chunks, or a pack of its came.
    heard: Instant,
    /// When a pack of its came.
    sent: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Sender {
    session: SessionId,
    asked: Instant,
}

/// What comes of chunks that were not found.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The session sends them.
    Send,
    /// These may be there by now.
    LookAgain(Vec<ChunkId>),
    /// Some of them are awaited.
    Wait(Awaited),
}

/// What a session waits for.
#[derive(Debug, PartialEq, Eq)]
struct Awaited {
    ids: Vec<ChunkId>,
    /// Who is to send them.
    senders: Vec<SessionId>,
    /// Until when.
    until: Instant,
}

/// Until when something is expected of this sender.
fn until(sessions: &HashMap<SessionId, Asker>, sender: &Sender) -> Instant {
    let sent = sessions.get(&sender.session).and_then(|asker| asker.sent);
    sent.unwrap_or(sender.asked).max(sender.asked) + PATIENCE
}

impl Expected {
    fn asker(&mut self, session: SessionId) -> &mut Asker {
        let now = Instant::now();
        if !self.sessions.contains_key(&session) {
            // Some vanish and never end.
            self.sessions.retain(|_, asker| now < asker.heard + FORGOTTEN);
        }
        let new = Asker { waited: Duration::ZERO, waits_for: Vec::new(), heard: now, sent: None };
        let asker = self.sessions.entry(session).or_insert(new);
        asker.heard = now;
        asker
    }

    /// Whether `one` waits for `other`, be it by way of others.
    fn waits_for(&self, one: SessionId, other: SessionId) -> bool {
        let (mut seen, mut open) = (HashSet::new(), vec![one]);
        while let Some(next) = open.pop() {
            if next == other {
                return true;
            }
            if seen.insert(next) {
                open.extend(self.sessions.get(&next).iter().flat_map(|asker| &asker.waits_for));
            }
        }
        false
    }

    /// Those of `missing` that another session is about to send which does not wait for this one.
    fn of_others(&mut self, circle: Circle, session: SessionId, missing: &[ChunkId]) -> Option<Awaited> {
        let waited = self.asker(session).waited;
        let patience = LONGEST.checked_sub(waited).filter(|left| !left.is_zero())?;
        let now = Instant::now();
        // Each sender is looked at once.
        let mut until_of: HashMap<SessionId, Option<Instant>> = HashMap::new();
        let mut ids = Vec::new();
        for id in missing {
            let Some(sender) = self.chunks.get(&(circle, *id)) else { continue };
            let may = until_of
                .entry(sender.session)
                .or_insert_with(|| (!self.waits_for(sender.session, session)).then_some(now));
            let until = until(&self.sessions, sender);
            if let Some(last) = may.as_mut().filter(|_| until > now) {
                *last = until.max(*last);
                ids.push(*id);
            }
        }
        let last = until_of.values().flatten().max().copied()?;
        let senders = until_of.into_iter().filter(|(_, until)| until.is_some_and(|until| until > now));
        let senders = senders.map(|(sender, _)| sender).collect();
        (ids.len() >= WORTH_IT).then_some(Awaited { ids, senders, until: last.min(now + patience) })
    }

    fn expect(&mut self, circle: Circle, session: SessionId, missing: &[ChunkId]) {
        self.asker(session);
        let now = Instant::now();
        if self.chunks.len() + missing.len() > MOST {
            self.chunks.retain(|_, by| until(&self.sessions, by) > now);
        }
        let room = MOST.saturating_sub(self.chunks.len());
        for id in missing.iter().take(room) {
            let over =
                self.chunks.get(&(circle, *id)).is_none_or(|known| until(&self.sessions, known) <= now);
            if over {
                self.chunks.insert((circle, *id), Sender { session, asked: now });
            }
        }
    }

    /// What comes of the chunks that a look-up did not find, `ended` being how many sessions had ended before it.
    fn next(&mut self, circle: Circle, session: SessionId, missing: Vec<ChunkId>, ended: u64) -> Next {
        match self.of_others(circle, session, &missing) {
            Some(awaited) => {
                self.asker(session).waits_for.extend(&awaited.senders);
                Next::Wait(awaited)
            }
            // All that it has sent is there, and may have come behind the look-up's back.
            None if self.ended != ended && !missing.is_empty() => Next::LookAgain(missing),
            None => {
                self.expect(circle, session, &missing);
                Next::Send
            }
        }
    }

    fn has_sent(&mut self, session: SessionId) {
        if let Some(asker) = self.sessions.get_mut(&session) {
            asker.heard = Instant::now();
            asker.sent = Some(asker.heard);
        }
    }

    fn ends(&mut self, session: SessionId) {
        if self.sessions.remove(&session).is_none() {
            return;
        }
        self.ended += 1;
        self.chunks.retain(|_, by| by.session != session);
        if self.sessions.is_empty() {
            self.chunks = HashMap::new();
        }
    }
}

impl Coming {
    fn expected(&self) -> MutexGuard<'_, Expected> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What [`Authority::have_chunks`] says once others have sent what they are about to send. `ids` are in ascending order.
    ///
    /// # Errors
    /// Those of the repository.
    pub(crate) async fn have_chunks(
        &self,
        repository: &Repository,
        circle: Circle,
        session: SessionId,
        ids: &[ChunkId],
    ) -> Result<Vec<bool>, Error> {
        let mut have = vec![false; ids.len()];
        let mut unknown = ids.to_vec();
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            // What arrives while they are looked up, or who ends then, is not missed.
            arrived.as_mut().enable();
            let ended = self.expected().ended;
            let found = repository.have_chunks(session, &unknown).await?;
            if found.len() == have.len() {
                have = found;
            } else {
                for (id, _) in unknown.iter().zip(found).filter(|(_, found)| *found) {
                    if let Ok(at) = ids.binary_search(id) {
                        have[at] = true;
                    }
                }
            }
            let missing = ids.iter().zip(&have).filter(|(_, have)| !**have).map(|(id, _)| *id).collect();
            let awaited = match self.expected().next(circle, session, missing, ended) {
                Next::Send => return Ok(have),
                Next::LookAgain(missing) => {
                    unknown = missing;
                    continue;
                }
                Next::Wait(awaited) => awaited,
            };
            let _waiting = Waiting { coming: self, session, awaited: &awaited, since: Instant::now() };
            if timeout_at(awaited.until, arrived).await.is_err() {
                tracing::debug!(%session, chunks = awaited.ids.len(), "not waited for any longer");
            }
            unknown.clone_from(&awaited.ids);
        }
    }

    /// A pack of the session has been stored.
    pub(crate) fn has_arrived(&self, session: SessionId) {
        self.expected().has_sent(session);
        self.arrived.notify_waiters();
    }

    /// A session has ended: it sends nothing more.
    pub(crate) fn ends(&self, session: SessionId) {
        self.expected().ends(session);
        self.arrived.notify_waiters();
    }
}

/// A session waits, until this is dropped: when its request is over, or given up.
struct Waiting<'a> {
    coming: &'a Coming,
    session: SessionId,
    awaited: &'a Awaited,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut expected = self.coming.expected();
        let Some(asker) = expected.sessions.get_mut(&self.session) else { return };
        asker.waited += self.since.elapsed();
        for sender in &self.awaited.senders {
            if let Some(at) = asker.waits_for.iter().position(|waits_for| waits_for == sender) {
                asker.waits_for.swap_remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
