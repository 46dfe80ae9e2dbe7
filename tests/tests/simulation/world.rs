//! All that the actors of a run share: the store, the hosts, the clock, chance, and what was promised to whom.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tempfile::TempDir;
use underlay_store::Error;
use underlay_store::catalog::{Catalog, Moment};
use underlay_store::id::{OwnerId, RepositoryId, Root, SnapshotId};
use underlay_store::names::{self, ObjectName};
use underlay_store::sabotage::Rule;

use crate::bucket::{Answer, Bucket, Conditional, Op, Refusal};
use crate::disk::Disk;
use crate::ledger::Id;
use crate::model::Model;
use crate::random::Random;

pub const DAY: i64 = 24 * 3600 * 1000;

/// A rule of the store that is broken on purpose: the harness must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Data packs are acknowledged before they are durable; a crash of their writer loses them.
    EarlyData,
    /// The same for node packs: a snapshot can be there before its nodes.
    EarlyNodes,
    /// Packs that the catalog does not know are taken for garbage.
    SweepUnknown,
    /// Claims of others are not seen.
    BlindToClaims,
    /// A failed listing counts as an empty one.
    FailureIsEmpty,
    /// A dropped snapshot's object goes before its tombstone is written.
    DeleteFirst,
    /// A lost answer to a commit is taken for an acknowledgement.
    HopefulCommit,
    /// Deletes do not delete, but say so.
    LazyDelete,
    /// A rule within the store, and clients that rely on it.
    Rule(Rule),
}

impl Sabotage {
    /// The rule within the store, if it is one.
    pub fn rule(self) -> Option<Rule> {
        match self {
            Self::Rule(rule) => Some(rule),
            _ => None,
        }
    }
}

/// How bad it gets. Chances are in thousandths.
#[derive(Clone, Debug)]
pub struct Weather {
    pub fails: u64,
    pub answer_lost: u64,
    pub late: u64,
    pub half_list: u64,
    pub stale_list: u64,
    pub short: u64,
    pub full: u64,
    /// A transaction of the catalog fails, before or after it was committed.
    pub catalog: u64,
    /// A process dies, at each step.
    pub kill: u64,
    /// A host loses its catalog, at each step.
    pub catalog_loss: u64,
    /// A catalog is removed under those who use it, at each step.
    pub removal: u64,
    /// A host's disk is copied, or put back as it was when it was copied, at each step.
    pub put_back: u64,
    /// A pack rots, at each step.
    pub rot: u64,
    /// That may be the last sound copy of something: what is lost by that is lost.
    pub hard: bool,
    /// A client stores something else than it says.
    pub faulty: u64,
    /// Some say of what is sound that it is damaged.
    pub lies: bool,
    pub conditional: Conditional,
    /// Much is dropped and collected.
    pub tidy: bool,
    /// Little is shared, each chunk has a pack of its own, and what was dropped comes back.
    pub distinct: bool,
    pub sabotage: Option<Sabotage>,
}

impl Weather {
    pub fn calm() -> Self {
        Self {
            fails: 0,
            answer_lost: 0,
            late: 0,
            half_list: 0,
            stale_list: 0,
            short: 0,
            full: 0,
            catalog: 0,
            kill: 0,
            catalog_loss: 0,
            removal: 0,
            put_back: 0,
            rot: 0,
            hard: false,
            faulty: 0,
            lies: false,
            conditional: Conditional::Honoured,
            tidy: false,
            distinct: false,
            sabotage: None,
        }
    }

    pub fn draw(random: &mut Random) -> Self {
        let mut some = |most: u64| if random.chance(500) { random.below(most + 1) } else { 0 };
        let mut weather = Self {
            fails: some(25),
            answer_lost: some(25),
            late: some(25),
            half_list: some(60),
            stale_list: some(400),
            short: some(25),
            full: some(8),
            catalog: some(6),
            kill: some(12),
            catalog_loss: some(3),
            rot: some(8),
            hard: some(2) > 0,
            faulty: some(60),
            lies: some(2) > 0,
            removal: some(4),
            put_back: 0,
            conditional: Conditional::Honoured,
            tidy: false,
            distinct: false,
            sabotage: None,
        };
        weather.conditional =
            *random.pick(&[Conditional::Honoured, Conditional::Ignored, Conditional::Refused]);
        weather.tidy = random.chance(200);
        weather.distinct = random.chance(150);
        if random.chance(120) {
            weather.put_back = 4 + random.below(8);
        }
        weather
    }
}

