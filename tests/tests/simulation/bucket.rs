//! The simulated object store: each object by itself is linearizable, listings lag, the network loses and delays.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;

use crate::ledger::Ledger;
use crate::random::Random;

/// What a process asks of the store.
#[derive(Clone, Debug)]
pub enum Op {
    Put {
        name: String,
        bytes: Bytes,
        create: bool,
    },
    Get {
        name: String,
        range: Option<Range<u64>>,
    },
    Head {
        name: String,
    },
    Delete {
        name: String,
    },
    List {
        folder: String,
    },
    /// Nothing, until that step: a process that sleeps.
    Pause {
        until: u64,
    },
}

impl Op {
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Put { .. } => "put",
            Self::Get { .. } => "get",
            Self::Head { .. } => "head",
            Self::Delete { .. } => "delete",
            Self::List { .. } => "list",
            Self::Pause { .. } => "pause",
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Put { name, .. } | Self::Get { name, .. } | Self::Head { name } | Self::Delete { name } => {
                name
            }
            Self::List { folder } => folder,
            Self::Pause { .. } => "",
        }
    }

    pub fn changes(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Delete { .. })
    }
}

/// What the store says.
#[derive(Clone, Debug)]
pub enum Answer {
    Done,
    /// The whole object's length, the range answered, and its bytes (fewer if the answer was cut off).
    Object {
        size: u64,
        range: Range<u64>,
        bytes: Bytes,
    },
    /// Names and lengths; `whole` if nothing was left out because the listing failed on the way.
    Names {
        names: Vec<(String, u64)>,
        whole: bool,
    },
}

/// Why the store refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Missing,
    Exists,
    BeyondTheEnd,
    NotImplemented,
    Lost(&'static str),
    Full,
}

/// What the store does with a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditional {
    Honoured,
    Ignored,
    Refused,
}

#[derive(Debug)]
struct Object {
    bytes: Bytes,
    /// The call that stored it.
    since: u64,
}

#[derive(Debug, Default)]
pub struct Bucket {
    objects: BTreeMap<String, Object>,
    /// Deleted objects: name, length, the call that deleted them.
    gone: Vec<(String, u64, u64)>,
    /// Every name that was ever written.
    pub written: BTreeSet<String>,
    pub calls: u64,
    pub ledger: Ledger,
}

impl Bucket {
    /// `lag`: a listing misses what was stored, and still shows what was deleted, in the last so many calls.
    pub fn execute(&mut self, op: &Op, conditional: Conditional, lag: u64) -> Result<Answer, Refusal> {
        self.calls += 1;
        match op {
            Op::Put { name, bytes, create } => {
                match (create, conditional) {
                    (true, Conditional::Refused) => return Err(Refusal::NotImplemented),
                    (true, Conditional::Honoured) if self.objects.contains_key(name) => {
                        return Err(Refusal::Exists);
                    }
                    _ => {}
                }
                self.written.insert(name.clone());
                self.ledger.stored(name, bytes);
                // Replaced by itself, it is as old as before.
                let since = match self.objects.get(name) {
                    Some(old) if old.bytes == bytes => old.since,
                    _ => self.calls,
                };
                self.objects.insert(name.clone(), Object { bytes: bytes.clone(), since });
                Ok(Answer::Done)
            }
            Op::Get { name, range } => {
                let bytes = &self.objects.get(name).ok_or(Refusal::Missing)?.bytes;
                let size = bytes.len() as u64;
                let range = match range {
                    None => 0..size,
                    Some(range) if range.start >= size => return Err(Refusal::BeyondTheEnd),
                    Some(range) => range.start..range.end.min(size),
                };
                let bytes = bytes.slice(range.start as usize..range.end as usize);
                Ok(Answer::Object { size, range, bytes })
            }
            Op::Head { name } => {
                let size = self.objects.get(name).ok_or(Refusal::Missing)?.bytes.len() as u64;
                Ok(Answer::Object { size, range: 0..size, bytes: Bytes::new() })
            }
            Op::Delete { name } => {
                self.ledger.deleted(name);
                if let Some(object) = self.objects.remove(name) {
                    self.gone.push((name.clone(), object.bytes.len() as u64, self.calls));
                }
                Ok(Answer::Done)
            }
            Op::List { folder } => Ok(Answer::Names { names: self.list(folder, lag), whole: true }),
            Op::Pause { .. } => Ok(Answer::Done),
        }
    }

    fn list(&self, folder: &str, lag: u64) -> Vec<(String, u64)> {
        let horizon = self.calls.saturating_sub(lag);
        let inside = |name: &str| folder.is_empty() || name.starts_with(&format!("{folder}/"));
        let mut names: BTreeMap<&str, u64> = BTreeMap::new();
        if lag > 0 {
            let ghosts = self.gone.iter().filter(|(name, _, at)| *at > horizon && inside(name));
            names.extend(ghosts.map(|(name, size, _)| (name.as_str(), *size)));
        }
        let there = self.objects.iter().filter(|(name, object)| {
            inside(name) && (lag == 0 || object.since <= horizon || names.contains_key(name.as_str()))
        });
        let there: Vec<_> = there.map(|(name, object)| (name.as_str(), object.bytes.len() as u64)).collect();
        names.extend(there);
        names.into_iter().map(|(name, size)| (name.to_owned(), size)).collect()
    }

    /// A bit flips, the end is lost, or the whole object. Returns in words what happened.
    pub fn rot(&mut self, name: &str, random: &mut Random) -> &'static str {
        let Some(object) = self.objects.get_mut(name) else {
            self.ledger.rotted(name, &[], &[]);
            return "was gone";
        };
        let was = object.bytes.clone();
        let what = match random.below(4) {
            0 => {
                self.objects.remove(name);
                "vanishes"
            }
            1 => {
                object.bytes.truncate(random.index(was.len()));
                "loses its end"
            }
            _ => {
                let mut bytes = was.to_vec();
                bytes[random.index(was.len())] ^= 1 << random.below(8);
                object.bytes = bytes.into();
                "rots"
            }
        };
        let left = self.peek(name).cloned().unwrap_or_default();
        self.ledger.rotted(name, &was, &left);
        what
    }

    /// Past every process and every fault.
    pub fn peek(&self, name: &str) -> Option<&Bytes> {
        self.objects.get(name).map(|object| &object.bytes)
    }

    pub fn names(&self, folder: &str) -> Vec<String> {
        self.objects.keys().filter(|name| name.starts_with(folder)).cloned().collect()
    }
}
