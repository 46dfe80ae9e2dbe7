//! Glance: images.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::identity::{Ask, Service};
use super::{Cloud, OpenStackError};

/// Attempts at removing an image, and the pause between two.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_secs(1);

/// An image to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Its name; others may have it, too.
    pub name: String,
    /// `qcow2` or `raw`.
    pub disk_format: &'static str,
    /// The smallest root disk that holds it, in GiB.
    pub min_disk: u64,
    /// Properties, such as `hw_disk_bus`.
    pub properties: BTreeMap<String, String>,
}

/// An image.
#[derive(Clone, Debug, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
    /// `queued`, `saving`, `active`, …
    pub status: String,
    /// Bytes of its file.
    pub size: Option<u64>,
    /// How its file was hashed, such as `sha512`.
    pub os_hash_algo: Option<String>,
    /// The hash, in hex.
    pub os_hash_value: Option<String>,
    /// Everything else; properties are texts.
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}

/// Whether a property says how instances of an image are to be run. None that Glance gives a meaning of its own does.
pub fn says_how_to_run(name: &str) -> bool {
    let tells = name.starts_with("hw_") || name.starts_with("os_");
    tells && !name.starts_with("os_hash_") && name != "os_hidden" && !name.starts_with("os_glance_")
}

impl Image {
    /// Properties that say how instances of the image are to be run.
    pub fn run_properties(&self) -> BTreeMap<String, String> {
        let told = self.others.iter().filter(|(name, _)| says_how_to_run(name));
        told.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    }
}

impl Cloud {
    /// Begins an image, which has no file yet.
    ///
    /// # Errors
    /// If the cloud does not have it.
    pub async fn create_image(&self, new: &NewImage) -> Result<Image, OpenStackError> {
        let mut body = json!(new.properties);
        body["name"] = json!(new.name);
        body["disk_format"] = json!(new.disk_format);
        body["container_format"] = json!("bare");
        body["visibility"] = json!("private");
        body["min_disk"] = json!(new.min_disk);
        self.read(&Ask::post(Service::Image, "/images", body)).await
    }

    /// What is known of an image.
    ///
    /// # Errors
    /// If there is none, or the cloud does not say.
    pub async fn image(&self, id: &str) -> Result<Image, OpenStackError> {
        self.read(&Ask::get(Service::Image, format!("/images/{id}"))).await
    }

    /// Removes an image, also when the user has asked to stop, and makes sure of it. One that is gone is no error.
    ///
    /// # Errors
    /// If the cloud does not do it.
    pub async fn delete_image(&self, id: &str) -> Result<(), OpenStackError> {
        let cloud = self.unstoppable();
        let ask = Ask { method: Method::DELETE, ..Ask::get(Service::Image, format!("/images/{id}")) };
        let mut problem = None;
        for _ in 0..ATTEMPTS {
            match cloud.image(id).await {
                Err(error) if error.is_missing() => return Ok(()),
                Err(error) => problem = Some(error),
                // Glance has its hands on a file that was given up, and would bring the image back.
                Ok(image) if image.status == "saving" => {}
                Ok(_) => match cloud.ask(&ask).await {
                    Err(error) if !error.is_missing() => problem = Some(error),
                    _ => {}
                },
            }
            cloud.rest(PAUSE).await?;
        }
        Err(problem.unwrap_or_else(|| OpenStackError::State {
            what: format!("image {id}"),
            problem: "the cloud does not let go of its file".into(),
            hint: "remove it with `openstack image delete`",
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_properties_that_tell_how_to_run_are_kept() {
        let image: Image = serde_json::from_str(
            r#"{"id": "i", "name": "n", "status": "active", "size": 3, "os_hash_algo": "sha512", "os_hash_value": "00", "os_hidden": false,
                "hw_disk_bus": "scsi", "os_type": "linux", "os_glance_failed_import": "", "owner_specified.x": "y", "tags": []}"#,
        )
        .unwrap();
        let kept = image.run_properties();
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["hw_disk_bus", "os_type"]);
    }
}
