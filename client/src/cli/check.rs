//! `underlay check`.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::json;
use underlay_store::check::{Affected, CheckOptions, CheckReport, Finding};
use underlay_store::id::Root;
use underlay_store::repository::Access;
use underlay_store::snapshot::Snapshot;

use super::App;
use super::open::Opened;
use super::report::{DAMAGE, Failure};
use super::text::size;
use crate::restore::{Environment, RestoreOptions, VerifyReport, verify};

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
    /// Also read every pack and compare its SHA-256 with its name. Needs no key
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
        let mut report = app.runtime.block_on(opened.authority.check(&options, &app.progress))?;
        let (snapshots, damaged) = app.snapshots(&opened)?;
        for message in damaged {
            report.find("snapshot", message);
        }
        let verified = match self.read_data {
            Some(percent) => Some(read_data(app, &opened, &snapshots, percent, &mut report)?),
            None => None,
        };
        app.progress.finish();
        tell(app, &report, verified.as_ref());
        match report.is_sound() {
            true => Ok(()),
            false => Err(Failure::code(DAMAGE, "the repository is damaged")),
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
        progress: &app.progress,
        cancel: &app.cancel,
    };
    let verified = verify(&environment, &roots, percent, &RestoreOptions::default())?;
    for (root, _) in &verified.damage {
        for snapshot in snapshots {
            let disks = snapshot.disks.iter().filter(|disk| disk.root == *root);
            report.affected.extend(disks.map(|disk| Affected {
                snapshot: snapshot.snapshot,
                vm: snapshot.vm.clone(),
                disk: disk.name.clone(),
            }));
        }
    }
    report.affected.sort();
    report.affected.dedup();
    for (_, error) in &verified.damage {
        let mut source: &dyn std::error::Error = error;
        while let Some(next) = source.source() {
            source = next;
        }
        let finding = Finding { object: error.to_string(), what: source.to_string() };
        if !report.findings.contains(&finding) {
            report.findings.push(finding);
        }
    }
    Ok(verified)
}

fn tell(app: &App, report: &CheckReport, verified: Option<&VerifyReport>) {
    if app.global.json {
        let read = verified.map(|verified| &verified.statistics);
        println!("{}", json!({ "sound": report.is_sound(), "report": report, "read_data": read }));
        return;
    }
    for finding in &report.findings {
        println!("damage: {}: {}", finding.object, finding.what);
    }
    for affected in &report.affected {
        println!("affected: snapshot {} of {}, disk {}", affected.snapshot, affected.vm, affected.disk);
    }
    for notice in &report.notices {
        eprintln!("note: {notice}");
    }
    let (packs, bytes) = (report.packs, size(report.pack_bytes));
    println!(
        "{packs} packs ({bytes}), {} snapshots, {} nodes, {} chunks looked up",
        report.snapshots, report.nodes, report.chunks
    );
    if let Some(verified) = verified {
        let statistics = &verified.statistics;
        println!(
            "{} chunks ({}) read, decrypted and verified",
            statistics.chunks,
            size(statistics.chunk_bytes)
        );
    }
    if report.is_sound() {
        println!("no damage found");
    }
}