/// Where a process of the simulation stands.
#[derive(Clone, Debug)]
pub struct Life {
    pub lane: usize,
    pub host: usize,
    /// It dies at once: nothing it does takes effect any more.
    pub doomed: bool,
    /// It was told that the repository is somebody else's, by a claim of this generation.
    pub fenced: Option<u64>,
    /// It repairs: it may write documents, and delete marks of damage.
    pub repairs: bool,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub lane: usize,
    pub process: usize,
    pub what: &'static str,
    pub object: String,
    pub outcome: &'static str,
}

#[derive(Debug)]
pub struct Request {
    pub process: usize,
    pub op: Op,
    pub waker: Option<Waker>,
}

/// A host: its catalog, and what its backups remember.
pub struct Host {
    pub owner: OwnerId,
    pub catalog: Option<Catalog>,
    /// Catalogs that were removed while somebody used them.
    pub removed: Vec<Catalog>,
    /// Where the catalog is, if it is in a file.
    path: Option<PathBuf>,
    /// A copy of the host's disk from an earlier time.
    copy: Option<Copy>,
    /// How often such a copy was put back.
    pub returns: u64,
    pub building: bool,
    pub memos: Vec<(Root, Disk)>,
    pub losses: u64,
    /// One of its processes was told that the repository is somebody else's.
    pub told_off: bool,
}

/// A host's disk as it was: its catalog, what its backups remembered, and the packs that were on their way out.
struct Copy {
    catalog: PathBuf,
    memos: Vec<(Root, Disk)>,
    leaving: BTreeSet<String>,
}

/// Where the exhaustive mode kills: at the so-manieth point, counted from 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ambush {
    pub at: Option<u64>,
    pub seen: u64,
    pub struck: bool,
}

pub struct Core {
    pub random: Random,
    pub bucket: Bucket,
    pub weather: Weather,
    pub clock: i64,
    pub step: u64,
    pub requests: BTreeMap<u64, Request>,
    next_request: u64,
    answers: HashMap<u64, Result<Answer, Refusal>>,
    /// Writes that are still on their way: when they land, whose they were.
    pub late: Vec<(u64, usize, Op)>,
    pub trace: Vec<Event>,
    pub complaints: Vec<String>,
    pub lives: Vec<Life>,
    pub hosts: Vec<Host>,
    /// Where catalogs are, if they are in files.
    files: Option<(TempDir, u64)>,
    pub model: Model,
    pub ambush: Ambush,
    pub takeovers: u64,
    pub collections: u64,
    /// Collections and repairs that are under way.
    pub judging: u64,
    last_action: (usize, &'static str, u32),
}

/// Shared by scheduler, processes and catalogs. Never locked while an actor is polled.
pub struct World {
    pub repository: RepositoryId,
    core: Mutex<Core>,
}

impl World {
    pub fn new(seed: u64, weather: Weather, repository: RepositoryId) -> Arc<Self> {
        let core = Core {
            random: Random::new(seed),
            bucket: Bucket::default(),
            weather,
            clock: 1_795_453_509_120,
            step: 0,
            requests: BTreeMap::new(),
            next_request: 0,
            answers: HashMap::new(),
            late: Vec::new(),
            trace: Vec::new(),
            complaints: Vec::new(),
            lives: Vec::new(),
            hosts: Vec::new(),
            files: None,
            model: Model::default(),
            ambush: Ambush::default(),
            takeovers: 0,
            collections: 0,
            judging: 0,
            last_action: (0, "", 0),
        };
        Arc::new(Self { repository, core: Mutex::new(core) })
    }

    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn complain(&self, what: impl Into<String>) {
        let what = what.into();
        let mut core = self.core();
        core.note(999, "complaint", &what, "");
        core.complaints.push(what);
    }

