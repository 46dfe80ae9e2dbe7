//! `underlay repair`.

use clap::{Args, Subcommand};
use serde_json::json;
use underlay_store::Error;
use underlay_store::authority::{RepairOptions, RepairReport};
use underlay_store::id::SnapshotId;
use underlay_store::key::file;
use underlay_store::names::DESCRIPTOR;
use underlay_store::repository::{RebuildReport, Repository};
use underlay_store::snapshot::{Descriptor, Snapshot};

use super::App;
use super::check::{read_data, tell_report};
use super::open::Snapshots;
use super::owning::Owning;
use super::report::{DAMAGE, Failure, IN_PART};
use super::text::{count, say, warn};
use crate::state::state_directory;

/// Find out what damage has cost, mark the snapshots that lost data, and prepare what the next backups can heal.
///
/// Checks the repository and reads again what an earlier check found damaged. What is lost is not offered to backups, so that the next
/// one whose disks still hold it stores it anew; snapshots that lost data are marked, until a repair finds them whole. Nothing is ever
/// dropped: only `underlay forget SNAPSHOT` does that.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  underlay repair --dry-run\n  underlay repair --read-data\n  underlay repair catalog"
)]
pub(super) struct Repair {
    #[command(subcommand)]
    what: Option<What>,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// First read, decrypt and verify every chunk. Needs the restore key
    #[arg(long, conflicts_with = "dry_run")]
    read_data: bool,
    #[command(flatten)]
    owning: Owning,
}

/// Their descriptions lie with their arguments.
#[derive(Clone, Copy, Debug, Subcommand)]
enum What {
    Catalog(Catalog),
    Claim(Claim),
    Descriptor(DescriptorCommand),
}

/// Build the catalog anew from the repository's objects alone; the old one is kept beside it.
///
/// Packs that the old catalog does not know are taken in, and no snapshot is lost: one whose object only the old catalog holds is put back.
#[derive(Clone, Copy, Debug, Args)]
struct Catalog {
    /// Compare, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Make the repository this host's, if the claim that says whose it is cannot be read.
///
/// Only when no other host writes to it: that cannot be told without the claim.
#[derive(Clone, Copy, Debug, Args)]
struct Claim {
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Put back underlay.json, the repository's descriptor, from the copy that this host keeps. Needs a key file.
#[derive(Clone, Copy, Debug, Args)]
#[command(name = "descriptor")]
struct DescriptorCommand {
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Repair {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        match self.what {
            Some(What::Catalog(catalog)) => catalog.run(app),
            Some(What::Claim(claim)) => claim.run(app),
            Some(What::Descriptor(descriptor)) => descriptor.run(app),
            None => self.all(app),
        }
    }

    fn all(&self, app: &App) -> Result<(), Failure> {
        let opened = app.open(self.owning.writing_unless(self.dry_run))?;
        let snapshots = app.snapshots(&opened)?;
        snapshots.report_damaged();
        if self.read_data {
            let verified = read_data(app, &opened, &snapshots.sound, 100.0, &mut Default::default())?;
            app.wait(opened.authority.withdraw(&verified.withdrawal))?;
        }
        let verified = snapshots.sound.iter().map(|snapshot| snapshot.snapshot).collect();
        let options = RepairOptions { dry_run: self.dry_run, verified };
        let report = app.wait(opened.authority.repair(&options, &*app.progress))?;
        app.progress.finish();
        match app.global.json {
            true => say(json!({ "dry_run": self.dry_run, "repair": report }))?,
            false => self.tell(&snapshots, &report)?,
        }
        if report.catalog_is_damaged {
            return Err(Failure::after_result(
                DAMAGE,
                "the catalog is damaged, and nothing else was repaired",
            )
            .hint("`underlay repair catalog` builds it anew; then repair again"));
        }
        match report.check.affected.is_empty() && snapshots.damaged.is_empty() {
            true => Ok(()),
            false => Err(Failure::after_result(DAMAGE, "snapshots have lost data")
                .hint("back up the machines again; `underlay restore --allow-holes` writes what is left of old snapshots")),
        }
    }

