//! What each pack is used for, seen at one moment with the eyes of a collection.

use std::collections::HashSet;

use rusqlite::Transaction;

use super::collection::packs_of_open_sessions;
use super::lookup::kind_of;
use super::record::{Origin, PackState};
use super::strict::origin_of;
use super::{Catalog, Outcome, expect, from_sql};
use crate::error::Result;
use crate::id::{ChunkId, NodeId, PackName};
use crate::pack::{ENTRY_LENGTH, FRAME_HEADER_LENGTH, PackId, PackKind};

/// Bytes of a stored chunk or node in its pack, apart from its payload.
const AROUND: u64 = FRAME_HEADER_LENGTH as u64 + ENTRY_LENGTH as u64;

/// Says what was found alive.
pub trait Marked {
    /// Whether the node is alive.
    fn has_node(&self, id: &NodeId) -> bool;
    /// Whether the chunk is alive.
    fn has_chunk(&self, id: &ChunkId) -> bool;
}

/// How much of a pack is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackUse {
    /// SHA-256 of the object.
    pub name: PackName,
    /// What it holds.
    pub kind: PackKind,
    /// Bytes of the object.
    pub size: u64,
    /// Chunks or nodes in it.
    pub entries: u64,
    /// Of those, the ones that are alive and have their first place here.
    pub live_entries: u64,
    /// Bytes those take.
    pub live_bytes: u64,
    /// Whether it may be used.
    pub state: PackState,
    /// An open session wrote it.
    pub held: bool,
    /// It holds what an open session has stored too, and that was found damaged.
    pub replaces: bool,
    /// Something in it was found damaged.
    pub suspected: bool,
    /// How far it is to be relied on.
    pub origin: Origin,
}

impl PackUse {
    /// Bytes that nothing alive takes.
    pub fn unused(&self) -> u64 {
        self.size.saturating_sub(self.live_bytes)
    }
}

/// The whole catalog, seen at one moment with the eyes of a collection.
#[derive(Debug, Default)]
pub struct Survey {
    /// Every pack that is not on its way out.
    pub packs: Vec<PackUse>,
    /// Nodes that are dead and still offered, with the rows of their packs.
    pub dead_nodes: Vec<(NodeId, i64)>,
    /// Nodes that are alive and not offered.
    pub revived_nodes: Vec<NodeId>,
    /// Chunks and nodes that are alive and have a place.
    pub live_entries: u64,
    /// Node packs all of whose nodes are alive, not known as such.
    pub provable: Vec<PackName>,
    /// Packs that both hold something that is alive, or may be in a moment: if one goes, the other is relied on.
    pub shared: Vec<(PackId, PackId)>,
    /// Packs added later have higher rows.
    pub(super) last_row: i64,
    /// Rows of node packs that open sessions wrote: what is in them was not looked at.
    pub(super) held_rows: Vec<i64>,
}

impl Catalog {
    /// Compares all that is stored with what was found alive. Of several places of one id the first that is offered counts.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn survey(&self, marks: &dyn Marked) -> Result<Survey> {
        self.read("survey the packs", |transaction| {
            let mut survey = Survey::default();
            let mut packs = packs(transaction, &mut survey.last_row)?;
            let damaged = Damaged::read(transaction)?;
            survey_chunks(transaction, marks, &damaged, &mut packs, &mut survey, self.is_strict())?;
            survey_nodes(transaction, marks, &damaged, &mut packs, &mut survey, self.is_strict())?;
            survey.shared = shared(&packs);
            for (row, (pack, proven)) in (0..).zip(packs).filter_map(|(row, pack)| Some((row, pack.known?))) {
                if pack.held && pack.kind == PackKind::Nodes {
                    survey.held_rows.push(row);
                }
                let whole = pack.kind == PackKind::Nodes && pack.live_entries == pack.entries;
                if whole && !proven && !pack.held && pack.state == PackState::Live {
                    survey.provable.push(pack.name);
                }
                survey.packs.push(pack);
            }
            Ok(survey)
        })
    }
}

/// A pack by its row; `known` is `None` for rows that mean nothing, or that are on their way out.
#[derive(Default, Clone)]
struct Row {
    known: Option<(PackUse, bool)>,
    /// Rows of packs that hold something that lies here, too, and for which this one is relied on.
    shares_with: HashSet<i64>,
}

