//! Every question of [`Authority`] as a request.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use underlay_store::authority::{
    Authority, Marked, RepairOptions, RepairReport, SessionGrant, StoredDocument, Withdrawal, Withdrawn,
};
use underlay_store::catalog::{Location, Totals, Unverified};
use underlay_store::check::{CheckOptions, CheckReport};
use underlay_store::gc::{GcOptions, GcReport};
use underlay_store::id::{ChunkId, NodeId, PackName, Root, SessionHandle, SessionId, SlotId, SnapshotId};
use underlay_store::pack::{PackId, PackKind, name_of};
use underlay_store::progress::Progress;
use underlay_store::snapshot::Timestamp;
use underlay_store::wire::{
    GcRequest, JobRequest, JobState, ListedPack, MAXIMUM_IDS, OpenSession, OpenedSession, WireId,
    decode_bitmap, decode_documents, decode_nodes, decode_places, encode_ids,
};
use underlay_store::{Error, Result};

use super::RemoteAuthority;
use super::http::{Ask, LONG, Method};

/// All snapshots of a repository are taken, up to so many bytes.
const DOCUMENTS: usize = 2 << 30;
/// Chunks whose places are asked for at once: an answer has about 50 bytes for each.
const LOCATE: usize = 16 << 10;
/// Packs vouched for at once.
const VOUCHED: usize = 4096;
/// A commit that goes on without us is waited for so long.
const COMMITTING: Duration = Duration::from_secs(20);

/// What is asked about: each id once, ascending, as the wire wants it.
fn ascending<I: WireId>(ids: &[I]) -> Vec<I> {
    let mut sorted = ids.to_vec();
    if !sorted.is_sorted_by(|a, b| a < b) {
        sorted.sort_unstable();
        sorted.dedup();
    }
    sorted
}

/// The answers to `sorted` in the order of `ids`, all of which are in it.
fn in_order<I: WireId, T: Clone>(ids: &[I], sorted: &[I], answers: Vec<T>) -> Vec<T> {
    if ids.len() == sorted.len() && ids == sorted {
        return answers;
    }
    ids.iter().filter_map(|id| answers.get(sorted.binary_search(id).ok()?).cloned()).collect()
}

/// A kind in a path.
const fn wire_kind(kind: PackKind) -> &'static str {
    match kind {
        PackKind::Data => "data",
        PackKind::Nodes => "nodes",
    }
}

impl RemoteAuthority {
    async fn documents(&self, path: &str) -> Result<Vec<StoredDocument>> {
        let ask = Ask { limit: DOCUMENTS, time: LONG, ..Ask::get(path) };
        let answer = self.http.send(&ask).await.result?;
        decode_documents(&answer).map_err(|what| self.http.nonsense(what))
    }

    async fn have<I: WireId + Sync>(&self, session: SessionId, what: &str, ids: &[I]) -> Result<Vec<bool>> {
        let path = self.session_path(session, what)?;
        let sorted = ascending(ids);
        let mut answers = Vec::with_capacity(sorted.len());
        // Whoever asks about nothing asks whether the session is still open.
        let none: &[I] = &[];
        let batches = sorted.chunks(MAXIMUM_IDS).chain(sorted.is_empty().then_some(none));
        for batch in batches {
            let ask = Ask::binary(Method::POST, &path, encode_ids(batch).into());
            let answer = self.http.send(&ask).await.result?;
            let answer = decode_bitmap(&answer, batch.len()).map_err(|what| self.http.nonsense(what))?;
            answers.extend(answer);
        }
        Ok(in_order(ids, &sorted, answers))
    }

    async fn done(&self, method: Method, path: String) -> Result<()> {
        self.http.send(&Ask::new(method, path)).await.result.map(drop)
    }

    fn unexpected(&self) -> Error {
        self.http.nonsense("it did another job than the one it was asked to do")
    }
}

#[async_trait]
impl Authority for RemoteAuthority {
    async fn descriptor(&self) -> Result<Bytes> {
        self.http.send(&Ask::get("/descriptor")).await.result
    }

    async fn key_slots(&self) -> Result<Vec<StoredDocument>> {
        self.documents("/keys").await
    }

    async fn put_key_slot(&self, slot: SlotId, document: Bytes) -> Result<()> {
        self.http.send(&Ask::binary(Method::PUT, format!("/keys/{slot}"), document)).await.result.map(drop)
    }