    /// From here on catalogs are files, that can be copied.
    pub fn use_files(&self) {
        let shared = Path::new("/dev/shm");
        let folder = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
        self.core().files = Some((folder.unwrap(), 0));
    }

    /// An empty catalog.
    pub fn new_catalog(&self) -> (Catalog, Option<PathBuf>) {
        let path = self.core().new_path();
        let catalog = match &path {
            Some(path) => Catalog::open(path, self.repository),
            None => Catalog::in_memory(self.repository),
        };
        (catalog.unwrap(), path)
    }

    /// Puts `catalog` in the place of the one that the host has lost.
    pub fn install(&self, host: usize, catalog: Catalog, path: Option<PathBuf>) {
        let host = &mut self.core().hosts[host];
        (host.catalog, host.path) = (Some(catalog), path);
    }

    /// Copies the host's disk, or puts back what was copied before. Nobody is at work in its catalog.
    pub fn copy_or_put_back(&self, host: usize, leaving: BTreeSet<String>) {
        let mut core = self.core();
        let Some(target) = core.new_path() else { return };
        let at = &mut core.hosts[host];
        match &at.copy {
            None => {
                let Some(path) = at.path.as_ref().filter(|_| at.catalog.is_some()) else { return };
                copy_database(path, &target);
                at.copy = Some(Copy { catalog: target, memos: at.memos.clone(), leaving });
                core.note(999, "disk copied", "", if host == 0 { "of A" } else { "of B" });
            }
            Some(copy) => {
                copy_database(&copy.catalog, &target);
                at.memos.clone_from(&copy.memos);
                at.catalog = Some(Catalog::open(&target, self.repository).unwrap());
                at.path = Some(target);
                at.copy = None;
                at.returns += 1;
                core.note(999, "disk put back", "", if host == 0 { "of A" } else { "of B" });
            }
        }
    }

    /// A host with an empty catalog of its own.
    pub fn add_host(&self) {
        let (catalog, path) = self.new_catalog();
        let owner = catalog.owner();
        let host = Host {
            owner,
            catalog: Some(catalog),
            removed: Vec::new(),
            path,
            copy: None,
            returns: 0,
            building: false,
            memos: Vec::new(),
            losses: 0,
            told_off: false,
        };
        self.core().hosts.push(host);
    }

    pub fn begin_process(&self, lane: usize, host: usize) -> usize {
        let mut core = self.core();
        core.lives.push(Life { lane, host, doomed: false, fenced: None, repairs: false });
        core.lives.len() - 1
    }

    /// A request: it takes effect when the scheduler says so.
    pub fn call(self: &Arc<Self>, process: usize, op: Op) -> Call {
        let mut core = self.core();
        if core.lives[process].doomed {
            return Call { world: Arc::clone(self), id: None };
        }
        if op.changes() && core.is_shut_out(process) && !op.name().starts_with("snapshots/") {
            let what = format!(
                "process {process} writes after it was told it is not the owner: {} {}",
                op.verb(),
                op.name()
            );
            core.complaints.push(what);
        }
        if core.lives[process].repairs
            && let Some(what) = core.oversteps(&op)
        {
            let doubted = match ObjectName::parse(op.name()) {
                Some(ObjectName::Damage(snapshot)) => core.describe_doubted(&snapshot),
                _ => String::new(),
            };
            core.complaints.push(format!("a repair {what}: {} {}; doubted: {doubted}", op.verb(), op.name()));
        }
        let id = core.next_request;
        core.next_request += 1;
        core.requests.insert(id, Request { process, op, waker: None });
        Call { world: Arc::clone(self), id: Some(id) }
    }

