use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Image;
use super::client::{Client, text};
use crate::commands::wait_until;
use crate::{Error, Result};

/// On two cores that run a guest as well.
const PATIENCE: Duration = Duration::from_secs(240);

/// An instance of Nova's. Dropping this does nothing to it.
#[derive(Clone, Debug)]
pub struct Instance {
    client: Arc<Client>,
    uuid: String,
    domain: String,
    folder: PathBuf,
}

impl Instance {
    pub(super) fn existing(client: &Arc<Client>, uuid: &str, instances: &Path) -> Result<Self> {
        let server = succeed(client, "GET", uuid, "", None)?;
        let domain = text(&server["server"]["OS-EXT-SRV-ATTR:instance_name"]);
        if domain.is_empty() {
            return Err(Error::new(format!("instance {uuid} has no domain: {server}")));
        }
        let folder = instances.join(uuid);
        Ok(Self { client: Arc::clone(client), uuid: uuid.to_owned(), domain, folder })
    }

    /// Its UUID, which is the domain's too.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Name of its domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Where Nova keeps its disk.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its status, such as `ACTIVE`, and what is being done with it, such as `reboot_started_hard`.
    pub fn status(&self) -> Result<(String, Option<String>)> {
        status(&self.client, &self.uuid)
    }

    /// The compute host that it is on, such as `compute`.
    pub fn host(&self) -> Result<String> {
        Ok(text(&succeed(&self.client, "GET", &self.uuid, "", None)?["server"]["OS-EXT-SRV-ATTR:host"]))
    }

    /// Whether only administrators may change it.
    pub fn is_locked(&self) -> Result<bool> {
        let server = succeed(&self.client, "GET", &self.uuid, "", None)?;
        let locked = &server["server"]["locked"];
        locked
            .as_bool()
            .ok_or_else(|| Error::new(format!("Nova does not say whether it is locked: {server}")))
    }

    /// What its serial console has shown since it was last switched on.
    #[must_use]
    pub fn console(&self) -> String {
        let text = std::fs::read(self.folder.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).replace('\r', "")
    }

    /// Waits until its console shows a text, such as the guest's marker.
    pub fn wait_for_text(&self, marker: &str) -> Result<()> {
        let shown =
            wait_until(&format!("{marker:?} on a console"), PATIENCE, || Ok(self.console().contains(marker)));
        shown.map_err(|error| Error::new(format!("{error}\n{}", self.console())))
    }

    /// Has Nova make the domain anew and switch it on, and waits until it is active.
    pub fn hard_reboot(&self) -> Result<()> {
        self.act(&json!({"reboot": {"type": "HARD"}}))?;
        self.wait_for("ACTIVE")
    }

    /// Switches it off. The guest ignores its power button, so that Nova takes its power away after some seconds.
    pub fn stop(&self) -> Result<()> {
        self.act(&json!({"os-stop": null}))?;
        self.wait_for("SHUTOFF")
    }

    /// Switches it on.
    pub fn start(&self) -> Result<()> {
        self.act(&json!({"os-start": null}))?;
        self.wait_for("ACTIVE")
    }

    /// Removes it, and waits until it is gone.
    pub fn delete(&self) -> Result<()> {
        succeed(&self.client, "DELETE", &self.uuid, "", None)?;
        wait_until("an instance going away", PATIENCE, || {
            let (status, server) = self.client.ask(&order("GET", &self.uuid, "", None))?;
            if server["server"]["status"] == "ERROR" {
                return Err(Error::new(format!("deleting an instance: {server}")));
            }
            Ok(status == 404)
        })
    }

    /// Removes one that is in `ERROR`, which it stays until it is gone.
    pub fn delete_after_error(&self) -> Result<()> {
        succeed(&self.client, "DELETE", &self.uuid, "", None)?;
        wait_until("an instance going away", PATIENCE, || {
            Ok(self.client.ask(&order("GET", &self.uuid, "", None))?.0 == 404)
        })
    }

    /// Has Nova make an image of its disk, and waits until it is in Glance.
    pub fn create_image(&self, name: &str) -> Result<Image> {
        let made = self.act(&json!({"createImage": {"name": name}}))?;
        let path = format!("/v2/images/{}", text(&made["image_id"]));
        let image = json!({"as": "admin", "service": "image", "method": "GET", "path": path});
        wait_until("Nova's image of an instance", PATIENCE, || {
            let image = self.client.succeed(&image)?;
            Ok(image["status"] == "active" && self.status()?.1.is_none())
        })?;
        Ok(Image::read(&self.client.succeed(&image)?))
    }

    /// Asks Nova for an action, which goes on when this returns.
    pub fn act(&self, action: &Value) -> Result<Value> {
        succeed(&self.client, "POST", &self.uuid, "/action", Some(action))
    }

    /// Waits until it has a status and nothing is being done with it. Fails when it gets into `ERROR`.
    pub fn wait_for(&self, status: &str) -> Result<()> {
        wait_for(&self.client, &self.uuid, status)
    }
}

pub(super) fn status(client: &Client, uuid: &str) -> Result<(String, Option<String>)> {
    let server = &succeed(client, "GET", uuid, "", None)?["server"];
    Ok((text(&server["status"]), server["OS-EXT-STS:task_state"].as_str().map(str::to_owned)))
}

pub(super) fn wait_for(client: &Client, uuid: &str, wanted: &str) -> Result<()> {
    wait_until(&format!("an instance getting {wanted}"), PATIENCE, || {
        let server = &succeed(client, "GET", uuid, "", None)?["server"];
        if server["status"] == "ERROR" && wanted != "ERROR" {
            return Err(Error::new(format!("instance {uuid} is in ERROR: {}", server["fault"])));
        }
        let reached = server["status"] == wanted && server["OS-EXT-STS:task_state"].is_null();
        if !reached {
            // Nova asks half a dozen services for each answer.
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(reached)
    })
}

fn succeed(client: &Client, method: &str, uuid: &str, what: &str, body: Option<&Value>) -> Result<Value> {
    client.succeed(&order(method, uuid, what, body))
}

/// One request about an instance. From version 2.45 on, making an image answers its id.
fn order(method: &str, uuid: &str, what: &str, body: Option<&Value>) -> Value {
    let path = format!("/servers/{uuid}{what}");
    let mut order =
        json!({"as": "admin", "service": "compute", "method": method, "path": path, "version": "2.45"});
    if let Some(body) = body {
        order["body"] = body.clone();
    }
    order
}