fn packs(transaction: &Transaction<'_>, last_row: &mut i64) -> Outcome<Vec<Row>> {
    let mut find = transaction.prepare_cached(&format!(
        "SELECT pack, name, kind, size, entries, state, proven, pack IN ({}),
                pack IN (SELECT pack FROM retired), verified, writer FROM packs ORDER BY pack",
        packs_of_open_sessions()
    ))?;
    let mut rows = find.query(())?;
    let mut packs: Vec<Row> = Vec::new();
    while let Some(row) = rows.next()? {
        let at: i64 = row.get(0)?;
        *last_row = at;
        let state = expect(PackState::from_code(row.get(5)?), "pack state")?;
        if state == PackState::Deleting {
            continue;
        }
        let name = row.get_ref(1)?.as_blob().unwrap_or_default();
        let pack = PackUse {
            name: expect(PackName::from_slice(name), "pack name")?,
            kind: kind_of(row.get(2)?),
            size: from_sql(row.get(3)?),
            entries: from_sql(row.get(4)?),
            live_entries: 0,
            live_bytes: 0,
            state,
            held: row.get(7)?,
            replaces: false,
            suspected: row.get(8)?,
            origin: origin_of((row.get(9)?, row.get(10)?))?,
        };
        let at = expect(usize::try_from(at).ok(), "pack row")?;
        packs.resize(packs.len().max(at + 1), Row::default());
        packs[at].known = Some((pack, row.get(6)?));
    }
    Ok(packs)
}

/// The places of an id. If it is alive: of those that are in use and not known to be damaged, the oldest counts; if all are known to be damaged, every
/// one of them: whoever said so may have been wrong, and one may be all that is left.
struct Keeper {
    places: Vec<Place>,
    /// Writers do not trust each other.
    strict: bool,
}

/// Ordered from the best to the worst.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    damaged: bool,
    condemned: bool,
    row: i64,
    bytes: u64,
}

impl Keeper {
    const fn new(strict: bool) -> Self {
        Self { places: Vec::new(), strict }
    }

    fn offer(&mut self, packs: &[Row], place: Place) {
        if let Some((pack, _)) = known(packs, place.row) {
            let condemned = place.condemned || pack.state != PackState::Live;
            self.places.push(Place { condemned, ..place });
        }
    }

    fn settle(&mut self, live: bool, packs: &mut [Row], live_entries: &mut u64) {
        match (live, self.strict) {
            (false, _) => self.settle_dead(packs),
            (true, true) => self.settle_apart(packs, live_entries),
            (true, false) => self.settle_together(packs, live_entries),
        }
        self.places.clear();
    }

    /// A session that is open may have stored anew what is dead, and commit a moment later: then its copy is relied on, or, if that was
    /// found damaged, the others.
    fn settle_dead(&self, packs: &mut [Row]) {
        let is_held = |place: &&Place| known(packs, place.row).is_some_and(|(pack, _)| pack.held);
        if self.places.len() < 2 {
            return;
        }
        let held = self.places.iter().filter(is_held).map(|place| (place.row, place.damaged));
        for (keeper, damaged) in held.collect::<Vec<_>>() {
            for place in &self.places {
                if !damaged {
                    share(packs, place, keeper);
                } else if !place.damaged
                    && let Some((pack, _)) = row_of(packs, place.row).and_then(|row| row.known.as_mut())
                {
                    pack.replaces = true;
                }
            }
        }
    }

    /// Writers do not trust each other: a verified copy serves all of them, any other only whoever stored it, damaged or not.
    fn settle_apart(&mut self, packs: &mut [Row], live_entries: &mut u64) {
        self.places.sort_unstable();
        *live_entries += u64::from(!self.places.is_empty());
        let origin = |place: &Place| known(packs, place.row).map_or(Origin::Unknown, |(pack, _)| pack.origin);
        let places: Vec<(Origin, &Place)> = self.places.iter().map(|place| (origin(place), place)).collect();
        let verified = places.iter().find(|(origin, place)| *origin == Origin::Verified && !place.damaged);
        let mut keepers: Vec<(&Place, i64)> = Vec::new();
        for (origin, place) in &places {
            let first = places.iter().find(|(other, _)| other == origin && *other != Origin::Unknown);
            let keeper = verified.or(first).map_or(place.row, |(_, keeper)| keeper.row);
            keepers.push((place, keeper));
        }
        for (place, keeper) in keepers {
            count(packs, place, keeper);
        }
    }

    fn settle_together(&mut self, packs: &mut [Row], live_entries: &mut u64) {
        let Some(&Place { damaged: all_damaged, row: best, .. }) = self.places.iter().min() else { return };
        *live_entries += 1;
        for place in &self.places {
            count(packs, place, if all_damaged { place.row } else { best });
        }
    }
}

/// Counts a place as alive if it is its own `keeper`.
fn count(packs: &mut [Row], place: &Place, keeper: i64) {
    share(packs, place, keeper);
    if place.row == keeper
        && let Some((pack, _)) = row_of(packs, keeper).and_then(|row| row.known.as_mut())
    {
        pack.live_entries += 1;
        pack.live_bytes += place.bytes;
    }
}

