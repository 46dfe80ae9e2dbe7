//! `underlay show`.

use clap::Args;
use serde_json::json;
use underlay_store::key::Key;
use underlay_store::repository::Access;
use underlay_store::snapshot::{PrivateMetadata, Snapshot, select};

use super::App;
use super::list::summary;
use super::open::Opened;
use super::report::Failure;
use super::text::size;

/// Show everything about a snapshot.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// VM@latest, VM@2026-11-23T17 (the beginning of its time), or the beginning of its id
    snapshot: String,
}

impl Show {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        let (snapshots, damaged) = app.snapshots(&opened)?;
        let snapshot = select(&snapshots, &self.snapshot)?;
        let private = private(&opened, snapshot)?;
        if app.global.json {
            let mut document = summary(snapshot);
            document["session"] = json!(snapshot.session);
            document["client"] = json!(snapshot.client);
            document["roots"] = json!(snapshot.disks);
            document["private"] = json!(private);
            println!("{document}");
        } else {
            print(snapshot, private.as_ref());
        }
        super::list::report_damaged(&damaged)
    }
}

/// What only the restore key reads; `None` without it.
fn private(opened: &Opened, snapshot: &Snapshot) -> Result<Option<PrivateMetadata>, Failure> {
    match (&opened.key, &snapshot.private) {
        (Key::Restore(key), Some(field)) => {
            Ok(Some(field.open(key, &snapshot.repository, &snapshot.snapshot)?))
        }
        _ => Ok(None),
    }
}

fn print(snapshot: &Snapshot, private: Option<&PrivateMetadata>) {
    let statistics = &snapshot.statistics;
    println!("snapshot     {}", snapshot.snapshot);
    println!("vm           {}", snapshot.vm);
    println!("time         {}", snapshot.time);
    println!("consistency  {}", snapshot.consistency.as_str());
    println!("client       underlay {}", snapshot.client);
    let (read, new) = (size(statistics.bytes_read), size(statistics.bytes_new));
    println!("cost         {read} read, {new} new, {} uploaded", size(statistics.bytes_uploaded));
    for disk in &snapshot.disks {
        let node = disk.root.node.map_or_else(|| "all zeros".to_owned(), |node| node.to_string());
        println!(
            "disk         {}: {} ({} bytes), root {node}",
            disk.name,
            size(disk.root.size),
            disk.root.size
        );
    }
    match private {
        None => println!("private      sealed: the restore key shows host and paths"),
        Some(private) => {
            println!("host         {}", private.host);
            for image in &private.images {
                println!("image        {}: {} ({})", image.disk, image.path, image.format);
            }
        }
    }
}
