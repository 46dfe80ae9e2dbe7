//! Glance: images.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use tokio::time::timeout;
use underlay_store::key::random_bytes;

use super::answer::{parse, with_id};
use super::catalog::Service;
use super::identity::Ask;
use super::{Cloud, OpenStackError};

/// Attempts at removing an image, the pause between two, and how long all of them may take.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(180);

/// An image to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Its id, chosen here: whatever becomes of the answer, it is known what there may be. See [`new_image_id`].
    pub id: String,
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

/// An id that no image has: a random UUID.
pub fn new_image_id() -> String {
    let mut bytes = random_bytes::<16>();
    // Version 4, variant 1.
    (bytes[6], bytes[8]) = (bytes[6] & 0x0f | 0x40, bytes[8] & 0x3f | 0x80);
    let digits = hex::encode(bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

impl Image {
    /// Reads what Glance answers to `request`, one for an image.
    ///
    /// # Errors
    /// [`OpenStackError::Nonsense`].
    pub fn parse(request: &str, text: &[u8]) -> Result<Self, OpenStackError> {
        let image: Self = parse(request, text)?;
        with_id(request, &image.id.clone(), image)
    }

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
    /// If the cloud does not have it. After one that [leaves it open](OpenStackError::leaves_open) there may be that image all the same.
    pub async fn create_image(&self, new: &NewImage) -> Result<Image, OpenStackError> {
        let mut body = json!(new.properties);
        body["id"] = json!(new.id);
        body["name"] = json!(new.name);
        body["disk_format"] = json!(new.disk_format);
        body["container_format"] = json!("bare");
        body["visibility"] = json!("private");
        body["min_disk"] = json!(new.min_disk);
        let made = self.read(&Ask::post(Service::Image, "/images", body), Image::parse).await;
        made.map_err(|error| match error {
            OpenStackError::Refused { status: 409, message, .. } => OpenStackError::State {
                what: format!("image {}", new.id),
                problem: format!("the cloud has one of that id, which is not touched: {message}"),
                hint: "try again: another id is chosen each time",
            },
            other => other,
        })
    }

    /// What is known of an image.
    ///
    /// # Errors
    /// If there is none, or the cloud does not say.
    pub async fn image(&self, id: &str) -> Result<Image, OpenStackError> {
        self.read(&Ask::get(Service::Image, format!("/images/{id}")), Image::parse).await
    }

    /// Removes an image, also when the user has asked to stop, and makes sure of it. One that is gone is no error.
    ///
    /// # Errors
    /// If the cloud does not do it.
    pub async fn delete_image(&self, id: &str) -> Result<(), OpenStackError> {
        let mut problem = None;
        match timeout(PATIENCE, self.unstoppable().try_to_delete(id, &mut problem)).await {
            Ok(true) => Ok(()),
            _ => Err(problem.unwrap_or_else(|| OpenStackError::State {
                what: format!("image {id}"),
                problem: "the cloud does not let go of its file".into(),
                hint: "remove it with `openstack image delete`",
            })),
        }
    }

    /// Whether the image is gone; `problem` is why the cloud did not do it last.
    async fn try_to_delete(&self, id: &str, problem: &mut Option<OpenStackError>) -> bool {
        let ask = Ask { method: Method::DELETE, ..Ask::get(Service::Image, format!("/images/{id}")) };
        let mut missing = false;
        for _ in 0..ATTEMPTS {
            match self.image(id).await {
                // One that is being made while nobody waits for the answer any more comes a moment later.
                Err(error) if error.is_missing() && missing => return true,
                Err(error) if error.is_missing() => missing = true,
                Err(error) => *problem = Some(error),
                // Glance has its hands on a file that was given up, and would bring the image back.
                Ok(image) if image.status == "saving" => {}
                Ok(_) => match self.ask(&ask).await {
                    Err(error) if !error.is_missing() => *problem = Some(error),
                    _ => {}
                },
            }
            let _ = self.rest(PAUSE).await;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_uuids() {
        let (one, other) = (new_image_id(), new_image_id());
        assert_ne!(one, other);
        let lengths: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!((lengths.as_slice(), &one[14..15]), ([8, 4, 4, 4, 12].as_slice(), "4"), "{one}");
        assert!("89ab".contains(&one[19..20]), "{one}");
    }

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