    /// Told by the catalog of each transaction that changes something.
    pub fn moment(&self, process: usize, moment: Moment, action: &'static str) -> Result<(), Error> {
        let mut core = self.core();
        let failed = |what: &str| Error::Catalog {
            path: "simulated".into(),
            action,
            source: format!("simulated: {what}").into(),
        };
        if core.lives[process].doomed {
            return Err(failed("the process is dead"));
        }
        // Work that is done in hundreds of small transactions: a few of them stand for all.
        let repeated = core.repeated(process, action);
        if repeated > 8 {
            return Ok(());
        }
        let what = match moment {
            Moment::BeforeCommit => "transaction",
            Moment::AfterCommit => "committed",
        };
        if core.strikes() {
            core.lives[process].doomed = true;
            core.note(process, what, action, "the process dies");
            return Err(failed("the process is dead"));
        }
        let chance = core.weather.catalog;
        let fails = chance > 0 && core.random.chance(chance);
        core.note(process, what, action, if fails { "fails" } else { "" });
        if fails { Err(failed("the disk is full")) } else { Ok(()) }
    }

    /// The last events, in words.
    pub fn tail(&self, length: usize) -> String {
        let core = self.core();
        let mut text = String::new();
        for event in &core.trace[core.trace.len().saturating_sub(length)..] {
            let Event { lane, process, what, object, outcome } = event;
            let _ = writeln!(text, "  lane {lane} process {process:3} {what:12} {object} {outcome}");
        }
        text
    }
}

fn copy_database(from: &Path, to: &Path) {
    for ending in ["", "-wal"] {
        let name = |path: &Path| PathBuf::from(format!("{}{ending}", path.display()));
        if name(from).exists() {
            std::fs::copy(name(from), name(to)).unwrap();
        }
    }
}

impl Core {
    /// Where the next catalog goes, if catalogs are files.
    fn new_path(&mut self) -> Option<PathBuf> {
        let (folder, made) = self.files.as_mut()?;
        *made += 1;
        Some(folder.path().join(format!("{made}.sqlite")))
    }

    /// Whether putting the host's disk back comes next, and not copying it.
    pub fn has_copy(&self, host: usize) -> bool {
        self.hosts[host].copy.is_some()
    }

    /// What was on its way out when disks were copied.
    pub fn left_in_copies(&self) -> BTreeSet<String> {
        let copies = self.hosts.iter().filter_map(|host| host.copy.as_ref());
        copies.flat_map(|copy| copy.leaving.iter().cloned()).collect()
    }

    /// Whether the process was told that the repository is not its host's, and nobody has claimed it since.
    pub fn is_shut_out(&self, process: usize) -> bool {
        let newest = self.bucket.names("claims/").pop();
        self.lives[process].fenced.is_some_and(|by| newest == Some(names::claim(by)))
    }

    /// Whether some collection has decided what goes, and not all of that is gone.
    pub fn is_decided(&self) -> bool {
        let mut finished = BTreeSet::new();
        for event in self.trace.iter().rev().filter(|event| event.what == "committed") {
            let host = self.lives.get(event.process).map(|life| life.host);
            match event.object.as_str() {
                "drop deleted packs" => drop(finished.insert(host)),
                "decide about condemned packs" if !finished.contains(&host) => return true,
                _ => {}
            }
        }
        false
    }

    pub fn note(&mut self, process: usize, what: &'static str, object: &str, outcome: &'static str) {
        let lane = self.lives.get(process).map_or(99, |life| life.lane);
        self.trace.push(Event { lane, process, what, object: object.to_owned(), outcome });
    }

    /// Whether something of the snapshot rotted, was stored wrong, or was lied about.
    pub fn is_doubted(&self, id: &SnapshotId) -> bool {
        let record = self.model.snapshots.get(id);
        record.is_some_and(|record| record.ids.iter().any(|id| self.bucket.ledger.doubted.contains(id)))
    }

    /// Where that lies, and how it stands, in words.
    pub fn describe_doubted(&self, id: &SnapshotId) -> String {
        let ids = self.model.snapshots.get(id).into_iter().flat_map(|record| &record.ids);
        let doubted = ids.filter(|id| self.bucket.ledger.doubted.contains(*id));
        let described = doubted.map(|id| format!("{}: {}", hex::encode(id), self.bucket.ledger.describe(id)));
        described.collect::<Vec<_>>().join("; ")
    }

