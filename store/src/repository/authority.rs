//! [`Authority`] for a repository in this process.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Access, Repository, Whose, blocking};
use crate::authority::{
    Authority, Marked, RepairOptions, RepairReport, SessionGrant, StoredDocument, Withdrawal, Withdrawn,
};
use crate::catalog::{Catalog, Location, SnapshotRecord, Totals, Unverified};
use crate::check::{CheckOptions, CheckReport};
use crate::document;
use crate::gc::{GcOptions, GcReport};
use crate::id::{ChunkId, NodeId, PackName, Root, SessionId, SlotId, SnapshotId, WriterId};
use crate::names::{self, ObjectName};
use crate::pack::{self, PackId, PackKind};
use crate::progress::Progress;
use crate::sabotage::{Rule, broken};
use crate::session::{Facts, prove};
use crate::snapshot::{self, Protection, Snapshot, Timestamp};
use crate::tree::Node;
use crate::{Error, Result};

impl Repository {
    pub(super) async fn with_catalog<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Catalog) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let catalog = Arc::clone(&self.catalog);
        blocking(move || work(&catalog)).await
    }

    async fn documents(&self, folder: &str) -> Result<Vec<StoredDocument>> {
        let mut documents = Vec::new();
        for (name, _) in self.backend.list(folder).await? {
            let bytes = self.backend.get(&name).await?;
            documents.push(StoredDocument { name, bytes });
        }
        Ok(documents)
    }

    /// Deletes the object of a snapshot that is forgotten.
    pub(super) async fn delete_forgotten(&self, snapshot: SnapshotId) -> Result<()> {
        self.backend.delete(&names::snapshot(&snapshot)).await?;
        self.with_catalog(move |catalog| catalog.forgotten_object_is_gone(snapshot)).await
    }

    /// Begins a backup of `vm` in a session whose id the caller has chosen. Asked again while it is open, the answer is the same. `writer` is
    /// who stores what comes in it, if that is not this host.
    ///
    /// # Errors
    /// [`Error::Session`] if the session has ended, or is another VM's; otherwise as [`Authority::open_session`].
    pub async fn open_session_as(
        &self,
        writer: Option<WriterId>,
        session: SessionId,
        vm: &str,
    ) -> Result<SessionGrant> {
        self.writable()?;
        let (vm, now) = (vm.to_owned(), (self.clock)());
        let opened = move |catalog: &Catalog| catalog.open_session_of(writer, session, &vm, now);
        let assigned = self.with_catalog(opened).await?;
        Ok(SessionGrant { session, time: Timestamp::from_milliseconds(assigned)? })
    }

    pub(super) fn writable(&self) -> Result<()> {
        if self.access == Access::Read {
            return Err(Error::Invalid {
                what: "access",
                value: "read".into(),
                rule: "this repository was opened for reading only".into(),
            });
        }
        self.ownership.not_lost()
    }
}

#[async_trait]
impl Authority for Repository {
    async fn descriptor(&self) -> Result<Bytes> {
        self.backend.get(names::DESCRIPTOR).await
    }

    async fn key_slots(&self) -> Result<Vec<StoredDocument>> {
        self.documents(names::KEYS).await
    }

    async fn put_key_slot(&self, slot: SlotId, document: Bytes) -> Result<()> {
        self.writable()?;
        self.backend.put(&names::slot(&slot), document).await
    }

    async fn delete_key_slot(&self, slot: SlotId) -> Result<()> {
        self.writable()?;
        self.backend.delete(&names::slot(&slot)).await
    }

    async fn open_session(&self, vm: &str) -> Result<SessionGrant> {
        self.open_session_as(None, SessionId::random(), vm).await
    }

    async fn have_chunks(&self, session: SessionId, ids: &[ChunkId]) -> Result<Vec<bool>> {
        let (ids, now) = (ids.to_vec(), (self.clock)());
        self.with_catalog(move |catalog| catalog.have_chunks(session, &ids, now)).await
    }

    async fn have_nodes(&self, session: SessionId, ids: &[NodeId]) -> Result<Vec<bool>> {
        let (ids, now) = (ids.to_vec(), (self.clock)());
        self.with_catalog(move |catalog| catalog.have_nodes(session, &ids, now)).await
    }

