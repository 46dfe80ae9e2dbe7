//! A client in small: it backs up and restores through the authority as the real one does, without threads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use underlay_store::authority::{Authority, SessionGrant};
use underlay_store::backend::Backend;
use underlay_store::catalog::{Catalog, PackState, SessionState};
use underlay_store::cut::{BLOCK, REGION};
use underlay_store::error::{Error, Result};
use underlay_store::id::{ChunkId, NodeId, PackName, Root, SessionId, SnapshotId};
use underlay_store::pack::{self, PackId, PackKind, PackWriter, Parsed};
use underlay_store::repository::{Access, Repository};
use underlay_store::sabotage::Rule;
use underlay_store::snapshot::{Consistency, Disk as SnapshotDisk, Snapshot, Statistics};
use underlay_store::tree::{Editor, Node, NodeSource, Run, root_level, span};

use crate::bucket::Op;
use crate::disk::{self, Disk, REPOSITORY, keys};
use crate::model::Record;
use crate::random::Random;
use crate::storm::forget_one;
use crate::wire::Wire;
use crate::world::{DAY, Sabotage, World};

/// One run of the program on one host.
pub struct Process {
    pub world: Arc<World>,
    pub number: usize,
    pub host: usize,
}

/// The catalog is being built; when its builder dies, somebody else may begin.
struct Building<'a>(&'a Process);

impl Drop for Building<'_> {
    fn drop(&mut self) {
        self.0.world.core().hosts[self.0.host].building = false;
    }
}

impl Process {
    pub fn begin(world: &Arc<World>, lane: usize, host: usize) -> Self {
        Self { world: Arc::clone(world), number: world.begin_process(lane, host), host }
    }

    pub fn backend(&self) -> Backend {
        let wire = Wire { world: Arc::clone(&self.world), process: self.number };
        Backend::on(Arc::new(wire), "simulated:")
    }

    fn hooked(&self, catalog: &Catalog) -> Catalog {
        let (world, number) = (Arc::clone(&self.world), self.number);
        catalog.with_hook(Arc::new(move |moment, action| world.moment(number, moment, action)))
    }

    /// The host's catalog, as this process sees it.
    pub fn catalog(&self) -> Option<Catalog> {
        self.world.core().hosts[self.host].catalog.as_ref().map(|catalog| self.hooked(catalog))
    }

    async fn open_on(&self, catalog: Catalog, access: Access) -> Result<Repository> {
        let world = Arc::clone(&self.world);
        let clock = Arc::new(move || world.core().clock);
        Repository::open_with(self.backend(), catalog, REPOSITORY, clock, access).await
    }

    /// Opens the repository; builds the host's catalog first if that was lost.
    pub async fn open(&self, access: Access) -> Result<Repository> {
        let catalog = match self.catalog() {
            Some(catalog) => catalog,
            None => {
                if std::mem::replace(&mut self.world.core().hosts[self.host].building, true) {
                    return Err(Error::Interrupted);
                }
                let _building = Building(self);
                let (mut catalog, path) = self.world.new_catalog();
                self.open_on(self.hooked(&catalog), Access::Read).await?;
                catalog.set_owner(self.world.core().hosts[self.host].owner)?;
                let hooked = self.hooked(&catalog);
                self.world.install(self.host, catalog, path);
                hooked
            }
        };
        let opened = self.open_on(catalog, access).await;
        self.heed(opened)
    }

    /// Notes that the repository is somebody else's.
    pub fn heed<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::OwnedElsewhere { generation, .. }) = &result {
            let mut core = self.world.core();
            core.lives[self.number].fenced = Some(*generation);
            core.hosts[self.host].told_off = true;
        }
        result
    }

    pub fn is_fenced(&self) -> bool {
        self.world.core().lives[self.number].fenced.is_some()
    }

    pub async fn pause(&self, steps: u64) {
        let until = self.world.core().step + steps;
        let _ = self.world.call(self.number, Op::Pause { until }).await;
    }

    /// The host goes to sleep under it: ten days pass, others go on.
    pub async fn sleep_ten_days(&self, steps: u64) {
        self.world.core().clock += 10 * DAY;
        self.pause(steps).await;
    }
}

/// The repository as it is seen by whoever owns nothing and has no catalog.
pub async fn rebuilt_repository(process: &Process) -> Result<Repository> {
    process.open_on(process.hooked(&Catalog::in_memory(REPOSITORY)?), Access::Read).await
}

