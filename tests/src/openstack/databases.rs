use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use super::services::Services;
use super::site::{COMPUTE_SETTINGS, Site};
use super::{state, tools};
use crate::commands::{run, run_command};
use crate::{Result, cache};

const MARIADB: &str = "mariadb";
/// Where a cell is: the nova.conf of whoever asks has all but the name of its database.
const CELL_DATABASE: &str = "{scheme}://{username}@{hostname}/DATABASE?{query}";
const CELL_MESSAGES: &str = "{scheme}://{username}:{password}@{hostname}:{port}/";
const CREATE: &str = "CREATE DATABASE nova_api; CREATE DATABASE nova_cell0; CREATE DATABASE nova; \
    CREATE DATABASE placement;";

/// Copies MariaDB's data, with the databases of Nova and Placement, into a site.
pub(super) fn copy(site: &Site) -> Result<()> {
    state::copy_all(&initialised()?, &site.folder)
}

/// Starts MariaDB on a site's data.
pub(super) fn start(site: &Site, services: &Services) -> Result<()> {
    let folder = site.folder.display();
    let words = [
        tools::system_program("mariadbd")?,
        "--no-defaults".into(),
        "--user=root".into(),
        format!("--datadir={folder}/{MARIADB}"),
        format!("--tmpdir={folder}/temporary"),
        format!("--socket={folder}/mariadb.sock"),
        format!("--pid-file={folder}/mariadb.pid"),
        "--skip-networking".into(),
        "--skip-log-bin".into(),
        "--max-connections=200".into(),
        "--innodb-flush-log-at-trx-commit=0".into(),
        "--innodb-buffer-pool-size=64M".into(),
        "--innodb-log-file-size=16M".into(),
    ];
    services.run(MARIADB, &[], &words)
}

/// Waits until MariaDB takes connections.
pub(super) fn wait(site: &Site, services: &Services) -> Result<()> {
    services.wait_for(MARIADB, || UnixStream::connect(site.folder.join("mariadb.sock")).is_ok())
}

/// The folder with MariaDB's data, made on first use in about a minute. 150 MB.
fn initialised() -> Result<PathBuf> {
    let settings: String = COMPUTE_SETTINGS.iter().map(|(_, text)| *text).collect();
    let recipe = ["1", tools::REQUIREMENTS, &settings, CELL_DATABASE, CELL_MESSAGES, CREATE].join("\0");
    cache::build_once("openstack-databases", &recipe, |folder| {
        let site = Site::new("unused".into())?;
        site.write(&COMPUTE_SETTINGS)?;
        initialise(&site)?;
        run("cp", ["-a".as_ref(), site.folder.join(MARIADB).as_os_str(), folder.as_os_str()]).map(drop)
    })
}

fn initialise(site: &Site) -> Result<()> {
    let folder = site.folder.display();
    let mut install = Command::new(tools::system_program("mariadb-install-db")?);
    install.args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal"]);
    install.args(["--skip-test-db", "--innodb-log-file-size=16M"]);
    install.arg(format!("--datadir={folder}/{MARIADB}"));
    run_command(&mut install)?;
    let services = Services::start(site)?;
    start(site, &services)?;
    wait(site, &services)?;
    let socket = format!("--socket={folder}/mariadb.sock");
    run("mariadb", ["--no-defaults", "--user=root", &socket, "-e", CREATE])?;
    state::manage(site, "placement", &["--config-file", "{folder}/placement.conf"], "db sync")?;
    let cell = |database: &str| CELL_DATABASE.replace("DATABASE", database);
    let steps = [
        "api_db sync".to_owned(),
        format!("cell_v2 map_cell0 --database_connection {}", cell("nova_cell0")),
        format!(
            "cell_v2 create_cell --name cell1 --database_connection {} --transport-url {CELL_MESSAGES}",
            cell("nova")
        ),
        "db sync".to_owned(),
    ];
    for step in steps {
        state::manage(site, "nova", &["--config-file", "{folder}/nova.conf"], &step)?;
    }
    services.order("stop", MARIADB)
}
