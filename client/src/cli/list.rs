//! `underlay list`.

use clap::Args;
use serde_json::json;
use underlay_store::repository::Access;
use underlay_store::snapshot::Snapshot;

use super::App;
use super::report::{DAMAGE, Failure};
use super::text::{size, table};

/// List snapshots, oldest first.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Only those of this machine
    vm: Option<String>,
}

impl List {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        let (mut snapshots, damaged) = app.snapshots(&opened)?;
        snapshots.retain(|snapshot| self.vm.as_ref().is_none_or(|vm| *vm == snapshot.vm));
        if app.global.json {
            println!("{}", serde_json::Value::from_iter(snapshots.iter().map(summary)));
        } else if snapshots.is_empty() {
            println!("no snapshots");
        } else {
            let rows: Vec<_> = snapshots.iter().map(row).collect();
            table(&["SNAPSHOT", "VM", "TIME", ">DISKS", ">NEW", "CONSISTENCY"], &rows);
        }
        report_damaged(&damaged)
    }
}

/// Says which snapshots cannot be believed, and fails if there are any.
pub(super) fn report_damaged(damaged: &[String]) -> Result<(), Failure> {
    for message in damaged {
        eprintln!("underlay: {message}");
    }
    match damaged.len() {
        0 => Ok(()),
        count => Err(Failure::code(DAMAGE, format!("{count} snapshots are damaged"))),
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
