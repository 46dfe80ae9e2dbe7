use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Client, text};
use super::services::Services;
use super::site::{COMPUTE_SETTINGS, Site};
use super::{Instance, OpenStack, databases, instance, logs, state, tools};
use crate::libvirt::Libvirtd;
use crate::{Error, Result, guest, packages};

/// Stands for Neutron.
const NEUTRON: &str = include_str!("neutron.py");
/// Of nova-api. It looks for it beside its settings.
const PIPELINE: &str = "api-paste.ini";
/// What instances are booted from.
const IMAGE: &str = "debian";
/// On two busy cores it takes nova-compute a quarter of this to get ready.
const STANDING_STILL: Duration = Duration::from_secs(90);
/// What only an OpenStack with Nova has.
#[derive(Debug)]
pub(super) struct Compute {
    libvirtd: Libvirtd,
    /// That of the second host, if there is one.
    pub(super) second: Option<Libvirtd>,
    image: String,
    flavor: String,
}

impl OpenStack {
    /// Starts everything that an instance needs, and uploads the kit's guest as the image `debian`. Takes about half a
    /// minute; some minutes more on first use. 2 GB of memory beside the guests.
    pub fn compute() -> Result<Self> {
        packages::install_missing_of_nova()?;
        let libvirtd = Libvirtd::start()?;
        let mut site = Site::new(state::password()?)?;
        site.libvirt = libvirtd.uri().to_owned();
        site.write(&COMPUTE_SETTINGS)?;
        let pipeline = tools::environment_of(&site.python)?.join("etc/nova").join(PIPELINE);
        fs::copy(pipeline, site.folder.join(PIPELINE))?;
        state::copy_identity(&site)?;
        databases::copy(&site)?;
        let ports = &site.ports;
        site.write_endpoints(&[
            ("identity", site.identity()),
            ("image", site.address(ports.image)),
            ("placement", site.address(ports.placement)),
            ("compute", site.address(ports.compute) + "/v2.1"),
            ("network", site.address(ports.network)),
        ])?;
        let services = Services::start(&site)?;
        start_rabbitmq(&site, &services)?;
        databases::start(&site, &services)?;
        for name in ["keystone", "glance", "placement"] {
            services.start_wsgi(&site, name)?;
        }
        let stub =
            [site.python.display().to_string(), "-c".into(), NEUTRON.into(), ports.network.to_string()];
        services.run("neutron", &[], &stub)?;
        let client = Arc::new(Client::start(&site)?);
        start_nova(&site, &services, &client)?;
        let compute = Compute { libvirtd, second: None, image: String::new(), flavor: String::new() };
        let mut cloud = Self { client, services, compute: Some(compute), site };
        cloud.prepare()?;
        Ok(cloud)
    }

    /// Uploads the image, makes the flavour, and waits until there is somewhere to boot.
    fn prepare(&mut self) -> Result<()> {
        let properties = json!({"hw_qemu_guest_agent": "yes"});
        let image = self.upload_image(IMAGE, &guest::image()?, "qcow2", &properties)?.id;
        self.services.wait_for_http("nova-api", self.site.ports.compute)?;
        let flavor = json!({"flavor": {"name": "small", "ram": 512, "vcpus": 1, "disk": 1}});
        let flavor = text(&self.request("compute", "POST", "/flavors", Some(&flavor))?["flavor"]["id"]);
        self.wait_for_compute()?;
        if let Some(compute) = &mut self.compute {
            compute.image = image;
            compute.flavor = flavor;
        }
        Ok(())
    }

    /// Waits until there is somewhere to boot. Once, on a busy machine, nova-compute stood still after its first words, for
    /// no reason that it told of: if it does, it is started anew, as whoever runs it would.
    #[expect(clippy::print_stderr, reason = "for who reads the log")]
    fn wait_for_compute(&self) -> Result<()> {
        let ready = || {
            let ready = self.can_boot(1).unwrap_or(false);
            if !ready {
                // Each answer costs the services more than waiting for the next.
                std::thread::sleep(Duration::from_millis(300));
            }
            ready
        };
        let Err(stalled) = self.services.wait_within(STANDING_STILL, "nova-compute", ready) else {
            return Ok(());
        };
        eprintln!("{stalled}");
        self.kill_compute()?;
        self.services.order("start", "nova-compute")?;
        self.services.wait_for("nova-compute", ready)
    }

