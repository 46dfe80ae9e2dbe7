//! A collection, step by step. Runs beside backups and restores; killed at any moment, the next one goes on.
//!
//! 1. Idle sessions are shut out; what killed writers left is taken in; forgotten snapshots' objects go; what an earlier collection
//!    had decided to delete goes.
//! 2. Mark: everything that snapshots and open sessions hold, by walking trees.
//! 3. Plan: packs without life go; of those with little life, it is copied to new packs, which are published first. Where one of
//!    several copies goes, a pack with another is read whole before.
//! 4. Condemn: what goes is not offered to backups any more, nor are dead nodes. All of it can still be read.
//! 5. Settle: mark again what came to be held meanwhile, until one transaction finds nothing new. It takes packs into use again that
//!    something needs now, and decides about the others.
//! 6. Delete: a record is written, the claim is read again, and only then the objects go.

use std::collections::HashSet;

use futures::{StreamExt, stream};

use super::damage::Verdict;
use super::{Repository, deletions, sync};
use crate::backend::Backend;
use crate::catalog::{Catalog, PackUse, Retired, Settled, Survey};
use crate::gc::{Count, GcOptions, GcReport, Marks, Plan, plan};
use crate::id::PackName;
use crate::names;
use crate::pack::{PackId, TARGET_LENGTH};
use crate::progress::{Progress, Silent};
use crate::sabotage::{Rule, broken};
use crate::{Error, Result};

/// Deletions in flight at once.
const PARALLEL: usize = 16;
/// Packs named in one record.
const TOGETHER: usize = 4096;

impl Repository {
    pub(super) async fn collect(&self, options: &GcOptions, progress: &dyn Progress) -> Result<GcReport> {
        if options.dry_run {
            return self.foresee(options, progress).await;
        }
        self.writable()?;
        let _exclusive = self.catalog.exclusive()?;
        self.ownership.still_ours(&self.backend).await?;
        let mut report = GcReport::default();
        self.tidy_up(options, &mut report).await?;
        report.finished = self.delete_doomed(progress).await?;
        let mut marks = Marks::default();
        let mut proven: Vec<PackName> = Vec::new();
        let mut read: HashSet<PackId> = HashSet::new();
        let (survey, leaving) = loop {
            let (survey, plan) = self.look(options, progress, &mut marks, &mut report).await?;
            if !self.keepers_are_sound(&survey, &plan, &mut read, &mut report).await? {
                continue;
            }
            let copies = self.copy_forward(plan, &marks, progress, &mut report).await?;
            proven.extend(copies.nodes);
            if !copies.met_damage {
                break (survey, copies.leaving);
            }
            // Planned anew: the sound copy of what was just found damaged may have been about to go.
            (report.kept, report.held, report.unused) = Default::default();
        };
        let names: Vec<PackName> = leaving.iter().map(|pack| pack.name).collect();
        proven.extend(&survey.provable);
        let survey =
            self.with_catalog(move |catalog| catalog.condemn(&survey, &names).map(|()| survey)).await?;
        report.resurrected = self.settle(survey, marks).await?;
        if report.missing == 0 {
            self.with_catalog(move |catalog| catalog.mark_proven(&proven)).await?;
        }
        self.count_outcome(&leaving, &mut report).await?;
        self.delete_doomed(progress).await?;
        Ok(report)
    }

    /// What a collection would do now, and nothing else.
    async fn foresee(&self, options: &GcOptions, progress: &dyn Progress) -> Result<GcReport> {
        let mut report = GcReport::default();
        for (_, bytes) in self.with_catalog(Catalog::doomed).await? {
            report.finished.add(bytes);
        }
        let (_, plan) = self.look(options, progress, &mut Marks::default(), &mut report).await?;
        plan.drop.iter().for_each(|pack| report.dropped.add(pack.size));
        for pack in &plan.copy {
            report.copied_from.add(pack.size);
            report.copied_to.bytes += pack.live_bytes;
        }
        report.copied_to.packs = report.copied_to.bytes.div_ceil(u64::from(TARGET_LENGTH));
        count_kept(&plan.keep, &mut report);
        Ok(report)
    }

