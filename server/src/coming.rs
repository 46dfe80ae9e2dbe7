//! Chunks that are on their way. Several hosts that back up the same base at once should not all send it.
//!
//! Whoever is told that a chunk is missing is expected to send it. A session that asks for the same chunk a little later waits for it
//! to come, but only for sessions that asked for something before it did: so no two ever wait for each other. Nothing is promised: what
//! does not come in time is sent twice, and a collection removes one copy. Where writers do not
//! trust each other, only sessions of one writer wait for each other.

use std::collections::HashMap;
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
    /// How many sessions there were.
    asked: u64,
    /// How many of them ended.
    ended: u64,
    /// Of each circle of sessions that help each other.
    chunks: HashMap<(Circle, ChunkId), Sender>,
}

/// A session that asked for chunks.
#[derive(Clone, Copy, Debug)]
struct Asker {
    /// The how manieth it was to ask.
    order: u64,
    /// How long it has waited for others.
    waited: Duration,
    /// When it last asked for chunks, or a pack of its came.
    heard: Instant,
    /// When a pack of its came.
    sent: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Sender {
    session: SessionId,
    order: u64,
    asked: Instant,
}

/// What comes of chunks that were not found.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The session sends them.
    Send,
    /// These may be there by now.
    LookAgain(Vec<ChunkId>),
    /// These are awaited, until then.
    Wait(Vec<ChunkId>, Instant),
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
            self.asked += 1;
        }
        let new = Asker { order: self.asked, waited: Duration::ZERO, heard: now, sent: None };
        let asker = self.sessions.entry(session).or_insert(new);
        asker.heard = now;
        asker
    }

    /// Those of `missing` that an earlier session is about to send, and until when the last of them is expected.
    fn of_earlier(
        &mut self,
        circle: Circle,
        session: SessionId,
        missing: &[ChunkId],
    ) -> Option<(Vec<ChunkId>, Instant)> {
        let (Asker { order: own, waited, .. }, now) = (*self.asker(session), Instant::now());
        let patience = LONGEST.checked_sub(waited).filter(|left| !left.is_zero())?;
        let awaited = |id: &ChunkId| {
            let sender = self.chunks.get(&(circle, *id)).filter(|by| by.order < own)?;
            Some(until(&self.sessions, sender)).filter(|until| *until > now)
        };
        let (ids, ends): (Vec<ChunkId>, Vec<Instant>) =
            missing.iter().filter_map(|id| Some((*id, awaited(id)?))).unzip();
        let last = ends.into_iter().max()?;
        (ids.len() >= WORTH_IT).then_some((ids, last.min(now + patience)))
    }

    fn expect(&mut self, circle: Circle, session: SessionId, missing: &[ChunkId]) {
        let (order, now) = (self.asker(session).order, Instant::now());
        if self.chunks.len() + missing.len() > MOST {
            self.chunks.retain(|_, by| until(&self.sessions, by) > now);
        }
        let room = MOST.saturating_sub(self.chunks.len());
        for id in missing.iter().take(room) {
            let over =
                self.chunks.get(&(circle, *id)).is_none_or(|known| until(&self.sessions, known) <= now);
            if over {
                self.chunks.insert((circle, *id), Sender { session, order, asked: now });
            }
        }
    }

    /// What comes of the chunks that a look-up did not find, `ended` being how many sessions had ended before it.
    fn next(&mut self, circle: Circle, session: SessionId, missing: Vec<ChunkId>, ended: u64) -> Next {
        match self.of_earlier(circle, session, &missing) {
            Some((awaited, until)) => Next::Wait(awaited, until),
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
        let Some(Asker { order, .. }) = self.sessions.remove(&session) else { return };
        self.ended += 1;
        self.chunks.retain(|_, by| by.order != order);
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
            for (id, _) in unknown.iter().zip(found).filter(|(_, found)| *found) {
                if let Ok(at) = ids.binary_search(id) {
                    have[at] = true;
                }
            }
            let missing = ids.iter().zip(&have).filter(|(_, have)| !**have).map(|(id, _)| *id).collect();
            let (awaited, until) = match self.expected().next(circle, session, missing, ended) {
                Next::Send => return Ok(have),
                Next::LookAgain(missing) => {
                    unknown = missing;
                    continue;
                }
                Next::Wait(awaited, until) => (awaited, until),
            };
            let started = Instant::now();
            if timeout_at(until, arrived).await.is_err() {
                tracing::debug!(%session, chunks = awaited.len(), "not waited for any longer");
            }
            self.expected().asker(session).waited += started.elapsed();
            unknown = awaited;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(numbers: std::ops::Range<u8>) -> Vec<ChunkId> {
        numbers.map(|number| ChunkId::new([number; 32])).collect()
    }

    fn session(number: u8) -> SessionId {
        SessionId::new([number; 16])
    }

    #[tokio::test(start_paused = true)]
    async fn later_sessions_wait_for_earlier_ones_and_never_the_other_way_round() {
        let mut expected = Expected::default();
        expected.expect(None, session(1), &chunks(0..100));
        expected.expect(None, session(2), &chunks(50..200));
        let (awaited, _) = expected.of_earlier(None, session(2), &chunks(40..140)).unwrap();
        assert_eq!(awaited, chunks(40..100));
        assert!(expected.of_earlier(None, session(1), &chunks(0..200)).is_none());
        let (awaited, _) = expected.of_earlier(None, session(3), &chunks(0..250)).unwrap();
        assert_eq!(awaited, chunks(0..200));
        assert!(expected.of_earlier(None, session(3), &chunks(0..20)).is_none(), "too few to wait for");
        let stranger = Some(WriterId::new([1; 16]));
        assert!(expected.of_earlier(stranger, session(3), &chunks(0..250)).is_none(), "of no use to it");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_is_not_waited_for_any_longer() {
        let mut expected = Expected::default();
        expected.expect(None, session(1), &chunks(0..100));
        tokio::time::advance(PATIENCE / 2).await;
        assert!(expected.of_earlier(None, session(2), &chunks(0..100)).is_some());
        // Asking again does not prolong it.
        expected.expect(None, session(1), &chunks(0..100));
        tokio::time::advance(PATIENCE / 2).await;
        assert!(expected.of_earlier(None, session(2), &chunks(0..100)).is_none());
        // Then it is up to who asked last.
        expected.expect(None, session(2), &chunks(0..100));
        assert!(expected.of_earlier(None, session(3), &chunks(0..100)).is_some());
        expected.ends(session(2));
        assert!(expected.of_earlier(None, session(3), &chunks(0..100)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_much_is_expected() {
        let mut expected = Expected::default();
        let many: Vec<ChunkId> = (0..MOST as u64 + 10)
            .map(|number| {
                let mut id = [0; 32];
                id[..8].copy_from_slice(&number.to_le_bytes());
                ChunkId::new(id)
            })
            .collect();
        expected.expect(None, session(1), &many);
        assert_eq!(expected.chunks.len(), MOST);
        tokio::time::advance(PATIENCE).await;
        expected.expect(None, session(2), &many[..100]);
        assert_eq!(expected.chunks.len(), 100);
        expected.ends(session(1));
        expected.ends(session(2));
        assert!(expected.chunks.is_empty() && expected.sessions.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_something_is_waited_for_longer() {
        let mut expected = Expected::default();
        expected.expect(None, session(1), &chunks(0..100));
        for _ in 0..3 {
            tokio::time::advance(PATIENCE / 2).await;
            expected.has_sent(session(1));
        }
        let (_, until) = expected.of_earlier(None, session(2), &chunks(0..100)).unwrap();
        assert_eq!(until, Instant::now() + PATIENCE);
        tokio::time::advance(PATIENCE).await;
        assert!(expected.of_earlier(None, session(2), &chunks(0..100)).is_none());
    }

    /// A session can store everything and end between a look-up and what is made of it.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_sent_again_because_its_sender_has_just_ended() {
        let mut expected = Expected::default();
        let ids = chunks(0..100);
        assert_eq!(expected.next(None, session(1), ids.clone(), 0), Next::Send);
        let before_the_lookup = expected.ended;
        expected.has_sent(session(1));
        expected.ends(session(1));
        let next = expected.next(None, session(2), ids.clone(), before_the_lookup);
        assert_eq!(next, Next::LookAgain(ids.clone()));
        assert_eq!(expected.next(None, session(2), ids, expected.ended), Next::Send);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_vanish_are_forgotten() {
        let mut expected = Expected::default();
        for number in 1..100 {
            expected.expect(None, session(number), &chunks(0..100));
        }
        tokio::time::advance(FORGOTTEN).await;
        expected.expect(None, session(100), &chunks(0..100));
        assert_eq!(expected.sessions.len(), 1);
        assert!(expected.of_earlier(None, session(101), &chunks(0..100)).is_some());
    }

    /// Whoever asks for the same again and again holds others up, but not for ever.
    #[tokio::test(start_paused = true)]
    async fn nobody_is_held_up_for_ever() {
        let mut expected = Expected::default();
        let mut rounds = 0;
        loop {
            expected.expect(None, session(1), &chunks(0..100));
            let Some((_, until)) = expected.of_earlier(None, session(2), &chunks(0..100)) else { break };
            let wait = until - Instant::now();
            assert!(!wait.is_zero());
            tokio::time::advance(wait).await;
            expected.asker(session(2)).waited += wait;
            rounds += 1;
        }
        assert_eq!(rounds, LONGEST.as_secs() / PATIENCE.as_secs());
    }
}