    /// Whether something of the snapshot is not in the bucket any more as it was, or only in packs that a collection has decided to
    /// delete because it could not know that another copy is wrong.
    pub fn has_lost(&self, id: &SnapshotId, decided: &BTreeSet<String>) -> bool {
        let ledger = &self.bucket.ledger;
        let lost = |id: &Id| !ledger.is_sound(id) || (!ledger.stays(id, decided) && !ledger.was_known(id));
        self.model.snapshots.get(id).is_some_and(|record| record.ids.iter().any(lost))
    }

    /// Whether whoever reads all packs without a key must take something of the snapshot for lost.
    pub fn has_rotted(&self, id: &SnapshotId) -> bool {
        let record = self.model.snapshots.get(id);
        record.is_some_and(|record| record.ids.iter().any(|id| self.bucket.ledger.is_in_rotten_packs(id)))
    }

    /// A gap that is known: a host whose disk was put back lists what was dropped since, until it is dropped again.
    pub fn may_list_again(&self, id: &SnapshotId) -> bool {
        let begun = self.model.snapshots.get(id).is_some_and(|record| record.forget_begun.is_some());
        begun && self.hosts.iter().any(|host| host.returns > 0)
    }

    /// Of all hosts, and those that were removed under somebody.
    pub fn catalogs(&self) -> Vec<Catalog> {
        let hooked = |catalog: &Catalog| catalog.with_hook(Arc::new(|_, _| Ok(())));
        self.hosts.iter().flat_map(|host| host.catalog.iter().chain(&host.removed)).map(hooked).collect()
    }

    /// What a repair may not do.
    fn oversteps(&self, op: &Op) -> Option<&'static str> {
        let folder = op.name().split('/').next().unwrap_or_default();
        match (op, folder) {
            (Op::Put { .. }, "damaged" | "snapshots" | "protected" | "retired") => None,
            (Op::Put { .. }, _) => Some("stores more than documents"),
            (Op::Delete { name }, "damaged") => self.is_true(name).then_some("removes a mark that is true"),
            (Op::Delete { .. }, _) => Some("deletes more than marks"),
            _ => None,
        }
    }

    /// Whether a mark names all places of something that its snapshot lost.
    fn is_true(&self, mark: &str) -> bool {
        let Some(ObjectName::Damage(snapshot)) = ObjectName::parse(mark) else { return false };
        let text = self.bucket.peek(mark).map(|bytes| String::from_utf8_lossy(bytes));
        let (Some(text), Some(record)) = (text, self.model.snapshots.get(&snapshot)) else { return false };
        let ledger = &self.bucket.ledger;
        record.acknowledged
            && record.forget_begun.is_none()
            && record.ids.iter().any(|id| ledger.has_rotted_away(id) && ledger.all_named_in(id, &text))
    }

    /// Lets one pack rot, if there is one that may. `leaving`: packs that somebody has let go.
    pub fn rot(&mut self, mut leaving: BTreeSet<String>) {
        let on_their_way = self.requests.values().map(|request| &request.op);
        let on_their_way = on_their_way.chain(self.late.iter().map(|(_, _, op)| op));
        let deletes = |op: &Op| matches!(op, Op::Delete { .. });
        leaving.extend(on_their_way.filter(|op| deletes(op)).map(|op| op.name().to_owned()));
        for record in self.bucket.names("deletions/") {
            let text = self.bucket.peek(&record).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            let packs = self.bucket.names("packs/").into_iter().chain(self.bucket.names("nodes/"));
            let named = |pack: &String| {
                pack.rsplit('/')
                    .next()
                    .is_some_and(|name| text.as_ref().is_some_and(|text| text.contains(name)))
            };
            leaving.extend(packs.filter(named));
        }
        let (may, double) = self.bucket.ledger.may_rot(&leaving, &self.model.owed_ids(), self.weather.hard);
        let among = match double > 0 && self.random.chance(600) {
            true => double,
            false => may.len(),
        };
        if among == 0 {
            return;
        }
        let name = may[self.random.index(among)].clone();
        let what = self.bucket.rot(&name, &mut self.random);
        self.note(999, "rot", &name, what);
    }

