//! `underlay list`.

use clap::Args;
use serde_json::json;
use underlay_store::repository::Access;
use underlay_store::snapshot::Snapshot;

use super::App;
use super::report::{DAMAGE, Failure};
use super::text::{count, say, size, table};

/// List snapshots, oldest first.
///
/// DISKS is the size of all disks, NEW what the repository lacked of them. Every snapshot is a whole one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay list\n  underlay list web --json")]
pub(super) struct List {
    /// Only those of this machine
    vm: Option<String>,
}

impl List {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        let snapshots = app.snapshots(&opened)?;
        let wanted = |snapshot: &&Snapshot| self.vm.as_ref().is_none_or(|vm| *vm == snapshot.vm);
        let listed: Vec<&Snapshot> = snapshots.sound.iter().filter(wanted).collect();
        let told = match (app.global.json, &self.vm) {
            (true, _) => say(serde_json::Value::from_iter(listed.into_iter().map(summary))),
            (false, Some(vm)) if listed.is_empty() => say(format!("no snapshots of {vm}")),
            (false, None) if listed.is_empty() => say("no snapshots"),
            (false, _) => {
                let rows: Vec<_> = listed.into_iter().map(row).collect();
                table(&["SNAPSHOT", "VM", "TIME", ">DISKS", ">NEW", "CONSISTENCY"], &rows)
            }
        };
        match snapshots.report_damaged() {
            0 => told,
            damaged => Err(Failure::after_result(
                DAMAGE,
                format!("{} cannot be believed", count(damaged as u64, "snapshot")),
            )),
        }
    }
}

fn row(snapshot: &Snapshot) -> Vec<String> {
    vec![
        snapshot.snapshot.to_string()[..12].to_owned(),
        snapshot.vm.clone(),
        snapshot.time.to_string(),
        size(snapshot.statistics.disk_bytes),
        size(snapshot.statistics.bytes_new),
        snapshot.consistency.as_str().to_owned(),
    ]
}

/// What `list --json` and `show --json` both say.
pub(super) fn summary(snapshot: &Snapshot) -> serde_json::Value {
    let disks = snapshot.disks.iter().map(|disk| json!({ "name": disk.name, "size": disk.root.size }));
    json!({
        "snapshot": snapshot.snapshot,
        "vm": snapshot.vm,
        "time": snapshot.time,
        "consistency": snapshot.consistency.as_str(),
        "disks": serde_json::Value::from_iter(disks),
        "statistics": snapshot.statistics,
    })
}
