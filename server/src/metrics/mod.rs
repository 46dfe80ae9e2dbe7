//! What the server counts, and what it says of its repositories: for Prometheus, in its text format.

mod exposition;
mod scrape;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(crate) use scrape::scrape;

/// Method, route, status.
type Asked = (String, &'static str, u16);

/// Counters since the server started.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// How many, and how long all of them took.
    requests: Mutex<BTreeMap<Asked, (u64, Duration)>>,
    received: AtomicU64,
    sent: AtomicU64,
    chunks_asked: AtomicU64,
    chunks_known: AtomicU64,
    packs_stored: AtomicU64,
}

impl Metrics {
    /// A request was answered, with so many bytes.
    pub(crate) fn answered(&self, method: &str, route: &'static str, status: u16, took: Duration, sent: u64) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, all) = requests.entry((method.to_owned(), route, status)).or_default();
        *number += 1;
        *all += took;
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// Bytes of a body came.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A client asked which chunks are stored.
    pub(crate) fn asked_for_chunks(&self, known: &[bool]) {
        self.chunks_asked.fetch_add(known.len() as u64, Ordering::Relaxed);
        let known = known.iter().filter(|known| **known).count() as u64;
        self.chunks_known.fetch_add(known, Ordering::Relaxed);
    }

    /// A pack is durable.
    pub(crate) fn stored_pack(&self) {
        self.packs_stored.fetch_add(1, Ordering::Relaxed);
    }
}
