//! Records of what an owner has decided to delete, read by whoever owns the repository next.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::backend::Backend;
use crate::id::{PackName, RepositoryId};
use crate::names::{self, ObjectName};
use crate::pack::{PackId, PackKind};
use crate::snapshot::{Closing, Deletion};
use crate::{Error, Result};

/// Nobody collects so often under one claim: a higher number is not ours.
const MANY: u32 = 1 << 24;

/// Every pack that an owner has decided to delete and that no owner after it relies on, and how many records that is by generation.
/// `highest` is the highest generation claimed. A listing may lag, so what comes after the last record that it names is asked for.
pub(super) async fn honoured(
    backend: &Backend,
    repository: &RepositoryId,
    highest: u64,
) -> Result<(Vec<PackName>, BTreeMap<u64, u32>)> {
    let mut counts: BTreeMap<u64, u32> = (1..=highest).map(|generation| (generation, 0)).collect();
    for (generation, number) in listed(backend).await? {
        let next = counts.entry(generation).or_default();
        *next = (*next).max(number + 1);
    }
    for (generation, count) in &mut counts {
        while backend.exists(&names::deletion(*generation, *count)).await? {
            *count += 1;
        }
    }
    // The owner that came next says what counts. Later owners know no better.
    for closer in (2..=highest).rev() {
        let Some(closing) = closing(backend, repository, closer).await? else { continue };
        for (generation, count) in counts.range_mut(..closer) {
            *count = closing.records.get(generation).copied().unwrap_or(0);
        }
    }
    counts.retain(|_, count| *count > 0);
    let mut packs = Vec::new();
    for (&generation, &count) in &counts {
        for number in 0..count {
            let bytes = backend.get(&names::deletion(generation, number)).await?;
            let deletion = Deletion::open(generation, number, repository, &bytes)?;
            packs.extend(deletion.packs.into_iter().chain(deletion.nodes));
        }
    }
    Ok((packs, counts))
}

async fn closing(backend: &Backend, repository: &RepositoryId, generation: u64) -> Result<Option<Closing>> {
    let name = names::closing(generation);
    match backend.get(&name).await {
        Ok(bytes) => Closing::open(generation, repository, &bytes).map(Some),
        Err(Error::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes what the owner of `generation` found of those before it. Before that it relies on nothing.
pub(super) async fn close(
    backend: &Backend,
    repository: RepositoryId,
    generation: u64,
    records: &BTreeMap<u64, u32>,
) -> Result<()> {
    if generation < 2 {
        return Ok(());
    }
    let records = records.range(..generation).map(|(generation, count)| (*generation, *count)).collect();
    let closing = Closing { repository, generation, records };
    backend.put(&names::closing(generation), Bytes::from(closing.seal())).await
}

/// Writes that these packs are about to be deleted by the owner of `generation`.
pub(super) async fn record(
    backend: &Backend,
    repository: RepositoryId,
    generation: u64,
    doomed: &[PackId],
) -> Result<()> {
    let of = |kind| doomed.iter().filter(move |pack| pack.kind == kind).map(|pack| pack.name).collect();
    let (packs, nodes) = (of(PackKind::Data), of(PackKind::Nodes));
    let ours = listed(backend).await?.into_iter().filter(|(of, _)| *of == generation);
    let mut number = ours.map(|(_, number)| number + 1).max().unwrap_or(0);
    while backend.exists(&names::deletion(generation, number)).await? {
        number += 1;
    }
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
