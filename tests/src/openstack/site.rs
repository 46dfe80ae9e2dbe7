use std::fs;
use std::path::PathBuf;

use super::{REGION, tools};
use crate::Result;
use crate::commands::run;
use crate::loopback::free_address;

/// The settings files: their names, and their text with places in braces.
pub(super) const SETTINGS: [(&str, &str); 3] = [
    ("gunicorn.py", include_str!("settings/gunicorn.py")),
    ("keystone.conf", include_str!("settings/keystone.conf")),
    ("glance-api.conf", include_str!("settings/glance-api.conf")),
];
/// The same of the services that make up compute.
pub(super) const COMPUTE_SETTINGS: [(&str, &str); 5] = [
    ("rabbitmq.conf", include_str!("settings/rabbitmq.conf")),
    ("placement.conf", include_str!("settings/placement.conf")),
    ("nova.conf", include_str!("settings/nova.conf")),
    ("privsep.py", include_str!("settings/privsep.py")),
    ("reach.bash", include_str!("settings/reach.bash")),
];
/// Where MariaDB's databases are for SQLAlchemy: at a socket in a folder that only one user may enter.
const DATABASE: &str = "mysql+pymysql://root@localhost";
/// How a service logs in at Keystone.
pub(super) const LOGIN: &str = "auth_type = password\nauth_url = {identity}\nusername = service\n\
    password = {password}\nproject_name = service\nuser_domain_name = Default\nproject_domain_name = Default\n\
    region_name = {region}\n";
pub(super) const ENDPOINTS: &str = include_str!("endpoints.py");
/// Folders that services expect.
const FOLDERS: [&str; 14] = [
    "services",
    "log",
    "locks",
    "temporary",
    "staging",
    "tasks",
    "instances",
    "nova",
    "rabbitmq",
    // Of the second compute host, and how hosts find each other.
    "locks-2",
    "instances-2",
    "nova-2",
    "hosts",
    "peers",
];

/// Where one OpenStack lives: its folder, its ports, its password.
#[derive(Debug)]
pub(super) struct Site {
    pub folder: PathBuf,
    pub python: PathBuf,
    pub password: String,
    pub ports: Ports,
    /// How libvirtd is reached; empty where none is needed.
    pub libvirt: String,
    /// Removes `folder` when dropped.
    _folder: tempfile::TempDir,
}

/// A loopback port for each service.
#[derive(Debug)]
pub(super) struct Ports {
    pub identity: u16,
    pub image: u16,
    pub placement: u16,
    pub compute: u16,
    pub network: u16,
    pub rabbit: u16,
    /// RabbitMQ's own: who its nodes are, and what they say to each other.
    pub erlang: [u16; 2],
}

impl Site {
    /// An empty site. Nothing runs there yet.
    pub fn new(password: String) -> Result<Self> {
        // A socket's path has at most 107 bytes: never below $TMPDIR, which may be long.
        let folder = tempfile::Builder::new().prefix("os").tempdir_in("/tmp")?;
        for name in FOLDERS {
            fs::create_dir(folder.path().join(name))?;
        }
        let port = || Ok::<_, crate::Error>(free_address()?.port());
        let ports = Ports {
            identity: port()?,
            image: port()?,
            placement: port()?,
            compute: port()?,
            network: port()?,
            rabbit: port()?,
            erlang: [port()?, port()?],
        };
        let site = Self {
            folder: folder.path().to_owned(),
            python: tools()?,
            password,
            ports,
            libvirt: String::new(),
            _folder: folder,
        };
        site.write(&SETTINGS)?;
        Ok(site)
    }

    /// Writes settings files.
    pub fn write(&self, settings: &[(&str, &str)]) -> Result<()> {
        for (name, text) in settings {
            fs::write(self.folder.join(name), self.filled(text)?)?;
        }
        Ok(())
    }

    /// The address of the service on a port.
    pub fn address(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}")
    }

    /// The address of Keystone.
    pub fn identity(&self) -> String {
        self.address(self.ports.identity) + "/v3"
    }

    /// A template with this site's values.
    pub fn filled(&self, template: &str) -> Result<String> {
        let environment = tools::environment_of(&self.python)?.display().to_string();
        let values = [
            ("{login}", LOGIN.to_owned()),
            ("{identity}", self.identity()),
            ("{folder}", self.folder.display().to_string()),
            ("{environment}", environment),
            ("{password}", self.password.clone()),
            ("{region}", REGION.to_owned()),
            ("{database}", DATABASE.to_owned()),
            ("{libvirt}", self.libvirt.clone()),
            ("{image}", self.address(self.ports.image)),
            ("{network}", self.address(self.ports.network)),
            ("{rabbit}", self.ports.rabbit.to_string()),
        ];
        let fill = |text: String, (place, value): &(&str, String)| text.replace(place, value);
        Ok(values.iter().fold(template.to_owned(), fill))
    }

    /// Leaves exactly these services in Keystone's catalogue. Keystone must not run.
    pub fn write_endpoints(&self, services: &[(&str, String)]) -> Result<()> {
        let database = self.folder.join("keystone.db").display().to_string();
        let words = services.iter().map(|(kind, url)| format!("{kind}={url}"));
        let words = ["-c".to_owned(), ENDPOINTS.to_owned(), database].into_iter().chain(words);
        run(&self.python.display().to_string(), words).map(drop)
    }
}
