//! Records of what an owner has decided to delete, read by whoever owns the repository next.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::backend::Backend;
use crate::catalog::Catalog;
use crate::id::{PackName, RepositoryId};
use crate::names::{self, ObjectName};
use crate::pack::{PackId, PackKind};
use crate::snapshot::{Closing, Deletion};
use crate::{Error, Result};

/// Nobody collects so often under one claim: a higher number is not ours.
const MANY: u32 = 1 << 24;

/// What earlier owners have decided to delete.
#[derive(Debug, Default)]
pub(super) struct Honoured {
    /// Every pack that an owner has decided to delete and that no owner after it relies on.
    pub(super) packs: Vec<PackName>,
    /// How many records that is, by generation.
    pub(super) counts: BTreeMap<u64, u32>,
    /// Records that cannot be read. Whoever only reads goes on without them.
    pub(super) unreadable: Vec<Error>,
}

/// Reads the records of deletions. `highest` is the highest generation claimed. A listing may lag, so what comes after the last record
/// that it names is asked for.
pub(super) async fn honoured(backend: &Backend, repository: &RepositoryId, highest: u64) -> Result<Honoured> {
    let mut found = Honoured::default();
    // The newest owner that said what counts before it has read what those before it said.
    let mut first = None;
    for closer in (2..=highest).rev() {
        match closing(backend, repository, closer).await {
            Ok(None) => {}
            Ok(Some(closing)) => {
                first.get_or_insert(closer);
                found.counts = closing.records;
                break;
            }
            Err(error) if error.is_damage() => {
                first.get_or_insert(closer);
                found.unreadable.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    let first = first.unwrap_or(1);
    for (generation, number) in listed(backend).await? {
        if (first..=highest).contains(&generation) {
            let next = found.counts.entry(generation).or_default();
            *next = (*next).max(number + 1);
        }
    }
    for generation in first..=highest {
        let count = found.counts.entry(generation).or_default();
        while backend.exists(&names::deletion(generation, *count)).await? {
            *count += 1;
        }
    }
    found.counts.retain(|_, count| *count > 0);
    found.read(backend, repository).await?;
    Ok(found)
}

impl Honoured {
    /// Reads as many records of each generation as count.
    async fn read(&mut self, backend: &Backend, repository: &RepositoryId) -> Result<()> {
        self.packs.clear();
        for (&generation, count) in &mut self.counts {
            for number in 0..*count {
                let read = match backend.get(&names::deletion(generation, number)).await {
                    Ok(bytes) => Deletion::open(generation, number, repository, &bytes),
                    Err(error) => Err(error),
                };
                match read {
                    Ok(deletion) => self.packs.extend(deletion.packs.into_iter().chain(deletion.nodes)),
                    Err(error) if error.is_damage() => {
                        self.unreadable.push(error);
                        *count = number;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// What the owner of `generation` says of those before it.
    pub(super) fn closing(&self, repository: RepositoryId, generation: u64) -> Closing {
        let counted = self.counts.range(..generation).filter(|(_, count)| **count > 0);
        Closing { repository, generation, records: counted.map(|(of, count)| (*of, *count)).collect() }
    }
}

async fn closing(backend: &Backend, repository: &RepositoryId, generation: u64) -> Result<Option<Closing>> {
    let name = names::closing(generation);
    match backend.get(&name).await {
        Ok(bytes) => Closing::open(generation, repository, &bytes).map(Some),
        Err(Error::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes what the owner of `generation` found of those before it; before that it relies on nothing. All processes of one host write the
/// same, for the first of them noted it in their catalog.
pub(super) async fn close(
    backend: &Backend,
    catalog: &Catalog,
    repository: RepositoryId,
    generation: u64,
    mut found: Honoured,
) -> Result<Honoured> {
    if let Some(error) = found.unreadable.pop() {
        return Err(error);
    }
    if generation < 2 {
        return Ok(found);
    }
    let ours = found.closing(repository, generation);
    let sealed = catalog.agree_on_closing(generation, &ours.seal())?;
    let agreed = Closing::open(generation, &repository, &sealed)?;
    if agreed != ours {
        let later = found.counts.split_off(&generation);
        found.counts = agreed.records.into_iter().chain(later).collect();
        found.read(backend, &repository).await?;
        if let Some(error) = found.unreadable.pop() {
            return Err(error);
        }
    }
    backend.put(&names::closing(generation), Bytes::from(sealed)).await?;
    Ok(found)
}

/// Finds out whether the catalog is an old copy, put back with its host's disk perhaps: under its claim more was recorded than it knows of.
/// Then it is noted in it, and it will be brought up to date under a new claim.
pub(super) async fn is_this_the_newest(backend: &Backend, catalog: &Catalog) -> Result<()> {
    loop {
        let known = catalog.records()?;
        let (generation, records) = known;
        if generation == 0 || !backend.exists(&names::deletion(generation, records)).await? {
            return Ok(());
        }
        // Another process may have recorded it since.
        if catalog.records()? == known {
            tracing::warn!("the catalog is an old copy; bringing it up to date");
            catalog.set_outdated(known)?;
        }
    }
}

/// Writes that these packs are about to be deleted by the owner of `generation`.
pub(super) async fn record(
    backend: &Backend,
    repository: RepositoryId,
    generation: u64,
    doomed: &[PackId],
    catalog: &Catalog,
) -> Result<()> {
    let of = |kind| doomed.iter().filter(move |pack| pack.kind == kind).map(|pack| pack.name).collect();
    let (packs, nodes) = (of(PackKind::Data), of(PackKind::Nodes));
    let ours = listed(backend).await?.into_iter().filter(|(of, _)| *of == generation);
    let mut number = ours.map(|(_, number)| number + 1).max().unwrap_or(0);
    while backend.exists(&names::deletion(generation, number)).await? {
        number += 1;
    }
    // Known here before it is there: what is there and not known here was recorded with a later state of this catalog.
    catalog.begin_record(generation, number)?;
    let deletion = Deletion { repository, generation, number, packs, nodes };
    backend.put(&names::deletion(generation, number), Bytes::from(deletion.seal())).await
}

async fn listed(backend: &Backend) -> Result<Vec<(u64, u32)>> {
    let listed = backend.list(names::DELETIONS).await?;
    Ok((listed.iter())
        .filter_map(|(name, _)| match ObjectName::parse(name) {
            Some(ObjectName::Deletion(generation, number)) if number < MANY => Some((generation, number)),
            _ => None,
        })
        .collect())
}
