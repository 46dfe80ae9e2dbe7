//! Which copies of chunks and nodes are sound, past every catalog and whatever anybody was told.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use bytes::Bytes;
use underlay_store::names::ObjectName;
use underlay_store::pack::{self, PackId};

/// A chunk's id or a node's.
pub type Id = [u8; 32];

/// How a pack stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Sound,
    /// Its bytes changed, or it vanished, and nobody did it.
    Rotten,
    Deleted,
}

#[derive(Debug)]
struct Pack {
    condition: Condition,
    ids: BTreeSet<Id>,
    /// Of those, the ones that are not what their ids say: they were stored so.
    wrong: BTreeSet<Id>,
    /// Once it is rotten: those whose frames are what they were.
    spared: BTreeSet<Id>,
}

/// Where each frame of a pack is that is whole.
fn frames(name: &str, bytes: &[u8]) -> impl Iterator<Item = (Id, Range<usize>)> {
    let pack = match ObjectName::parse(name) {
        Some(ObjectName::Pack(kind, pack)) => Some(PackId::new(kind, pack)),
        _ => None,
    };
    let index = pack.and_then(|pack| pack::parse(&pack, bytes).ok());
    let place = |entry: pack::Entry| {
        (entry.id, entry.offset as usize..(entry.offset + entry.frame_length()) as usize)
    };
    index.into_iter().flat_map(|index| index.entries).map(place)
}

/// Every pack there ever was.
#[derive(Debug, Default)]
pub struct Ledger {
    packs: BTreeMap<String, Pack>,
    /// Where each id lies or lay.
    places: HashMap<Id, BTreeSet<String>>,
    /// Payloads that are not what their ids say.
    pub faulty: HashSet<Bytes>,
    /// Ids that lay in a pack that rotted, were stored wrong, or were said to be damaged.
    pub doubted: BTreeSet<Id>,
    /// Wrong copies, and the packs they lie in, of which the owner was told.
    pub told: BTreeSet<(String, Id)>,
    /// Ids whose last sound copy somebody deleted, with its pack.
    pub bereft: Vec<(Id, String)>,
    /// Something rotted, was stored wrong, or was lied about.
    pub troubled: bool,
}

impl Ledger {
    /// An object was stored.
    pub fn stored(&mut self, name: &str, bytes: &Bytes) {
        let Some(ObjectName::Pack(kind, pack)) = ObjectName::parse(name) else { return };
        if self.packs.get(name).is_some_and(|pack| pack.condition == Condition::Sound) {
            return;
        }
        let pack = PackId::new(kind, pack);
        let Ok(index) = pack::parse(&pack, bytes) else { return };
        let is_wrong = |entry: &pack::Entry| {
            let frame = bytes.slice(entry.offset as usize..(entry.offset + entry.frame_length()) as usize);
            pack::parse_frame(&pack, &frame, entry).is_ok_and(|frame| self.faulty.contains(frame.payload))
        };
        let wrong: BTreeSet<Id> = match self.faulty.is_empty() {
            true => BTreeSet::new(),
            false => index.entries.iter().filter(|entry| is_wrong(entry)).map(|entry| entry.id).collect(),
        };
        self.doubted.extend(&wrong);
        let ids: BTreeSet<Id> = index.entries.iter().map(|entry| entry.id).collect();
        for id in &ids {
            self.places.entry(*id).or_default().insert(name.to_owned());
        }
        self.packs.insert(
            name.to_owned(),
            Pack { condition: Condition::Sound, ids, wrong, spared: BTreeSet::new() },
        );
    }

    /// Somebody deleted an object.
    pub fn deleted(&mut self, name: &str) {
        let Some(pack) = self.packs.get_mut(name) else { return };
        let was = std::mem::replace(&mut pack.condition, Condition::Deleted);
        if was == Condition::Sound {
            let ids: Vec<Id> = pack.ids.iter().copied().collect();
            let gone = ids.into_iter().filter(|id| !self.is_sound(id)).map(|id| (id, name.to_owned()));
            let gone: Vec<_> = gone.collect();
            self.bereft.extend(gone);
        }
    }

    /// An object is not any more what was stored: `left` instead of `was`.
    pub fn rotted(&mut self, name: &str, was: &[u8], left: &[u8]) {
        let Some(pack) = self.packs.get_mut(name) else { return };
        pack.condition = Condition::Rotten;
        pack.spared = frames(name, was)
            .filter(|(_, frame)| left.get(frame.clone()) == Some(&was[frame.clone()]))
            .map(|(id, _)| id)
            .collect();
        self.doubted.extend(&pack.ids);
        self.troubled = true;
    }

    fn holding(&self, id: &Id) -> impl Iterator<Item = (&String, &Pack)> {
        self.places.get(id).into_iter().flatten().filter_map(|name| self.packs.get_key_value(name))
    }