    async fn delete_key_slot(&self, slot: SlotId) -> Result<()> {
        self.done(Method::DELETE, format!("/keys/{slot}")).await
    }

    async fn open_session(&self, vm: &str) -> Result<SessionGrant> {
        let handle = SessionHandle::random();
        let ask = Ask::json(Method::PUT, format!("/sessions/{handle}"), &OpenSession { vm: vm.to_owned() })?;
        let OpenedSession { session, time_ms, direct } = self.http.read(&ask).await?;
        self.direct.wanted.store(direct, Ordering::Relaxed);
        self.sessions().insert(session, handle);
        Ok(SessionGrant { session, time: Timestamp::from_milliseconds(time_ms)? })
    }

    async fn have_chunks(&self, session: SessionId, ids: &[ChunkId]) -> Result<Vec<bool>> {
        self.have(session, "/chunks", ids).await
    }

    async fn have_nodes(&self, session: SessionId, ids: &[NodeId]) -> Result<Vec<bool>> {
        self.have(session, "/nodes", ids).await
    }

    async fn pin_roots(&self, session: SessionId, roots: &[Root]) -> Result<Vec<bool>> {
        let path = self.session_path(session, "/roots")?;
        let mut answers = Vec::with_capacity(roots.len());
        for roots in roots.chunks(1024) {
            let live: Vec<bool> = self.http.read(&Ask::json(Method::POST, &path, &roots)?).await?;
            if live.len() != roots.len() {
                return Err(self.http.nonsense(format!("{} answers for {} roots", live.len(), roots.len())));
            }
            answers.extend(live);
        }
        Ok(answers)
    }

    async fn put_pack(&self, session: SessionId, kind: PackKind, bytes: Bytes) -> Result<PackName> {
        let hashed = bytes.clone();
        let name = tokio::task::spawn_blocking(move || name_of(&hashed)).await;
        let name = name.map_err(|_| Error::Interrupted)?;
        let below = format!("{}/{name}", wire_kind(kind));
        if self.put_directly(session, &below, &bytes).await? {
            return Ok(name);
        }
        let path = self.session_path(session, &format!("/packs/{below}"))?;
        let ask = Ask { time: LONG, ..Ask::binary(Method::PUT, path, bytes) };
        self.http.send(&ask).await.result.map(|_| name)
    }

