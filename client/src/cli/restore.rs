//! `underlay restore`.

use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use underlay_store::id::SnapshotId;
use underlay_store::snapshot::{Disk, PrivateMetadata};

use super::App;
use super::boot_line::virt_install;
use super::holes;
use super::report::{FAILED, Failure, IN_PART, INTERRUPTED};
use super::restore_domain::{Attempt, DefineOptions, keeps_firmware_variables};
use super::restore_image::ImageOptions;
use super::restore_instance::InstanceTarget;
use super::target_path::{TargetFormat, absolute, is_device, is_raw_by_name};
use super::text::{count, say, size, warn};
use super::written::{Target, Written};
use crate::domain::kept::{NVRAM_DISK, find_instance};
use crate::restore::{
    DiskOutput, Environment, Hole, OutputFormat, Qcow2Plan, RestoreOptions, RestoreStatistics, StreamOutput,
    create_output, restore, restore_with_holes,
};

/// Write a snapshot's disks as image files, flattened: they need no other file.
///
/// A file appears under its name only when it is whole. An existing file or a block device is overwritten only with --force.
///
/// In a folder each disk becomes DISK.FORMAT, and a domain's firmware variables nvram.fd. With --define the snapshot's domain
/// is defined with those files, and its definition, which may hold passwords, is in domain.xml; no domain is ever replaced. The
/// files are readable by their owner only: libvirt gives them to QEMU when the domain starts, if it runs as root and the
/// folder can be searched by everyone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay restore web@latest --to /vm/web.qcow2\n  \
                        underlay restore web@2026-11-23T17 --to /vm/restored/\n  \
                        underlay restore web@latest --to /vm/web-copy --define --name web-copy\n  \
                        underlay restore 5f3a9c --disk vdb --to /dev/vg/data --format raw --force\n  \
                        underlay restore web@latest --to - | ssh host 'cat >web.raw'\n  \
                        underlay restore web@latest --to-glance web-restored --boot web-2")]
pub(super) struct Restore {
    /// VM@latest, VM@2026-11-23T17 (the beginning of its time), or the beginning of its id
    snapshot: String,
    /// Only this disk
    #[arg(long)]
    disk: Option<String>,
    /// A file, a folder, a block device, or - for stdout
    #[arg(long, value_name = "PATH", required_unless_present_any = ["to_glance", "to_instance"])]
    to: Option<PathBuf>,
    /// Without it, by the ending of PATH: .raw, .img and .fd are raw, all else is qcow2; a device and stdout are raw
    #[arg(long, value_enum)]
    format: Option<TargetFormat>,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
    /// Write what is left of a damaged disk, with zeros where nothing is: a file with holes is called PATH.incomplete, and every hole is
    /// named
    #[arg(long, conflicts_with = "define")]
    allow_holes: bool,
    #[command(flatten)]
    domain: DefineOptions,
    #[command(flatten)]
    image: ImageOptions,
    #[command(flatten)]
    instance: InstanceTarget,
}