/// A catalog built from the bucket alone, by somebody who owns nothing.
pub async fn rebuild(process: &Process) -> Result<Catalog> {
    let catalog = Catalog::in_memory(REPOSITORY)?;
    process.open_on(process.hooked(&catalog), Access::Read).await?;
    Ok(catalog)
}

/// What a backup is to do.
pub struct Plan {
    pub vm: String,
    pub snapshot: SnapshotId,
    pub random: Random,
    /// The one disk of the machine; `None`: as it comes.
    pub disk: Option<Disk>,
}

/// The parts of a backup, each of which may find the repository gone.
struct Backup<'a> {
    process: &'a Process,
    repository: &'a Repository,
    random: Random,
    grant: SessionGrant,
}

/// Backs up one new disk or a changed one, and commits.
pub async fn backup(process: &Process, repository: &Repository, plan: Plan) -> Result<()> {
    let Plan { vm, snapshot, random, disk } = plan;
    let grant = process.heed(repository.open_session(&vm).await)?;
    let mut backup = Backup { process, repository, random, grant };
    let result = backup.run(&vm, snapshot, disk).await;
    if result.is_err() && backup.random.chance(500) && !process.is_fenced() {
        let _ = repository.abandon(grant.session).await;
    }
    if process.is_fenced() {
        backup.insist(&vm).await;
    }
    result
}

