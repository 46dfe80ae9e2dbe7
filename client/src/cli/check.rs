//! `underlay check`.

use std::collections::{BTreeSet, HashSet};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use serde_json::{Value, json};
use underlay_store::Error;
use underlay_store::authority::Withdrawn;
use underlay_store::check::{Affected, CheckOptions, CheckReport, Finding, Scrubbed};
use underlay_store::digest::Sha256;
use underlay_store::id::{Root, SnapshotId};
use underlay_store::repository::Access;
use underlay_store::snapshot::{Disk, Snapshot, Timestamp};

use super::App;
use super::open::Opened;
use super::report::{DAMAGE, Failure};
use super::text::{count, say, size, warn};
use super::vouch::{Vouched, vouch_for};
use crate::restore::{DiskOutput, RestoreError, RestoreOptions, StreamOutput, VerifyReport, restore, verify};

/// Check the repository.
///
/// Without options: the catalog against the bucket, and every snapshot's tree down to where its chunks lie. Needs no restore key. What is
/// found damaged is not offered to backups any more: the next one that has the same content stores it anew.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  underlay check\n  underlay check --scrub --budget 50GiB\n  underlay check --read-data=5%\n  \
                  underlay check --restore web@latest"
)]
pub(super) struct Check {
    /// Also read, decrypt and verify chunks: all of them, or a random share such as 5%. Needs the restore key
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "100%",
          value_parser = share)]
    read_data: Option<f64>,
    /// Also read, decrypt and verify every pack that nobody with keys has verified before, and vouch for those that are sound: where writers
    /// do not trust each other, others may then rely on them. Needs the restore key
    #[arg(long)]
    unverified: bool,
    /// Also read packs and compare their SHA-256 with their names, those first that were read longest ago
    #[arg(long)]
    scrub: bool,
    /// Stop the scrub before it has read more than this, such as 10GiB; it goes on there next time
    #[arg(long, value_name = "BYTES", requires = "scrub", value_parser = bytes)]
    budget: Option<u64>,
    /// Also restore this snapshot to nowhere, and print each disk's SHA-256, as of a raw image. Can be given several times. Needs the restore
    /// key
    #[arg(long, value_name = "SNAPSHOT")]
    restore: Vec<String>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%').unwrap_or(text).parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("expected a share from above 0% to 100%".into()),
    }
}

/// A number of bytes, such as 500, 64KiB or 10GiB.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err("expected bytes, or a unit of KiB, MiB, GiB or TiB".into()),
    };
    let number = digits.trim().parse::<u64>().map_err(|error| error.to_string())?;
    number.checked_mul(1 << unit).ok_or_else(|| "that is too much".into())
}

/// A disk that was restored to nowhere.
struct Restored {
    snapshot: SnapshotId,
    vm: String,
    disk: String,
    size: u64,
    /// Its SHA-256, or why there is none.
    outcome: Result<String, Failure>,
}

/// All that a check found beyond the report.
#[derive(Default)]
struct Extra {
    verified: Option<VerifyReport>,
    vouched: Option<Vouched>,
    withdrawn: Option<Withdrawn>,
    restored: Vec<Restored>,
}