    /// Whether Nova knows so many hosts, and Placement what they have.
    pub(super) fn can_boot(&self, wanted: usize) -> Result<bool> {
        let hosts = self.request("compute", "GET", "/os-hypervisors", None)?;
        let providers = self.request("placement", "GET", "/resource_providers", None)?;
        let listed = |list: &Value| list.as_array().map_or(0, Vec::len);
        let providers = providers["resource_providers"].as_array().cloned().unwrap_or_default();
        if providers.len() < wanted || listed(&hosts["hypervisors"]) < wanted {
            return Ok(false);
        }
        for provider in &providers {
            let path = format!("/resource_providers/{}/inventories", text(&provider["uuid"]));
            let has = self.request("placement", "GET", &path, None)?;
            if !has["inventories"]["VCPU"].is_object() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn of_compute(&self) -> Result<&Compute> {
        self.compute.as_ref().ok_or_else(|| Error::new("this OpenStack has no compute service"))
    }

    /// The libvirtd that instances run under.
    pub fn libvirtd(&self) -> Result<&Libvirtd> {
        Ok(&self.of_compute()?.libvirtd)
    }

    /// The folder with one folder for each instance, and `_base`.
    #[must_use]
    pub fn instances_folder(&self) -> PathBuf {
        self.site.folder.join("instances")
    }

    /// Boots an instance from the kit's guest, and waits until it is active: its guest has just begun to boot.
    pub fn boot(&self, name: &str) -> Result<Instance> {
        self.boot_image(name, &self.of_compute()?.image)
    }

    /// The same from another image.
    pub fn boot_image(&self, name: &str, image: &str) -> Result<Instance> {
        self.boot_with(name, &json!({"imageRef": image}))
    }

    /// The same with what `more` says of the server, such as another `flavorRef`.
    pub fn boot_with(&self, name: &str, more: &Value) -> Result<Instance> {
        let compute = self.of_compute()?;
        let mut server = json!({
            "name": name, "imageRef": compute.image, "flavorRef": compute.flavor, "networks": "none",
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            server[key] = value.clone();
        }
        let order = json!({
            "as": "admin", "service": "compute", "method": "POST", "path": "/servers", "version": "2.37",
            "body": {"server": server},
        });
        let uuid = text(&self.client.succeed(&order)?["server"]["id"]);
        let booted = instance::wait_for(&self.client, &uuid, "ACTIVE");
        booted.map_err(|error| error.context(format!("booting {name}")))?;
        self.instance(&uuid)
    }

    /// An instance that exists.
    pub fn instance(&self, uuid: &str) -> Result<Instance> {
        Instance::existing(&self.client, uuid, &self.instances_folder())
    }

    /// An instance's status, such as `ACTIVE`, and what is being done with it, such as `reboot_started_hard`.
    pub fn status(&self, uuid: &str) -> Result<(String, Option<String>)> {
        instance::status(&self.client, uuid)
    }

    /// What each thread of nova-compute is at, by its own word. Takes some seconds.
    #[must_use]
    pub fn report_of_compute(&self) -> String {
        self.services.report_of("nova-compute")
    }

    /// Kills nova-compute. The guests go on running.
    pub fn kill_compute(&self) -> Result<()> {
        self.services.order("kill_it", "nova-compute")
    }

    /// Starts a killed nova-compute again, and waits until it is at work.
    pub fn start_compute(&self) -> Result<()> {
        let mut last = self.last_heard_of_compute()?;
        self.services.order("start", "nova-compute")?;
        // The first change may be the last word of the one that was killed.
        let mut changes = 0;
        self.services.wait_for("nova-compute", || {
            if let Ok(now) = self.last_heard_of_compute()
                && now != last
            {
                (last, changes) = (now, changes + 1);
            }
            changes == 2
        })
    }

    /// When nova-compute last said that it is there.
    fn last_heard_of_compute(&self) -> Result<Value> {
        let mut services = self.request("compute", "GET", "/os-services?binary=nova-compute", None)?;
        Ok(services["services"][0]["updated_at"].take())
    }
}

/// RabbitMQ keeps everything in its own folder and listens on loopback only, its helpers too.
fn start_rabbitmq(site: &Site, services: &Services) -> Result<()> {
    let folder = site.folder.join("rabbitmq").display().to_string();
    let [names, peers] = site.ports.erlang.map(|port| port.to_string());
    let variables = [
        ("HOME", folder.clone()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("ERL_EPMD_PORT", names),
        ("RABBITMQ_NODENAME", "rabbit@localhost".into()),
        ("RABBITMQ_DIST_PORT", peers),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".into()),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
        ("RABBITMQ_CONFIG_FILE", format!("{folder}.conf")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", format!("{folder}/plugins")),
        ("RABBITMQ_MNESIA_BASE", folder.clone()),
        ("RABBITMQ_LOG_BASE", folder.clone()),
        ("RABBITMQ_LOGS", "-".into()),
        ("RABBITMQ_PID_FILE", format!("{folder}/pid")),
    ];
    services.run("rabbitmq", &variables, &[tools::RABBITMQ.to_owned()])
}

/// Starts Nova's services, those first that the others ask for something.
fn start_nova(site: &Site, services: &Services, client: &Client) -> Result<()> {
    databases::wait(site, services)?;
    // Two of five starts ended with a first login that Keystone answered by an internal error, whereupon nova-conductor ended. That it was
    // one of several at once is a guess; since one comes before all others it was not seen.
    services.wait_for_http("keystone", site.ports.identity)?;
    services.wait_for("keystone", || client.token("admin").is_ok())?;
    services.wait_for("rabbitmq", || TcpStream::connect(("127.0.0.1", site.ports.rabbit)).is_ok())?;
    start_daemon(site, services, "nova-conductor")?;
    services.start_wsgi(site, "nova-api")?;
    services.wait_for_http("placement", site.ports.placement)?;
    start_daemon(site, services, "nova-scheduler")?;
    // Who asks the conductor too early asks again after ten seconds only.
    services.wait_for("nova-conductor", || {
        logs::end_of(&site.folder, "nova-conductor").contains("Starting conductor node")
    })?;
    services.run("nova-compute", &reaching(site), &daemon(site, "nova-compute", "nova.conf"))?;
    services.wait_for_http("glance", site.ports.image)
}

fn start_daemon(site: &Site, services: &Services, name: &str) -> Result<()> {
    services.run(name, &[], &daemon(site, name, "nova.conf"))
}

/// The words that run one of Nova's services with these settings.
pub(super) fn daemon(site: &Site, name: &str, settings: &str) -> Vec<String> {
    let module = format!("nova.cmd.{}", name.trim_start_matches("nova-"));
    let mut words = tools::main_of(&site.python, name, &module);
    words.extend(["--config-file".into(), site.folder.join(settings).display().to_string()]);
    words
}

/// How nova-compute copies to other hosts.
pub(super) fn reaching(site: &Site) -> [(&'static str, String); 1] {
    [("RSYNC_RSH", format!("bash {}/reach.bash", site.folder.display()))]
}
