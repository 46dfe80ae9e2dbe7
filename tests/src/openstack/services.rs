use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::logs;
use super::site::Site;
use crate::commands::wait_until;
use crate::keeper::Keeper;
use crate::loopback::http_status;
use crate::{Error, Result};

/// What runs inside the namespaces.
const KEEPER: &str = include_str!("keeper.bash");
/// On two busy cores the slowest service is ready within 20 seconds.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a service takes to say what its threads are at.
const REPORTING: Duration = Duration::from_secs(5);
/// The processes of one site, which all end when this is dropped.
#[derive(Debug)]
pub(super) struct Services {
    keeper: Mutex<Keeper>,
    folder: PathBuf,
}

impl Services {
    /// Nothing runs yet.
    pub fn start(site: &Site) -> Result<Self> {
        let keeper = Mutex::new(Keeper::start(KEEPER, &site.folder)?);
        Ok(Self { keeper, folder: site.folder.clone() })
    }

    /// Starts one service, which these words run in this environment.
    pub fn run(&self, name: &str, variables: &[(&str, String)], words: &[String]) -> Result<()> {
        let mut script = format!("export TMPDIR={}\n", quoted(&self.folder.join("temporary").display()));
        for (variable, value) in variables {
            let _ = writeln!(script, "export {variable}={}", quoted(value));
        }
        let words: Vec<_> = words.iter().map(quoted).collect();
        let _ = writeln!(script, "exec {}", words.join(" "));
        fs::write(self.folder.join("services").join(name), script)?;
        self.order("start", name)
    }

    /// Starts one of the services that gunicorn serves.
    pub fn start_wsgi(&self, site: &Site, name: &str) -> Result<()> {
        let folder = site.folder.display().to_string();
        let ports = &site.ports;
        let (module, port, variable, file) = match name {
            "keystone" => ("keystone.wsgi.api", ports.identity, "OS_KEYSTONE_CONFIG_FILES", "/keystone.conf"),
            "glance" => ("glance.wsgi.api", ports.image, "OS_GLANCE_CONFIG_DIR", ""),
            "placement" => ("placement.wsgi.api", ports.placement, "OS_PLACEMENT_CONFIG_DIR", ""),
            "nova-api" => ("nova.wsgi.osapi_compute", ports.compute, "OS_NOVA_CONFIG_DIR", ""),
            _ => return Err(Error::new(format!("{name} is not served by gunicorn"))),
        };
        let value = folder.clone() + file;
        let settings = folder + "/gunicorn.py";
        let address = format!("127.0.0.1:{port}");
        let python = site.python.display().to_string();
        let application = format!("{module}:application");
        let words = ["-m", "gunicorn", "-c", &settings, "-b", &address, &application].map(str::to_owned);
        self.run(name, &[(variable, value)], &[vec![python], words.to_vec()].concat())
    }

    /// Has the keeper do one thing with a service.
    pub fn order(&self, order: &str, name: &str) -> Result<()> {
        self.keeper().order(&format!("{order} {name}"))
    }

    /// Waits until a service answers HTTP requests; fails when it has ended.
    pub fn wait_for_http(&self, name: &str, port: u16) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.wait_for(name, || http_status(address, "GET", "/").is_some_and(|status| status < 500))
    }

    /// Waits until a service is ready; fails when it has ended.
    pub fn wait_for(&self, name: &str, ready: impl FnMut() -> bool) -> Result<()> {
        self.wait_within(PATIENCE, name, ready)
    }

    /// The same, with a patience of one's own.
    pub fn wait_within(&self, patience: Duration, name: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        let waited = wait_until(&format!("{name} getting ready"), patience, || {
            if ready() {
                return Ok(true);
            }
            self.order("alive", name).map_err(|_| Error::new(format!("{name} has ended")))?;
            Ok(false)
        });
        waited.map_err(|error| {
            let log = logs::end_of(&self.folder, name);
            Error::new(format!("{error}\n{log}\n--- What it is at:\n{}", self.report_of(name)))
        })
    }

    /// What each thread of one of Nova's services is at, by its own word; empty for the others.
    pub fn report_of(&self, name: &str) -> String {
        if !name.starts_with("nova-") || self.order("report", name).is_err() {
            return String::new();
        }
        std::thread::sleep(REPORTING);
        logs::report_of(&self.folder, name)
    }

    /// What every service has logged, each after its name.
    pub fn log(&self) -> String {
        logs::whole_in(&self.folder)
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A word as Bash reads it.
fn quoted(word: &impl std::fmt::Display) -> String {
    format!("'{}'", word.to_string().replace('\'', "'\\''"))
}
