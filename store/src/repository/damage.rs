//! Damage: what is done about it. Nothing is deleted but marks.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::{Repository, deletions, owner, retired};
use crate::authority::{Marked, RepairOptions, RepairReport, Withdrawal, Withdrawn};
use crate::backend::Backend;
use crate::catalog::{Catalog, PackRecord, Retired};
use crate::check::{self, CheckOptions, Checked, Ground};
use crate::id::{PackName, RepositoryId, Root, SnapshotId};
use crate::names::{self, ObjectName};
use crate::pack::{self, PackId, PackKind};
use crate::progress::Progress;
use crate::snapshot::{DamageMark, DamagedDisk, DamagedPlace, Protection, Snapshot, Timestamp};
use crate::{Error, Result};

/// Places that one mark names; more are found again by reading.
const PLACES: usize = 4096;

impl Repository {
    /// Whether what is found may be recorded: this host owns the repository.
    pub(super) fn is_ours(&self) -> bool {
        self.ownership.generation() > 0
    }

    pub(super) async fn checked(&self, options: &CheckOptions, progress: &dyn Progress) -> Result<Checked> {
        let ground = Ground {
            backend: &self.backend,
            catalog: &self.catalog,
            nodes: &self.nodes,
            repository: self.id,
            now_ms: (self.clock)(),
            record: self.is_ours() && !options.dry_run,
        };
        let mut checked = check::check(&ground, options, progress).await?;
        if let Some(what) = &self.lost_catalog {
            checked.report.find("catalog", what.clone());
        }
        let highest = owner::highest(&self.backend).await?;
        for error in deletions::honoured(&self.backend, &self.id, highest).await?.unreadable {
            if let Error::Damaged { object, .. } | Error::Missing { object } = &error {
                checked.report.find(object.clone(), error.to_string());
            }
        }
        Ok(checked)
    }

    /// Takes out of use what somebody with keys found damaged.
    pub(super) async fn take_out_of_use(&self, damage: &Withdrawal) -> Result<Withdrawn> {
        let mut withdrawn = Withdrawn { recorded: self.is_ours(), ..Withdrawn::default() };
        if !withdrawn.recorded {
            return Ok(withdrawn);
        }
        let mut places: Vec<(PackId, [u8; 32])> = (damage.chunks.iter())
            .map(|(id, pack)| (PackId::new(PackKind::Data, *pack), *id.as_bytes()))
            .collect();
        places.extend(
            damage.node_copies.iter().map(|(id, pack)| (PackId::new(PackKind::Nodes, *pack), *id.as_bytes())),
        );
        let nodes = damage.nodes.clone();
        let found = self.with_catalog(move |catalog| catalog.locate_nodes(&nodes)).await?;
        for (id, found) in damage.nodes.iter().zip(found) {
            let at = found.iter().map(|place| PackId::new(PackKind::Nodes, place.pack));
            places.extend(at.map(|pack| (pack, *id.as_bytes())));
        }
        let mut verdicts: HashMap<PackId, Verdict> = HashMap::new();
        let mut retired = Vec::new();
        for (pack, id) in places {
            let verdict = match verdicts.get(&pack) {
                Some(verdict) => *verdict,
                None => *verdicts.entry(pack).or_insert(self.look_at(&pack).await?),
            };
            match verdict {
                Verdict::CatalogDiffers => withdrawn.catalog_differs = true,
                verdict => {
                    let wrong = verdict == Verdict::AsStored;
                    retired.push(Retired::Place { pack: pack.name, id, wrong });
                }
            }
        }
        let roots = match withdrawn.catalog_differs {
            true => Vec::new(),
            false => damage.roots.clone(),
        };
        let wrong: BTreeSet<PackName> = (retired.iter())
            .filter_map(|place| match place {
                Retired::Place { pack, wrong: true, .. } => Some(*pack),
                _ => None,
            })
            .collect();
        withdrawn.retired = self
            .with_catalog(move |catalog| {
                catalog.set_affected_roots(&roots, false)?;
                catalog.retire(&retired)
            })
            .await?;
        retired::record(self, &wrong).await?;
        Ok(withdrawn)
    }

    /// Reads a pack whole: is it what was stored, and what the catalog says it is?
    pub(super) async fn look_at(&self, id: &PackId) -> Result<Verdict> {
        let bytes = match self.backend.get(&id.to_string()).await {
            Ok(bytes) if pack::name_of(&bytes) == id.name => bytes,
            Ok(_) => return Ok(Verdict::Damaged),
            Err(error) if error.is_damage() => return Ok(Verdict::Damaged),
            Err(error) => return Err(error),
        };
        let Ok(index) = pack::parse(id, &bytes) else { return Ok(Verdict::AsStored) };
        let (name, kind, size) = (id.name, id.kind, bytes.len() as u64);
        let record = PackRecord { name, kind, size, entries: index.entries };
        match self.with_catalog(move |catalog| catalog.agrees_with(&record)).await? {
            true => Ok(Verdict::AsStored),
            false => Ok(Verdict::CatalogDiffers),
        }
    }

