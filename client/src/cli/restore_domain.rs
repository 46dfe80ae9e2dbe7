//! `underlay restore --define`: the domain that a snapshot was made of.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::Args;
use serde_json::{Value, json};
use underlay_store::Error;
use underlay_store::key::random_bytes;
use underlay_store::names;
use underlay_store::snapshot::{PrivateMetadata, Snapshot};

use super::App;
use super::backup_domain::Connection;
use super::report::{Failure, IN_PART};
use super::text::{say, warn};
use super::written::Target;
use crate::domain::kept::{KeptDomain, NVRAM_DISK};
use crate::hypervisor::{Adaptation, Adapted, Backing, RestoredAs, Virsh, adapt, define_new, ensure_free};
use crate::restore::PrivateFile;

/// The file with the definition.
const DEFINITION: &str = "domain.xml";

/// Whether to define the snapshot's domain, and as whom.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Domains of libvirt")]
pub(super) struct DefineOptions {
    /// Define the snapshot's domain, too, with its disks in the folder PATH. No domain may have its name or its UUID
    #[arg(long, conflicts_with = "disk")]
    define: bool,
    /// Define it as another machine of that name, with a UUID and MAC addresses of its own
    #[arg(long, value_name = "NAME", requires = "define")]
    name: Option<String>,
    /// Define it with a UUID and MAC addresses of its own, though not with another name; --name does that, too
    #[arg(long, requires = "define")]
    new_identity: bool,
    #[command(flatten)]
    connection: Connection,
}

/// A domain that can be defined once its disks are there.
pub(super) struct Prepared {
    virsh: Virsh,
    adapted: Adapted,
}

/// The same, with a place for its definition.
pub(super) struct Begun {
    prepared: Prepared,
    path: PathBuf,
    file: PrivateFile,
}

/// What became of it.
pub(super) struct Attempt {
    adapted: Adapted,
    path: PathBuf,
    result: Result<(), Failure>,
}

impl DefineOptions {
    /// Whether a domain is to be defined.
    pub fn is_wanted(&self) -> bool {
        self.define
    }

    /// The hypervisor.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Refuses what can be refused without looking at anything.
    pub fn check(&self) -> Result<(), Failure> {
        let broken = self
            .name
            .as_deref()
            .filter(|name| name.trim().is_empty() || name.contains(|c: char| c == '/' || c.is_control()));
        match broken {
            None => Ok(()),
            Some(name) => Err(Failure::usage(format!("a domain cannot have the name {name:?}"))
                .hint("a name is not empty, and has no `/` and no control characters")),
        }
    }

    /// Finds out all that could stand in the way before a disk is restored. `targets` lie in `folder`, an absolute path.
    pub fn prepare(
        &self,
        app: &App,
        snapshot: &Snapshot,
        private: Option<&PrivateMetadata>,
        targets: &[Target<'_>],
    ) -> Result<Prepared, Failure> {
        let kept = kept_domain(snapshot, private)?;
        let adapted = adapt(&kept.name, &kept.xml, &self.adaptation(snapshot, &kept, targets)?)?;
        let virsh = Virsh::new(self.connection.connect.clone(), Arc::clone(&app.cancel));
        ensure_free(&virsh, &adapted.name, &adapted.uuid)?;
        for disk in &adapted.removed {
            warn(format_args!("note: disk {disk} is not in the snapshot: the domain is defined without it"));
        }
        if adapted.has_tpm {
            warn("note: the TPM's state is not in the snapshot: what is sealed to it needs a recovery key");
        }
        Ok(Prepared { virsh, adapted })
    }

    fn adaptation(
        &self,
        snapshot: &Snapshot,
        kept: &KeptDomain,
        targets: &[Target<'_>],
    ) -> Result<Adaptation, Failure> {
        let target = |disk: &str| {
            targets.iter().find(|target| target.disk.name == disk).ok_or_else(|| {
                let problem = format!("disk {disk} of its domain is not among its disks");
                Failure::from(Error::damaged(names::snapshot(&snapshot.snapshot), problem))
            })
        };
        let placed = kept.disks.iter().map(|disk| {
            let Target { path, format, .. } = target(&disk.target)?;
            Ok((disk.target.clone(), Backing { path: path.clone(), format: format.name().into() }))
        });
        let nvram = kept.nvram.as_ref().map(|_| target(NVRAM_DISK)).transpose()?;
        Ok(Adaptation {
            identity: match (&self.name, self.new_identity) {
                (None, false) => RestoredAs::Itself,
                (name, _) => RestoredAs::Another { name: name.clone() },
            },
            seed: random_bytes(),
            disks: placed.collect::<Result<_, Failure>>()?,
            nvram: nvram.map(|target| target.path.clone()),
        })
    }
}

impl Prepared {
    /// Begins the file with the definition in `folder`.
    pub fn begin(self, folder: &Path, force: bool) -> Result<Begun, Failure> {
        let path = folder.join(DEFINITION);
        let file = PrivateFile::create(&path, force)?;
        Ok(Begun { prepared: self, path, file })
    }
}

impl Begun {
    /// Writes the definition and defines the domain. Its disks are there, whatever comes of it.
    pub fn define(self, app: &App) -> Result<Attempt, Failure> {
        if app.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted.into());
        }
        let Self { prepared: Prepared { virsh, adapted }, path, file } = self;
        let written = file.finish(adapted.xml.as_bytes()).map_err(Failure::from);
        let result = written.and_then(|()| {
            define_new(&virsh, &adapted).map_err(|error| {
                let by_hand = virsh.define_by_hand(&path);
                Failure::from(error).hint(format!("its disks and its definition are whole: `{by_hand}`"))
            })
        });
        Ok(Attempt { adapted, path, result })
    }
}

impl Attempt {
    /// How `--json` tells of it.
    pub fn document(&self) -> Value {
        let mut document = json!({
            "name": self.adapted.name,
            "uuid": self.adapted.uuid,
            "xml": self.path.display().to_string(),
        });
        if let Err(failure) = &self.result {
            document["error"] = json!(failure.line());
        }
        document
    }

    /// Tells of it after the disks.
    pub fn tell(&self, app: &App) -> Result<(), Failure> {
        let Adapted { name, uuid, .. } = &self.adapted;
        match &self.result {
            Ok(()) if app.global.json => Ok(()),
            Ok(()) => say(format!("domain {name} defined, UUID {uuid}, as in {}", self.path.display())),
            Err(failure) => {
                failure.explain();
                Err(Failure::after_result(
                    IN_PART,
                    format!("domain {name} is not defined; its disks are restored"),
                ))
            }
        }
    }
}

/// The domain that a snapshot was made of.
fn kept_domain(snapshot: &Snapshot, private: Option<&PrivateMetadata>) -> Result<KeptDomain, Failure> {
    let found = private.map(KeptDomain::find).transpose().map_err(|error| {
        Failure::failed("the snapshot keeps its domain in a way that this version does not understand", error)
    })?;
    found.flatten().ok_or_else(|| {
        let id = &snapshot.snapshot.to_string()[..12];
        Failure::usage(format!("snapshot {id} was made of images, not of a domain: there is none to define"))
            .hint("restore its disks without --define")
    })
}

/// Whether the snapshot's disk [`NVRAM_DISK`] is the variables of a domain's firmware.
pub(super) fn keeps_firmware_variables(private: Option<&PrivateMetadata>) -> bool {
    // What another version wrote and this one does not understand was written of a domain.
    private.is_some_and(|private| match KeptDomain::find(private) {
        Ok(kept) => kept.is_some_and(|kept| kept.nvram.is_some()),
        Err(_) => true,
    })
}
