use std::path::Path;

use serde_json::{Value, json};

use super::client::text;
use super::{OpenStack, PROJECT};
use crate::{Error, Result};

/// An image as Glance describes it.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Its name, empty if it has none.
    pub name: String,
    /// Such as `queued`, `saving` or `active`.
    pub status: String,
    /// Such as `qcow2` or `raw`.
    pub disk_format: String,
    /// Bytes of its data.
    pub size: Option<u64>,
    /// MD5 of its data, in hex.
    pub checksum: Option<String>,
    /// Digest of its data in hex, by the algorithm that `os_hash_algo` names.
    pub os_hash_value: Option<String>,
    /// Such as `sha512`.
    pub os_hash_algo: Option<String>,
    /// Everything that Glance says of it: other properties are members of it.
    pub properties: Value,
}

impl OpenStack {
    /// Every image that the project sees, in any state.
    pub fn images(&self) -> Result<Vec<Image>> {
        let answer = self.request("image", "GET", "/v2/images?limit=1000", None)?;
        Ok(answer["images"].as_array().into_iter().flatten().map(Image::read).collect())
    }

    /// One image.
    pub fn image(&self, id: &str) -> Result<Image> {
        Ok(Image::read(&self.request("image", "GET", &format!("/v2/images/{id}"), None)?))
    }

    /// The only image of that name.
    pub fn image_named(&self, name: &str) -> Result<Image> {
        let mut named: Vec<_> = self.images()?.into_iter().filter(|image| image.name == name).collect();
        match (named.pop(), named.len()) {
            (Some(image), 0) => Ok(image),
            (_, others) => Err(Error::new(format!("not one image is named {name} but {}", others + 1))),
        }
    }

    /// Uploads a file as an image of the project, as its ordinary member. `properties` is an object, which may be empty.
    pub fn upload_image(
        &self,
        name: &str,
        file: &Path,
        disk_format: &str,
        properties: &Value,
    ) -> Result<Image> {
        let mut body = json!({"name": name, "disk_format": disk_format, "container_format": "bare"});
        for (key, value) in properties.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let order =
            json!({"as": PROJECT, "service": "image", "method": "POST", "path": "/v2/images", "body": body});
        let id = text(&self.client.succeed(&order)?["id"]);
        let path = format!("/v2/images/{id}/file");
        let order = json!({"as": PROJECT, "service": "image", "method": "PUT", "path": path, "upload": file});
        self.client.succeed(&order)?;
        self.image(&id)
    }

    /// Writes an image's data to a file.
    pub fn download_image(&self, id: &str, to: &Path) -> Result<()> {
        let path = format!("/v2/images/{id}/file");
        let order = json!({"as": "admin", "service": "image", "method": "GET", "path": path, "download": to});
        self.client.succeed(&order).map(drop)
    }

    /// Removes an image.
    pub fn delete_image(&self, id: &str) -> Result<()> {
        self.request("image", "DELETE", &format!("/v2/images/{id}"), None).map(drop)
    }
}

impl Image {
    pub(super) fn read(answer: &Value) -> Self {
        let optional = |key: &str| answer[key].as_str().map(str::to_owned);
        Self {
            id: text(&answer["id"]),
            name: text(&answer["name"]),
            status: text(&answer["status"]),
            disk_format: text(&answer["disk_format"]),
            size: answer["size"].as_u64(),
            checksum: optional("checksum"),
            os_hash_value: optional("os_hash_value"),
            os_hash_algo: optional("os_hash_algo"),
            properties: answer.clone(),
        }
    }
}
