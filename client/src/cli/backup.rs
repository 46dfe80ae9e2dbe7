//! `underlay backup`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use underlay_store::progress::Progress;
use underlay_store::snapshot::{Consistency, PrivateImage, PrivateMetadata, validate};

use super::App;
use super::backup_domain::DomainOptions;
use super::open::Opened;
use super::owning::Owning;
use super::report::Failure;
use super::text::{count, say, size};
use crate::backup::{BackupOptions, Compression, DiskContent, DiskSource, Environment, Job, Outcome, backup};
use crate::domain::ImageAccess;
use crate::image::{Chain, Format, OpenOptions};
use crate::state::{Memos, state_directory};

/// Back up a virtual machine's disks.
///
/// With --domain or --all: domains of libvirt, running or not. Their disks are frozen at one moment, read, and given back.
///
/// With --instance or --all-instances: instances of OpenStack Nova on this host, which Nova locks meanwhile, if it can be asked.
///
/// With images: files that nobody writes meanwhile. Stop the machine, or freeze its disks with an external snapshot and give the
/// frozen files.
///
/// Layers that were read before and have not changed since are not read again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay backup --domain web\n  \
                        underlay backup --all --parallel 2\n  \
                        underlay backup --domain db --require-quiesce --exclude-disk vdc --dry-run\n  \
                        underlay backup --instance 6f0a7c1e-5a0b-4c8e-9a55-0d9b3f6f3b6e --os-cloud home\n  \
                        underlay backup --vm web /vm/web.qcow2\n  \
                        underlay backup --vm db vda=/vm/db.qcow2 vdb=/vm/db-data.raw\n  \
                        underlay backup --vm web --allow-dir /vm/base /vm/web.qcow2")]
pub(super) struct Backup {
    /// The machine's name in the repository; without it, the domain's own
    #[arg(long, value_name = "NAME", required_unless_present_any = ["domain", "all", "instance", "all_instances"], conflicts_with = "all")]
    vm: Option<String>,
    /// Its disks, as PATH or DISK=PATH; without names they are vda, vdb, …
    #[arg(required_unless_present_any = ["domain", "all", "instance", "all_instances"],
          conflicts_with_all = ["domain", "all", "instance", "all_instances"],
          value_name = "[DISK=]IMAGE")]
    images: Vec<OsString>,
    #[command(flatten)]
    domains: DomainOptions,
    /// Format of the images; without it, by their endings .qcow2 and .raw, never by their content
    #[arg(long, value_enum, conflicts_with_all = ["domain", "all", "instance", "all_instances"])]
    format: Option<ImageFormat>,
    /// A directory in which files named inside images may lie, besides the image's own
    #[arg(long, value_name = "DIR")]
    allow_dir: Vec<PathBuf>,
    /// zstd level, 1 (fast) to 19 (small); MIN..MAX, to go higher while uploads are what takes the time; or auto, which is 3..6
    #[arg(long, value_name = "LEVEL", default_value_t = Compression::AUTO)]
    compression: Compression,
    /// Do not decode every chunk again before it is uploaded: faster, and blind to bad memory
    #[arg(long)]
    no_encode_check: bool,
    /// Read every layer, whatever is known of it
    #[arg(long)]
    no_memo: bool,
    #[command(flatten)]
    owning: Owning,
}

/// Formats that can be backed up.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ImageFormat {
    /// The disk's bytes, nothing else
    Raw,
    /// QEMU copy-on-write
    Qcow2,
}

impl Backup {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        if self.domains.are_wanted() {
            return self.domains.run(app, &self);
        }
        let job = self.job()?;
        let repository = self.open(app)?;
        let outcome = backup(&repository.environment(app, &*app.progress), job, &self.options())?;
        app.progress.finish();
        tell(app, &outcome)
    }

    /// The repository to back up to.
    pub fn open(&self, app: &App) -> Result<Destination, Failure> {
        let opened = app.open(self.owning.writing())?;
        let memos = Memos::new(&state_directory(), opened.descriptor.repository);
        Ok(Destination { opened, memos })
    }

    pub fn options(&self) -> BackupOptions {
        BackupOptions {
            compression: self.compression,
            verify_encoding: !self.no_encode_check,
            use_memos: !self.no_memo,
            ..BackupOptions::default()
        }
    }

    /// The machine's name in the repository, if the user gave one.
    pub fn vm(&self) -> Option<&str> {
        self.vm.as_deref()
    }

    /// What images may name.
    pub fn access(&self) -> ImageAccess {
        ImageAccess { allow_dirs: self.allow_dir.clone() }
    }

    fn job(&self) -> Result<Job, Failure> {
        let options = OpenOptions {
            format: self.format.map(|format| match format {
                ImageFormat::Raw => Format::Raw,
                ImageFormat::Qcow2 => Format::Qcow2,
            }),
            allow_dirs: self.allow_dir.clone(),
            ..OpenOptions::default()
        };
        let vm = self.vm.clone().unwrap_or_default();
        validate::vm_name(&vm)?;
        let mut named: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (at, image) in self.images.iter().enumerate() {
            let (name, path) = disk(image, at);
            validate::disk_name(&name)?;
            if named.insert(name.clone(), path).is_some() {
                return Err(Failure::usage(format!("two disks are called {name}")));
            }
        }
        let mut disks = Vec::new();
        let mut images = Vec::new();
        for (name, path) in named {
            let chain = Chain::open(&path, &options)?;
            let top = chain.layer(chain.len() - 1);
            images.push(PrivateImage {
                disk: name.clone(),
                path: top.path().display().to_string(),
                format: match top.format() {
                    Format::Raw => "raw".into(),
                    Format::Qcow2 => "qcow2".into(),
                },
            });
            disks.push(DiskSource { name, content: DiskContent::Layers(chain) });
        }
        let private = PrivateMetadata { host: host_name(), images, ..PrivateMetadata::default() };
        Ok(Job { vm, disks, consistency: Consistency::Offline, private })
    }
}

