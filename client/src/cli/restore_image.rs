//! `underlay restore --to-glance`: a disk as an image of OpenStack, and a server that boots from it.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use underlay_store::snapshot::{Disk, PrivateMetadata, Snapshot};

use super::App;
use super::cloud::CloudOptions;
use super::open::{Opened, Restorable};
use super::report::{Failure, IN_PART};
use super::text::{say, size, warn};
use crate::domain::kept::{KeptDomain, find_instance};
use crate::hypervisor::NovaInstance;
use crate::openstack::{
    Cloud, Image, ImageWriter, NewImage, NewServer, OpenStackError, Server, new_image_id, says_how_to_run,
};
use crate::restore::{
    DiskOutput, Environment, OutputFormat, Qcow2Plan, RestoreError, RestoreOptions, RestoreStatistics,
    StreamOutput, restore,
};

/// Whether to make an image, and what of it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "OpenStack")]
pub(super) struct ImageOptions {
    /// Make an image of that name in Glance, with the properties of the image that the instance was made from. Nothing is written here
    #[arg(long, value_name = "NAME", conflicts_with_all = ["to", "force", "allow_holes", "define"])]
    to_glance: Option<String>,
    /// Then make a server of that name that boots from it, and wait until it runs
    #[arg(long, value_name = "SERVER", requires = "to_glance")]
    boot: Option<String>,
    /// The server's flavor, by name or id; without it, that of the instance
    #[arg(long, value_name = "FLAVOR", requires = "boot")]
    flavor: Option<String>,
    /// The server's network: a UUID, auto or none
    #[arg(long, value_name = "NETWORK", requires = "boot", default_value = "auto")]
    network: String,
    /// How long to wait for the server to run, in seconds
    #[arg(long, value_name = "SECONDS", requires = "boot", default_value_t = 600)]
    boot_timeout: u64,
    #[command(flatten)]
    cloud: CloudOptions,
}

/// A disk on its way.
struct Task<'a> {
    cloud: Cloud,
    disk: &'a Disk,
    format: OutputFormat,
    instance: NovaInstance,
}

impl ImageOptions {
    /// Whether an image is to be made.
    pub fn is_wanted(&self) -> bool {
        self.to_glance.is_some()
    }

    /// Which cloud.
    pub fn cloud(&self) -> &CloudOptions {
        &self.cloud
    }

    /// Makes it. `disk` is what the user chose, if anything.
    pub fn run(
        &self,
        app: &App,
        wanted: &str,
        disk: Option<&str>,
        format: OutputFormat,
    ) -> Result<(), Failure> {
        let cloud = self.cloud.needed(app)?;
        let restorable = app.restorable(wanted)?;
        let private = restorable.private()?.unwrap_or_default();
        let Restorable { opened, snapshot } = &restorable;
        let instance = find_instance(&private).map_err(|error| {
            let id = snapshot.snapshot;
            Failure::failed(format!("what snapshot {id} keeps of its instance cannot be understood"), error)
        })?;
        let task = Task {
            cloud,
            disk: chosen(snapshot, &private, disk)?,
            format,
            instance: instance.unwrap_or_default(),
        };
        let flavor = self.flavor(&task.instance)?;
        let name = self.to_glance.as_deref().unwrap_or_default();
        let (image, statistics) = task.make(app, opened, &task.described(name, snapshot))?;
        app.progress.finish();
        let server = match (&self.boot, flavor) {
            (Some(server), Some(flavor)) => Some(self.boot(app, &task, &image, server, flavor)),
            _ => None,
        };
        tell(app, snapshot, &task, &image, &statistics, server)
    }

    /// The flavor of the server, if one is to be made.
    fn flavor(&self, instance: &NovaInstance) -> Result<Option<String>, Failure> {
        if self.boot.is_none() {
            return Ok(None);
        }
        let kept = Some(instance.flavor.name.clone()).filter(|name| !name.is_empty());
        let flavor = self.flavor.clone().or(kept);
        let missing = || Failure::usage("no flavor is known for the server").hint("choose one with --flavor");
        flavor.map(Some).ok_or_else(missing)
    }

    fn boot(
        &self,
        app: &App,
        task: &Task<'_>,
        image: &Image,
        name: &str,
        flavor: String,
    ) -> Result<Server, OpenStackError> {
        let new = NewServer {
            name: name.to_owned(),
            image: image.id.clone(),
            flavor,
            network: self.network.clone(),
            metadata: task.instance.metadata.clone(),
        };
        app.runtime.block_on(task.cloud.create_server(&new, Duration::from_secs(self.boot_timeout)))
    }
}

/// The disk to make an image of: the one that is named, or the first of its domain, which it boots from.
pub(super) fn chosen<'a>(
    snapshot: &'a Snapshot,
    private: &PrivateMetadata,
    wanted: Option<&str>,
) -> Result<&'a Disk, Failure> {
    let disks = &snapshot.disks;
    let names = || disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
    let first =
        KeptDomain::find(private).ok().flatten().and_then(|kept| Some(kept.disks.first()?.target.clone()));
    match (wanted.map(str::to_owned).or(first), disks.as_slice()) {
        (Some(name), _) => disks.iter().find(|disk| disk.name == name).ok_or_else(|| {
            Failure::usage(format!("the snapshot has no disk {name:?}"))
                .hint(format!("its disks are {}", names()))
        }),
        (None, [disk]) => Ok(disk),
        (None, _) => {
            let failure = Failure::usage("the snapshot has several disks, and an image is made of one");
            Err(failure.hint(format!("choose it with --disk ({})", names())))
        }
    }
}

