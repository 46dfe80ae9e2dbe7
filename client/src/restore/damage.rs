//! What to do about a part that cannot be had.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use underlay_store::Error;
use underlay_store::id::{ChunkId, NodeId, PackName};

use super::RestoreError;

/// A part of a disk that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// Where it begins, in bytes of guest address space.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Stops at the first damage, or gathers all of it.
#[derive(Debug)]
pub(super) enum Damage {
    /// A restore: half a disk is no disk.
    Stop,
    /// A check: what else is there to find.
    Collect(Mutex<Found>),
    /// A restore of what is left.
    Skip(Mutex<Found>),
}

/// What was gathered.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub errors: Vec<RestoreError>,
    /// Copies that are not what they should be, whether another was good or not.
    pub copies: Vec<(ChunkId, PackName)>,
    /// Nodes that cannot be had.
    pub nodes: Vec<NodeId>,
    pub holes: Vec<Hole>,
}

impl Damage {
    pub(super) fn collect() -> Self {
        Self::Collect(Mutex::default())
    }

    pub(super) fn skip() -> Self {
        Self::Skip(Mutex::default())
    }

    fn found(&self) -> Option<MutexGuard<'_, Found>> {
        match self {
            Self::Stop => None,
            Self::Collect(found) | Self::Skip(found) => {
                Some(found.lock().unwrap_or_else(PoisonError::into_inner))
            }
        }
    }

    /// Whether work goes on after this error. A repository that cannot be reached is no finding.
    pub(super) fn collects(&self, error: &Error) -> bool {
        error.is_damage() && !matches!(self, Self::Stop)
    }

    /// Takes note of a chunk that no copy gives, or fails with it. `places` are where the disk has it.
    pub(super) fn chunk_is_lost(
        &self,
        error: RestoreError,
        places: impl Iterator<Item = Range<u64>>,
    ) -> Result<(), RestoreError> {
        let finding = matches!(&error, RestoreError::Data { source, .. } if self.collects(source));
        match self.found() {
            Some(mut found) if finding => {
                found.holes.extend(places.map(hole));
                found.errors.push(error);
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Takes note of a node that cannot be had, or fails with it. `range` is what the disk has below it.
    pub(super) fn node_is_lost(
        &self,
        id: NodeId,
        error: Error,
        range: Range<u64>,
    ) -> Result<(), RestoreError> {
        match self.found() {
            Some(mut found) if self.collects(&error) => {
                found.holes.push(hole(range));
                found.nodes.push(id);
                found.errors.push(error.into());
                Ok(())
            }
            _ => Err(error.into()),
        }
    }

    /// Takes note of a copy that is not what it should be.
    pub(super) fn copy_is_bad(&self, chunk: ChunkId, pack: PackName, error: &Error) {
        if let Some(mut found) = self.found().filter(|_| self.collects(error)) {
            found.copies.push((chunk, pack));
        }
    }

    /// What was gathered.
    pub(super) fn into_found(self) -> Found {
        match self {
            Self::Stop => Found::default(),
            Self::Collect(found) | Self::Skip(found) => {
                found.into_inner().unwrap_or_else(PoisonError::into_inner)
            }
        }
    }
}

fn hole(range: Range<u64>) -> Hole {
    Hole { offset: range.start, length: range.end - range.start }
}

/// Sorts holes, and joins those that touch.
pub(super) fn joined(mut holes: Vec<Hole>) -> Vec<Hole> {
    holes.sort_unstable_by_key(|hole| hole.offset);
    let mut joined: Vec<Hole> = Vec::new();
    for hole in holes {
        match joined.last_mut() {
            Some(last) if hole.offset <= last.offset + last.length => {
                last.length = last.length.max(hole.offset + hole.length - last.offset);
            }
            _ => joined.push(hole),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_that_touch_are_one() {
        let holes = [(8, 4), (0, 4), (4, 2), (20, 1), (8, 2)];
        let holes = holes.map(|(offset, length)| Hole { offset, length }).to_vec();
        let expected = [(0, 6), (8, 4), (20, 1)].map(|(offset, length)| Hole { offset, length });
        assert_eq!(joined(holes), expected);
    }
}
