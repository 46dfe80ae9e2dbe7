//! Packs that go between this host and the bucket, where the server wants that. Without a way to the bucket they go through the server.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use underlay_store::id::{PackName, SessionId};
use underlay_store::wire::{SignedRequest, kind};
use underlay_store::{Error, Result};

use super::RemoteAuthority;
use super::http::{Ask, LONG, Method};

/// A signed read is used for so long; the server signs for 15 minutes.
const FRESH: Duration = Duration::from_secs(10 * 60);
/// Signed reads remembered.
const MOST: usize = 4096;

/// What is known of the way to the bucket.
#[derive(Debug, Default)]
pub(super) struct Direct {
    /// The server said that packs are to be stored in the bucket.
    pub(super) wanted: AtomicBool,
    /// There is no way to the bucket, or the server sends nobody there.
    closed: AtomicBool,
    reads: Mutex<HashMap<PackName, (SignedRequest, Instant)>>,
}

impl Direct {
    fn reads(&self) -> MutexGuard<'_, HashMap<PackName, (SignedRequest, Instant)>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RemoteAuthority {
    /// Whether a request to the bucket failed because it cannot be reached from here at all. Nobody tries again then.
    fn has_no_way(&self, error: &Error) -> bool {
        let closed = matches!(error, Error::Unreachable { .. }) && !self.http.bucket_has_answered();
        if closed && !self.direct.closed.swap(true, Ordering::Relaxed) {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, "the bucket cannot be reached from here: all goes through the server");
        }
        closed
    }

    /// Stores a pack in the bucket; false if it has to go through the server. `below`: its kind and name in paths.
    pub(super) async fn put_directly(&self, session: SessionId, below: &str, bytes: &Bytes) -> Result<bool> {
        if !self.direct.wanted.load(Ordering::Relaxed) || self.direct.closed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let ask = Ask::new(Method::POST, self.session_path(session, &format!("/packs/{below}/upload"))?);
        let signed: SignedRequest = self.http.read(&ask).await?;
        let put = Ask { body: Some(bytes.clone()), ..Ask::signed(Method::PUT, signed) };
        match self.http.send(&put).await.result {
            Err(error) if self.has_no_way(&error) => return Ok(false),
            result => result?,
        };
        let path = self.session_path(session, &format!("/packs/{below}/stored"))?;
        let stored = Ask { time: LONG, ..Ask::new(Method::POST, path) };
        self.http.send(&stored).await.result.map(|_| true)
    }

    /// Reads a part of a data pack from the bucket; `None` if the server has to be asked, which also knows better what is wrong.
    pub(super) async fn read_directly(&self, name: PackName, range: &Range<u64>) -> Result<Option<Bytes>> {
        if self.direct.closed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(mut request) = self.signed_read(name).await? else { return Ok(None) };
        request.headers.insert("range".to_owned(), format!("bytes={}-{}", range.start, range.end - 1));
        let (length, limit) = (range.end - range.start, (range.end - range.start) as usize);
        match self.http.send(&Ask { limit, ..Ask::signed(Method::GET, request) }).await.result {
            Ok(bytes) if bytes.len() as u64 == length => Ok(Some(bytes)),
            Err(error) if self.has_no_way(&error) => Ok(None),
            Err(error @ (Error::Unreachable { .. } | Error::Interrupted)) => Err(error),
            odd => {
                let told = odd.map(|bytes| format!("{} bytes came of {length}", bytes.len()));
                let told = told.unwrap_or_else(|error| error.to_string());
                tracing::warn!("{told}; the server is asked for this part of pack {name}");
                Ok(None)
            }
        }
    }

    async fn signed_read(&self, name: PackName) -> Result<Option<SignedRequest>> {
        let now = Instant::now();
        if let Some((request, _)) = self.direct.reads().get(&name).filter(|(_, since)| now < *since + FRESH) {
            return Ok(Some(request.clone()));
        }
        let ask = Ask::get(format!("/packs/data/{name}/location"));
        let sent = self.http.send(&ask).await;
        // An older server knows no such path.
        if matches!(sent.kind.as_deref(), Some(kind::NOT_DIRECT | kind::NO_ROUTE)) {
            self.direct.closed.store(true, Ordering::Relaxed);
            return Ok(None);
        }
        let request: SignedRequest = self.http.understood(&sent.result?)?;
        let mut reads = self.direct.reads();
        if reads.len() >= MOST {
            reads.clear();
        }
        reads.insert(name, (request.clone(), now));
        Ok(Some(request))
    }
}
