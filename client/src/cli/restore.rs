//! `underlay restore`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use underlay_store::repository::Access;
use underlay_store::snapshot::{Disk, select};

use super::App;
use super::report::Failure;
use super::text::size;
use crate::restore::{
    DiskOutput, Environment, OutputFormat, RestoreOptions, RestoreStatistics, StreamOutput, create_output,
    restore,
};

/// Write a snapshot's disks as image files, flattened: they need no other file.
///
/// A file appears under its name only when it is whole. An existing file or a block device is overwritten only with --force.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay restore web@latest --to /vm/web.qcow2\n  \
                        underlay restore web@2026-11-23T17 --to /vm/restored/\n  \
                        underlay restore 5f3a9c --disk vdb --to /dev/vg/data --format raw --force\n  \
                        underlay restore web@latest --to - | ssh host 'cat >web.raw'")]
pub(super) struct Restore {
    /// VM@latest, VM@2026-11-23T17 (the beginning of its time), or the beginning of its id
    snapshot: String,
    /// Only this disk
    #[arg(long)]
    disk: Option<String>,
    /// A file, a directory, a block device, or - for raw bytes on stdout
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
    /// Without it, by the ending of PATH: .raw and .img are raw, all else is qcow2; a device is raw
    #[arg(long, value_enum)]
    format: Option<TargetFormat>,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
}

/// Formats that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TargetFormat {
    /// The disk's bytes, with holes where there are zeros
    Raw,
    /// qcow2 version 3
    Qcow2,
}

impl Restore {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        let key = opened.restore_key()?;
        let (snapshots, damaged) = app.snapshots(&opened)?;
        damaged.iter().for_each(|message| eprintln!("underlay: {message}"));
        let snapshot = select(&snapshots, &self.snapshot)?;
        let targets = self.targets(&snapshot.disks)?;
        let environment = Environment {
            authority: &*opened.authority,
            key,
            repository: opened.descriptor.repository,
            runtime: app.runtime.handle().clone(),
            progress: &app.progress,
            cancel: &app.cancel,
        };
        let mut written = Vec::new();
        for (disk, path) in targets {
            let output = self.output(&path, disk.root.size)?;
            let statistics = restore(&environment, disk.root, &*output, &RestoreOptions::default())?;
            output.finish()?;
            written.push((disk.name.clone(), path, disk.root.size, statistics));
        }
        app.progress.finish();
        if !self.to_stdout() {
            tell(app, &snapshot.snapshot.to_string(), &written);
        }
        Ok(())
    }

    fn to_stdout(&self) -> bool {
        self.to.as_os_str() == "-"
    }

    /// Which disks go where.
    fn targets<'a>(&self, disks: &'a [Disk]) -> Result<Vec<(&'a Disk, PathBuf)>, Failure> {
        let chosen: Vec<&Disk> =
            disks.iter().filter(|disk| self.disk.as_ref().is_none_or(|name| *name == disk.name)).collect();
        let names = || disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
        match (chosen.as_slice(), self.to.is_dir()) {
            ([], _) => {
                let wanted = self.disk.as_deref().unwrap_or_default();
                Err(Failure::usage(format!("the snapshot has no disk {wanted:?}"))
                    .hint(format!("its disks are {}", names())))
            }
            ([disk], false) => Ok(vec![(disk, self.to.clone())]),
            (_, true) => Ok(chosen.into_iter().map(|disk| (disk, self.file_in_folder(&disk.name))).collect()),
            (_, false) => Err(Failure::usage(format!(
                "the snapshot has several disks, and {} is no directory",
                self.to.display()
            ))
            .hint(format!("make that directory, or choose one with --disk: {}", names()))),
        }
    }

    fn file_in_folder(&self, disk: &str) -> PathBuf {
        let ending = if self.format == Some(TargetFormat::Raw) { "raw" } else { "qcow2" };
        self.to.join(format!("{disk}.{ending}"))
    }

    fn output(&self, path: &Path, size: u64) -> Result<Box<dyn DiskOutput>, Failure> {
        if self.to_stdout() {
            if self.format == Some(TargetFormat::Qcow2) {
                return Err(
                    Failure::usage("qcow2 cannot be written to stdout").hint("use --format raw, or a file")
                );
            }
            return Ok(Box::new(StreamOutput::new(std::io::stdout(), "stdout", size)));
        }
        let raw_by_name =
            path.extension().is_some_and(|ending| ending == "raw" || ending == "img") || is_device(path);
        let format = match self.format {
            Some(TargetFormat::Raw) => OutputFormat::Raw,
            Some(TargetFormat::Qcow2) => OutputFormat::Qcow2,
            None if raw_by_name => OutputFormat::Raw,
            None => OutputFormat::Qcow2,
        };
        Ok(create_output(path, format, size, self.force)?)
    }
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

fn tell(app: &App, snapshot: &str, written: &[(String, PathBuf, u64, RestoreStatistics)]) {
    if app.global.json {
        let disks = written.iter().map(|(disk, path, size, statistics)| {
            json!({ "disk": disk, "path": path, "size": size, "statistics": statistics })
        });
        println!("{}", json!({ "snapshot": snapshot, "disks": serde_json::Value::from_iter(disks) }));
        return;
    }
    for (disk, path, bytes, statistics) in written {
        let data = size(statistics.data_bytes);
        println!(
            "{disk}: {} written to {}, {data} of it data, every chunk verified",
            size(*bytes),
            path.display()
        );
        if statistics.recovered > 0 {
            println!(
                "{disk}: {} chunks were damaged in one place and sound in another; run `underlay check --read-data`",
                statistics.recovered
            );
        }
    }
}