    async fn commit(&self, session: SessionId, document: Bytes) -> Result<()> {
        let path = self.session_path(session, "/commit")?;
        let ask = Ask { time: LONG, ..Ask::binary(Method::POST, path, document) };
        let started = Instant::now();
        let mut repeated = false;
        loop {
            let sent = self.http.send(&ask).await;
            repeated |= sent.repeated;
            match sent.result {
                // Nobody else has this session: it was this very document, and the answer was lost.
                Err(Error::Session { state: "committed", .. }) if repeated => break,
                // The attempt whose answer was lost is still under way.
                Err(Error::Session { state: "committing", .. })
                    if repeated && started.elapsed() < COMMITTING =>
                {
                    if !self.http.rest(Duration::from_secs(1)).await {
                        return Err(Error::Interrupted);
                    }
                }
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        self.sessions().remove(&session);
        Ok(())
    }

    async fn abandon(&self, session: SessionId) -> Result<()> {
        self.done(Method::DELETE, self.session_path(session, "")?).await?;
        self.sessions().remove(&session);
        Ok(())
    }

    async fn snapshots(&self) -> Result<Vec<StoredDocument>> {
        self.documents("/snapshots").await
    }

    async fn protected(&self) -> Result<Vec<SnapshotId>> {
        self.http.read(&Ask::get("/protected")).await
    }

    async fn protect(&self, snapshot: SnapshotId, on: bool) -> Result<()> {
        let method = if on { Method::PUT } else { Method::DELETE };
        self.done(method, format!("/protected/{snapshot}")).await
    }

    async fn forget(&self, snapshot: SnapshotId) -> Result<()> {
        let sent = self.http.send(&Ask::new(Method::DELETE, format!("/snapshots/{snapshot}"))).await;
        match sent.result {
            // Gone by the attempt whose answer was lost.
            Err(Error::NoSnapshot { .. }) if sent.repeated => Ok(()),
            result => result.map(drop),
        }
    }

    async fn read_nodes(&self, ids: &[NodeId]) -> Result<Vec<Bytes>> {
        let sorted = ascending(ids);
        let mut nodes = Vec::with_capacity(sorted.len());
        while nodes.len() < sorted.len() {
            let rest = &sorted[nodes.len()..];
            let rest = &rest[..rest.len().min(MAXIMUM_IDS)];
            let ask = Ask::binary(Method::POST, "/nodes/read", encode_ids(rest).into());
            let answer = self.http.send(&ask).await.result?;
            nodes.extend(decode_nodes(&answer, rest.len()).map_err(|what| self.http.nonsense(what))?);
        }
        Ok(in_order(ids, &sorted, nodes))
    }

    async fn node_copies(&self, id: NodeId) -> Result<Vec<Bytes>> {
        let answer = self.http.send(&Ask::get(format!("/nodes/{id}/copies"))).await.result?;
        decode_nodes(&answer, usize::MAX).map_err(|what| self.http.nonsense(what))
    }

    async fn locate_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        let sorted = ascending(ids);
        let mut places = Vec::with_capacity(sorted.len());
        for batch in sorted.chunks(LOCATE) {
            let ask = Ask::binary(Method::POST, "/chunks/locate", encode_ids(batch).into());
            let answer = self.http.send(&ask).await.result?;
            places.extend(decode_places(&answer, batch.len()).map_err(|what| self.http.nonsense(what))?);
        }
        Ok(in_order(ids, &sorted, places))
    }

    async fn read_pack(&self, name: PackName, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if let Some(bytes) = self.read_directly(name, &range).await? {
            return Ok(bytes);
        }
        let length = range.end - range.start;
        let path = format!("/packs/{name}?offset={}&length={length}", range.start);
        let bytes = self.http.send(&Ask { time: LONG, ..Ask::get(path) }).await.result?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err(self.http.nonsense(format!("{} bytes came of {length}", bytes.len()))),
        }
    }

    async fn totals(&self) -> Result<Totals> {
        self.http.read(&Ask::get("/totals")).await
    }

    async fn gc(&self, options: &GcOptions, progress: &dyn Progress) -> Result<GcReport> {
        match self.job(&JobRequest::Gc(GcRequest::from(options)), progress).await? {
            JobState::Collected(report) => Ok(report),
            _ => Err(self.unexpected()),
        }
    }

    async fn check(&self, options: &CheckOptions, progress: &dyn Progress) -> Result<CheckReport> {
        match self.job(&JobRequest::Check(options.clone()), progress).await? {
            JobState::Checked(report) => Ok(report),
            _ => Err(self.unexpected()),
        }
    }

    async fn withdraw(&self, damage: &Withdrawal) -> Result<Withdrawn> {
        let ask = Ask::json(Method::POST, "/damaged", damage)?;
        self.http.read(&Ask { time: LONG, ..ask }).await
    }

    async fn unverified(&self) -> Result<Vec<Unverified>> {
        let listed: Vec<ListedPack> =
            self.http.read(&Ask { limit: DOCUMENTS, ..Ask::get("/unverified") }).await?;
        Ok(listed.into_iter().map(Unverified::from).collect())
    }

    async fn read_whole(&self, pack: PackId) -> Result<Bytes> {
        let path = format!("/packs/{}/{}", wire_kind(pack.kind), pack.name);
        self.http.send(&Ask { time: LONG, ..Ask::get(path) }).await.result
    }

    async fn vouch(&self, packs: &[PackName]) -> Result<u64> {
        let mut new = 0;
        for packs in packs.chunks(VOUCHED) {
            let sent: u64 = self.http.read(&Ask::json(Method::POST, "/verified", &packs)?).await?;
            new += sent;
        }
        Ok(new)
    }

    async fn marked(&self) -> Result<Vec<Marked>> {
        self.http.read(&Ask::get("/damaged")).await
    }

    async fn repair(&self, options: &RepairOptions, progress: &dyn Progress) -> Result<RepairReport> {
        match self.job(&JobRequest::Repair(options.clone()), progress).await? {
            JobState::Repaired(report) => Ok(report),
            _ => Err(self.unexpected()),
        }
    }
}