    fn sound_copies(&self, id: &Id) -> impl Iterator<Item = &String> {
        self.holding(id)
            .filter(|(_, pack)| pack.condition == Condition::Sound && !pack.wrong.contains(id))
            .map(|(name, _)| name)
    }

    /// Whether some pack in the bucket holds this as it was.
    pub fn is_sound(&self, id: &Id) -> bool {
        self.sound_copies(id).next().is_some()
    }

    /// Whether one of those packs is not among the ones that a collection has decided to delete.
    pub fn stays(&self, id: &Id, decided: &BTreeSet<String>) -> bool {
        self.sound_copies(id).any(|name| !decided.contains(name))
    }

    /// Whether a collection could have known better than to delete the last sound copy: of any wrong one that was left, the owner was told.
    pub fn was_known(&self, id: &Id) -> bool {
        let mut wrong = self
            .holding(id)
            .filter(|(_, pack)| pack.condition == Condition::Sound && pack.wrong.contains(id));
        wrong.all(|(name, _)| self.told.contains(&(name.clone(), *id)))
    }

    /// Whether only rotten packs hold this chunk: a scrub finds that, and asks no further. A node in a rotten pack may still be read.
    pub fn is_in_rotten_packs(&self, id: &Id) -> bool {
        let (mut rotten, mut other) = (false, false);
        for (name, pack) in self.holding(id) {
            rotten |= pack.condition == Condition::Rotten && name.starts_with("packs/");
            other |= pack.condition == Condition::Sound;
        }
        rotten && !other
    }

    /// Whether what rotted is all there was of this chunk. One in a rotten pack may be what it was, and who has the keys reads it.
    pub fn has_rotted_away(&self, id: &Id) -> bool {
        self.is_in_rotten_packs(id)
            && !self
                .holding(id)
                .any(|(_, pack)| pack.condition == Condition::Rotten && pack.spared.contains(id))
    }

    /// Whether this copy is what it was.
    pub fn is_right(&self, id: &Id, name: &str) -> bool {
        self.sound_copies(id).any(|sound| sound == name)
    }

    /// Every place of this and how it stands, in words.
    pub fn describe(&self, id: &Id) -> String {
        let places = self.holding(id).map(|(name, pack)| {
            let wrong = match (pack.wrong.contains(id), self.told.contains(&(name.clone(), *id))) {
                (true, true) => ", wrong and told of",
                (true, false) => ", wrong",
                _ => "",
            };
            format!("{} {:?}{wrong}", &name[..18], pack.condition)
        });
        places.collect::<Vec<_>>().join("; ")
    }

    pub fn is_rotten(&self, name: &str) -> bool {
        self.packs.get(name).is_some_and(|pack| pack.condition == Condition::Rotten)
    }

    /// Whether all places where this lies, or lay until it vanished, are named in `text`.
    pub fn all_named_in(&self, id: &Id, text: &str) -> bool {
        let mut places = self.holding(id).filter(|(_, pack)| pack.condition != Condition::Deleted).peekable();
        places.peek().is_some() && places.all(|(name, _)| text.contains(name.as_str()))
    }

    /// Packs that may rot: of what they hold there is another sound copy that stays, or, if `hard`, none at all. Nothing that is the
    /// keeper of something on its way out may, for nobody looks at it again. First those of which something owed has other copies: how many.
    pub fn may_rot(
        &self,
        leaving: &BTreeSet<String>,
        owed: &BTreeSet<Id>,
        hard: bool,
    ) -> (Vec<String>, usize) {
        let fits = |(name, pack): &(&String, &Pack)| {
            pack.condition == Condition::Sound
                && pack.ids.iter().all(|id| {
                    let mut others = self.sound_copies(id).filter(|other| other != name).peekable();
                    match others.peek() {
                        None => hard || !owed.contains(id),
                        Some(_) => others.any(|other| !leaving.contains(other)),
                    }
                })
        };
        let is_double = |(_, pack): &(&String, &Pack)| {
            pack.ids.iter().any(|id| owed.contains(id) && self.sound_copies(id).nth(1).is_some())
        };
        let (double, single): (Vec<_>, Vec<_>) = self.packs.iter().filter(fits).partition(is_double);
        let count = double.len();
        (double.into_iter().chain(single).map(|(name, _)| name.clone()).collect(), count)
    }

    /// Sound packs and what they hold, for whoever lies about them.
    pub fn sound(&self) -> Vec<(&String, &Id)> {
        let sound = self.packs.iter().filter(|(_, pack)| pack.condition == Condition::Sound);
        sound.flat_map(|(name, pack)| pack.ids.iter().map(move |id| (name, id))).collect()
    }
}
