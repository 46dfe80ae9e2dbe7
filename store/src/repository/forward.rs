//! Copying what is alive out of packs that go.

use std::collections::{BTreeMap, HashSet};

use super::Repository;
use super::collect::count_kept;
use crate::Result;
use crate::catalog::{Catalog, Origin, PackRecord, PackUse, Retired};
use crate::gc::{Forward, GcReport, Marks, Plan, groups};
use crate::id::PackName;
use crate::pack::{FinishedPack, PackId, PackKind, TARGET_LENGTH};
use crate::progress::Progress;

impl Repository {
    /// Copies what is alive out of the packs that are to be copied, and publishes the new ones.
    pub(super) async fn copy_forward(
        &self,
        plan: Plan,
        marks: &Marks,
        progress: &dyn Progress,
        report: &mut GcReport,
    ) -> Result<Copies> {
        count_kept(&plan.keep, report);
        let leaving: HashSet<PackName> = plan.drop.iter().chain(&plan.copy).map(|pack| pack.name).collect();
        let mut copies = Copies { leaving: plan.drop, nodes: Vec::new(), met_damage: false };
        progress.phase("copying", Some(plan.copy.iter().map(|pack| pack.live_bytes).sum()));
        for kind in [PackKind::Data, PackKind::Nodes] {
            let of_kind: Vec<PackUse> = plan.copy.iter().filter(|pack| pack.kind == kind).cloned().collect();
            for apart in self.apart(of_kind) {
                for group in groups(&apart, u64::from(TARGET_LENGTH)) {
                    self.copy_group(kind, group, &leaving, marks, &mut copies, report).await?;
                    progress.advance(group.iter().map(|pack| pack.live_bytes).sum());
                }
            }
        }
        Ok(copies)
    }

    async fn copy_group(
        &self,
        kind: PackKind,
        group: &[PackUse],
        leaving: &HashSet<PackName>,
        marks: &Marks,
        copies: &mut Copies,
        report: &mut GcReport,
    ) -> Result<()> {
        let mut forward = Forward::new(kind, self.id);
        let origin = common(group);
        for pack in group {
            let id = PackId::new(kind, pack.name);
            let read = match self.backend.get(&id.to_string()).await {
                Ok(bytes) => Forward::ids(&id, &bytes).map(|ids| (ids, bytes)),
                Err(error) => Err(error),
            };
            let (ids, bytes) = match read {
                Ok(read) => read,
                // It may be all that is left of what it holds, and is not relied on while there is anything else.
                Err(error) if error.is_damage() => {
                    report.damaged.push(error.to_string());
                    copies.met_damage = true;
                    let damaged = Retired::Pack(pack.name);
                    self.with_catalog(move |catalog| catalog.retire(&[damaged])).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !forward.has_room(&id, &bytes)? {
                let full = std::mem::replace(&mut forward, Forward::new(kind, self.id));
                self.publish(kind, origin, full.finish()?, copies, report).await?;
            }
            let alive: Vec<[u8; 32]> = ids.into_iter().filter(|id| marks.has(kind, id)).collect();
            let (others, leaving) = (alive.clone(), leaving.clone());
            let from = pack.origin;
            let ask = move |catalog: &Catalog| catalog.has_other_home(kind, &others, &leaving, from);
            let elsewhere = self.with_catalog(ask).await?;
            let alive: HashSet<[u8; 32]> = alive
                .into_iter()
                .zip(elsewhere)
                .filter(|(_, elsewhere)| !elsewhere)
                .map(|(id, _)| id)
                .collect();
            forward.take(&id, &bytes, &alive)?;
            copies.leaving.push(pack.clone());
        }
        self.publish(kind, origin, forward.finish()?, copies, report).await
    }

    /// Stores copies, and lets them be found.
    async fn publish(
        &self,
        kind: PackKind,
        origin: Origin,
        packs: Vec<FinishedPack>,
        copies: &mut Copies,
        report: &mut GcReport,
    ) -> Result<()> {
        for FinishedPack { id, bytes, entries } in packs {
            self.ownership.still_ours(&self.backend).await?;
            let size = bytes.len() as u64;
            self.with_catalog(move |catalog| catalog.expect_copy(&id)).await?;
            self.backend.put(&id.to_string(), bytes).await?;
            let record = PackRecord { name: id.name, kind, size, entries };
            self.with_catalog(move |catalog| catalog.import_copy(&record, origin)).await?;
            report.copied_to.add(size);
            report.kept.add(size);
            if kind == PackKind::Nodes {
                copies.nodes.push(id.name);
            }
        }
        Ok(())
    }

    /// What may be copied into one pack. Where writers do not trust each other, nothing becomes another's by being copied.
    fn apart(&self, packs: Vec<PackUse>) -> Vec<Vec<PackUse>> {
        if !self.catalog.is_strict() {
            return vec![packs];
        }
        let mut apart: BTreeMap<(Origin, Option<PackName>), Vec<PackUse>> = BTreeMap::new();
        for pack in packs {
            // Of unknown ones each may be another's.
            let alone = (pack.origin == Origin::Unknown).then_some(pack.name);
            apart.entry((pack.origin, alone)).or_default().push(pack);
        }
        apart.into_values().collect()
    }
}

/// The origin of what is copied out of all of them.
fn common(packs: &[PackUse]) -> Origin {
    match packs.split_first() {
        Some((first, rest)) if rest.iter().all(|pack| pack.origin == first.origin) => first.origin,
        _ => Origin::Unknown,
    }
}

/// What leaves, and what was made of it.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) leaving: Vec<PackUse>,
    pub(super) nodes: Vec<PackName>,
    /// A pack was found damaged: it is out of use now, and all of this was planned without knowing it.
    pub(super) met_damage: bool,
}