    async fn pin_roots(&self, session: SessionId, roots: &[Root]) -> Result<Vec<bool>> {
        let roots = roots.to_vec();
        self.with_catalog(move |catalog| {
            let live = catalog.pin_roots(session, &roots)?;
            // A snapshot may have outlived its nodes. Whoever asks reads the layer again, and so stores them anew.
            let nodes: Vec<NodeId> =
                roots.iter().map(|root| root.node.unwrap_or(NodeId::new([0; 32]))).collect();
            let places = catalog.locate_nodes(&nodes)?;
            let there = roots.iter().zip(places).map(|(root, places)| {
                root.node.is_none() || places.first().is_some_and(|best| !best.retired)
            });
            Ok(live.into_iter().zip(there).map(|(live, there)| live && there).collect())
        })
        .await
    }

    async fn put_pack(&self, session: SessionId, kind: PackKind, bytes: Bytes) -> Result<PackName> {
        let hashed = bytes.clone();
        let name = blocking(move || Ok(pack::name_of(&hashed))).await?;
        self.put_named_pack(session, PackId::new(kind, name), bytes).await?;
        Ok(name)
    }

    async fn commit(&self, session: SessionId, document: Bytes) -> Result<()> {
        self.writable()?;
        let snapshot: Snapshot = document::peek("the new snapshot", snapshot::KIND, &document)?;
        let id = snapshot.snapshot;
        let granted = self.with_catalog(move |catalog| catalog.session_grant(session)).await?;
        let refuse = |reason: &str| Error::Unproven { snapshot: id, reason: reason.to_owned() };
        if granted != (snapshot.vm.clone(), snapshot.time.as_milliseconds()) {
            return Err(refuse("its VM or its time are not those the session was opened with"));
        }
        if (snapshot.session, snapshot.repository) != (session, self.id) {
            return Err(refuse("it names another session or repository"));
        }
        let roots: Vec<Root> = snapshot.roots().copied().collect();
        let live = self.with_catalog(move |catalog| catalog.session_roots(session)).await?;
        let facts = SessionFacts { repository: self, session };
        let proven = match prove(&facts, &roots, &live).await? {
            Ok(proven) => proven,
            Err(_) if broken(Rule::Prove) => Vec::new(),
            Err(reason) => {
                // Another owner may have deleted what was promised, and all this is not the client's doing.
                self.ownership.still_ours(&self.backend).await?;
                return Err(Error::Unproven { snapshot: id, reason });
            }
        };
        self.with_catalog(move |catalog| catalog.begin_commit(session)).await?;
        self.backend.put(&names::snapshot(&id), document.clone()).await?;
        self.ownership.still_ours(&self.backend).await?;
        let committed = self.with_catalog(move |catalog| {
            let (time_ms, vm) = (snapshot.time.as_milliseconds(), snapshot.vm.as_str());
            let record = SnapshotRecord { snapshot: id, vm, time_ms, document: &document, roots: &roots };
            catalog.commit_session(session, &record, &proven)
        });
        let committed = committed.await;
        if matches!(committed, Err(Error::Session { .. })) {
            // Shut out meanwhile: what it needs may be gone, and nobody was told of it. A catalog built anew would take it for a
            // snapshot that was lost.
            self.backend.delete(&names::snapshot(&id)).await?;
        }
        committed
    }

    async fn abandon(&self, session: SessionId) -> Result<()> {
        self.with_catalog(move |catalog| catalog.abandon_session(session)).await
    }

    async fn snapshots(&self) -> Result<Vec<StoredDocument>> {
        let stored = self.with_catalog(Catalog::snapshots).await?;
        Ok(stored
            .into_iter()
            .map(|(id, bytes)| StoredDocument { name: names::snapshot(&id), bytes: bytes.into() })
            .chain(self.unreadable.iter().cloned())
            .collect())
    }

    async fn protected(&self) -> Result<Vec<SnapshotId>> {
        let listed = self.backend.list(names::PROTECTED).await?;
        let mut protected: Vec<_> = (listed.iter())
            .filter_map(|(name, _)| match ObjectName::parse(name) {
                Some(ObjectName::Protection(snapshot)) => Some(snapshot),
                _ => None,
            })
            .collect();
        protected.sort_unstable();
        Ok(protected)
    }

    async fn protect(&self, snapshot: SnapshotId, on: bool) -> Result<()> {
        self.writable()?;
        let name = names::protection(&snapshot);
        if !on {
            return self.backend.delete(&name).await;
        }
        if !self.with_catalog(move |catalog| catalog.has_snapshot(snapshot)).await? {
            return Err(Error::NoSnapshot { wanted: snapshot.to_string() });
        }
        let mark = Protection { repository: self.id, snapshot };
        self.backend.put(&name, Bytes::from(mark.seal())).await
    }

