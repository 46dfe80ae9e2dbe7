//! What a page shows of one repository, as far as the visitor's token may know it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::catalog::{Overview, SnapshotHead, Totals};
use underlay_store::id::SnapshotId;
use underlay_store::repository::Repository;
use underlay_store::snapshot::{Snapshot, Statistics, Timestamp};
use underlay_store::wire::Phase;

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
    /// Snapshots of the token's machines, oldest first.
    pub(super) snapshots: Vec<SnapshotHead>,
    /// What the newest snapshot of each machine took.
    pub(super) newest: BTreeMap<String, Statistics>,
    pub(super) damaged: BTreeSet<SnapshotId>,
    pub(super) protected: BTreeSet<SnapshotId>,
    /// Of the whole repository: for tokens that are for all machines.
    pub(super) whole: Option<Whole>,
    /// For those that may maintain it.
    pub(super) upkeep: Option<Upkeep>,
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

pub(super) struct Planned {
    pub(super) job: String,
    pub(super) kind: &'static str,
    pub(super) when: String,
    pub(super) next: Timestamp,
}

/// The statistics of a stored document, and its machine.
fn statistics(repository: &Repository, id: &SnapshotId, document: &[u8]) -> Option<(String, Statistics)> {
    let snapshot = Snapshot::peek(id, &repository.id(), document).ok()?;
    Some((snapshot.vm, snapshot.statistics))
}

/// Reads nothing that is not in the catalog, but for two listings of small folders.
pub(super) async fn gather(server: &Server, hosted: &Hosted, token: &Token) -> Facts {
    let name = hosted.name().to_owned();
    let known = match hosted.repository().await {
        Ok(repository) => {
            let known = known(server, hosted, &repository, token).await;
            known.map_err(|error| {
                tracing::error!(repository = %name, error = &error as &dyn std::error::Error, "cannot be shown");
                Unavailable::Broken(error.to_string())
            })
        }
        Err(problem) if problem.kind() == "no-repository" => Err(Unavailable::New),
        Err(problem) => Err(Unavailable::Broken(problem.title)),
    };
    Facts { name, known }
}

async fn known(
    server: &Server,
    hosted: &Hosted,
    repository: &Repository,
    token: &Token,
) -> Result<Known, Error> {
    let mut snapshots = repository.snapshot_heads().await?;
    snapshots.retain(|head| token.covers_machine(&head.vm));
    let newest = repository.newest_of_each().await?;
    let newest = newest.iter().filter_map(|(id, document)| statistics(repository, id, document));
    let newest = newest.filter(|(vm, _)| token.covers_machine(vm)).collect();
    let damaged = repository.marked().await?.into_iter().map(|marked| marked.snapshot).collect();
    let protected = repository.protected().await?.into_iter().collect();
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
    Ok(Known { snapshots, newest, damaged, protected, whole, upkeep })
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

/// A machine's newest snapshots, with what each of them took, newest first.
pub(super) async fn machine(repository: &Repository, vm: &str, most: u32) -> Result<Vec<Snapshot>, Error> {
    let documents = repository.newest_of(vm.to_owned(), most).await?;
    let read = |(id, document): &(SnapshotId, Vec<u8>)| Snapshot::peek(id, &repository.id(), document).ok();
    Ok(documents.iter().filter_map(read).collect())
}