impl Check {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        if self.read_data.is_some() || self.unverified || !self.restore.is_empty() {
            opened.restore_key()?;
        }
        let options = CheckOptions { scrub: self.scrub, budget: self.budget, ..CheckOptions::default() };
        // First, so that the check traces what is lost by it.
        let vouched = match self.unverified {
            true => Some(vouch_for(app, &opened.reading(app)?)?),
            false => None,
        };
        let mut report = app.wait(opened.authority.check(&options, &*app.progress))?;
        let snapshots = app.snapshots(&opened)?;
        report.findings.extend(snapshots.damaged.iter().map(|bad| finding(&bad.name, &bad.error)));
        let mut extra = Extra::default();
        if let Some(vouched) = vouched {
            report.findings.extend(vouched.report.damage.iter().map(|error| finding("pack", error)));
            extra.vouched = Some(vouched);
        }
        if let Some(percent) = self.read_data {
            let verified = read_data(app, &opened, &snapshots.sound, percent, &mut report)?;
            if !verified.withdrawal.chunks.is_empty() || !verified.withdrawal.nodes.is_empty() {
                let withdrawn = app.wait(opened.authority.withdraw(&verified.withdrawal))?;
                if withdrawn.catalog_differs {
                    let what = "it says of some packs what they do not hold; they are sound";
                    report.find("catalog", what);
                }
                extra.withdrawn = Some(withdrawn);
            }
            extra.verified = Some(verified);
        }
        for wanted in &self.restore {
            let snapshot = snapshots.select(wanted)?;
            for disk in &snapshot.disks {
                extra.restored.push(restored(app, &opened, snapshot, disk)?);
            }
        }
        report.affected.sort();
        report.affected.dedup_by(|later, first| {
            (later.snapshot, &later.disk) == (first.snapshot, &first.disk) && {
                (first.chunks, first.nodes) = (first.chunks.max(later.chunks), first.nodes.max(later.nodes));
                true
            }
        });
        let mut told = HashSet::new();
        report.findings.retain(|finding| told.insert((finding.object.clone(), finding.what.clone())));
        app.progress.finish();
        let told = tell(app, &report, &extra);
        match report.is_sound() && extra.restored.iter().all(|disk| disk.outcome.is_ok()) {
            true => told,
            false => Err(Failure::after_result(DAMAGE, "the repository is damaged").hint(hint(&report))),
        }
    }
}

fn hint(report: &CheckReport) -> &'static str {
    match report.findings.iter().any(|finding| finding.object == "catalog") {
        true => "`underlay repair catalog` builds the catalog anew",
        false => "`underlay repair` marks the snapshots that lost data, and says what can be healed",
    }
}

/// Restores a disk to nowhere. Damage is an outcome.
fn restored(app: &App, opened: &Opened, snapshot: &Snapshot, disk: &Disk) -> Result<Restored, Failure> {
    let environment = opened.reading(app)?;
    let digest = Arc::new(Mutex::new(Sha256::default()));
    let output: Box<dyn DiskOutput> =
        Box::new(StreamOutput::new(Shared(Arc::clone(&digest)), "the check", disk.root.size));
    let outcome = restore(&environment, disk.root, &*output, &RestoreOptions::default())
        .and_then(|_| output.finish())
        .map_err(Failure::from);
    let outcome = match outcome {
        Err(failure) if failure.exit_code() != DAMAGE => return Err(failure),
        Err(failure) => Err(failure),
        Ok(_) => Ok(digest.lock().unwrap_or_else(PoisonError::into_inner).clone().finish()),
    };
    let (vm, size) = (snapshot.vm.clone(), disk.root.size);
    Ok(Restored { snapshot: snapshot.snapshot, vm, disk: disk.name.clone(), size, outcome })
}

