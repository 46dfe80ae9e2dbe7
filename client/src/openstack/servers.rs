//! Nova: instances, which its interface calls servers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{parse, plain, with_id};
use super::catalog::Service;
use super::identity::Ask;
use super::{Cloud, OpenStackError};
use crate::hypervisor::NovaInstance;

/// The version of Nova's interface: the first that keeps a reason with a lock (Stein).
pub(super) const VERSION: &str = "2.73";
/// How the reason of a lock of ours begins.
pub const LOCKED_BY: &str = "underlay backup";
/// Characters of Nova's words that are shown.
const WORDS: usize = 400;
/// Between two looks at an instance that is to come to something.
const LOOK: Duration = Duration::from_secs(1);

/// An instance.
#[derive(Clone, Debug, Deserialize)]
pub struct Server {
    /// Its UUID.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// `ACTIVE`, `SHUTOFF`, `ERROR`, …
    pub status: String,
    /// What Nova is doing with it.
    #[serde(rename = "OS-EXT-STS:task_state")]
    pub task_state: Option<String>,
    /// Whether only admins may change it.
    #[serde(default)]
    pub locked: bool,
    /// Why.
    pub locked_reason: Option<String>,
    /// Its project.
    pub tenant_id: Option<String>,
    /// Who made it.
    pub user_id: Option<String>,
    #[serde(default)]
    flavor: Flavor,
    /// An empty text if it boots from a volume.
    image: Option<Value>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default, rename = "os-extended-volumes:volumes_attached")]
    volumes: Vec<Attached>,
    fault: Option<Fault>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Flavor {
    original_name: String,
    ram: u64,
    vcpus: u64,
    disk: u64,
    ephemeral: u64,
    swap: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Attached {
    id: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Fault {
    message: String,
}

#[derive(Deserialize)]
struct ServerAnswer {
    server: Server,
}

/// What Nova says of an instance that it begins to make.
#[derive(Debug, Deserialize)]
pub struct Created {
    server: Attached,
}

/// The ports of an instance.
#[derive(Debug, Deserialize)]
pub struct Ports {
    #[serde(rename = "interfaceAttachments")]
    ports: Vec<Port>,
}

#[derive(Debug, Deserialize)]
struct Port {
    port_id: String,
}

/// The flavors that one may use.
#[derive(Debug, Deserialize)]
pub struct Flavors {
    flavors: Vec<NamedFlavor>,
}

#[derive(Debug, Deserialize)]
struct NamedFlavor {
    id: String,
    name: String,
}

impl Server {
    /// Reads what Nova answers to `request`, one for an instance.
    ///
    /// # Errors
    /// [`OpenStackError::Nonsense`].
    pub fn parse(request: &str, text: &[u8]) -> Result<Self, OpenStackError> {
        let ServerAnswer { mut server } = parse(request, text)?;
        server.task_state = server.task_state.map(|task| plain(&task, WORDS));
        server.fault = server.fault.map(|fault| Fault { message: plain(&fault.message, WORDS) });
        let image = server.image_id().unwrap_or("none").to_owned();
        let id = server.id.clone();
        with_id(request, &id, ()).and_then(|()| with_id(request, &image, server))
    }

    /// The image that it was made from; none if it boots from a volume.
    pub fn image_id(&self) -> Option<&str> {
        self.image.as_ref().and_then(|image| image.get("id")?.as_str())
    }
}

impl Created {
    /// Reads what Nova answers to `request`, one for a new instance: its id.
    ///
    /// # Errors
    /// [`OpenStackError::Nonsense`].
    pub fn parse(request: &str, text: &[u8]) -> Result<String, OpenStackError> {
        let Self { server } = parse(request, text)?;
        with_id(request, &server.id.clone(), server.id)
    }
}

impl Ports {
    /// Reads what Nova answers to `request`, one for the ports of an instance: their ids.
    ///
    /// # Errors
    /// [`OpenStackError::Nonsense`].
    pub fn parse(request: &str, text: &[u8]) -> Result<Vec<String>, OpenStackError> {
        let Self { ports } = parse(request, text)?;
        Ok(ports.into_iter().map(|port| port.port_id).collect())
    }
}

impl Flavors {
    /// Reads what Nova answers to `request`, one for the flavors.
    ///
    /// # Errors
    /// [`OpenStackError::Nonsense`].
    pub fn parse(request: &str, text: &[u8]) -> Result<Self, OpenStackError> {
        parse(request, text)
    }

    /// The id of the flavor that has this name, or this id.
    pub fn find(&self, wanted: &str) -> Option<&str> {
        let by = |key: fn(&NamedFlavor) -> &str| self.flavors.iter().find(|flavor| key(flavor) == wanted);
        let found = by(|flavor| &flavor.name).or_else(|| by(|flavor| &flavor.id));
        found.map(|flavor| flavor.id.as_str())
    }
}

/// An instance to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewServer {
    /// Its name.
    pub name: String,
    /// The image that it boots from.
    pub image: String,
    /// Its flavor, by id or name.
    pub flavor: String,
    /// A network's UUID, or `auto`, or `none`.
    pub network: String,
    /// What its owner notes.
    pub metadata: BTreeMap<String, String>,
}

impl Cloud {
    /// What is known of an instance.
    ///
    /// # Errors
    /// [`OpenStackError::Refused`] with status 404 if there is none that one may see.
    pub async fn server(&self, id: &str) -> Result<Server, OpenStackError> {
        self.read(&Ask::get(Service::Compute, format!("/servers/{id}")), Server::parse).await
    }

    /// What a snapshot keeps of an instance.
    ///
    /// # Errors
    /// If the cloud does not say. An image that is gone is no error.
    pub async fn describe(&self, server: &Server) -> Result<NovaInstance, OpenStackError> {
        let ask = Ask::get(Service::Compute, format!("/servers/{}/os-interface", server.id));
        let ports = self.read(&ask, Ports::parse).await?;
        let image = server.image_id().map(str::to_owned);
        let image_properties = match &image {
            None => BTreeMap::new(),
            Some(id) => match self.image(id).await {
                Err(error) if error.is_missing() => BTreeMap::new(),
                image => image?.run_properties(),
            },
        };
        Ok(NovaInstance {
            name: server.name.clone(),
            project: server.tenant_id.clone(),
            user: server.user_id.clone(),
            flavor: crate::hypervisor::NovaFlavor {
                name: server.flavor.original_name.clone(),
                memory: server.flavor.ram,
                vcpus: server.flavor.vcpus,
                disk: server.flavor.disk,
                ephemeral: server.flavor.ephemeral,
                swap: server.flavor.swap,
            },
            image,
            ports,
            volumes: server.volumes.iter().map(|volume| volume.id.clone()).collect(),
            metadata: server.metadata.clone(),
            image_properties,
        })
    }

    async fn act(&self, id: &str, action: Value, repeat: bool) -> Result<(), OpenStackError> {
        let ask = Ask { repeat, ..Ask::post(Service::Compute, format!("/servers/{id}/action"), action) };
        self.ask(&ask).await.map(drop)
    }

    /// Lets only admins change an instance.
    ///
    /// # Errors
    /// If the cloud does not do it.
    pub async fn lock(&self, id: &str, reason: &str) -> Result<(), OpenStackError> {
        self.act(id, json!({ "lock": { "locked_reason": reason } }), true).await
    }

    /// Lets everyone change it who may, also when the user has asked to stop. An instance that is gone is no error.
    ///
    /// # Errors
    /// If the cloud does not do it.
    pub async fn unlock(&self, id: &str) -> Result<(), OpenStackError> {
        match self.unstoppable().act(id, json!({ "unlock": null }), true).await {
            Err(error) if error.is_missing() => Ok(()),
            done => done,
        }
    }

    /// Makes an instance and waits until it runs.
    ///
    /// # Errors
    /// If the cloud does not make it, or it does not come to run within `patience`; it is still there then.
    pub async fn create_server(&self, new: &NewServer, patience: Duration) -> Result<Server, OpenStackError> {
        let networks = match new.network.as_str() {
            all @ ("auto" | "none") => json!(all),
            network => json!([{ "uuid": network }]),
        };
        let body = json!({ "server": {
            "name": new.name,
            "imageRef": new.image,
            "flavorRef": self.flavor_id(&new.flavor).await?,
            "networks": networks,
            "metadata": new.metadata,
        } });
        let start = Instant::now();
        let id = self.read(&Ask::post(Service::Compute, "/servers", body), Created::parse).await;
        let id = id.map_err(|error| match error.leaves_open() {
            true => OpenStackError::State {
                what: format!("server {}", new.name),
                problem: format!("it is not known whether it is being made: {error}"),
                hint: "`openstack server list` says whether it is there",
            },
            false => error,
        })?;
        loop {
            let server = self.server(&id).await?;
            match server.status.as_str() {
                "ACTIVE" => return Ok(server),
                "ERROR" => {
                    let problem =
                        server.fault.map_or_else(|| "it is in ERROR".to_owned(), |fault| fault.message);
                    let hint = "`openstack server show` says more; remove it with `openstack server delete`";
                    return Err(OpenStackError::State { what: format!("server {id}"), problem, hint });
                }
                _ if start.elapsed() < patience => self.rest(LOOK).await?,
                _ => break,
            }
        }
        let problem = format!("it does not run after {} seconds", patience.as_secs());
        let hint = "`openstack server show` says how far it is";
        Err(OpenStackError::State { what: format!("server {id}"), problem, hint })
    }

    /// The id of the flavor that has this id or name.
    async fn flavor_id(&self, flavor: &str) -> Result<String, OpenStackError> {
        let ask = Ask::get(Service::Compute, "/flavors?limit=1000");
        let known = self.read(&ask, Flavors::parse).await?;
        known.find(flavor).map(str::to_owned).ok_or_else(|| OpenStackError::State {
            what: format!("flavor {flavor}"),
            problem: "the cloud has none of that name or id for this project".into(),
            hint: "choose one with --flavor; `openstack flavor list` shows them",
        })
    }
}
