//! Which snapshot a person means. Pure.

use super::Snapshot;
use crate::{Error, Result};

/// Digits of an id prefix that are enough to be meant as one.
const MINIMUM_PREFIX: usize = 4;

/// Finds the snapshot called `wanted`: `VM@latest`, `VM@` and a prefix of its time (`web@2026-11-23T17`), or at least
/// four digits of its id.
///
/// # Errors
/// [`Error::NoSnapshot`] or [`Error::AmbiguousSnapshot`].
pub fn select<'a>(snapshots: &'a [Snapshot], wanted: &str) -> Result<&'a Snapshot> {
    let none = || Error::NoSnapshot { wanted: wanted.into() };
    let Some((vm, time)) = wanted.split_once('@') else {
        let digits = wanted.to_ascii_lowercase();
        if digits.len() < MINIMUM_PREFIX {
            return Err(none());
        }
        return only(wanted, snapshots.iter().filter(|each| each.snapshot.to_string().starts_with(&digits)));
    };
    let of_vm = snapshots.iter().filter(|each| each.vm == vm);
    match time {
        "" => Err(none()),
        "latest" => of_vm.max_by_key(|each| (each.time, each.snapshot)).ok_or_else(none),
        prefix => only(wanted, of_vm.filter(|each| each.time.to_string().starts_with(prefix))),
    }
}

fn only<'a>(wanted: &str, mut matching: impl Iterator<Item = &'a Snapshot>) -> Result<&'a Snapshot> {
    let first = matching.next().ok_or_else(|| Error::NoSnapshot { wanted: wanted.into() })?;
    match matching.count() {
        0 => Ok(first),
        more => Err(Error::AmbiguousSnapshot { wanted: wanted.into(), count: more + 1 }),
    }
}