    fn tell(&self, snapshots: &Snapshots, report: &RepairReport) -> Result<(), Failure> {
        tell_report(&report.check)?;
        let would = if self.dry_run { "would be " } else { "" };
        let lines = [
            (&report.put_back, "put back into the repository from the catalog"),
            (&report.protections, "protected anew"),
            (&report.marked, "marked as damaged"),
            (&report.unmarked, "found whole again, its mark removed"),
        ];
        for (which, what) in lines {
            for snapshot in which {
                say(format!("{}: {would}{what}", named(snapshots, snapshot)))?;
            }
        }
        if report.may_heal > 0 {
            say(format!(
                "{} of what is lost may be healed: the next backup of each affected machine stores again what its disks still hold",
                count(report.may_heal, "piece")
            ))?;
        }
        if report.gone > 0 {
            say(format!(
                "{} of what is lost, only older snapshots need: that is gone, unless some machine's disks still hold the same",
                count(report.gone, "piece")
            ))?;
        }
        if report.check.is_sound() {
            say("no damage found")?;
        }
        Ok(())
    }
}

fn named(snapshots: &Snapshots, id: &SnapshotId) -> String {
    let short = &id.to_string()[..12];
    match snapshots.sound.iter().find(|snapshot| snapshot.snapshot == *id) {
        Some(Snapshot { vm, time, .. }) => format!("snapshot {short} of {vm} at {time}"),
        None => format!("snapshot {short}"),
    }
}

impl Catalog {
    fn run(self, app: &App) -> Result<(), Failure> {
        let backend = app.backend()?;
        let (descriptor, key) = app.key(&backend)?;
        let verifies = |id: &SnapshotId, bytes: &[u8]| {
            Snapshot::open(id, &descriptor.repository, bytes, key.backup()).is_ok()
        };
        let state = state_directory();
        // Not to be left half-way: the old catalog has a new name by then.
        let report =
            app.runtime.block_on(Repository::rebuild_catalog(&backend, &state, self.dry_run, &verifies))?;
        if app.global.json {
            say(json!({ "dry_run": self.dry_run, "catalog": report }))?;
        } else {
            self.tell(&report)?;
        }
        match report.unreadable.is_empty() {
            true => Ok(()),
            false => Err(Failure::after_result(IN_PART, "some snapshots cannot be read")),
        }
    }

    fn tell(self, report: &RebuildReport) -> Result<(), Failure> {
        for fault in &report.faults {
            say(format!("the old catalog: {fault}"))?;
        }
        let (packs, snapshots) = (count(report.packs, "pack"), count(report.snapshots, "snapshot"));
        say(format!("{packs} and {snapshots} in the repository"))?;
        for (number, what) in [
            (report.unindexed, "in the repository that the old catalog did not know"),
            (report.missing, "that only the old catalog knew: missing from the repository"),
        ] {
            if number > 0 {
                say(format!("{} {what}", count(number, "pack")))?;
            }
        }
        match report.differing {
            Some(0) => say("of all others it said what they hold")?,
            Some(differing) => {
                say(format!("{} that the old catalog had wrong", count(differing, "place")))?;
            }
            None => say("what the old catalog said of them could not be compared")?,
        }
        if report.new_snapshots > 0 {
            say(format!("{} that the old catalog did not know", count(report.new_snapshots, "snapshot")))?;
        }
        let would = if self.dry_run { "would be " } else { "" };
        for snapshot in &report.put_back {
            say(format!("snapshot {snapshot}: {would}put back into the repository from the old catalog"))?;
        }
        for name in &report.unreadable {
            warn(format_args!("{name} cannot be read"));
        }
        match &report.kept {
            Some(kept) => say(format!("the catalog is built anew; the old one is {}", kept.display())),
            None if self.dry_run => say("nothing was changed"),
            None => say("the catalog is built anew"),
        }
    }
}

impl Claim {
    fn run(self, app: &App) -> Result<(), Failure> {
        let backend = app.backend()?;
        let state = state_directory();
        let claim = app.runtime.block_on(Repository::repair_claim(&backend, &state, self.dry_run))?;
        if app.global.json {
            return say(json!({ "dry_run": self.dry_run, "claim": claim }));
        }
        match (claim, self.dry_run) {
            (None, _) => say("the newest claim can be read: there is nothing to repair"),
            (Some(claim), true) => say(format!("{claim} would make the repository this host's")),
            (Some(claim), false) => say(format!("{claim} makes the repository this host's")),
        }
    }
}

impl DescriptorCommand {
    fn run(self, app: &App) -> Result<(), Failure> {
        let backend = app.backend()?;
        let path = app.global.key_file_to_use().ok_or_else(|| {
            Failure::usage("only a key file tells which repository this is").hint("give --key-file FILE")
        })?;
        let (id, key) = file::read_any(path).map_err(Failure::key_file)?;
        let stored = match app.wait(backend.get(DESCRIPTOR)) {
            Err(failure) if failure.exit_code() == DAMAGE => None,
            other => Some(other?),
        };
        let is_sound = |bytes: &bytes::Bytes| {
            Descriptor::open(bytes, key.backup()).is_ok_and(|found| found.repository == id)
        };
        let done = if stored.as_ref().is_some_and(is_sound) {
            false
        } else {
            let kept = Repository::kept_descriptor(&backend, &state_directory(), id)?;
            let kept = kept.filter(is_sound).ok_or_else(|| {
                Failure::from(Error::Missing { object: format!("a sound copy of {DESCRIPTOR}") })
                    .hint("run this on a host that has opened the repository before, or put a copy of the file back by hand")
            })?;
            if !self.dry_run {
                app.runtime.block_on(Repository::put_descriptor(&backend, kept))?;
            }
            true
        };
        if app.global.json {
            return say(json!({ "dry_run": self.dry_run, "put_back": done }));
        }
        match (done, self.dry_run) {
            (false, _) => say(format!("{DESCRIPTOR} is sound: there is nothing to repair")),
            (true, true) => say(format!("{DESCRIPTOR} would be put back from this host's copy")),
            (true, false) => say(format!("{DESCRIPTOR} is put back from this host's copy")),
        }
    }
}