impl Backup<'_> {
    fn session(&self) -> SessionId {
        self.grant.session
    }

    /// What goes is made to go by itself: a chunk a pack, and little is shared.
    fn is_distinct(&self) -> bool {
        self.process.world.core().weather.distinct
    }

    async fn run(&mut self, vm: &str, id: SnapshotId, disk: Option<Disk>) -> Result<()> {
        let (mut disks, mut roots) = (Vec::new(), Vec::new());
        if let Some(disk) = disk {
            let root = self.store(Root { size: 0, node: None }, &Disk::default(), &disk).await?;
            return self.commit(&self.snapshot(id, vm, &[(root, Vec::new())]), vec![(root, disk)]).await;
        }
        for _ in 0..2 {
            let (root, disk, layers) = self.disk().await?;
            disks.push((root, disk));
            roots.push((root, layers));
            if self.random.chance(700) {
                break;
            }
        }
        self.wait().await;
        let snapshot = self.snapshot(id, vm, &roots);
        self.commit(&snapshot, disks).await
    }

    async fn commit(&mut self, snapshot: &Snapshot, disks: Vec<(Root, Disk)>) -> Result<()> {
        let id = snapshot.snapshot;
        let document = Bytes::from(snapshot.seal(keys().restore.backup())?);
        let mut ids = BTreeSet::new();
        for (root, disk) in &disks {
            let (whole, below) = disk::contents(disk);
            if whole != *root {
                self.process.world.complain("a tree is not what it would be if it was made at once");
            }
            ids.extend(below);
        }
        let record = Record {
            disks: disks.clone(),
            document: document.clone(),
            ids: ids.clone(),
            made: self.process.world.core().step,
            acknowledged: false,
            forget_begun: None,
            forgotten: false,
            protected: None,
            unprotect_begun: false,
        };
        self.process.world.core().model.snapshots.insert(id, record);
        let committed = self.process.heed(self.repository.commit(self.session(), document).await);
        let mut core = self.process.world.core();
        let hopeful = core.weather.sabotage == Some(Sabotage::HopefulCommit);
        match &committed {
            Err(Error::Backend { .. }) if hopeful => {}
            Ok(()) => {}
            Err(Error::Unproven { reason, .. }) => {
                // Nothing that an honest client was promised may be missing from a proof.
                let what = format!("an honest commit was not proven: {reason}");
                core.note(self.process.number, "complaint", &what, "");
                core.complaints.push(what);
                return committed;
            }
            Err(_) => return committed,
        }
        core.note(self.process.number, "acknowledged", &id.to_string(), "");
        let ledger = &core.bucket.ledger;
        if let Some(gone) = ids.iter().find(|id| !ledger.is_sound(id) && !ledger.doubted.contains(*id)) {
            let what = format!("{id} was acknowledged without {}", hex::encode(gone));
            core.complaints.push(what);
        }
        core.model.snapshots.get_mut(&id).unwrap().acknowledged = true;
        core.hosts[self.process.host].memos.extend(disks);
        committed
    }

    /// Other processes go on meanwhile; sometimes for ten days.
    async fn wait(&mut self) {
        if self.random.chance(40) {
            let steps = 20 + self.random.below(200);
            self.process.sleep_ten_days(steps).await;
        } else if self.random.chance(200) {
            let steps = self.random.below(40);
            self.process.pause(steps).await;
        }
    }

    /// Reads one disk: a new one, or what became of one that was read before.
    async fn disk(&mut self) -> Result<(Root, Disk, Vec<Root>)> {
        let known = {
            let core = self.process.world.core();
            let memos = &core.hosts[self.process.host].memos;
            // What comes back is best what was dropped a moment ago.
            let recent = if core.weather.distinct { memos.len().saturating_sub(4) } else { 0 };
            (!memos.is_empty() && self.random.chance(750)).then(|| self.random.pick(&memos[recent..]).clone())
        };
        let common = if self.is_distinct() { 1 << 20 } else { 24 };
        let Some((base, content)) = known else {
            let disk = Disk::new(&mut self.random, common);
            let none = Root { size: 0, node: None };
            return Ok((self.store(none, &Disk::default(), &disk).await?, disk, Vec::new()));
        };
        let mut disk = content.clone();
        let most = if self.is_distinct() { 2 } else { 3 };
        for _ in 0..self.random.below(most) {
            disk.write(&mut self.random, common);
        }
        let live = self.process.heed(self.repository.pin_roots(self.session(), &[base]).await)?[0];
        self.wait().await;
        if !live {
            let none = Root { size: 0, node: None };
            return Ok((self.store(none, &Disk::default(), &disk).await?, disk, Vec::new()));
        }
        let layers = if self.random.chance(300) { vec![base] } else { Vec::new() };
        Ok((self.store(base, &content, &disk).await?, disk, layers))
    }

    /// Stores what `disk` has and `content`, which is at `base`, has not.
    async fn store(&mut self, base: Root, content: &Disk, disk: &Disk) -> Result<Root> {
        let mut nodes = match self.nodes_below(base).await {
            // Read anew, as if nothing was remembered of it.
            Err(error) if error.is_damage() && base.node.is_some() && self.random.chance(700) => {
                let none = Root { size: 0, node: None };
                return Box::pin(self.store(none, &Disk::default(), disk)).await;
            }
            nodes => nodes?,
        };
        let regions = disk.changed(content);
        let old: BTreeSet<(usize, u64)> = regions.iter().flat_map(|at| runs_of(content, *at)).collect();
        let mut wanted: BTreeMap<ChunkId, (usize, u64)> = BTreeMap::new();
        for region in &regions {
            // A region's own old chunks need not be asked for: they hang from the pinned root, at the same place.
            let before: BTreeSet<_> = runs_of(content, *region).collect();
            let new = runs_of(disk, *region).filter(|run| !before.contains(run) || !old.contains(run));
            wanted.extend(new.map(|(blocks, word)| (disk::chunk_id(blocks, word), (blocks, word))));
        }
        let backup = keys().restore.backup();
        let mut new: BTreeMap<NodeId, Node> = BTreeMap::new();
        let mut sink = |node: &Node| {
            let id = backup.node_id(&node.encode());
            new.insert(id, node.clone());
            id
        };
        let unexpected = |id: &NodeId| format!("{id} has the wrong level");
        let mut editor = Editor::new(base, disk.size, &mut nodes, &mut sink, unexpected).unwrap();
        for region in regions {
            let leaf = disk.regions.get(&region).and_then(|runs| disk::leaf(runs)).map(|leaf| sink(&leaf));
            editor.set(region, leaf, &mut nodes, &mut sink, unexpected).unwrap();
        }
        let root = editor.finish(&mut sink);
        // A tree that is there, with all below it, needs nothing else.
        if let Some(top) = root.node.filter(|top| new.contains_key(top))
            && self.random.chance(if self.is_distinct() { 700 } else { 400 })
            && self.process.heed(self.repository.have_nodes(self.session(), &[top]).await)?[0]
        {
            return Ok(root);
        }
        self.store_chunks(wanted).await?;
        self.wait().await;
        self.store_nodes(new).await?;
        Ok(root)
    }

    async fn store_chunks(&mut self, wanted: BTreeMap<ChunkId, (usize, u64)>) -> Result<()> {
        let ids: Vec<ChunkId> = wanted.keys().copied().collect();
        let have = self.process.heed(self.repository.have_chunks(self.session(), &ids).await)?;
        self.expect_live(&ids, &have).await?;
        let mut missing: Vec<_> =
            wanted.values().zip(have).filter(|(_, have)| !have).map(|(run, _)| *run).collect();
        // Believes an answer that it was not given.
        let believes = self.process.world.core().weather.sabotage == Some(Sabotage::Rule(Rule::Prove));
        if believes && self.random.chance(300) {
            missing.pop();
        }
        if missing.is_empty() {
            return Ok(());
        }
        let parts = if self.is_distinct() { missing.len() } else { 1 + self.random.index(2) };
        for part in missing.chunks(missing.len().div_ceil(parts)) {
            let mut pack = PackWriter::data(REPOSITORY, vec![keys().sealed])?.with_target(1);
            for (blocks, word) in part {
                let faulty = self.process.world.core().weather.faulty;
                let faulty = faulty > 0 && self.random.chance(faulty);
                let frame = disk::encode(*blocks, *word, faulty);
                if faulty {
                    let mut core = self.process.world.core();
                    core.bucket.ledger.faulty.insert(frame.payload.clone().into());
                    core.bucket.ledger.troubled = true;
                }
                pack.add(&frame)?;
            }
            self.put(PackKind::Data, pack).await?;
        }
        Ok(())
    }

    /// What dedup answers with must be usable, and stay so.
    async fn expect_live(&self, ids: &[ChunkId], have: &[bool]) -> Result<()> {
        let Some(catalog) = self.process.catalog() else { return Ok(()) };
        let states: HashMap<_, _> =
            catalog.packs(PackKind::Data)?.into_iter().map(|pack| (pack.name, pack.state)).collect();
        for ((id, places), _) in
            ids.iter().zip(catalog.locate_chunks(ids)?).zip(have).filter(|(_, have)| **have)
        {
            // A collection may have condemned it since; it will find the pin before it decides.
            let stays = |state: &PackState| matches!(state, PackState::Live | PackState::Condemned);
            let live = places.iter().any(|place| states.get(&place.pack).is_some_and(stays));
            // Meanwhile the session may have been shut out, and let go of everything.
            if !live && catalog.session_state(self.session())? == Some(SessionState::Open) {
                self.process.world.complain(format!("dedup answered with {id}, which is on its way out"));
            }
        }
        Ok(())
    }

    async fn store_nodes(&mut self, new: BTreeMap<NodeId, Node>) -> Result<()> {
        let mut ids: Vec<NodeId> = new.keys().copied().collect();
        if ids.is_empty() {
            return Ok(());
        }
        if self.random.chance(700) {
            let have = self.process.heed(self.repository.have_nodes(self.session(), &ids).await)?;
            ids = ids.into_iter().zip(have).filter(|(_, have)| !have).map(|(id, _)| id).collect();
        }
        // Leaves first: what a node refers to is durable before it is.
        ids.sort_by_key(|id| new[id].level());
        if ids.is_empty() {
            return Ok(());
        }
        let parts = if self.is_distinct() { 1 } else { 1 + self.random.index(2) };
        for part in ids.chunks(ids.len().div_ceil(parts)) {
            let mut pack = PackWriter::nodes(REPOSITORY).with_target(1);
            for id in part {
                pack.add_node(*id, &new[id].encode())?;
            }
            self.put(PackKind::Nodes, pack).await?;
        }
        Ok(())
    }

    /// Sends a pack, again if the store would not have it.
    async fn put(&mut self, kind: PackKind, pack: PackWriter) -> Result<()> {
        let pack = pack.finish().expect("it is not empty");
        let session = self.session();
        for _ in 0..2 {
            let put = self.repository.put_pack(session, kind, pack.bytes.clone()).await;
            if !matches!(put, Err(Error::Backend { .. })) {
                return self.process.heed(put.map(drop));
            }
            self.wait().await;
        }
        self.process.heed(self.repository.put_pack(session, kind, pack.bytes).await.map(drop))
    }

    async fn nodes_below(&self, root: Root) -> Result<Nodes> {
        let mut nodes = HashMap::new();
        let mut open: Vec<NodeId> = root.node.into_iter().collect();
        while !open.is_empty() {
            let encodings = self.process.heed(self.repository.read_nodes(&open).await)?;
            let mut below = Vec::new();
            for (id, bytes) in open.iter().zip(encodings) {
                let node = Node::decode(&bytes).map_err(|what| Error::damaged(format!("node {id}"), what))?;
                if let Node::Inner { children, .. } = &node {
                    below.extend(children.iter().flatten().copied());
                }
                nodes.insert(*id, node);
            }
            open = below;
        }
        Ok(Nodes(nodes))
    }

    /// A process that was told it is not the owner tries everything again: it must stay without effect.
    async fn insist(&mut self, vm: &str) {
        let leaf = disk::leaf(&[(1, 7)]).unwrap().encode();
        let mut pack = PackWriter::nodes(REPOSITORY).with_target(1);
        pack.add_node(keys().restore.backup().node_id(&leaf), &leaf).unwrap();
        let bytes = pack.finish().unwrap().bytes;
        let put = self.repository.put_pack(self.session(), PackKind::Nodes, bytes).await.map(drop);
        self.expect_refused("stored a pack", &put);
        let target = self.process.world.core().model.owed().map(|(id, _)| id).next();
        if let Some(target) = target {
            forget_one(self.process, self.repository, target).await;
        }
        let Ok(grant) = self.repository.open_session(vm).await else { return };
        self.grant = grant;
        let mut id = [0; 16];
        self.random.fill(&mut id);
        let disk = Disk { size: REGION as u64, regions: BTreeMap::new() };
        let snapshot =
            self.snapshot(SnapshotId::new(id), vm, &[(Root { size: disk.size, node: None }, Vec::new())]);
        let nothing = vec![(Root { size: disk.size, node: None }, disk)];
        let committed = self.commit(&snapshot, nothing).await;
        self.expect_refused("committed", &committed);
    }

    fn expect_refused(&self, what: &str, result: &Result<()>) {
        let mut core = self.process.world.core();
        if result.is_ok() && core.is_shut_out(self.process.number) {
            core.complaints.push(format!("a fenced process {what}"));
        }
    }

    fn snapshot(&self, id: SnapshotId, vm: &str, disks: &[(Root, Vec<Root>)]) -> Snapshot {
        let disks = disks.iter().zip(["vda", "vdb"]);
        Snapshot {
            snapshot: id,
            repository: REPOSITORY,
            session: self.session(),
            vm: vm.into(),
            time: self.grant.time,
            consistency: Consistency::Offline,
            disks: disks
                .map(|((root, layers), name)| SnapshotDisk {
                    name: name.into(),
                    root: *root,
                    layers: layers.clone(),
                })
                .collect(),
            statistics: Statistics::default(),
            client: "simulated".into(),
            private: None,
        }
    }
}