    async fn tidy_up(&self, options: &GcOptions, report: &mut GcReport) -> Result<()> {
        let lease = i64::try_from(options.lease.as_millis()).unwrap_or(i64::MAX);
        let idle_since = (self.clock)().saturating_sub(lease);
        // First what is already in the bucket: a commit whose snapshot is stored ends well.
        self.adopt_all().await?;
        report.fenced_sessions = self.with_catalog(move |catalog| catalog.fence_idle(idle_since)).await?;
        let mut absent = Vec::new();
        for pack in self.with_catalog(Catalog::left_expected).await? {
            if !self.backend.exists(&pack.to_string()).await? {
                absent.push(pack);
            }
        }
        self.with_catalog(move |catalog| catalog.forget_expected(&absent)).await?;
        for snapshot in self.with_catalog(Catalog::forgotten_objects).await? {
            self.delete_forgotten(snapshot).await?;
        }
        Ok(())
    }

    /// Marks, surveys and plans.
    async fn look(
        &self,
        options: &GcOptions,
        progress: &dyn Progress,
        marks: &mut Marks,
        report: &mut GcReport,
    ) -> Result<(Survey, Plan)> {
        progress.phase("marking", None);
        self.hold(marks).await?;
        marks.walk(&self.nodes, progress).await?;
        report.open_sessions = self.with_catalog(Catalog::open_sessions).await?;
        progress.phase("planning", None);
        let taken = std::mem::take(marks);
        let (mut survey, taken) =
            self.with_catalog(move |catalog| catalog.survey(&taken).map(|survey| (survey, taken))).await?;
        *marks = taken;
        (report.live_nodes, report.live_chunks) = (marks.nodes(), marks.chunks());
        report.missing = (marks.nodes() + marks.chunks()).saturating_sub(survey.live_entries);
        let plan = plan(std::mem::take(&mut survey.packs), options.max_unused);
        Ok((survey, plan))
    }

    /// Takes in what the catalog says is held now.
    async fn hold(&self, marks: &mut Marks) -> Result<()> {
        let mut taken = std::mem::take(marks);
        *marks = self
            .with_catalog(move |catalog| {
                catalog.held(|held| taken.hold(&held))?;
                Ok(taken)
            })
            .await?;
        Ok(())
    }

    /// Where of several copies of something one goes, reads a pack whole that is relied on instead, once. A catalog that was built anew does not
    /// know what was found damaged before. Whether all of them are what their names say; the others are out of use now.
    async fn keepers_are_sound(
        &self,
        survey: &Survey,
        plan: &Plan,
        read: &mut HashSet<PackId>,
        report: &mut GcReport,
    ) -> Result<bool> {
        if broken(Rule::ReadKeepers) {
            return Ok(true);
        }
        let leaving: HashSet<PackName> = plan.drop.iter().chain(&plan.copy).map(|pack| pack.name).collect();
        let keepers = survey.shared.iter().filter_map(|(one, other)| {
            match (leaving.contains(&one.name), leaving.contains(&other.name)) {
                (true, false) => Some(*other),
                (false, true) => Some(*one),
                // Neither goes; or both, and what is copied is read for that.
                _ => None,
            }
        });
        let mut sound = true;
        for keeper in keepers {
            if !read.insert(keeper) {
                continue;
            }
            report.keepers += 1;
            match self.look_at(&keeper).await? {
                Verdict::AsStored => {}
                Verdict::Damaged => {
                    sound = false;
                    report.damaged.push(format!("{keeper} is missing, or not what its name says"));
                    self.with_catalog(move |catalog| catalog.retire(&[Retired::Pack(keeper.name)])).await?;
                }
                Verdict::CatalogDiffers => {
                    let what = format!(
                        "it says of {keeper} what that pack does not; `underlay repair catalog` builds it anew"
                    );
                    return Err(Error::damaged("catalog", what));
                }
            }
        }
        Ok(sound)
    }

