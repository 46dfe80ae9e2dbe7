//! `underlay backup --instance`: domains that OpenStack Nova made.

use std::path::Path;

use clap::Args;

use super::App;
use super::backup::host_name;
use super::backup_domain::Host;
use super::cloud::CloudOptions;
use super::report::Failure;
use super::text::warn;
use crate::domain::{Approach, Journal, Wishes};
use crate::hypervisor::{DiskKind, DomainDisk, Hypervisor, HypervisorError, NovaInstance, Source};
use crate::openstack::{Cloud, LOCKED_BY, OpenStackError, Server};

/// Which instances to back up.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Instances of OpenStack Nova")]
pub(super) struct InstanceOptions {
    /// An instance on this host, by its UUID; can be given several times. In the repository it is called by its UUID, too
    #[arg(long, value_name = "UUID", conflicts_with_all = ["domain", "all"])]
    instance: Vec<String>,
    /// All instances on this host
    #[arg(long, conflicts_with_all = ["domain", "all", "instance", "vm"])]
    all_instances: bool,
    #[command(flatten)]
    cloud: CloudOptions,
    /// Do not ask Nova, though it could be: instances are not locked meanwhile, and less is known of them
    #[arg(long, conflicts_with = "os_cloud")]
    no_api: bool,
}

/// Instances of this host, and the cloud they belong to.
pub(super) struct Instances<'a> {
    app: &'a App,
    cloud: Option<Cloud>,
}

/// An instance, before it is backed up.
pub(super) struct Instance {
    /// Its UUID, by which it is called in the repository.
    pub uuid: String,
    /// Disks that are not Nova's own: volumes.
    volumes: Vec<String>,
    /// All its own disks can have dirty bitmaps.
    bitmaps: bool,
}

/// A lock on an instance, taken off when this is dropped.
struct Lock<'a> {
    app: &'a App,
    cloud: &'a Cloud,
    uuid: &'a str,
    taken: bool,
}

impl InstanceOptions {
    /// Whether instances are to be backed up.
    pub fn are_wanted(&self) -> bool {
        self.all_instances || !self.instance.is_empty()
    }

    /// What is needed for that.
    pub fn prepare<'a>(&self, app: &'a App) -> Result<Instances<'a>, Failure> {
        let cloud = if self.no_api { None } else { self.cloud.find(app)? };
        if cloud.is_none() {
            warn(
                "note: Nova is not asked: instances are not locked, so let nobody migrate, resize, rebuild or delete them meanwhile; \
                 volumes and properties of images are not recorded",
            );
        }
        Ok(Instances::new(app, cloud))
    }

    /// Names of their domains.
    pub fn domains(&self, host: &Host) -> Result<Vec<String>, Failure> {
        if self.all_instances {
            return all(host);
        }
        let mut names = Vec::new();
        for uuid in &self.instance {
            let name = host.virsh().name_of(uuid)?;
            names.push(name.ok_or_else(|| {
                Failure::usage(format!("no domain of this hypervisor is the instance {uuid}"))
                    .hint("`openstack server show` names the host that it runs on; run underlay there")
            })?);
        }
        Ok(names)
    }
}

