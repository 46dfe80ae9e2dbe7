//! `underlay list`.

use clap::Args;
use serde_json::json;
use underlay_store::repository::Access;
use underlay_store::snapshot::{DamageMark, Snapshot};

use super::App;
use super::report::{DAMAGE, Failure};
use super::text::{count, say, size, table, warn};

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
        let marks = app.marks(&opened)?;
        let wanted = |snapshot: &&Snapshot| self.vm.as_ref().is_none_or(|vm| *vm == snapshot.vm);
        let listed: Vec<&Snapshot> = snapshots.sound.iter().filter(wanted).collect();
        let told = match (app.global.json, &self.vm) {
            (true, _) => say(serde_json::Value::from_iter(
                listed.into_iter().map(|snapshot| summary(snapshot, marks.get(&snapshot.snapshot))),
            )),
            (false, Some(vm)) if listed.is_empty() => say(format!("no snapshots of {vm}")),
            (false, None) if listed.is_empty() => say("no snapshots"),
            (false, _) => {
                let is_marked = |snapshot: &&Snapshot| marks.contains_key(&snapshot.snapshot);
                let marked = listed.iter().filter(|snapshot| is_marked(snapshot)).count() as u64;
                let rows: Vec<_> = listed.iter().map(|each| row(each, is_marked(each))).collect();
                table(&["SNAPSHOT", "VM", "TIME", ">DISKS", ">NEW", "CONSISTENCY", ""], &rows)?;
                if marked > 0 {
                    warn(format_args!(
                        "note: {} lost data: `underlay show` says what",
                        count(marked, "snapshot")
                    ));
                }
                Ok(())
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

fn row(snapshot: &Snapshot, is_marked: bool) -> Vec<String> {
    vec![
        snapshot.snapshot.to_string()[..12].to_owned(),
        snapshot.vm.clone(),
        snapshot.time.to_string(),
        size(snapshot.statistics.disk_bytes),
        size(snapshot.statistics.bytes_new),
        snapshot.consistency.as_str().to_owned(),
        if is_marked { "DAMAGED".to_owned() } else { String::new() },
    ]
}

/// What `list --json` and `show --json` both say. `damaged` is null, or what the snapshot's mark says; true if that cannot be read.
pub(super) fn summary(snapshot: &Snapshot, mark: Option<&Option<DamageMark>>) -> serde_json::Value {
    let damaged = match mark {
        None => serde_json::Value::Null,
        Some(None) => true.into(),
        Some(Some(mark)) => json!({ "found": mark.found, "disks": mark.disks }),
    };
    let disks = snapshot.disks.iter().map(|disk| json!({ "name": disk.name, "size": disk.root.size }));
    json!({
        "snapshot": snapshot.snapshot,
        "vm": snapshot.vm,
        "time": snapshot.time,
        "consistency": snapshot.consistency.as_str(),
        "disks": serde_json::Value::from_iter(disks),
        "statistics": snapshot.statistics,
        "damaged": damaged,
    })
}