impl Restore {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        if self.image.is_wanted() {
            let format = self.format.map_or(OutputFormat::Qcow2, TargetFormat::output);
            return self.image.run(app, &self.snapshot, self.disk.as_deref(), format);
        }
        if self.instance.is_wanted() {
            let (connection, cloud) = (self.domain.connection(), self.image.cloud());
            return self.instance.run(app, &self.snapshot, self.disk.as_deref(), connection, cloud);
        }
        match self.to_stdout() {
            true => self.restore(app).map_err(Failure::keep_stdout_clean),
            false => self.restore(app),
        }
    }

    fn restore(&self, app: &App) -> Result<(), Failure> {
        self.check()?;
        let restorable = app.restorable(&self.snapshot)?;
        let snapshot = &restorable.snapshot;
        let environment = restorable.opened.reading(app)?;
        // Only a domain cannot be defined without it.
        let private = match restorable.private() {
            Err(failure) if self.domain.is_wanted() => return Err(failure),
            private => private.ok().flatten(),
        };
        let folder = self.folder()?;
        let place = folder.as_deref().unwrap_or(self.to());
        let targets = self.targets(place, folder.is_some(), &snapshot.disks, private.as_ref())?;
        let domain = match self.domain.is_wanted() {
            true => Some(self.domain.prepare(app, snapshot, private.as_ref(), &targets)?),
            false => None,
        };
        // All of them are begun before the first is written: what stands in the way is found out now.
        if let Some(folder) = folder.as_ref().filter(|folder| !folder.exists()) {
            std::fs::create_dir(folder)
                .map_err(|error| Failure::failed(format!("cannot make {}", folder.display()), error))?;
        }
        let domain = domain.map(|domain| domain.begin(place, self.force)).transpose()?;
        let begun = targets.into_iter().map(|target| {
            let under = match self.allow_holes {
                true => holes::incomplete(&target.path, self.force)?,
                false => target.path.clone(),
            };
            Ok((self.output(&environment, &target, &under)?, target, under))
        });
        let begun = begun.collect::<Result<Vec<_>, Failure>>()?;
        let mut written = Vec::new();
        for (output, target, under) in begun {
            match self.write(&environment, output, target, &under) {
                Written { result: Err(failure), .. } if failure.exit_code() == INTERRUPTED => {
                    return Err(failure);
                }
                done => written.push(done),
            }
        }
        app.progress.finish();
        let whole = written.iter().all(|written| written.result.is_ok());
        let domain = domain.filter(|_| whole).map(|domain| domain.define(app)).transpose()?;
        let instance = private.as_ref().and_then(|private| find_instance(private).ok().flatten());
        let instance = instance.filter(|_| whole && domain.is_none() && !self.to_stdout());
        let boot =
            instance.and_then(|instance| virt_install(&snapshot.vm, &instance, private.as_ref()?, &written));
        self.tell(app, snapshot.snapshot, written, domain, boot)
    }

    /// Writes one disk, which lies in `under` until it is whole.
    fn write<'a>(
        &self,
        environment: &Environment<'_>,
        output: Box<dyn DiskOutput>,
        mut target: Target<'a>,
        under: &Path,
    ) -> Written<'a> {
        let (root, options) = (target.disk.root, RestoreOptions::default());
        let restored = match self.allow_holes {
            true => restore_with_holes(environment, root, &*output, &options),
            false => {
                restore(environment, root, &*output, &options).map(|statistics| (statistics, Vec::new()))
            }
        };
        let restored = restored
            .and_then(|done| output.finish().map(|_| done))
            .map_err(Failure::from)
            .and_then(|done| match done.1.is_empty() {
                true => holes::is_whole(under, &target.path, self.force).map(|()| done),
                false => Ok(done),
            });
        match restored {
            Ok((statistics, holes)) => {
                if !holes.is_empty() {
                    under.clone_into(&mut target.path);
                }
                Written { target, result: Ok(statistics), holes }
            }
            Err(failure) => Written { target, result: Err(failure), holes: Vec::new() },
        }
    }

    /// Refuses what can be refused without looking into the repository.
    fn check(&self) -> Result<(), Failure> {
        self.domain.check()?;
        if self.domain.is_wanted() && (self.to_stdout() || self.to().exists() && !self.to().is_dir()) {
            let to = self.to().display();
            return Err(Failure::usage(format!("{to} is no folder, and a domain's disks need one"))
                .hint("give --define a folder: --to FOLDER"));
        }
        Ok(())
    }

    /// Where it goes; nowhere if it becomes an image.
    fn to(&self) -> &Path {
        self.to.as_deref().unwrap_or(Path::new(""))
    }

    fn to_stdout(&self) -> bool {
        self.to().as_os_str() == "-"
    }

    /// The folder that disks go to, whether it is there or not; `None` if they go elsewhere. A domain's is an absolute path.
    fn folder(&self) -> Result<Option<PathBuf>, Failure> {
        let named_as_folder = self.to().as_os_str().as_bytes().ends_with(b"/");
        if self.domain.is_wanted() {
            let absolute = absolute(self.to());
            let failed = |error| Failure::failed(format!("cannot use {}", self.to().display()), error);
            return absolute.map(Some).map_err(failed);
        }
        let is_folder = named_as_folder || self.to().is_dir() && !self.to_stdout();
        Ok(is_folder.then(|| self.to().to_owned()))
    }

    /// Which disks go where.
    fn targets<'a>(
        &self,
        place: &Path,
        is_folder: bool,
        disks: &'a [Disk],
        private: Option<&PrivateMetadata>,
    ) -> Result<Vec<Target<'a>>, Failure> {
        let chosen: Vec<&Disk> =
            disks.iter().filter(|disk| self.disk.as_ref().is_none_or(|name| *name == disk.name)).collect();
        let names = || disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
        if chosen.is_empty() {
            let wanted = self.disk.as_deref().unwrap_or_default();
            return Err(Failure::usage(format!("the snapshot has no disk {wanted:?}"))
                .hint(format!("its disks are {}", names())));
        }
        if is_folder {
            let firmware = keeps_firmware_variables(private);
            let target = |disk: &'a Disk| match firmware && disk.name == NVRAM_DISK {
                true => Target { disk, path: place.join("nvram.fd"), format: OutputFormat::Raw },
                false => self.in_folder(place, disk),
            };
            return Ok(chosen.into_iter().map(target).collect());
        }
        match chosen.as_slice() {
            [disk] => Ok(vec![Target { disk, path: place.to_owned(), format: self.format_of(place) }]),
            _ => Err(Failure::usage(format!(
                "the snapshot has several disks, and {} is one place",
                place.display()
            ))
            .hint(format!("choose one with --disk ({}), or give a folder: --to FOLDER/", names()))),
        }
    }

    fn in_folder<'a>(&self, folder: &Path, disk: &'a Disk) -> Target<'a> {
        let (format, ending) = match self.format {
            Some(TargetFormat::Raw) => (OutputFormat::Raw, "raw"),
            Some(TargetFormat::Qcow2) | None => (OutputFormat::Qcow2, "qcow2"),
        };
        Target { disk, path: folder.join(format!("{}.{ending}", disk.name)), format }
    }

    fn format_of(&self, path: &Path) -> OutputFormat {
        match self.format {
            Some(format) => format.output(),
            None if is_raw_by_name(path) || is_device(path) => OutputFormat::Raw,
            None => OutputFormat::Qcow2,
        }
    }

    fn output(
        &self,
        environment: &Environment<'_>,
        target: &Target<'_>,
        under: &Path,
    ) -> Result<Box<dyn DiskOutput>, Failure> {
        let root = target.disk.root;
        if self.to_stdout() {
            if std::io::stdout().is_terminal() {
                return Err(Failure::usage("a disk is not written to a terminal")
                    .hint("give a file, or pipe stdout into something"));
            }
            let stdout = std::io::stdout();
            return Ok(match self.format {
                Some(TargetFormat::Qcow2) => {
                    let plan = Qcow2Plan::read(environment, root, Path::new("stdout"))?;
                    Box::new(plan.begin(stdout, "stdout")?)
                }
                _ => Box::new(StreamOutput::new(stdout, "stdout", root.size)),
            });
        }
        Ok(create_output(under, target.format, root.size, self.force)?)
    }

    /// Tells what was written, and what could not be.
    fn tell(
        &self,
        app: &App,
        snapshot: SnapshotId,
        mut written: Vec<Written<'_>>,
        domain: Option<Attempt>,
        boot: Option<String>,
    ) -> Result<(), Failure> {
        let failed = written.iter().filter(|written| written.result.is_err()).count();
        if failed > 0 && (self.to_stdout() || written.len() == 1) {
            return written.remove(0).result.map(|_| ());
        }
        let mut told = Ok(());
        if app.global.json && !self.to_stdout() {
            let disks = written.iter().map(Written::document);
            let mut document = json!({ "snapshot": snapshot, "disks": serde_json::Value::from_iter(disks) });
            if let Some(domain) = &domain {
                document["domain"] = domain.document();
            }
            if let Some(boot) = &boot {
                document["virt_install"] = json!(boot);
            }
            told = say(document);
        }
        for written in &written {
            if !written.holes.is_empty() {
                told = told.and(self.tell_holes(app, written));
            }
            match &written.result {
                Err(failure) => {
                    warn(format_args!("disk {}:", written.target.disk.name));
                    failure.explain();
                }
                Ok(statistics) => told = told.and(self.tell_written(app, written, statistics)),
            }
        }
        let undefined = if self.domain.is_wanted() { ", and the domain is not defined" } else { "" };
        let message = format!("{failed} of {} disks could not be restored{undefined}", written.len());
        match failed {
            0 if written.iter().any(|written| !written.holes.is_empty()) => {
                told.and(Err(Failure::after_result(IN_PART, "not all of it could be restored: it has holes")))
            }
            0 => {
                let boot = boot.filter(|_| !app.global.json);
                let said = boot.map_or(Ok(()), |boot| say(format!("to boot it anywhere: {boot}")));
                domain.map_or(Ok(()), |domain| domain.tell(app)).and(told).and(said)
            }
            _ if failed < written.len() => Err(Failure::after_result(IN_PART, message)),
            _ => {
                let code =
                    written.iter().find_map(|written| Some(written.result.as_ref().err()?.exit_code()));
                Err(Failure::after_result(code.unwrap_or(FAILED), message))
            }
        }
    }

    /// Names every hole. On stderr if stdout is taken by the disk.
    fn tell_holes(&self, app: &App, Written { target, holes, .. }: &Written<'_>) -> Result<(), Failure> {
        let line = |hole: &Hole| {
            let name = &target.disk.name;
            format!("lost: disk {name}, offset {}, {} bytes: zeros instead", hole.offset, hole.length)
        };
        match (self.to_stdout(), app.global.json) {
            (true, _) => holes.iter().for_each(|hole| warn(line(hole))),
            (false, true) => {}
            (false, false) => holes.iter().try_for_each(|hole| say(line(hole)))?,
        }
        Ok(())
    }

    fn tell_written(
        &self,
        app: &App,
        Written { target: Target { disk, path, .. }, holes, .. }: &Written<'_>,
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
        let (path, verified) = (
            path.display(),
            match holes.is_empty() {
                true => "every chunk verified",
                false => "INCOMPLETE",
            },
        );
        say(format!("{name}: {bytes} written to {path}, {data} of it data, {verified}"))
    }
}
