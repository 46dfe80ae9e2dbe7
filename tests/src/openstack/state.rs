use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::client::{Client, text};
use super::services::Services;
use super::site::{ENDPOINTS, LOGIN, SETTINGS, Site};
use super::{PROJECT, REGION, logs, tools};
use crate::commands::{run, run_command};
use crate::{Result, cache};

/// What Keystone and Glance leave in a site's folder.
const PARTS: [&str; 5] = ["keystone.db", "glance.db", "fernet-keys", "credential-keys", "password"];
/// Services of the catalogue beside Keystone itself: type and name.
const SERVICES: [(&str, &str); 4] =
    [("image", "glance"), ("compute", "nova"), ("placement", "placement"), ("network", "neutron")];

/// The password of every user, drawn once for each cache: on loopback, other users of the machine can knock too.
pub(super) fn password() -> Result<String> {
    Ok(fs::read_to_string(identity()?.join("password"))?)
}

/// Copies the databases of Keystone and Glance, and Keystone's keys, into a site.
pub(super) fn copy_identity(site: &Site) -> Result<()> {
    copy_all(&identity()?, &site.folder)
}

/// Copies what lies in a folder into another one, links and permissions too.
pub(super) fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let from = from.join(".");
    run("cp", ["-a".as_ref(), "--reflink=auto".as_ref(), from.as_os_str(), to.as_os_str()]).map(drop)
}

/// The folder with initialised databases of Keystone and Glance, made on first use in about 30 seconds.
fn identity() -> Result<PathBuf> {
    let settings: String = SETTINGS.iter().map(|(_, text)| *text).collect();
    let recipe = ["1", tools::REQUIREMENTS, &settings, LOGIN, ENDPOINTS, PROJECT, REGION].join("\0");
    cache::build_once("openstack-identity", &recipe, |folder| {
        let mut random = [0; 16];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let site = Site::new(password)?;
        fs::write(site.folder.join("password"), &site.password)?;
        fs::set_permissions(site.folder.join("password"), fs::Permissions::from_mode(0o600))?;
        initialise(&site)?;
        for part in PARTS {
            run("cp", ["-a".as_ref(), site.folder.join(part).as_os_str(), folder.as_os_str()])?;
        }
        Ok(())
    })
}

fn initialise(site: &Site) -> Result<()> {
    let address = site.identity();
    let bootstrap = format!(
        "bootstrap --bootstrap-password {} --bootstrap-region-id {REGION} --bootstrap-public-url {address} \
         --bootstrap-internal-url {address}",
        site.password
    );
    let user = "--keystone-user root --keystone-group root";
    let setups = [format!("fernet_setup {user}"), format!("credential_setup {user}")];
    for words in ["db_sync", &setups[0], &setups[1], &bootstrap] {
        manage(site, "keystone", &["--config-file", "{folder}/keystone.conf"], words)?;
    }
    manage(site, "glance", &["--config-file", "{folder}/glance-api.conf"], "db_sync")?;
    let services = Services::start(site)?;
    services.start_wsgi(site, "keystone")?;
    services.wait_for_http("keystone", site.ports.identity)?;
    fill_catalogue(&Client::start(site)?, &site.password)
        .map_err(|error| error.context(logs::end_of(&site.folder, "keystone")))
}

/// Runs a command of `keystone-manage` and the like.
pub(super) fn manage(site: &Site, service: &str, options: &[&str], words: &str) -> Result<String> {
    let main = tools::main_of(&site.python, &format!("{service}-manage"), &format!("{service}.cmd.manage"));
    let mut command = Command::new(&site.python);
    command.args(&main[1..]).current_dir(&site.folder);
    for option in options {
        command.arg(site.filled(option)?);
    }
    run_command(command.args(words.split_whitespace()))
}

/// Users, projects, services and their addresses, which are filled in when a copy is started.
fn fill_catalogue(client: &Client, password: &str) -> Result<()> {
    let identity = |method: &str, path: &str, body: Value| {
        let order =
            json!({"as": "bootstrap", "service": "identity", "method": method, "path": path, "body": body});
        client.succeed(&order)
    };
    let made = |kind: &str, body: Value| {
        Ok::<_, crate::Error>(text(&identity("POST", &format!("/{kind}s"), json!({kind: body}))?[kind]["id"]))
    };
    let role = |name: &str| {
        let found = identity("GET", &format!("/roles?name={name}"), json!({}))?;
        Ok::<_, crate::Error>(text(&found["roles"][0]["id"]))
    };
    let grant = |project: &str, user: &str, name: &str| {
        identity("PUT", &format!("/projects/{project}/users/{user}/roles/{}", role(name)?), json!({}))
    };
    let login = client.token("bootstrap")?;
    let project = made("project", json!({"name": PROJECT, "domain_id": "default"}))?;
    let user = made("user", json!({"name": PROJECT, "domain_id": "default", "password": password}))?;
    grant(&project, &user, "member")?;
    grant(&project, &text(&login["user"]), "admin")?;
    let project = made("project", json!({"name": "service", "domain_id": "default"}))?;
    let user = made("user", json!({"name": "service", "domain_id": "default", "password": password}))?;
    grant(&project, &user, "admin")?;
    grant(&project, &user, "service")?;
    for (kind, name) in SERVICES {
        let service = made("service", json!({"type": kind, "name": name}))?;
        let url = format!("http://{name}.invalid");
        for interface in ["public", "internal"] {
            let place =
                json!({"service_id": service, "interface": interface, "region_id": REGION, "url": url});
            made("endpoint", place)?;
        }
    }
    Ok(())
}
