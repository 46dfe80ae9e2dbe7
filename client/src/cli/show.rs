//! `underlay show`.

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use underlay_store::id::Root;
use underlay_store::repository::Access;
use underlay_store::snapshot::{DamageMark, PrivateMetadata, Snapshot};

use super::App;
use super::list::summary;
use super::report::Failure;
use super::text::{count, say, size};
use crate::domain::kept::{INSTANCE, KeptDomain, NVRAM_DISK};
use crate::hypervisor::NovaInstance;

/// Characters of a value that is shown in a line.
const LONGEST_VALUE: usize = 200;

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
        let private = opened.private(snapshot)?;
        let marks = app.marks(&opened)?;
        let mark = marks.get(&snapshot.snapshot);
        if !app.global.json {
            return print(snapshot, private.as_ref(), mark);
        }
        let mut document = summary(snapshot, mark);
        document["session"] = json!(snapshot.session);
        document["client"] = json!(snapshot.client);
        document["roots"] = json!(snapshot.disks);
        document["private"] = json!(private);
        document["sealed"] = json!(snapshot.private.is_some() && private.is_none());
        say(document)
    }
}

fn print(
    snapshot: &Snapshot,
    private: Option<&PrivateMetadata>,
    mark: Option<&Option<DamageMark>>,
) -> Result<(), Failure> {
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
    lines.extend(mark.into_iter().flat_map(|mark| damage(mark.as_ref())));
    match (private, &snapshot.private) {
        (Some(private), _) => {
            lines.push(format!("host         {}", private.host));
            let images = private.images.iter();
            lines.extend(
                images.map(|image| format!("image        {}: {} ({})", image.disk, image.path, image.format)),
            );
            lines.extend(private.extra.iter().flat_map(|(name, value)| kept(name, value)));
        }
        (None, Some(_)) => lines.push("private      sealed: the restore key shows host and paths".into()),
        (None, None) => {}
    }
    lines.into_iter().try_for_each(say)
}

/// What the snapshot lost.
fn damage(mark: Option<&DamageMark>) -> Vec<String> {
    let Some(mark) = mark else { return vec!["DAMAGED      its mark cannot be read".to_owned()] };
    let mut lines = vec![format!("DAMAGED      found {}", mark.found)];
    lines.extend(mark.disks.iter().map(|disk| {
        let (chunks, nodes) = (count(disk.chunks, "chunk"), count(disk.nodes, "node"));
        format!("  lost       {}: {chunks} and {nodes}; `restore --allow-holes` writes the rest", disk.name)
    }));
    lines
}

/// Something that the snapshot keeps, by its name.
fn kept(name: &str, value: &Value) -> Vec<String> {
    let as_instance = || NovaInstance::deserialize(value).ok().filter(|_| name == INSTANCE);
    let as_domain = || KeptDomain::deserialize(value).ok();
    let lines = as_domain().map(|kept| domain(&kept)).or_else(|| as_instance().map(|kept| instance(&kept)));
    lines.unwrap_or_else(|| vec![other(name, value)])
}

/// The instance of Nova that the snapshot was made of.
fn instance(kept: &NovaInstance) -> Vec<String> {
    let flavor = &kept.flavor;
    let (memory, vcpus) = (flavor.memory, count(flavor.vcpus, "processor"));
    let mut lines = vec![
        format!("instance     {}", kept.name),
        format!("  flavor     {}: {memory} MiB, {vcpus}, {} GiB", flavor.name, flavor.disk),
    ];
    let known = [("project", &kept.project), ("user", &kept.user), ("image", &kept.image)];
    let known = known.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    lines.extend(known.map(|(name, value)| format!("  {name:10} {value}")));
    lines.extend(kept.volumes.iter().map(|volume| format!("  volume     {volume}, not in the snapshot")));
    let properties = kept.image_properties.iter().chain(&kept.metadata);
    lines.extend(properties.map(|(name, value)| format!("  {name} = {value}")));
    lines
}

/// The domain that the snapshot was made of, but for its definition.
fn domain(kept: &KeptDomain) -> Vec<String> {
    let mut lines = vec![format!("domain       {}", kept.name), format!("  uuid       {}", kept.uuid)];
    lines.extend(kept.hypervisor.iter().map(|uri| format!("  on         {uri}")));
    lines.extend(kept.disks.iter().map(|disk| {
        let bus = disk.bus.as_deref().unwrap_or("an unnamed bus");
        format!("  disk       {} on {bus}: {} ({})", disk.target, disk.path.display(), disk.format)
    }));
    lines.extend(kept.excluded.iter().map(|target| format!("  left out   {target}")));
    let nvram = kept.nvram.iter();
    lines.extend(nvram.map(|path| format!("  firmware   {}, kept as disk {NVRAM_DISK}", path.display())));
    let length = count(kept.xml.lines().count() as u64, "line");
    lines.push(format!("  definition {length}: --json shows it"));
    lines
}

/// Anything else that the snapshot keeps, if it is short.
fn other(name: &str, value: &Value) -> String {
    let text = value.to_string();
    match text.len() {
        0..=LONGEST_VALUE => format!("{name:12} {text}"),
        length => format!("{name:12} {}: --json shows it", size(length as u64)),
    }
}

fn node(root: &Root) -> String {
    root.node.map_or_else(|| "all zeros".to_owned(), |node| node.to_string())
}