fn runs_of(disk: &Disk, region: u64) -> impl Iterator<Item = (usize, u64)> {
    disk.regions.get(&region).into_iter().flatten().copied().filter(|run| run.1 != 0)
}

struct Nodes(HashMap<NodeId, Node>);

impl NodeSource for Nodes {
    type Error = String;

    fn node(&mut self, id: &NodeId) -> Result<Node, String> {
        self.0.get(id).cloned().ok_or_else(|| format!("{id} was not read"))
    }
}

/// Why a disk could not be read.
#[derive(Debug)]
pub enum Trouble {
    Store(Error),
    /// What is stored is not what was.
    Wrong(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// Reads disks back, each chunk and node once.
#[derive(Default)]
pub struct Reader {
    chunks: HashMap<ChunkId, u64>,
    nodes: HashMap<NodeId, Node>,
    headers: HashMap<PackId, pack::Header>,
}

impl Reader {
    /// The disk at `root`, every id recomputed.
    pub async fn disk(&mut self, repository: &dyn Authority, root: Root) -> Result<Disk, Trouble> {
        let mut disk = Disk { size: root.size, regions: BTreeMap::new() };
        let Some(top) = root.node else { return Ok(disk) };
        let mut open = vec![(top, root_level(root.size), 0)];
        let mut leaves = Vec::new();
        while !open.is_empty() {
            let unread: Vec<NodeId> =
                open.iter().map(|(id, _, _)| *id).filter(|id| !self.nodes.contains_key(id)).collect();
            for (id, bytes) in unread.iter().zip(repository.read_nodes(&unread).await?) {
                if keys().restore.backup().node_id(&bytes) != *id {
                    return Err(Trouble::Wrong(format!("node {id} has other content")));
                }
                self.nodes.insert(*id, Node::decode(&bytes).map_err(Trouble::Wrong)?);
            }
            let mut below = Vec::new();
            for (id, level, first) in open {
                match &self.nodes[&id] {
                    node if node.level() != level => {
                        return Err(Trouble::Wrong(format!("node {id} has the wrong level")));
                    }
                    Node::Leaf(runs) => leaves.push((first, runs.clone())),
                    Node::Inner { children, .. } => {
                        let step = span(level - 1);
                        let there = children.iter().enumerate();
                        below.extend(there.filter_map(|(at, child)| {
                            Some(((*child)?, level - 1, first + at as u64 * step))
                        }));
                    }
                }
            }
            open = below;
        }
        for (region, runs) in leaves {
            let mut content = Vec::new();
            for run in runs {
                content.push(match run {
                    Run::Zero(blocks) => (blocks, 0),
                    Run::Chunk(blocks, id) => (blocks, self.chunk(repository, id, blocks).await?),
                });
            }
            disk.regions.insert(region, content);
        }
        Ok(disk)
    }

    async fn chunk(
        &mut self,
        repository: &dyn Authority,
        id: ChunkId,
        blocks: usize,
    ) -> Result<u64, Trouble> {
        if let Some(word) = self.chunks.get(&id) {
            return Ok(*word);
        }
        let places = repository.locate_chunks(&[id]).await?.pop().unwrap_or_default();
        let mut failure = Error::Missing { object: format!("chunk {id}") };
        for place in places {
            let whole = PackId::new(PackKind::Data, place.pack);
            let entry = place.entry(*id.as_bytes());
            match self.frame(repository, &whole, &entry, &id, (blocks * BLOCK) as u32).await {
                Ok(plain) => {
                    let word = u64::from_le_bytes(plain[..8].try_into().unwrap());
                    if plain != disk::plain(blocks, word) {
                        return Err(Trouble::Wrong(format!("chunk {id} has other content")));
                    }
                    self.chunks.insert(id, word);
                    return Ok(word);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure.into())
    }

    /// Reads every copy of a chunk, and adds those to `bad` that are not what the id says.
    pub async fn copies(
        &mut self,
        repository: &dyn Authority,
        id: ChunkId,
        plain_length: u32,
        bad: &mut Vec<(ChunkId, PackName)>,
    ) -> Result<()> {
        for place in repository.locate_chunks(&[id]).await?.pop().unwrap_or_default() {
            let whole = PackId::new(PackKind::Data, place.pack);
            match self.frame(repository, &whole, &place.entry(*id.as_bytes()), &id, plain_length).await {
                Ok(_) => {}
                Err(error) if !error.is_damage() => return Err(error),
                Err(_) if bad.contains(&(id, place.pack)) => {}
                Err(_) => bad.push((id, place.pack)),
            }
        }
        Ok(())
    }

    async fn frame(
        &mut self,
        repository: &dyn Authority,
        whole: &PackId,
        entry: &pack::Entry,
        id: &ChunkId,
        plain_length: u32,
    ) -> Result<Vec<u8>> {
        if !self.headers.contains_key(whole) {
            let mut length = 176;
            loop {
                let start = repository.read_pack(whole.name, 0..length).await?;
                match pack::parse_header(whole, &start)? {
                    Parsed::Whole(header) => break drop(self.headers.insert(*whole, header)),
                    Parsed::Needs(more) => length = more as u64,
                }
            }
        }
        let range = u64::from(entry.offset)..u64::from(entry.offset + entry.frame_length());
        let bytes = repository.read_pack(whole.name, range).await?;
        let frame = pack::parse_frame(whole, &bytes, entry)?;
        let sealed = self.headers[whole].key_of(whole, &frame)?;
        if sealed.id() != keys().data.id() {
            return Err(Error::damaged(whole.to_string(), "it was sealed with another key"));
        }
        disk::with_decoder(|decoder| {
            let mut plain = Vec::new();
            decoder.decode(whole, &keys().data, &frame, id, plain_length, &mut plain)?;
            Ok(plain)
        })
    }
}