    /// Marks what came to be held since, until nothing has, and decides.
    async fn settle(&self, mut survey: Survey, mut marks: Marks) -> Result<u64> {
        marks.start_recording();
        self.adopt_all().await?;
        loop {
            if !broken(Rule::MarkAgain) {
                self.hold(&mut marks).await?;
                marks.walk(&self.nodes, &Silent).await?;
            }
            let generation = self.ownership.generation();
            let settled;
            (settled, survey, marks) = self
                .with_catalog(move |catalog| {
                    catalog
                        .settle(generation, &survey, &marks, marks.late())
                        .map(|settled| (settled, survey, marks))
                })
                .await?;
            match settled {
                Settled::Decided { resurrected } => return Ok(resurrected),
                Settled::Outdated => {
                    self.ownership.still_ours(&self.backend).await?;
                    return Err(Error::Busy { what: "a take-over" });
                }
                Settled::Changed => {}
            }
        }
    }

    /// Takes in what killed writers left. What a damaged document names cannot be known, and must not go.
    async fn adopt_all(&self) -> Result<()> {
        match sync::adopt(&self.backend, &self.catalog, &self.nodes, self.id).await?.first() {
            None => Ok(()),
            Some(document) => Err(Error::damaged(
                &document.name,
                "what it needs is not known, so nothing is collected; drop it by name if it cannot be brought back",
            )),
        }
    }

    async fn count_outcome(&self, leaving: &[PackUse], report: &mut GcReport) -> Result<()> {
        let doomed: HashSet<PackName> =
            self.with_catalog(Catalog::doomed).await?.into_iter().map(|(pack, _)| pack.name).collect();
        for pack in leaving {
            match (doomed.contains(&pack.name), pack.live_entries) {
                (true, 0) => report.dropped.add(pack.size),
                (true, _) => report.copied_from.add(pack.size),
                (false, _) => {
                    report.kept.add(pack.size);
                    report.unused += pack.unused();
                }
            }
        }
        Ok(())
    }

    /// Deletes the objects of all packs that were decided to go.
    async fn delete_doomed(&self, progress: &dyn Progress) -> Result<Count> {
        let mut gone = Count::default();
        let doomed = self.with_catalog(Catalog::doomed).await?;
        if doomed.is_empty() {
            return Ok(gone);
        }
        let wrong = self.with_catalog(Catalog::stored_wrong).await?;
        progress.phase("deleting", Some(doomed.len() as u64));
        for some in doomed.chunks(TOGETHER) {
            let packs: Vec<PackId> = some.iter().map(|(pack, _)| *pack).collect();
            let generation = self.ownership.generation();
            if !broken(Rule::RecordDeletions) {
                deletions::record(&self.backend, self.id, generation, &packs, &self.catalog).await?;
            }
            // Whoever takes over after this reads the record, and relies on none of them.
            if !broken(Rule::ReadClaimAgain) {
                self.ownership.still_ours(&self.backend).await?;
            }
            let deletes: Vec<_> = (packs.into_iter())
                .map(|pack| delete(self.backend.clone(), pack, wrong.contains_key(&pack.name)))
                .collect();
            let mut running = stream::iter(deletes).buffer_unordered(PARALLEL);
            while let Some(deleted) = running.next().await {
                deleted?;
                progress.advance(1);
            }
            some.iter().for_each(|(_, bytes)| gone.add(*bytes));
        }
        self.with_catalog(Catalog::drop_doomed).await?;
        Ok(gone)
    }
}

/// Deletes a pack, and then what is recorded about it.
async fn delete(backend: Backend, pack: PackId, wrong: bool) -> Result<()> {
    backend.delete(&pack.to_string()).await?;
    match wrong {
        true => backend.delete(&names::retired(&pack.name)).await,
        false => Ok(()),
    }
}

pub(super) fn count_kept(kept: &[PackUse], report: &mut GcReport) {
    for pack in kept {
        report.kept.add(pack.size);
        report.unused += pack.unused();
        if pack.held {
            report.held.add(pack.size);
        }
    }
}
