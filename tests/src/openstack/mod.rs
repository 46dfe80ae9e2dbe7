//! A real OpenStack on loopback, one for each test.
//!
//! [`OpenStack::identity_and_images`] is Keystone and Glance. [`OpenStack::compute`] is the whole of Nova beside them, with
//! MariaDB, RabbitMQ and Placement, over a [`Libvirtd`](crate::libvirt::Libvirtd) of its own; only Neutron is a stub, and no
//! instance has a network.
//!
//! Everything runs in a PID namespace that ends with the test process, whatever ends that, and writes into one temporary
//! folder. It needs root. The programs are pinned and installed from PyPI on first use; databases as they are after
//! the first start are kept in the cache as well.

mod client;
mod compute;
mod databases;
mod images;
mod instance;
mod logs;
mod second;
mod services;
mod site;
mod state;
mod tools;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use self::client::Client;
use self::compute::Compute;
pub use self::images::Image;
pub use self::instance::Instance;
pub use self::second::InstanceFolders;
use self::services::Services;
use self::site::Site;
pub(crate) use self::tools::RABBITMQ;
pub use self::tools::tools;
use crate::Result;

/// Region of every service.
const REGION: &str = "RegionOne";
/// Both a project and its ordinary member.
const PROJECT: &str = "underlay";

/// A running OpenStack. When it is dropped, every process of it is killed and its folder removed.
#[derive(Debug)]
pub struct OpenStack {
    client: Arc<Client>,
    services: Services,
    compute: Option<Compute>,
    site: Site,
}

/// What a program logs in with instead of a user's password.
#[derive(Clone, Debug)]
pub struct ApplicationCredential {
    /// Its id, which names user and project too.
    pub id: String,
    /// Its secret, which nobody can read again.
    pub secret: String,
}

impl OpenStack {
    /// Starts Keystone and Glance, without any image. Takes about seven seconds; a minute or two more on first use.
    pub fn identity_and_images() -> Result<Self> {
        let site = Site::new(state::password()?)?;
        state::copy_identity(&site)?;
        site.write_endpoints(&[("identity", site.identity()), ("image", site.address(site.ports.image))])?;
        let services = Services::start(&site)?;
        services.start_wsgi(&site, "keystone")?;
        services.start_wsgi(&site, "glance")?;
        let client = Arc::new(Client::start(&site)?);
        services.wait_for_http("keystone", site.ports.identity)?;
        services.wait_for_http("glance", site.ports.image)?;
        Ok(Self { client, services, compute: None, site })
    }

    /// Where to log in, such as `http://127.0.0.1:34567/v3`.
    #[must_use]
    pub fn auth_url(&self) -> String {
        self.site.identity()
    }

    /// Where Glance listens, such as `http://127.0.0.1:34568`.
    #[must_use]
    pub fn image_url(&self) -> String {
        self.site.address(self.site.ports.image)
    }

    /// What OpenStack's clients find it by in their environment, as an ordinary member of a project.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        self.variables_of(PROJECT)
    }

    /// The same as the administrator, in the same project.
    #[must_use]
    pub fn administrator_variables(&self) -> Vec<(&'static str, String)> {
        self.variables_of("admin")
    }

    fn variables_of(&self, user: &str) -> Vec<(&'static str, String)> {
        vec![
            ("OS_AUTH_URL", self.auth_url()),
            ("OS_IDENTITY_API_VERSION", "3".into()),
            ("OS_USERNAME", user.into()),
            ("OS_PASSWORD", self.site.password.clone()),
            ("OS_PROJECT_NAME", PROJECT.into()),
            ("OS_USER_DOMAIN_NAME", "Default".into()),
            ("OS_PROJECT_DOMAIN_NAME", "Default".into()),
            ("OS_REGION_NAME", REGION.into()),
            ("OS_INTERFACE", "public".into()),
        ]
    }

    /// What OpenStack's clients find it by when they log in with an application credential.
    #[must_use]
    pub fn variables_with(&self, credential: &ApplicationCredential) -> Vec<(&'static str, String)> {
        vec![
            ("OS_AUTH_TYPE", "v3applicationcredential".into()),
            ("OS_AUTH_URL", self.auth_url()),
            ("OS_IDENTITY_API_VERSION", "3".into()),
            ("OS_APPLICATION_CREDENTIAL_ID", credential.id.clone()),
            ("OS_APPLICATION_CREDENTIAL_SECRET", credential.secret.clone()),
            ("OS_REGION_NAME", REGION.into()),
            ("OS_INTERFACE", "public".into()),
        ]
    }

    /// Makes an application credential of the ordinary member, with all its roles.
    pub fn application_credential(&self) -> Result<ApplicationCredential> {
        let user = client::text(&self.client.token(PROJECT)?["user"]);
        let name = format!("credential {:?}", std::time::SystemTime::now());
        let order = json!({
            "as": PROJECT, "service": "identity", "method": "POST",
            "path": format!("/users/{user}/application_credentials"),
            "body": {"application_credential": {"name": name}},
        });
        let made = &self.client.succeed(&order)?["application_credential"];
        Ok(ApplicationCredential { id: client::text(&made["id"]), secret: client::text(&made["secret"]) })
    }

    /// A token of the ordinary member.
    pub fn token(&self) -> Result<String> {
        Ok(client::text(&self.client.token(PROJECT)?["token"]))
    }

    /// One request to the API of `service` (`identity`, `image`, `compute`) as the administrator, in the same project as
    /// [`Self::variables`] name. `path` is what follows the address in the catalogue. Fails unless it succeeds.
    pub fn request(&self, service: &str, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut order = json!({"as": "admin", "service": service, "method": method, "path": path});
        if let Some(body) = body {
            order["body"] = body.clone();
        }
        self.client.succeed(&order)
    }

    /// Everything the services have logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.services.log()
    }

    /// The last errors that the services have logged.
    #[must_use]
    pub fn trouble(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> =
            log.lines().filter(|line| line.contains(" ERROR ") && !line.contains("No DB access")).collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// The folder of settings, logs and databases. It lives as long as this does.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.site.folder
    }
}
