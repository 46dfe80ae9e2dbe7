//! Records of what an owner has decided to delete, read by whoever owns the repository next.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::Result;
use crate::backend::Backend;
use crate::id::{PackName, RepositoryId};
use crate::names::{self, ObjectName};
use crate::pack::{PackId, PackKind};
use crate::snapshot::Deletion;

/// Nobody collects so often under one claim: a higher number is not ours.
const MANY: u32 = 1 << 24;

/// Every pack that somebody has decided to delete. `generations` is the highest known: a listing may lag, so what comes after
/// the last record that it names is asked for.
pub(super) async fn buried(
    backend: &Backend,
    repository: &RepositoryId,
    generations: u64,
) -> Result<Vec<PackName>> {
    let mut known: BTreeMap<u64, u32> = (1..=generations).map(|generation| (generation, 0)).collect();
    for (generation, number) in listed(backend).await? {
        let next = known.entry(generation).or_default();
        *next = (*next).max(number + 1);
    }
    let mut packs = Vec::new();
    for (generation, mut count) in known {
        while backend.exists(&names::deletion(generation, count)).await? {
            count += 1;
        }
        for number in 0..count {
            let bytes = backend.get(&names::deletion(generation, number)).await?;
            let deletion = Deletion::open(generation, number, repository, &bytes)?;
            packs.extend(deletion.packs.into_iter().chain(deletion.nodes));
        }
    }
    Ok(packs)
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
