//! `underlay show`.

use clap::Args;
use serde_json::json;
use underlay_store::id::Root;
use underlay_store::key::Key;
use underlay_store::repository::Access;
use underlay_store::snapshot::{PrivateMetadata, Snapshot};

use super::App;
use super::list::summary;
use super::open::Opened;
use super::report::Failure;
use super::text::{say, size};

/// Show everything about a snapshot.
///
/// The host and the images' paths are sealed: only the restore key shows them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay show web@latest\n  underlay show 5f3a9c12 --json")]
pub(super) struct Show {
    /// VM@latest, VM@2026-11-23T17 (the beginning of its time), or the beginning of its id
    snapshot: String,
}

impl Show {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        let snapshots = app.snapshots(&opened)?;
        snapshots.report_damaged();
        let snapshot = snapshots.select(&self.snapshot)?;
        let private = private(&opened, snapshot)?;
        if !app.global.json {
            return print(snapshot, private.as_ref());
        }
        let mut document = summary(snapshot);
        document["session"] = json!(snapshot.session);
        document["client"] = json!(snapshot.client);
        document["roots"] = json!(snapshot.disks);
        document["private"] = json!(private);
        document["sealed"] = json!(snapshot.private.is_some() && private.is_none());
        say(document)
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

fn print(snapshot: &Snapshot, private: Option<&PrivateMetadata>) -> Result<(), Failure> {
    let statistics = &snapshot.statistics;
    let (read, new) = (size(statistics.bytes_read), size(statistics.bytes_new));
    let mut lines = vec![
        format!("snapshot     {}", snapshot.snapshot),
        format!("vm           {}", snapshot.vm),
        format!("time         {}", snapshot.time),
        format!("consistency  {}", snapshot.consistency.as_str()),
        format!("session      {}", snapshot.session),
        format!("client       underlay {}", snapshot.client),
        format!("cost         {read} read, {new} new, {} uploaded", size(statistics.bytes_uploaded)),
    ];
    for disk in &snapshot.disks {
        let bytes = disk.root.size;
        lines.push(format!(
            "disk         {}: {} ({bytes} bytes), root {}",
            disk.name,
            size(bytes),
            node(&disk.root)
        ));
        lines.extend(disk.layers.iter().map(|layer| format!("  above      root {}", node(layer))));
    }
    match (private, &snapshot.private) {
        (Some(private), _) => {
            lines.push(format!("host         {}", private.host));
            let images = private.images.iter();
            lines.extend(
                images.map(|image| format!("image        {}: {} ({})", image.disk, image.path, image.format)),
            );
            lines.extend(private.extra.iter().map(|(name, value)| format!("{name:12} {value}")));
        }
        (None, Some(_)) => lines.push("private      sealed: the restore key shows host and paths".into()),
        (None, None) => {}
    }
    lines.into_iter().try_for_each(say)
}

fn node(root: &Root) -> String {
    root.node.map_or_else(|| "all zeros".to_owned(), |node| node.to_string())
}