    /// Complains if somebody deleted the last sound copy of something that is owed.
    pub fn audit(&mut self) {
        let bereft = std::mem::take(&mut self.bucket.ledger.bereft);
        if bereft.is_empty() {
            return;
        }
        let owed = self.model.owed_ids();
        for (id, pack) in bereft {
            if owed.contains(&id) && self.bucket.ledger.was_known(&id) {
                let places = self.bucket.ledger.describe(&id);
                let what =
                    format!("the last sound copy of {} was deleted with {pack}: {places}", hex::encode(id));
                self.note(999, "complaint", &what, "");
                self.complaints.push(what);
            }
        }
    }

    /// How often in a row the process was heard to do this.
    fn repeated(&mut self, process: usize, action: &'static str) -> u32 {
        match &mut self.last_action {
            (last, what, times) if (*last, *what) == (process, action) => *times += 1,
            other => *other = (process, action, 0),
        }
        self.last_action.2
    }

    /// Whether the exhaustive mode kills at this point.
    pub fn strikes(&mut self) -> bool {
        let strikes = self.ambush.at == Some(self.ambush.seen);
        self.ambush.seen += 1;
        self.ambush.struck |= strikes;
        strikes
    }

    /// Carries a request out, for better or worse. Returns whom to wake.
    pub fn grant(&mut self, id: u64) -> Option<Waker> {
        let Request { process, op, waker } = self.requests.remove(&id)?;
        let is_pause = matches!(op, Op::Pause { .. });
        if !is_pause && self.strikes() {
            self.lives[process].doomed = true;
            self.note(process, op.verb(), op.name(), "the process dies before it");
            return None;
        }
        let (answer, outcome) = if is_pause { (Ok(Answer::Done), "") } else { self.perform(process, &op) };
        self.note(process, op.verb(), op.name(), outcome);
        if !is_pause && self.strikes() {
            self.lives[process].doomed = true;
            self.note(process, op.verb(), op.name(), "the process dies after it");
            return None;
        }
        self.answers.insert(id, answer);
        waker
    }

    fn perform(&mut self, process: usize, op: &Op) -> (Result<Answer, Refusal>, &'static str) {
        let weather = self.weather.clone();
        if let Some(done) = self.sabotaged(process, op) {
            return (done, "sabotaged");
        }
        let lost = |what| (Err(Refusal::Lost(what)), what);
        let mut draw = self.random.below(1000);
        let mut strikes = |chance: u64| {
            let strikes = draw < chance;
            draw = if strikes { 1000 } else { draw - chance };
            strikes
        };
        if strikes(weather.fails) {
            return lost("fails");
        }
        if op.changes() {
            if strikes(weather.answer_lost) {
                let _ = self.bucket.execute(op, weather.conditional, 0);
                return lost("answer lost");
            }
            if strikes(weather.late) {
                let due = self.step + 1 + self.random.below(80);
                self.late.push((due, process, op.clone()));
                return lost("on its way");
            }
            if matches!(op, Op::Put { .. }) && strikes(weather.full) {
                return (Err(Refusal::Full), "no space");
            }
        }
        let stale = matches!(op, Op::List { .. }) && strikes(weather.stale_list);
        let lag = if stale { 1 + self.random.below(12) } else { 0 };
        let half = matches!(op, Op::List { .. }) && strikes(weather.half_list);
        let short = matches!(op, Op::Get { .. }) && strikes(weather.short);
        let mut answer = self.bucket.execute(op, weather.conditional, lag);
        match &mut answer {
            Ok(Answer::Names { names, whole }) if half => {
                if weather.sabotage == Some(Sabotage::FailureIsEmpty) {
                    names.clear();
                    return (answer, "fails, and is taken for empty");
                }
                names.truncate(self.random.index(names.len() + 1));
                *whole = false;
                (answer, "half")
            }
            Ok(Answer::Object { bytes, .. }) if short => {
                *bytes = bytes.slice(..self.random.index(bytes.len().max(1)));
                (answer, "short")
            }
            Ok(_) if stale => (answer, "stale"),
            Ok(_) => (answer, ""),
            Err(_) => (answer, "refused"),
        }
    }

