//! `underlay restore --to-instance`: a disk in the place of a stopped instance's.

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use underlay_store::snapshot::Timestamp;

use super::App;
use super::backup_domain::{Connection, Host};
use super::backup_instance::{Instance, Instances, volumes};
use super::cloud::CloudOptions;
use super::open::Restorable;
use super::report::Failure;
use super::restore_image::chosen;
use super::text::{say, size, warn};
use crate::domain::Journal;
use crate::hypervisor::{Domain, Hypervisor, Source};
use crate::image::is_open_in_qemu;
use crate::restore::{OutputFormat, RestoreOptions, create_output, remove_abandoned, restore};

/// What follows the disk's name in the name of the new one, and in that of the old one. Then comes the time.
const NEW: &str = ".restored-";
const KEPT: &str = ".before-";

/// Whether to put a disk into an instance.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "OpenStack")]
pub(super) struct InstanceTarget {
    /// Put the disk in the place of that of a stopped instance on this host, by the instance's UUID. What it had is kept beside it
    #[arg(long, value_name = "UUID",
          conflicts_with_all = ["to", "to_glance", "force", "allow_holes", "define", "format"])]
    to_instance: Option<String>,
}

/// The disk that makes room.
struct Place {
    path: PathBuf,
    format: OutputFormat,
    /// Where the new one is made.
    new: PathBuf,
    /// Where the old one is kept.
    kept: PathBuf,
}

impl InstanceTarget {
    /// Whether an instance gets a disk.
    pub fn is_wanted(&self) -> bool {
        self.to_instance.is_some()
    }

    /// Gives it the disk. `disk` is what the user chose, if anything.
    pub fn run(
        &self,
        app: &App,
        wanted: &str,
        disk: Option<&str>,
        connection: &Connection,
        cloud: &CloudOptions,
    ) -> Result<(), Failure> {
        let uuid = self.to_instance.as_deref().unwrap_or_default().to_ascii_lowercase();
        let host = Host::new(app, connection);
        let name = host.virsh().name_of(&uuid)?.ok_or_else(|| {
            Failure::usage(format!("no domain of this hypervisor is the instance {uuid}"))
                .hint("`openstack server show` names the host that it is on; run underlay there")
        })?;
        let cloud = cloud.find(app)?;
        if cloud.is_none() {
            warn("note: Nova is not asked, and the instance is not locked: let nobody start it meanwhile");
        }
        let instances = Instances::new(app, cloud);
        let (told, left) = instances.guarded(&host, &uuid, |_| replace(app, &host, &name, wanted, disk))?;
        say(told)?;
        left.map_or(Ok(()), Err)
    }
}

/// Replaces a disk of a stopped domain; what to say of it.
fn replace(app: &App, host: &Host, name: &str, wanted: &str, disk: Option<&str>) -> Result<String, Failure> {
    let domain = expect_stopped(host, name)?;
    // Backups keep away until this is dropped.
    let lock = host
        .journal()
        .lock(&domain.uuid)
        .map_err(|error| Failure::failed("cannot lock the domain", error))?;
    let _lock =
        lock.ok_or_else(|| Failure::refused(format!("another underlay is working on domain {name}")))?;
    let record = host.journal().load(&domain.uuid);
    let record = record.map_err(|error| Failure::failed("cannot read what is known of the domain", error))?;
    if record.is_some_and(|record| record.operation.is_some() || record.pull.is_some()) {
        let failure = Failure::refused(format!("a backup of domain {name} was interrupted"));
        return Err(failure.hint("bring it in order first: `underlay recover`"));
    }
    let restorable = app.restorable(wanted)?;
    let private = restorable.private()?.unwrap_or_default();
    let Restorable { opened, snapshot } = &restorable;
    let disk = chosen(snapshot, &private, disk)?;
    let place = place(&domain, &disk.name)?;
    place.remove_leftovers().map_err(|error| {
        let folder = place.folder().display();
        Failure::failed(format!("cannot remove from {folder} what an interrupted restore left"), error)
    })?;
    let had = host.virsh().capacity(name, &disk.name)?;
    if had != disk.root.size {
        let (had, gets) = (size(had), size(disk.root.size));
        warn(format_args!("note: disk {} has {had} now, and gets one of {gets}", disk.name));
    }
    let environment = opened.reading(app)?;
    let output = create_output(&place.new, place.format, disk.root.size, false)?;
    restore(&environment, disk.root, &*output, &RestoreOptions::default())?;
    output.finish()?;
    app.progress.finish();
    if let Err(failure) = expect_stopped(host, name).and_then(|_| place.replace()) {
        let _ = std::fs::remove_file(&place.new);
        return Err(failure);
    }
    let (path, kept) = (place.path.display().to_string(), place.kept.display().to_string());
    Ok(match app.global.json {
        true => json!({ "snapshot": snapshot.snapshot, "disk": disk.name, "path": path, "kept": kept })
            .to_string(),
        false => {
            let size = size(disk.root.size);
            format!(
                "{}: {size} in the place of {path}, every chunk verified; what it had is {kept}",
                disk.name
            )
        }
    })
}