    pub(super) async fn repaired(
        &self,
        options: &RepairOptions,
        progress: &dyn Progress,
    ) -> Result<RepairReport> {
        if !options.dry_run {
            self.writable()?;
            self.ownership.still_ours(&self.backend).await?;
            // After a lost catalog only the marks know what not to rely on.
            retire_marked(&self.backend, &self.catalog, self.id, Trust::Reading).await?;
        }
        let check = CheckOptions { suspects: true, dry_run: options.dry_run, ..CheckOptions::default() };
        let checked = self.checked(&check, progress).await?;
        let mut report =
            RepairReport { catalog_is_damaged: checked.catalog_is_damaged, ..RepairReport::default() };
        if !checked.catalog_is_damaged {
            self.put_back(&checked, options, &mut report).await?;
            self.protect_again(options, &mut report).await?;
            self.mark(&checked, options, &mut report).await?;
            count_loss(&checked, &mut report);
        }
        report.check = checked.report;
        Ok(report)
    }

    /// Documents of snapshots that the bucket lost and the catalog still holds.
    async fn put_back(
        &self,
        checked: &Checked,
        options: &RepairOptions,
        report: &mut RepairReport,
    ) -> Result<()> {
        let stored: HashMap<_, _> = self.with_catalog(Catalog::snapshots).await?.into_iter().collect();
        for snapshot in &checked.unstored {
            let id = snapshot.snapshot;
            let Some(document) = stored.get(&id).filter(|_| options.verified.contains(&id)) else { continue };
            if !options.dry_run {
                self.backend.replace(&names::snapshot(&id), Bytes::from(document.clone())).await?;
            }
            report.put_back.push(id);
        }
        Ok(())
    }

    /// Protections whose marks cannot be read: they hold all the same, and are written anew.
    async fn protect_again(&self, options: &RepairOptions, report: &mut RepairReport) -> Result<()> {
        for (name, _) in self.backend.list(names::PROTECTED).await? {
            let Some(ObjectName::Protection(snapshot)) = ObjectName::parse(&name) else { continue };
            let unreadable = match self.backend.get(&name).await {
                Ok(bytes) => Protection::open(&snapshot, &bytes).is_err(),
                Err(Error::Missing { .. }) => false,
                Err(error) => return Err(error),
            };
            if unreadable {
                if !options.dry_run {
                    let mark = Protection { repository: self.id, snapshot };
                    self.backend.replace(&name, Bytes::from(mark.seal())).await?;
                }
                report.protections.push(snapshot);
            }
        }
        Ok(())
    }

    /// Brings the marks in the bucket up to what was found.
    async fn mark(
        &self,
        checked: &Checked,
        options: &RepairOptions,
        report: &mut RepairReport,
    ) -> Result<()> {
        let now = Timestamp::from_milliseconds((self.clock)())?;
        let before: BTreeMap<SnapshotId, Option<DamageMark>> =
            marks(&self.backend).await?.into_iter().map(|marked| (marked.snapshot, marked.mark)).collect();
        let mut lossy = BTreeSet::new();
        for snapshot in &checked.snapshots {
            let Some(new) = new_mark(checked, snapshot, now) else { continue };
            lossy.insert(snapshot.snapshot);
            let says_so = before.get(&snapshot.snapshot).and_then(Option::as_ref).is_some_and(|old| {
                (&old.disks, &old.places, old.repository) == (&new.disks, &new.places, new.repository)
            });
            if !says_so {
                if !options.dry_run {
                    let name = names::damage(&snapshot.snapshot);
                    self.backend.replace(&name, Bytes::from(new.seal())).await?;
                }
                report.marked.push(snapshot.snapshot);
            }
        }
        // One whose snapshot cannot be read stays: nothing is known of it.
        let read: BTreeSet<_> = checked.snapshots.iter().map(|snapshot| snapshot.snapshot).collect();
        for snapshot in before.into_keys().filter(|snapshot| !lossy.contains(snapshot)) {
            if read.contains(&snapshot) {
                if !options.dry_run {
                    self.backend.delete(&names::damage(&snapshot)).await?;
                }
                report.unmarked.push(snapshot);
            }
        }
        Ok(())
    }
}

/// What a second look at a pack says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is missing, or not what its name says.
    Damaged,
    /// It is what was stored: what is wrong in it was stored wrong.
    AsStored,
    /// It is sound, and the catalog says something else of it.
    CatalogDiffers,
}