impl Task<'_> {
    /// The image as it is announced.
    fn described(&self, name: &str, snapshot: &Snapshot) -> NewImage {
        // Whoever made the snapshot does not say to whom the image belongs, and who sees it.
        let kept = self.instance.image_properties.iter().filter(|(name, _)| says_how_to_run(name));
        let mut properties: BTreeMap<_, _> =
            kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        properties.insert("underlay_vm".into(), snapshot.vm.clone());
        properties.insert("underlay_snapshot".into(), snapshot.snapshot.to_string());
        properties.insert("underlay_time".into(), snapshot.time.to_string());
        properties.insert("underlay_disk".into(), self.disk.name.clone());
        NewImage {
            id: new_image_id(),
            name: name.to_owned(),
            disk_format: self.format.name(),
            min_disk: self.disk.root.size.div_ceil(1 << 30),
            properties,
        }
    }

    /// Makes the image; if anything fails, there is none.
    fn make(
        &self,
        app: &App,
        opened: &Opened,
        new: &NewImage,
    ) -> Result<(Image, RestoreStatistics), Failure> {
        // What fails here has begun nothing.
        app.runtime.block_on(self.cloud.log_in())?;
        let (id, made) = match app.runtime.block_on(self.cloud.create_image(new)) {
            Ok(image) => (image.id.clone(), self.fill(app, opened, &image)),
            Err(error) if error.leaves_open() => (new.id.clone(), Err(error.into())),
            Err(error) => return Err(error.into()),
        };
        if made.is_err()
            && let Err(error) = app.runtime.block_on(self.cloud.delete_image(&id))
        {
            warn(format_args!("underlay: image {id} may be left behind, incomplete: {error}"));
            warn(format_args!("hint: `openstack image delete {id}`"));
        }
        made
    }

    /// Sends the image's file as it is made.
    fn fill(&self, app: &App, opened: &Opened, image: &Image) -> Result<(Image, RestoreStatistics), Failure> {
        let environment = opened.reading(app)?;
        let name = format!("image {}", image.id);
        let plan = match self.format {
            OutputFormat::Raw => None,
            OutputFormat::Qcow2 => Some(Qcow2Plan::read(&environment, self.disk.root, name.as_ref())?),
        };
        let (upload, writer) = self.cloud.upload(app.runtime.handle(), &image.id);
        match self.write(&environment, plan, writer, &name) {
            Ok(statistics) => Ok((app.runtime.block_on(upload.finish())?, statistics)),
            // That the pipe broke is not what is wrong.
            Err(error) => match app.runtime.block_on(upload.give_up()) {
                Some(reason) if matches!(error, RestoreError::File { .. }) => Err(reason.into()),
                _ => Err(error.into()),
            },
        }
    }

    fn write(
        &self,
        environment: &Environment<'_>,
        plan: Option<Qcow2Plan>,
        writer: ImageWriter,
        name: &str,
    ) -> Result<RestoreStatistics, RestoreError> {
        let root = self.disk.root;
        let output: Box<dyn DiskOutput> = match plan {
            Some(plan) => Box::new(plan.begin(writer, name)?),
            None => Box::new(StreamOutput::new(writer, name, root.size)),
        };
        let statistics = restore(environment, root, &*output, &RestoreOptions::default())?;
        output.finish()?;
        Ok(statistics)
    }
}

fn tell(
    app: &App,
    snapshot: &Snapshot,
    task: &Task<'_>,
    image: &Image,
    statistics: &RestoreStatistics,
    server: Option<Result<Server, OpenStackError>>,
) -> Result<(), Failure> {
    let name = image.name.as_deref().unwrap_or_default();
    let algorithm = image.os_hash_algo.as_deref().unwrap_or_default();
    let bytes = image.size.unwrap_or_default();
    if app.global.json {
        let mut document = json!({
            "snapshot": snapshot.snapshot,
            "disk": task.disk.name,
            "image": { "id": image.id, "name": name, "size": bytes, "hash": image.os_hash_value, "hash_algorithm": algorithm },
            "statistics": statistics,
        });
        if let Some(Ok(server)) = &server {
            document["server"] = json!({ "id": server.id, "name": server.name, "status": server.status });
        }
        say(document)?;
    } else {
        let (disk, whole) = (&task.disk.name, size(task.disk.root.size));
        say(format!(
            "{disk}: {whole} as image {name} ({}), {} sent, {algorithm} as it should be",
            image.id,
            size(bytes)
        ))?;
        if let Some(Ok(server)) = &server {
            say(format!("server {} ({}) runs from it", server.name, server.id))?;
        }
    }
    match server {
        Some(Err(error)) => {
            Failure::from(error).explain();
            Err(Failure::after_result(IN_PART, "the image is there, the server does not run"))
        }
        _ => Ok(()),
    }
}