    fn sabotaged(&mut self, process: usize, op: &Op) -> Option<Result<Answer, Refusal>> {
        let host = self.lives[process].host;
        match (self.weather.sabotage?, op) {
            (Sabotage::EarlyData, Op::Put { name, .. }) if name.starts_with("packs/") => {}
            (Sabotage::EarlyNodes, Op::Put { name, .. }) if name.starts_with("nodes/") => {}
            (Sabotage::LazyDelete, Op::Delete { name }) if name.starts_with("snapshots/") => {
                return Some(Ok(Answer::Done));
            }
            (Sabotage::BlindToClaims, Op::Head { name } | Op::Get { name, .. })
                if name.starts_with("claims/") && host == 0 && !name.ends_with("0001.json") =>
            {
                return Some(Err(Refusal::Missing));
            }
            (Sabotage::BlindToClaims, Op::List { folder }) if folder == "claims" && host == 0 => {
                let first = self.bucket.peek("claims/0000000000000001.json");
                let names =
                    first.map(|bytes| ("claims/0000000000000001.json".to_owned(), bytes.len() as u64));
                return Some(Ok(Answer::Names { names: names.into_iter().collect(), whole: true }));
            }
            _ => return None,
        }
        // Acknowledged now, durable later, if its writer lives that long.
        let due = self.step + 20 + self.random.below(60);
        self.late.push((due, process, op.clone()));
        Some(Ok(Answer::Done))
    }

    /// Writes that were on their way until now arrive. `all`: the network is empty afterwards.
    pub fn land(&mut self, all: bool) {
        let (step, conditional) = (self.step, self.weather.conditional);
        let (due, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.late).into_iter().partition(|(at, _, _)| all || *at <= step);
        self.late = rest;
        for (_, process, op) in due {
            let _ = self.bucket.execute(&op, conditional, 0);
            self.note(process, op.verb(), op.name(), "lands late");
        }
    }

    /// What a dead process had asked for and was not answered: it may be lost, or still be on its way.
    pub fn orphan(&mut self, process: usize, op: Op) {
        let doomed = self.lives[process].doomed;
        if !op.changes() || doomed || self.weather.kill == 0 {
            return;
        }
        match self.random.below(3) {
            0 => {
                let due = self.step + 1 + self.random.below(80);
                self.note(process, op.verb(), op.name(), "outlives its process");
                self.late.push((due, process, op));
            }
            1 => {
                let _ = self.bucket.execute(&op, self.weather.conditional, 0);
                self.note(process, op.verb(), op.name(), "was its last");
            }
            _ => {}
        }
    }

    /// A killed process takes what it had only pretended to store with it.
    pub fn lose_pretended(&mut self, process: usize) {
        if matches!(self.weather.sabotage, Some(Sabotage::EarlyData | Sabotage::EarlyNodes)) {
            self.late.retain(|(_, whose, _)| *whose != process);
        }
    }
}

/// A request on its way.
pub struct Call {
    world: Arc<World>,
    /// None: of a dead process.
    id: Option<u64>,
}

impl Future for Call {
    type Output = Result<Answer, Refusal>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(id) = self.id else { return Poll::Pending };
        let world = Arc::clone(&self.world);
        let mut core = world.core();
        if let Some(answer) = core.answers.remove(&id) {
            self.id = None;
            return Poll::Ready(answer);
        }
        if let Some(request) = core.requests.get_mut(&id) {
            request.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut core = self.world.core();
        core.answers.remove(&id);
        if let Some(request) = core.requests.remove(&id) {
            core.orphan(request.process, request.op);
        }
    }
}
