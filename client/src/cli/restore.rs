//! `underlay restore`.

use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use underlay_store::id::SnapshotId;
use underlay_store::repository::Access;
use underlay_store::snapshot::Disk;

use super::App;
use super::report::{FAILED, Failure, IN_PART, INTERRUPTED};
use super::text::{count, say, size, warn};
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
    /// A file, a folder, a block device, or - for raw bytes on stdout. In a folder each disk becomes DISK.FORMAT
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

/// A disk, where it goes, and what became of it.
struct Written<'a> {
    disk: &'a Disk,
    path: PathBuf,
    result: Result<RestoreStatistics, Failure>,
}

impl Restore {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        match self.to_stdout() {
            true => self.restore(app).map_err(Failure::keep_stdout_clean),
            false => self.restore(app),
        }
    }

    fn restore(&self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        let key = opened.restore_key()?;
        let snapshots = app.snapshots(&opened)?;
        snapshots.report_damaged();
        let snapshot = snapshots.select(&self.snapshot)?;
        let environment = Environment {
            authority: &*opened.authority,
            key,
            repository: opened.descriptor.repository,
            runtime: app.runtime.handle().clone(),
            progress: &*app.progress,
            cancel: &app.cancel,
        };
        // All of them are begun before the first is written: what stands in the way is found out now.
        let mut begun = Vec::new();
        for (disk, path) in self.targets(&snapshot.disks)? {
            let output = self.output(&path, disk.root.size)?;
            begun.push((disk, path, output));
        }
        let mut written = Vec::new();
        for (disk, path, output) in begun {
            let result = restore(&environment, disk.root, &*output, &RestoreOptions::default())
                .and_then(|statistics| output.finish().map(|_| statistics))
                .map_err(Failure::from);
            match result {
                Err(failure) if failure.exit_code() == INTERRUPTED => return Err(failure),
                result => written.push(Written { disk, path, result }),
            }
        }
        app.progress.finish();
        self.tell(app, snapshot.snapshot, written)
    }

    fn to_stdout(&self) -> bool {
        self.to.as_os_str() == "-"
    }

    /// Which disks go where.
    fn targets<'a>(&self, disks: &'a [Disk]) -> Result<Vec<(&'a Disk, PathBuf)>, Failure> {
        let chosen: Vec<&Disk> =
            disks.iter().filter(|disk| self.disk.as_ref().is_none_or(|name| *name == disk.name)).collect();
        let names = || disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
        if chosen.is_empty() {
            let wanted = self.disk.as_deref().unwrap_or_default();
            return Err(Failure::usage(format!("the snapshot has no disk {wanted:?}"))
                .hint(format!("its disks are {}", names())));
        }
        let named_as_folder = self.to.as_os_str().as_bytes().ends_with(b"/");
        if named_as_folder && !self.to.exists() {
            std::fs::create_dir(&self.to)
                .map_err(|error| Failure::failed(format!("cannot make {}", self.to.display()), error))?;
        }
        match (chosen.as_slice(), self.to.is_dir() && !self.to_stdout()) {
            (_, true) => Ok(chosen.into_iter().map(|disk| (disk, self.file_in_folder(&disk.name))).collect()),
            ([disk], false) => Ok(vec![(disk, self.to.clone())]),
            (_, false) => Err(Failure::usage(format!(
                "the snapshot has several disks, and {} is one place",
                self.to.display()
            ))
            .hint(format!("choose one with --disk ({}), or give a folder: --to FOLDER/", names()))),
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
            if std::io::stdout().is_terminal() {
                return Err(Failure::usage("a disk is not written to a terminal")
                    .hint("give a file, or pipe stdout into something"));
            }
            return Ok(Box::new(StreamOutput::new(std::io::stdout(), "stdout", size)));
        }
        let format = match self.format {
            Some(TargetFormat::Raw) => OutputFormat::Raw,
            Some(TargetFormat::Qcow2) => OutputFormat::Qcow2,
            None if is_raw_by_name(path) || is_device(path) => OutputFormat::Raw,
            None => OutputFormat::Qcow2,
        };
        Ok(create_output(path, format, size, self.force)?)
    }

    /// Tells what was written, and what could not be.
    fn tell(&self, app: &App, snapshot: SnapshotId, mut written: Vec<Written<'_>>) -> Result<(), Failure> {
        let failed = written.iter().filter(|written| written.result.is_err()).count();
        if failed > 0 && (self.to_stdout() || written.len() == 1) {
            return written.remove(0).result.map(|_| ());
        }
        let mut told = Ok(());
        if app.global.json && !self.to_stdout() {
            let disks = written.iter().map(Written::document);
            told = say(json!({ "snapshot": snapshot, "disks": serde_json::Value::from_iter(disks) }));
        }
        for written in &written {
            match &written.result {
                Err(failure) => {
                    warn(format_args!("disk {}:", written.disk.name));
                    failure.explain();
                }
                Ok(statistics) => told = told.and(self.tell_written(app, written, statistics)),
            }
        }
        let message = format!("{failed} of {} disks could not be restored", written.len());
        match failed {
            0 => told,
            _ if failed < written.len() => Err(Failure::after_result(IN_PART, message)),
            _ => {
                let code =
                    written.iter().find_map(|written| Some(written.result.as_ref().err()?.exit_code()));
                Err(Failure::after_result(code.unwrap_or(FAILED), message))
            }
        }
    }

    fn tell_written(
        &self,
        app: &App,
        Written { disk, path, .. }: &Written<'_>,
        statistics: &RestoreStatistics,
    ) -> Result<(), Failure> {
        let name = &disk.name;
        if statistics.recovered > 0 {
            let recovered = count(statistics.recovered, "bad copy").replace("copys", "copies");
            warn(format_args!(
                "note: {name}: {recovered} of chunks had another, good one; run `underlay check --read-data`"
            ));
        }
        if self.to_stdout() || app.global.json {
            return Ok(());
        }
        let (bytes, data) = (size(disk.root.size), size(statistics.data_bytes));
        say(format!("{name}: {bytes} written to {}, {data} of it data, every chunk verified", path.display()))
    }
}

impl Written<'_> {
    fn document(&self) -> serde_json::Value {
        let mut document = json!({
            "disk": self.disk.name,
            "path": self.path.display().to_string(),
            "size": self.disk.root.size,
        });
        match &self.result {
            Ok(statistics) => document["statistics"] = json!(statistics),
            Err(failure) => document["error"] = json!(failure.line()),
        }
        document
    }
}

fn is_raw_by_name(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "raw" || ending == "img")
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}