/// An open repository, and what this host knows of its layers.
pub(super) struct Destination {
    opened: Opened,
    memos: Memos,
}

impl Destination {
    pub fn environment<'a>(&'a self, app: &'a App, progress: &'a dyn Progress) -> Environment<'a> {
        Environment {
            authority: Arc::clone(&self.opened.authority),
            descriptor: &self.opened.descriptor,
            key: self.opened.key.backup(),
            memos: &self.memos,
            runtime: app.runtime.handle().clone(),
            progress,
            cancel: &app.cancel,
        }
    }
}

/// What this host calls itself.
pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Splits `[DISK=]PATH`. What exists as it stands is a path, whatever it contains.
fn disk(image: &OsStr, at: usize) -> (String, PathBuf) {
    let bytes = image.as_bytes();
    let equals = bytes.iter().position(|&byte| byte == b'=');
    let named = equals.and_then(|equals| {
        let name = str::from_utf8(&bytes[..equals]).ok().filter(|name| !name.contains('/'))?;
        Some((name.to_owned(), OsStr::from_bytes(&bytes[equals + 1..]).into()))
    });
    named.filter(|_| !Path::new(image).exists()).unwrap_or_else(|| (disk_name(at), image.into()))
}

/// vda, vdb, … vdz, vdaa, …
fn disk_name(mut at: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(char::from(b'a' + (at % 26) as u8));
        match (at / 26).checked_sub(1) {
            Some(rest) => at = rest,
            None => break,
        }
    }
    format!("vd{}", letters.into_iter().rev().collect::<String>())
}

fn tell(app: &App, outcome: &Outcome) -> Result<(), Failure> {
    if app.global.json {
        let text = serde_json::to_string(outcome)
            .map_err(|error| Failure::failed("cannot print the result", error))?;
        return say(text);
    }
    lines(outcome).into_iter().try_for_each(say)
}

/// What a backup did, for people.
pub(super) fn lines(outcome: &Outcome) -> [String; 3] {
    let [disks, read, new, uploaded] =
        [outcome.disk_bytes, outcome.bytes_read, outcome.bytes_new, outcome.bytes_uploaded].map(size);
    let known = outcome.layers_known;
    [
        format!("snapshot {} of {} at {}", outcome.snapshot, outcome.vm, outcome.time),
        format!("{disks} of disks: {read} read, {new} new, {uploaded} uploaded, {:.1} s", outcome.seconds),
        format!("{} read, {known} known from earlier backups", count(outcome.layers_read as u64, "layer")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("a=b.raw");
        std::fs::write(&odd, b"").unwrap();
        let disk = |image: &str, at| super::disk(image.as_ref(), at);
        assert_eq!(disk("vdb=/x/y.raw", 0), ("vdb".into(), "/x/y.raw".into()));
        assert_eq!(disk("vdb=/x/a=b.raw", 0), ("vdb".into(), "/x/a=b.raw".into()));
        assert_eq!(disk("/x/y.raw", 1), ("vdb".into(), "/x/y.raw".into()));
        assert_eq!(disk("/x/none=y.raw", 1), ("vdb".into(), "/x/none=y.raw".into()));
        assert_eq!(disk(odd.to_str().unwrap(), 0), ("vda".into(), odd.clone()));
        let not_text = OsStr::from_bytes(b"vdb=/x/\xff.raw");
        assert_eq!(super::disk(not_text, 0), ("vdb".into(), OsStr::from_bytes(b"/x/\xff.raw").into()));
        assert_eq!(
            (disk_name(25), disk_name(26), disk_name(701), disk_name(702)),
            ("vdz".into(), "vdaa".into(), "vdzz".into(), "vdaaa".into())
        );
    }
}