/// Names of all domains that Nova made.
fn all(host: &Host) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for name in host.virsh().domains()? {
        match host.virsh().domain(&name) {
            Ok(domain) if domain.instance().is_some() => names.push(name),
            // One that has gone meanwhile is none.
            Ok(_) | Err(HypervisorError::NoDomain { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if names.is_empty() {
        return Err(Failure::usage("none of this hypervisor's domains is an instance of Nova"));
    }
    Ok(names)
}

impl Instance {
    /// Who a domain is.
    pub fn of(host: &Host, domain: &str) -> Result<Self, Failure> {
        let domain = host.virsh().domain(domain)?;
        if domain.instance().is_none() {
            let failure = Failure::usage(format!("{} is no instance of Nova", domain.name));
            return Err(failure.hint(format!("back it up with --domain {}", domain.name)));
        }
        let disks = &domain.current()?.disks;
        if disks.iter().filter_map(|disk| disk.source.path()).any(is_rescue) {
            let failure =
                Failure::refused(format!("instance {} is in rescue: its disks are others", domain.uuid));
            return Err(failure.hint(format!("`openstack server unrescue {}` first", domain.uuid)));
        }
        let volumes = volumes(&domain.uuid, disks);
        let mut own =
            disks.iter().filter(|disk| disk.kind == DiskKind::Disk && !volumes.contains(&disk.target));
        let bitmaps = own.all(|disk| disk.format.as_deref() == Some("qcow2"));
        Ok(Self { volumes, bitmaps, uuid: domain.uuid.to_ascii_lowercase() })
    }

    /// What is wished, but for volumes, and if nothing else is said by bitmaps: with them there is no moment at which Nova could start the
    /// instance without something that it wrote.
    pub fn adapted(&self, wishes: &Wishes) -> Wishes {
        let mut wishes = wishes.clone();
        if self.bitmaps {
            wishes.strategy = wishes.strategy.or(Some(Approach::Bitmap));
        }
        for volume in &self.volumes {
            warn(format_args!(
                "note: instance {}: disk {volume} does not lie in its folder, and is left out: a volume is backed up with Cinder",
                self.uuid
            ));
            wishes.exclude.push(volume.clone());
        }
        wishes
    }
}

impl<'a> Instances<'a> {
    /// Without a cloud, nobody is asked.
    pub fn new(app: &'a App, cloud: Option<Cloud>) -> Self {
        Self { app, cloud }
    }

    /// Does `work` while nobody but admins may change the instance. The second result says what is left to do.
    pub fn guarded<T>(
        &self,
        host: &Host,
        uuid: &str,
        work: impl FnOnce(Option<&NovaInstance>) -> Result<T, Failure>,
    ) -> Result<(T, Option<Failure>), Failure> {
        let Some(cloud) = &self.cloud else { return Ok((work(None)?, None)) };
        // Its lock in Nova belongs to whoever is at it.
        let free = host.journal().lock(uuid);
        if free.map_err(|error| Failure::failed("cannot lock the instance on this host", error))?.is_none() {
            return Err(Failure::refused(format!("another underlay is working on instance {uuid}")));
        }
        let runtime = &self.app.runtime;
        let server = runtime.block_on(cloud.server(uuid))?;
        check_idle(&server)?;
        let ours = server.locked_reason.as_deref().is_some_and(|reason| reason.starts_with(LOCKED_BY));
        let mut lock = Lock { app: self.app, cloud, uuid, taken: false };
        if !server.locked || ours {
            let reason = format!("{LOCKED_BY} on {}", host_name());
            let locked = runtime.block_on(cloud.lock(uuid, &reason));
            // Without an answer it may be locked.
            lock.taken = !matches!(locked, Err(OpenStackError::Refused { .. }));
            locked?;
        }
        // Something may have begun before the lock was there.
        let server = runtime.block_on(cloud.server(uuid))?;
        check_idle(&server)?;
        let instance = runtime.block_on(cloud.describe(&server))?;
        let done = work(Some(&instance))?;
        Ok((done, lock.take_off().err()))
    }
}

fn check_idle(server: &Server) -> Result<(), OpenStackError> {
    match &server.task_state {
        None => Ok(()),
        Some(task) => Err(OpenStackError::State {
            what: format!("instance {}", server.id),
            problem: format!("Nova is at work on it ({task})"),
            hint: "try again when that is done",
        }),
    }
}

/// Whether a disk is the one that Nova boots a rescued instance from.
fn is_rescue(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "rescue")
}

/// Disks of the instance `uuid` that do not lie in its folder.
pub(super) fn volumes(uuid: &str, disks: &[DomainDisk]) -> Vec<String> {
    let is_own = |path: &Path| {
        let folder = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy());
        folder.is_some_and(|folder| folder.eq_ignore_ascii_case(uuid))
    };
    let others =
        disks.iter().filter(|disk| disk.source != Source::Empty && !disk.source.path().is_some_and(is_own));
    others.map(|disk| disk.target.clone()).collect()
}

impl Lock<'_> {
    fn take_off(&mut self) -> Result<(), Failure> {
        if !std::mem::take(&mut self.taken) {
            return Ok(());
        }
        self.app.runtime.block_on(self.cloud.unlock(self.uuid)).map_err(|error| {
            Failure::failed(format!("instance {} stays locked", self.uuid), error)
                .hint(format!("`openstack server unlock {}`, or back it up again", self.uuid))
        })
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if let Err(failure) = self.take_off() {
            failure.explain();
        }
    }
}
