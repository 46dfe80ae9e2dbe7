//! The page of one machine. Pure.

use underlay_store::snapshot::Snapshot;

use super::gather::Machine;
use super::html::{Around, MachinePage, Row};
use super::shown::{figure, repository_link};
use super::timeline::{Kind, days_since, timeline};
use super::words::{ago, moment};
use crate::text::{bytes, count};

/// `None` if nothing is known of such a machine.
pub(super) fn machine_page(
    around: &Around,
    now_ms: i64,
    repository: &str,
    vm: &str,
    machine: &Machine,
) -> Option<MachinePage> {
    let Machine { snapshots, newest: listed } = machine;
    let (places, newest) = (snapshots.places(), listed.first()?);
    let (oldest, _) = *places.first()?;
    let made = newest.time.as_milliseconds();
    let disks: Vec<&str> = newest.disks.iter().map(|disk| disk.name.as_str()).collect();
    let figures = vec![
        figure("Snapshots", places.len().to_string(), format!("since {}", moment(oldest))),
        figure("Last backup", ago(made, now_ms), moment(made)),
        figure("Disks", bytes(newest.statistics.disk_bytes), disks.join(", ")),
        figure("Last increment", bytes(newest.statistics.bytes_new), "new to the repository"),
    ];
    let rows: Vec<Row> =
        listed.iter().map(|snapshot| row(snapshot, snapshots.kind(&snapshot.snapshot), now_ms)).collect();
    Some(MachinePage {
        around: around.clone(),
        link: repository_link(repository),
        repository: repository.to_owned(),
        name: vm.to_owned(),
        line: timeline(&places, days_since(oldest, now_ms), now_ms),
        figures,
        more: places.len().saturating_sub(rows.len()),
        rows,
    })
}

fn row(snapshot: &Snapshot, kind: Kind, now_ms: i64) -> Row {
    let (time, took) = (snapshot.time.as_milliseconds(), snapshot.statistics);
    Row {
        id: snapshot.snapshot.to_string(),
        time: moment(time),
        ago: ago(time, now_ms),
        disks: count(snapshot.disks.len() as u64, "disk"),
        size: bytes(took.disk_bytes),
        read: bytes(took.bytes_read),
        new: bytes(took.bytes_new),
        uploaded: bytes(took.bytes_uploaded),
        consistency: snapshot.consistency.as_str(),
        kind: kind.class(),
    }
}
