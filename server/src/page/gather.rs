//! What a page shows of one repository, as far as the visitor's token may know it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::tz::TimeZone;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::catalog::{Overview, SnapshotHead, Totals};
use underlay_store::id::SnapshotId;
use underlay_store::repository::Repository;
use underlay_store::snapshot::{Snapshot, Statistics, Timestamp};
use underlay_store::wire::{Phase, Problem};

use super::timeline::Kind;
use crate::hosted::Hosted;
use crate::jobs::{Entry, next};
use crate::server::Server;
use crate::tokens::{Scope, Token};

/// A repository, or why there is nothing to show.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) known: Result<Known, Unavailable>,
}

pub(super) enum Unavailable {
    /// It is yet to be made.
    New,
    /// Why it cannot be opened.
    Broken(String),
}

pub(super) struct Known {
    pub(super) snapshots: Snapshots,
    /// What the newest snapshot of each machine took.
    pub(super) newest: BTreeMap<String, Statistics>,
    /// Of the whole repository: for tokens that are for all machines.
    pub(super) whole: Option<Whole>,
    /// For those that may maintain it.
    pub(super) upkeep: Option<Upkeep>,
}

/// Snapshots, and what is said of some.
#[derive(Default)]
pub(super) struct Snapshots {
    /// Those of the token's machines, oldest first.
    pub(super) heads: Vec<SnapshotHead>,
    pub(super) damaged: BTreeSet<SnapshotId>,
    pub(super) protected: BTreeSet<SnapshotId>,
}

impl Snapshots {
    pub(super) fn kind(&self, snapshot: &SnapshotId) -> Kind {
        match () {
            () if self.damaged.contains(snapshot) => Kind::Damaged,
            () if self.protected.contains(snapshot) => Kind::Protected,
            () => Kind::Plain,
        }
    }

    /// When each of them was made, in milliseconds since 1970, and what is special about it.
    pub(super) fn places(&self) -> Vec<(i64, Kind)> {
        self.heads.iter().map(|head| (head.time_ms, self.kind(&head.snapshot))).collect()
    }
}

/// One machine.
pub(super) struct Machine {
    /// All of its snapshots.
    pub(super) snapshots: Snapshots,
    /// The newest of them, newest first.
    pub(super) newest: Vec<Snapshot>,
}

pub(super) struct Whole {
    pub(super) totals: Totals,
    /// Sizes of all disks of all snapshots together.
    pub(super) disk_bytes: u64,
}

pub(super) struct Upkeep {
    pub(super) overview: Overview,
    pub(super) planned: Vec<Planned>,
    /// All runs, newest first.
    pub(super) runs: Vec<Entry>,
    /// What each running one is at.
    pub(super) phases: BTreeMap<String, Phase>,
}

impl Upkeep {
    /// Runs of what was asked for, and of jobs that are planned still.
    pub(super) fn lasting(&self) -> impl Iterator<Item = &Entry> {
        let is_planned = |job: &str| self.planned.iter().any(|planned| planned.job == job);
        self.runs.iter().filter(move |run| !run.planned || is_planned(&run.job))
    }
}

pub(super) struct Planned {
    pub(super) job: String,
    pub(super) kind: &'static str,
    pub(super) when: String,
    pub(super) next: Timestamp,
}

/// Why something cannot be shown. Folders of the server are nobody's business.
fn broken(hosted: &Hosted, error: &Error) -> Unavailable {
    let cause = error as &dyn std::error::Error;
    tracing::error!(repository = hosted.name(), error = cause, "cannot be shown");
    Unavailable::Broken(Problem::of(error, false).title)
}

async fn opened(hosted: &Hosted) -> Result<Arc<Repository>, Unavailable> {
    hosted.repository().await.map_err(|problem| match problem.kind() {
        "no-repository" => Unavailable::New,
        _ => Unavailable::Broken(problem.title),
    })
}

/// A repository. Reads nothing that is not in the catalog, but for two listings of small folders.
pub(super) async fn gather(server: &Server, hosted: &Hosted, token: &Token) -> Facts {
    let known = async {
        let repository = opened(hosted).await?;
        known(server, hosted, &repository, token).await.map_err(|error| broken(hosted, &error))
    };
    Facts { name: hosted.name().to_owned(), known: known.await }
}

/// A machine of the token's, with at most so many of its newest snapshots.
pub(super) async fn machine(hosted: &Hosted, vm: &str, most: u32) -> Result<Machine, Unavailable> {
    let repository = opened(hosted).await?;
    let known = async {
        let snapshots = snapshots(&repository, |other| other == vm).await?;
        let documents = repository.newest_of(vm.to_owned(), most).await?;
        let newest = documents.iter().filter_map(|(id, document)| read(&repository, id, document)).collect();
        Ok(Machine { snapshots, newest })
    };
    known.await.map_err(|error| broken(hosted, &error))
}

fn read(repository: &Repository, id: &SnapshotId, document: &[u8]) -> Option<Snapshot> {
    Snapshot::peek(id, &repository.id(), document).ok()
}

async fn snapshots(repository: &Repository, is_shown: impl Fn(&str) -> bool) -> Result<Snapshots, Error> {
    let mut heads = repository.snapshot_heads().await?;
    heads.retain(|head| is_shown(&head.vm));
    let damaged = repository.marked().await?.into_iter().map(|marked| marked.snapshot).collect();
    let protected = repository.protected().await?.into_iter().collect();
    Ok(Snapshots { heads, damaged, protected })
}

async fn known(
    server: &Server,
    hosted: &Hosted,
    repository: &Repository,
    token: &Token,
) -> Result<Known, Error> {
    let snapshots = snapshots(repository, |vm| token.covers_machine(vm)).await?;
    let newest = repository.newest_of_each().await?;
    let newest = newest.iter().filter_map(|(id, document)| read(repository, id, document));
    let newest = newest.filter(|snapshot| token.covers_machine(&snapshot.vm));
    let newest = newest.map(|snapshot| (snapshot.vm, snapshot.statistics)).collect();
    let all = token.covers_all_machines();
    let whole = match all {
        true => {
            Some(Whole { totals: repository.totals().await?, disk_bytes: repository.disk_bytes().await? })
        }
        false => None,
    };
    let upkeep = match all && token.has_any(&[Scope::Maintain]) {
        true => Some(upkeep(server, hosted, repository.overview().await?)),
        false => None,
    };
    Ok(Known { snapshots, newest, whole, upkeep })
}

fn upkeep(server: &Server, hosted: &Hosted, overview: Overview) -> Upkeep {
    let (jobs, now, zone) = (&server.jobs, Timestamp::now(), TimeZone::system());
    let planned = hosted.jobs().iter().map(|job| Planned {
        job: job.name.clone(),
        kind: job.kind.name(),
        when: job.schedule.to_string(),
        next: next(jobs.history(), hosted.name(), job, now, &zone),
    });
    let runs = jobs.history().all().into_iter().rev().filter(|run| run.repository == hosted.name());
    let runs: Vec<Entry> = runs.collect();
    let phases = runs.iter().filter_map(|run| Some((run.id.to_string(), jobs.phase(run.id)?)));
    let phases = phases.collect();
    Upkeep { overview, planned: planned.collect(), runs, phases }
}