/// Notes with the pack that counts that another holds the same: it stays, or is read when it is copied.
fn share(packs: &mut [Row], place: &Place, keeper: i64) {
    if place.row != keeper
        && let Some(row) = row_of(packs, keeper)
    {
        row.shares_with.insert(place.row);
    }
}

fn row_of(packs: &mut [Row], row: i64) -> Option<&mut Row> {
    usize::try_from(row).ok().and_then(|row| packs.get_mut(row))
}

fn shared(packs: &[Row]) -> Vec<(PackId, PackId)> {
    let id = |(pack, _): &(PackUse, bool)| PackId::new(pack.kind, pack.name);
    let mut shared = Vec::new();
    for row in packs {
        let Some(this) = &row.known else { continue };
        let others = row.shares_with.iter().filter_map(|other| known(packs, *other));
        shared.extend(others.map(|other| (id(this), id(other))));
    }
    shared.sort();
    shared
}

fn known(packs: &[Row], row: i64) -> Option<&(PackUse, bool)> {
    usize::try_from(row).ok().and_then(|row| packs.get(row))?.known.as_ref()
}

/// Places that were found damaged, by row of their pack; the empty id stands for the whole pack.
struct Damaged(HashSet<(i64, Vec<u8>)>);

impl Damaged {
    fn read(transaction: &Transaction<'_>) -> Outcome<Self> {
        let mut find = transaction.prepare_cached("SELECT pack, id FROM retired")?;
        let places = find.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Self(places.collect::<rusqlite::Result<_>>()?))
    }

    fn has(&self, pack: i64, id: &[u8; 32]) -> bool {
        !self.0.is_empty() && (self.0.contains(&(pack, Vec::new())) || self.0.contains(&(pack, id.to_vec())))
    }
}

fn survey_chunks(
    transaction: &Transaction<'_>,
    marks: &dyn Marked,
    damaged: &Damaged,
    packs: &mut [Row],
    survey: &mut Survey,
    strict: bool,
) -> Outcome<()> {
    let mut all = transaction.prepare_cached(
        "SELECT id, pack, payload_length, condemned IS NOT NULL FROM chunks ORDER BY id, pack",
    )?;
    let mut rows = all.query(())?;
    let (mut current, mut live, mut keeper) = ([0; 32], false, Keeper::new(strict));
    while let Some(row) = rows.next()? {
        let id = row.get_ref(0)?.as_blob().unwrap_or_default();
        if id != current {
            keeper.settle(live, packs, &mut survey.live_entries);
            let chunk = expect(ChunkId::from_slice(id), "chunk id")?;
            (current, live) = (*chunk.as_bytes(), marks.has_chunk(&chunk));
        }
        let (pack, condemned): (i64, bool) = (row.get(1)?, row.get(3)?);
        let (damaged, bytes) = (damaged.has(pack, &current), from_sql(row.get(2)?) + AROUND);
        keeper.offer(packs, Place { damaged, condemned, row: pack, bytes });
    }
    keeper.settle(live, packs, &mut survey.live_entries);
    Ok(())
}

fn survey_nodes(
    transaction: &Transaction<'_>,
    marks: &dyn Marked,
    damaged: &Damaged,
    packs: &mut [Row],
    survey: &mut Survey,
    strict: bool,
) -> Outcome<()> {
    let mut all = transaction.prepare_cached(
        "SELECT id, pack, payload_length, condemned IS NOT NULL FROM nodes ORDER BY id, pack",
    )?;
    let mut rows = all.query(())?;
    let (mut current, mut live, mut keeper) = (NodeId::new([0; 32]), false, Keeper::new(strict));
    while let Some(row) = rows.next()? {
        let id = expect(NodeId::from_slice(row.get_ref(0)?.as_blob().unwrap_or_default()), "node id")?;
        if id != current {
            keeper.settle(live, packs, &mut survey.live_entries);
            (current, live) = (id, marks.has_node(&id));
        }
        let (pack, condemned): (i64, bool) = (row.get(1)?, row.get(3)?);
        match live {
            true if condemned && survey.revived_nodes.last() != Some(&id) => survey.revived_nodes.push(id),
            true => {}
            false => {
                if !condemned && known(packs, pack).is_some_and(|(pack, _)| !pack.held) {
                    survey.dead_nodes.push((id, pack));
                }
            }
        }
        let (damaged, bytes) = (damaged.has(pack, id.as_bytes()), from_sql(row.get(2)?) + AROUND);
        keeper.offer(packs, Place { damaged, condemned, row: pack, bytes });
    }
    keeper.settle(live, packs, &mut survey.live_entries);
    Ok(())
}
