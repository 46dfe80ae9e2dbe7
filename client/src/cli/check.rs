//! `underlay check`.

use std::collections::{BTreeSet, HashSet};

use clap::Args;
use serde_json::json;
use underlay_store::Error;
use underlay_store::check::{Affected, CheckOptions, CheckReport, Finding};
use underlay_store::id::Root;
use underlay_store::repository::Access;
use underlay_store::snapshot::Snapshot;

use super::App;
use super::open::{Opened, Snapshots};
use super::report::{DAMAGE, Failure};
use super::text::{count, say, size, warn};
use crate::restore::{Environment, RestoreError, RestoreOptions, VerifyReport, verify};

/// Check the repository.
///
/// Without options: the catalog against the bucket, and every snapshot's tree down to where its chunks lie. Needs no restore key.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  underlay check\n  underlay check --scrub\n  underlay check --read-data=5%"
)]
pub(super) struct Check {
    /// Also read, decrypt and verify chunks: all of them, or a random share such as 5%. Needs the restore key
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "100%",
          value_parser = share)]
    read_data: Option<f64>,
    /// Also read every pack and compare its SHA-256 with its name
    #[arg(long)]
    scrub: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%').unwrap_or(text).parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("expected a share from above 0% to 100%".into()),
    }
}

impl Check {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        if self.read_data.is_some() {
            opened.restore_key()?;
        }
        let options = CheckOptions { scrub: self.scrub };
        let mut report = app.wait(opened.authority.check(&options, &*app.progress))?;
        let Snapshots { sound, damaged } = app.snapshots(&opened)?;
        report.findings.extend(damaged.iter().map(|damaged| finding(&damaged.name, &damaged.error)));
        let verified = match self.read_data {
            Some(percent) => Some(read_data(app, &opened, &sound, percent, &mut report)?),
            None => None,
        };
        report.affected.sort();
        report.affected.dedup();
        let mut told = HashSet::new();
        report.findings.retain(|finding| told.insert((finding.object.clone(), finding.what.clone())));
        app.progress.finish();
        let told = tell(app, &report, verified.as_ref());
        match report.is_sound() {
            true => told,
            false => Err(Failure::after_result(DAMAGE, "the repository is damaged")),
        }
    }
}

fn read_data(
    app: &App,
    opened: &Opened,
    snapshots: &[Snapshot],
    percent: f64,
    report: &mut CheckReport,
) -> Result<VerifyReport, Failure> {
    let roots: BTreeSet<Root> = snapshots.iter().flat_map(Snapshot::roots).copied().collect();
    let roots: Vec<Root> = roots.into_iter().collect();
    let environment = Environment {
        authority: &*opened.authority,
        key: opened.restore_key()?,
        repository: opened.descriptor.repository,
        runtime: app.runtime.handle().clone(),
        progress: &*app.progress,
        cancel: &app.cancel,
    };
    let mut percent = percent;
    let verified = loop {
        let verified = verify(&environment, &roots, percent, &RestoreOptions::default())?;
        let looked = verified.statistics.chunks > 0 || !verified.damage.is_empty() || report.chunks == 0;
        if looked || percent >= 100.0 {
            break verified;
        }
        // A small share of a small repository: at least one chunk is read.
        percent *= 4.0;
    };
    for snapshot in snapshots {
        let disks = snapshot.disks.iter().filter(|disk| verified.affected.contains(&disk.root));
        report.affected.extend(disks.map(|disk| Affected {
            snapshot: snapshot.snapshot,
            vm: snapshot.vm.clone(),
            disk: disk.name.clone(),
        }));
    }
    report.findings.extend(verified.damage.iter().map(|(_, error)| match error {
        RestoreError::Data { chunk, source, .. } => finding(&format!("chunk {chunk}"), source),
        RestoreError::Store(source) => finding("tree", source),
        other => Finding { object: "data".into(), what: other.to_string() },
    }));
    Ok(verified)
}

/// What an error says about the object it names; `object` if it names none.
fn finding(object: &str, error: &Error) -> Finding {
    let (object, what) = match error {
        Error::Damaged { object, what } => (object.clone(), what.clone()),
        Error::Missing { object } => (object.clone(), "it is missing".into()),
        other => (object.to_owned(), Failure::from(other).line()),
    };
    Finding { object, what }
}

fn tell(app: &App, report: &CheckReport, verified: Option<&VerifyReport>) -> Result<(), Failure> {
    if app.global.json {
        let read = verified.map(|verified| &verified.statistics);
        return say(json!({ "sound": report.is_sound(), "report": report, "read_data": read }));
    }
    for finding in &report.findings {
        say(format!("damage: {}: {}", finding.object, finding.what))?;
    }
    for affected in &report.affected {
        say(format!("affected: snapshot {} of {}, disk {}", affected.snapshot, affected.vm, affected.disk))?;
    }
    for notice in &report.notices {
        warn(format_args!("note: {notice}"));
    }
    let (packs, bytes) = (count(report.packs, "pack"), size(report.pack_bytes));
    let (snapshots, nodes) = (count(report.snapshots, "snapshot"), count(report.nodes, "node"));
    say(format!("{packs} ({bytes}), {snapshots}, {nodes}, {} looked up", count(report.chunks, "chunk")))?;
    if let Some(VerifyReport { statistics, .. }) = verified {
        let (chunks, bytes) = (count(statistics.chunks, "chunk"), size(statistics.chunk_bytes));
        say(format!("{chunks} ({bytes}) read, decrypted and verified"))?;
    }
    if report.is_sound() {
        say("no damage found")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        for (text, expected) in [("100%", Some(100.0)), ("5%", Some(5.0)), ("0.5", Some(0.5))] {
            assert_eq!(share(text).ok(), expected, "{text}");
        }
        for text in ["0%", "-1%", "101%", "x", "", "%", "NaN", "inf"] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