/// The instance's domain, if nothing of it runs.
fn expect_stopped(host: &Host, name: &str) -> Result<Domain, Failure> {
    let domain = host.virsh().domain(name)?;
    Instance::of(host, name)?;
    if domain.is_running() || host.virsh().is_saved(name)? {
        let failure = Failure::refused(format!("instance {} is not shut off", domain.uuid));
        return Err(failure.hint(format!("stop it first: `openstack server stop {}`", domain.uuid)));
    }
    Ok(domain)
}

/// Where the disk of that target lies.
fn place(domain: &Domain, target: &str) -> Result<Place, Failure> {
    let definition = domain.current()?;
    let disk = definition.disk(target).ok_or_else(|| {
        let targets: Vec<_> = definition.disks.iter().map(|disk| disk.target.as_str()).collect();
        Failure::usage(format!("the instance has no disk {target}"))
            .hint(format!("its disks are {}", targets.join(", ")))
    })?;
    let path = match &disk.source {
        Source::File(path) if !volumes(&domain.uuid, &definition.disks).contains(&disk.target) => path,
        _ => return Err(Failure::usage(format!("disk {target} is no file in the instance's folder"))),
    };
    let format = match disk.format.as_deref() {
        Some("raw") => OutputFormat::Raw,
        Some("qcow2") => OutputFormat::Qcow2,
        other => {
            let format = other.unwrap_or("no format");
            return Err(Failure::usage(format!(
                "disk {target} of the instance has {format}, which cannot be written"
            )));
        }
    };
    let now = Timestamp::now().as_milliseconds();
    let beside = |mark: &str| path.with_file_name(format!("{}{mark}{now}", name_of(path)));
    Ok(Place { path: path.clone(), format, new: beside(NEW), kept: beside(KEPT) })
}

fn name_of(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

impl Place {
    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Whether a file of this name is one that a run of ours puts beside the disk, with that mark in its name.
    fn is_ours(&self, name: &str, mark: &str) -> bool {
        let rest = name.strip_prefix(&*name_of(&self.path)).and_then(|rest| rest.strip_prefix(mark));
        rest.is_some_and(|time| !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit()))
    }

    /// Removes what a run left that was killed: a new disk, whole or not, and a second name of the disk that is still in its place. The
    /// domain's lock is held, so nobody is at work there.
    fn remove_leftovers(&self) -> std::io::Result<()> {
        let mut removed = remove_abandoned(self.folder(), |target| self.is_ours(target, NEW))?;
        let disk = std::fs::metadata(&self.path)?;
        for entry in self.folder().read_dir()? {
            let entry = entry?;
            let (name, file, path) = (entry.file_name(), entry.metadata()?, entry.path());
            let name = name.to_string_lossy();
            let is_second_name = (file.dev(), file.ino()) == (disk.dev(), disk.ino());
            if !file.is_file() {
                continue;
            }
            let is_new = self.is_ours(&name, NEW) && !is_second_name && !is_open_in_qemu(&path)?;
            if is_new || self.is_ours(&name, KEPT) && is_second_name {
                std::fs::remove_file(&path)?;
                removed.push(path);
            }
        }
        for path in removed {
            warn(format_args!("note: removed {}, which an interrupted restore left", path.display()));
        }
        Ok(())
    }

    /// Gives the old disk another name, and the new one its name, at once.
    fn replace(&self) -> Result<(), Failure> {
        let failed =
            |error: std::io::Error| Failure::failed(format!("cannot replace {}", self.path.display()), error);
        let in_use = || Failure::refused(format!("{} is in use", self.path.display()));
        if is_open_in_qemu(&self.path).map_err(failed)? {
            return Err(in_use());
        }
        let old = std::fs::metadata(&self.path).map_err(failed)?;
        self.belong(&old).map_err(failed)?;
        std::fs::hard_link(&self.path, &self.kept).map_err(failed)?;
        if let Err(error) = std::fs::rename(&self.new, &self.path) {
            let _ = std::fs::remove_file(&self.kept);
            return Err(failed(error));
        }
        // Whoever has started the instance at that moment writes to the old one.
        if is_open_in_qemu(&self.kept).map_err(failed)? {
            std::fs::rename(&self.kept, &self.path).map_err(failed)?;
            return Err(in_use());
        }
        if let Err(error) = File::open(self.folder()).and_then(|folder| folder.sync_all()) {
            warn(format_args!("note: {} could not be flushed: {error}", self.folder().display()));
        }
        Ok(())
    }

    /// Gives the new disk the owner and the mode of the old one.
    fn belong(&self, old: &Metadata) -> std::io::Result<()> {
        let new = File::open(&self.new)?;
        fchown(&new, Some(old.uid()), Some(old.gid()))?;
        new.set_permissions(old.permissions())
    }
}