/// A digest that can be asked once its output is gone.
struct Shared(Arc<Mutex<Sha256>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(super) fn read_data(
    app: &App,
    opened: &Opened,
    snapshots: &[Snapshot],
    percent: f64,
    report: &mut CheckReport,
) -> Result<VerifyReport, Failure> {
    let roots: BTreeSet<Root> = snapshots.iter().flat_map(Snapshot::roots).copied().collect();
    let roots: Vec<Root> = roots.into_iter().collect();
    let environment = opened.reading(app)?;
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
            chunks: 0,
            nodes: 0,
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

fn tell(app: &App, report: &CheckReport, extra: &Extra) -> Result<(), Failure> {
    if app.global.json {
        let read = extra.verified.as_ref().map(|verified| &verified.statistics);
        let mut document = json!({ "sound": report.is_sound(), "report": report, "read_data": read });
        if let Some(withdrawn) = &extra.withdrawn {
            document["withdrawn"] = json!(withdrawn);
        }
        if let Some(vouched) = &extra.vouched {
            document["verified"] = vouched.document();
        }
        if !extra.restored.is_empty() {
            document["restored"] = Value::from_iter(extra.restored.iter().map(Restored::document));
        }
        return say(document);
    }
    tell_report(report)?;
    if let Some(VerifyReport { statistics, .. }) = &extra.verified {
        let (chunks, bytes) = (count(statistics.chunks, "chunk"), size(statistics.chunk_bytes));
        say(format!("{chunks} ({bytes}) read, decrypted and verified"))?;
    }
    if let Some(vouched) = &extra.vouched {
        say(vouched.line())?;
    }
    if extra.withdrawn.is_some_and(|withdrawn| !withdrawn.recorded) {
        warn("note: this host is not the owner: what was found could not be recorded");
    }
    for Restored { snapshot, vm, disk, size: bytes, outcome } in &extra.restored {
        let name = format!("{} of {vm}, disk {disk}", &snapshot.to_string()[..12]);
        match outcome {
            Ok(digest) => say(format!("{digest}  {name}, {bytes} bytes"))?,
            Err(failure) => say(format!("damage: snapshot {name}: {}", failure.line()))?,
        }
    }
    if report.is_sound() && extra.restored.iter().all(|disk| disk.outcome.is_ok()) {
        say("no damage found")?;
    }
    Ok(())
}

/// Prints what the keyless check found.
pub(super) fn tell_report(report: &CheckReport) -> Result<(), Failure> {
    for finding in &report.findings {
        say(format!("damage: {}: {}", finding.object, finding.what))?;
    }
    for affected in &report.affected {
        let lost = match (affected.chunks, affected.nodes) {
            (0, 0) => String::new(),
            (chunks, 0) => format!(": {} lost", count(chunks, "chunk")),
            (0, nodes) => format!(": {} lost", count(nodes, "node")),
            (chunks, nodes) => format!(": {} and {} lost", count(chunks, "chunk"), count(nodes, "node")),
        };
        let Affected { snapshot, vm, disk, .. } = affected;
        say(format!("affected: snapshot {snapshot} of {vm}, disk {disk}{lost}"))?;
    }
    for notice in &report.notices {
        warn(format_args!("note: {notice}"));
    }
    let (packs, bytes) = (count(report.packs, "pack"), size(report.pack_bytes));
    let (snapshots, nodes) = (count(report.snapshots, "snapshot"), count(report.nodes, "node"));
    say(format!("{packs} ({bytes}), {snapshots}, {nodes}, {} looked up", count(report.chunks, "chunk")))?;
    if let Some(scrub) = &report.scrub {
        tell_scrub(scrub)?;
    }
    if report.reinstated > 0 {
        say(format!("{} found sound again and used again", count(report.reinstated, "pack")))?;
    }
    Ok(())
}

fn tell_scrub(scrub: &Scrubbed) -> Result<(), Failure> {
    let read =
        format!("{} ({}) read and compared with their names", count(scrub.packs, "pack"), size(scrub.bytes));
    let left = match scrub.left {
        0 => String::new(),
        left => format!(", {left} left for next time"),
    };
    say(format!("{read}{left}"))?;
    let oldest = scrub.oldest_ms.and_then(|oldest| {
        let days = (Timestamp::now().as_milliseconds() - oldest).max(0) / 86_400_000;
        let at = Timestamp::from_milliseconds(oldest).ok()?;
        Some(format!("the oldest check of a pack is of {at}, {} ago", count(days as u64, "day")))
    });
    let never = (scrub.never > 0).then(|| format!("{} never checked", count(scrub.never, "pack")));
    let told: Vec<String> = oldest.into_iter().chain(never).collect();
    if !told.is_empty() {
        say(told.join("; "))?;
    }
    if !scrub.recorded {
        warn("note: this host is not the owner: the times of this scrub could not be recorded");
    }
    Ok(())
}

impl Restored {
    fn document(&self) -> Value {
        let mut document = json!({
            "snapshot": self.snapshot, "vm": self.vm, "disk": self.disk, "size": self.size,
        });
        match &self.outcome {
            Ok(digest) => document["sha256"] = json!(digest),
            Err(failure) => document["error"] = json!(failure.line()),
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets() {
        for (text, expected) in [("500", 500), ("64KiB", 65_536), ("10GiB", 10 << 30), ("2t", 2 << 40)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "x", "-1", "1.5GiB", "10GB", "99999999TiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

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