    async fn forget(&self, snapshot: SnapshotId) -> Result<()> {
        self.writable()?;
        if self.backend.size(&names::protection(&snapshot)).await?.is_some() {
            return Err(Error::Protected { snapshot });
        }
        self.ownership.still_ours(&self.backend).await?;
        // Nobody relies on it any more before its object goes.
        self.with_catalog(move |catalog| catalog.forget_snapshot(snapshot)).await?;
        self.delete_forgotten(snapshot).await?;
        // Last: a mark without its snapshot does no harm.
        self.backend.delete(&names::damage(&snapshot)).await
    }

    async fn read_nodes(&self, ids: &[NodeId]) -> Result<Vec<Bytes>> {
        self.nodes.read(ids).await
    }

    async fn node_copies(&self, id: NodeId) -> Result<Vec<Bytes>> {
        let copies = self.nodes.copies(&[id], Whose::Anybody).await?.pop().unwrap_or_default();
        if copies.is_empty() { Err(missing(&id)) } else { Ok(copies) }
    }

    async fn locate_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        let ids = ids.to_vec();
        self.with_catalog(move |catalog| catalog.locate_chunks(&ids)).await
    }

    async fn read_pack(&self, name: PackName, range: Range<u64>) -> Result<Bytes> {
        self.backend.get_range(&names::pack(PackKind::Data, &name), range).await
    }

    async fn totals(&self) -> Result<Totals> {
        self.with_catalog(Catalog::totals).await
    }

    async fn gc(&self, options: &GcOptions, progress: &dyn Progress) -> Result<GcReport> {
        self.collect(options, progress).await
    }

    async fn check(&self, options: &CheckOptions, progress: &dyn Progress) -> Result<CheckReport> {
        Ok(self.checked(options, progress).await?.report)
    }

    async fn withdraw(&self, damage: &Withdrawal) -> Result<Withdrawn> {
        self.take_out_of_use(damage).await
    }

    async fn unverified(&self) -> Result<Vec<Unverified>> {
        self.with_catalog(Catalog::unverified_packs).await
    }

    async fn read_whole(&self, pack: PackId) -> Result<Bytes> {
        self.backend.get(&pack.to_string()).await
    }

    async fn vouch(&self, packs: &[PackName]) -> Result<u64> {
        self.vouched(packs).await
    }

    async fn marked(&self) -> Result<Vec<Marked>> {
        super::damage::marks(&self.backend).await
    }

    async fn repair(&self, options: &RepairOptions, progress: &dyn Progress) -> Result<RepairReport> {
        self.repaired(options, progress).await
    }
}

/// Of each node the copy that its writer may rely on.
fn trusted(ids: &[NodeId], copies: Vec<Vec<Bytes>>) -> Result<Vec<Bytes>> {
    let of = |(id, copies): (&NodeId, Vec<Bytes>)| copies.into_iter().next().ok_or_else(|| missing(id));
    ids.iter().zip(copies).map(of).collect()
}

fn missing(id: &NodeId) -> Error {
    Error::Missing { object: format!("node {id}") }
}

/// What the catalog and the node packs say about one session.
struct SessionFacts<'a> {
    repository: &'a Repository,
    session: SessionId,
}

#[async_trait]
impl Facts for SessionFacts<'_> {
    async fn own_nodes(&self, ids: &[NodeId]) -> Result<Vec<bool>> {
        let (session, ids) = (self.session, ids.to_vec());
        self.repository.with_catalog(move |catalog| catalog.is_own_node(session, &ids)).await
    }

    async fn pinned_nodes(&self, ids: &[NodeId]) -> Result<Vec<bool>> {
        let (session, ids) = (self.session, ids.to_vec());
        self.repository.with_catalog(move |catalog| catalog.is_pinned_node(session, &ids)).await
    }

    async fn known_chunks(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        let (session, ids) = (self.session, ids.to_vec());
        self.repository.with_catalog(move |catalog| catalog.known_chunks(session, &ids)).await
    }

    fn promises_are_shallow(&self) -> bool {
        self.repository.catalog.is_strict()
    }

    async fn read(&self, ids: &[NodeId]) -> Result<Vec<Node>> {
        let nodes = &self.repository.nodes;
        let encodings = match self.repository.catalog.is_strict() {
            true => trusted(ids, nodes.copies(ids, Whose::Session(self.session)).await?)?,
            false => nodes.read(ids).await?,
        };
        encodings
            .iter()
            .zip(ids)
            .map(|(bytes, id)| Node::decode(bytes).map_err(|what| Error::damaged(format!("node {id}"), what)))
            .collect()
    }
}
