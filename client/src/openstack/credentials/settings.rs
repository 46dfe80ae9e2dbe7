//! What a `clouds.yaml` or the `OS_*` variables say of one cloud, by the names that the file has for it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// Names in `auth` that are variables, too.
const AUTH: [&str; 20] = [
    "auth_url",
    "username",
    "user_id",
    "password",
    "user_domain_name",
    "user_domain_id",
    "project_name",
    "project_id",
    "tenant_name",
    "tenant_id",
    "project_domain_name",
    "project_domain_id",
    "default_domain_name",
    "default_domain_id",
    "domain_name",
    "domain_id",
    "application_credential_id",
    "application_credential_name",
    "application_credential_secret",
    "system_scope",
];
/// Names that say the same, the older one first.
const RENAMED: [(&str, &str); 3] =
    [("tenant_name", "project_name"), ("tenant_id", "project_id"), ("user_name", "username")];
/// What may be kept apart from the rest, in a variable.
const SECRETS: [&str; 2] = ["password", "application_credential_secret"];

/// Who is believed to be the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Whoever the system's authorities vouch for, or one of this file.
    Vouched(Option<PathBuf>),
    /// Whoever answers.
    Anybody,
}

/// One cloud. Every value of `auth` is a text.
#[derive(Clone, Default, Deserialize)]
pub(super) struct Settings {
    pub auth_type: Option<String>,
    #[serde(default)]
    pub auth: BTreeMap<String, String>,
    pub profile: Option<String>,
    pub region_name: Option<String>,
    #[serde(default)]
    regions: Vec<Region>,
    #[serde(alias = "endpoint_type")]
    pub interface: Option<String>,
    cacert: Option<String>,
    verify: Option<String>,
    insecure: Option<String>,
    pub image_endpoint_override: Option<String>,
    pub compute_endpoint_override: Option<String>,
    /// The user's own folder.
    #[serde(skip)]
    home: Option<String>,
}

/// A region of a cloud, which may have settings of its own that are not read.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Region {
    Name(String),
    Settings { name: String },
}

impl Settings {
    /// What variables say.
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let of = |name: &str| variable(&format!("OS_{}", name.to_ascii_uppercase()));
        let auth = AUTH.iter().filter_map(|name| Some(((*name).to_owned(), of(name)?))).collect();
        let settings = Self {
            auth_type: of("auth_type"),
            auth,
            profile: None,
            region_name: of("region_name"),
            regions: Vec::new(),
            interface: of("interface").or_else(|| of("endpoint_type")),
            cacert: of("cacert"),
            verify: None,
            insecure: of("insecure"),
            image_endpoint_override: of("image_endpoint_override"),
            compute_endpoint_override: of("compute_endpoint_override"),
            home: variable("HOME"),
        };
        settings.renamed()
    }

    /// The same by the names that are usual now.
    pub fn renamed(mut self) -> Self {
        self.auth = self.auth.into_iter().map(|(name, value)| (name.replace('-', "_"), value)).collect();
        for (old, new) in RENAMED {
            if let Some(value) = self.auth.remove(old) {
                self.auth.entry(new.to_owned()).or_insert(value);
            }
        }
        if self.region_name.is_none() {
            self.region_name = self.regions.first().map(|region| match region {
                Region::Name(name) | Region::Settings { name } => name.clone(),
            });
        }
        self
    }

    /// This with what `secret` says besides, which counts more.
    pub fn merged(mut self, secret: Self) -> Self {
        self.auth.extend(secret.auth);
        Self {
            auth_type: secret.auth_type.or(self.auth_type),
            auth: self.auth,
            profile: secret.profile.or(self.profile),
            region_name: secret.region_name.or(self.region_name),
            regions: self.regions,
            interface: secret.interface.or(self.interface),
            cacert: secret.cacert.or(self.cacert),
            verify: secret.verify.or(self.verify),
            insecure: secret.insecure.or(self.insecure),
            image_endpoint_override: secret.image_endpoint_override.or(self.image_endpoint_override),
            compute_endpoint_override: secret.compute_endpoint_override.or(self.compute_endpoint_override),
            home: secret.home.or(self.home),
        }
    }

    /// A cloud of a file, with the variables beside it. As with the `openstack` command these choose region, interface and
    /// certificates, and give a secret that the file does not have. Who one is, only the file says.
    pub fn with(mut self, mut given: Self) -> Self {
        let secrets = std::mem::take(&mut given.auth).into_iter();
        for (name, secret) in secrets.filter(|(name, _)| SECRETS.contains(&name.as_str())) {
            self.auth.entry(name).or_insert(secret);
        }
        given.auth_type = None;
        self.merged(given)
    }

    /// Who is believed to be the cloud.
    pub fn trust(&self) -> Result<Trust, String> {
        let no = |name: &str, value: &Option<String>, usual: bool| match value.as_deref() {
            None => Ok(usual),
            Some(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" | "y" => Ok(true),
                "false" | "no" | "off" | "0" | "n" => Ok(false),
                _ => Err(format!("{name} is {text:?}, and must be true or false")),
            },
        };
        if no("insecure", &self.insecure, false)? || !no("verify", &self.verify, true)? {
            return Ok(Trust::Anybody);
        }
        let in_home = |path: &String| match (path.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
            _ => PathBuf::from(path),
        };
        Ok(Trust::Vouched(self.cacert.as_ref().map(in_home)))
    }
}