fn new_mark(checked: &Checked, snapshot: &Snapshot, now: Timestamp) -> Option<DamageMark> {
    let loss = &checked.loss;
    let (mut disks, mut places) = (Vec::new(), BTreeSet::new());
    for disk in snapshot.disks.iter().filter(|disk| loss.touches(&disk.root)) {
        let lost = loss.of(&disk.root);
        if lost.is_empty() {
            continue;
        }
        let (chunks, nodes) = (lost.chunks.len() as u64, lost.nodes.len() as u64);
        disks.push(DamagedDisk { name: disk.name.clone(), chunks, nodes });
        let chunks = lost.chunks.iter().filter_map(|id| loss.chunk_places.get(id)).flatten();
        places.extend(chunks.map(|place| named(PackKind::Data, place)));
        let nodes = lost.nodes.iter().filter_map(|id| loss.node_places.get(id)).flatten();
        places.extend(nodes.map(|place| named(PackKind::Nodes, place)));
    }
    let places = places.into_iter().take(PLACES).collect();
    let (repository, snapshot) = (snapshot.repository, snapshot.snapshot);
    (!disks.is_empty()).then_some(DamageMark { repository, snapshot, found: now, disks, places })
}

fn named(kind: PackKind, place: &Retired) -> DamagedPlace {
    let (pack, id) = match place {
        Retired::Pack(pack) => (pack, None),
        Retired::Place { pack, id, .. } => (pack, Some(crate::id::ChunkId::new(*id))),
    };
    DamagedPlace { object: names::pack(kind, pack), id }
}

/// What the newest snapshots need of all that is lost, and what only older ones do.
fn count_loss(checked: &Checked, report: &mut RepairReport) {
    let mut newest: BTreeMap<&str, &Snapshot> = BTreeMap::new();
    for snapshot in &checked.snapshots {
        let best = newest.entry(&snapshot.vm).or_insert(snapshot);
        if (snapshot.time, snapshot.snapshot) > (best.time, best.snapshot) {
            *best = snapshot;
        }
    }
    let (mut chunks, mut nodes) = (BTreeSet::new(), BTreeSet::new());
    for disk in newest.values().flat_map(|snapshot| &snapshot.disks) {
        let lost = checked.loss.of(&disk.root);
        chunks.extend(lost.chunks);
        nodes.extend(lost.nodes);
    }
    let total = checked.loss.total();
    report.may_heal = (chunks.len() + nodes.len()) as u64;
    report.gone = (total.chunks.len() + total.nodes.len()) as u64 - report.may_heal;
}

/// All marks of damage.
pub(super) async fn marks(backend: &Backend) -> Result<Vec<Marked>> {
    let mut marks = Vec::new();
    for (name, _) in backend.list(names::DAMAGED).await? {
        let Some(ObjectName::Damage(snapshot)) = ObjectName::parse(&name) else { continue };
        let mark = match backend.get(&name).await {
            Ok(bytes) => DamageMark::open(&snapshot, &bytes).ok(),
            // Lifted since it was listed.
            Err(Error::Missing { .. }) => continue,
            Err(error) => return Err(error),
        };
        marks.push(Marked { snapshot, mark });
    }
    marks.sort_by_key(|marked| marked.snapshot);
    Ok(marks)
}

/// What may bring chunks that a mark names into use again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Reading their packs.
    Reading,
    /// Nothing: reading proves nothing of what was stored wrong, and nobody remembers how they were found out.
    Nothing,
}

/// Takes out of use what the marks in the bucket name: a catalog that was built anew knows nothing of it.
pub(super) async fn retire_marked(
    backend: &Backend,
    catalog: &Catalog,
    id: RepositoryId,
    trust: Trust,
) -> Result<()> {
    let marks = marks(backend).await?;
    if marks.is_empty() {
        return Ok(());
    }
    let (mut places, mut roots): (BTreeSet<Retired>, BTreeSet<Root>) = Default::default();
    for mark in marks.iter().filter_map(|marked| marked.mark.as_ref()) {
        places.extend(mark.places.iter().filter_map(|named| place(named, trust)));
    }
    for (snapshot, document) in catalog.snapshots()? {
        if marks.iter().any(|marked| marked.snapshot == snapshot)
            && let Ok(snapshot) = Snapshot::peek(&snapshot, &id, &document)
        {
            roots.extend(snapshot.roots().copied());
        }
    }
    catalog.retire(&places.into_iter().collect::<Vec<_>>())?;
    catalog.set_affected_roots(&roots.into_iter().collect::<Vec<_>>(), false)
}

fn place(place: &DamagedPlace, trust: Trust) -> Option<Retired> {
    let Some(ObjectName::Pack(kind, pack)) = ObjectName::parse(&place.object) else { return None };
    Some(match place.id {
        None => Retired::Pack(pack),
        // Nodes carry a checksum: whoever reads them again finds it out.
        Some(id) => {
            let wrong = kind == PackKind::Data && trust == Trust::Nothing;
            Retired::Place { pack, id: *id.as_bytes(), wrong }
        }
    })
}
