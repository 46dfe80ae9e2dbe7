//! Who one is in a cloud, and where it is: the `OS_*` variables or a `clouds.yaml`, as the `openstack` command reads them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::OpenStackError;

/// Where `clouds.yaml` lies, after the working directory and the user's own folder.
const SYSTEM_FOLDER: &str = "/etc/openstack";

/// Who one is, and where the cloud is.
#[derive(Clone)]
pub struct Credentials {
    /// Keystone's URL, without `/v3` and without a slash at the end.
    pub(super) auth_url: String,
    /// The body of the request for a token.
    pub(super) request: Zeroizing<String>,
    /// The region whose services are used; `None` is any.
    pub(super) region: Option<String>,
    /// `public`, `internal` or `admin`.
    pub(super) interface: String,
    /// Certificates that vouch for the cloud, besides the system's.
    pub(super) certificates: Option<PathBuf>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("auth_url", &self.auth_url).finish_non_exhaustive()
    }
}

/// A `clouds.yaml`, or the `secure.yaml` beside it.
#[derive(Default, Deserialize)]
struct CloudsFile {
    #[serde(default)]
    clouds: BTreeMap<String, Settings>,
}

/// One cloud of such a file. Every value of `auth` is a text.
#[derive(Clone, Default, Deserialize)]
struct Settings {
    auth_type: Option<String>,
    #[serde(default)]
    auth: BTreeMap<String, String>,
    region_name: Option<String>,
    interface: Option<String>,
    cacert: Option<PathBuf>,
}

impl Credentials {
    /// Finds them: those of the cloud that is named, else those that the variables give. `None` if neither is there. `variable` looks up
    /// an environment variable, and gives none that is empty.
    ///
    /// # Errors
    /// [`OpenStackError::Credentials`] or [`OpenStackError::File`] if they are there and cannot be used.
    pub fn find(
        cloud: Option<&str>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, OpenStackError> {
        let named = cloud.map(str::to_owned).or_else(|| variable("OS_CLOUD"));
        if let Some(name) = named {
            return from_files(&name, &folders(variable)).and_then(Self::new).map(Some);
        }
        let settings = from_variables(variable);
        if settings.auth.is_empty() { Ok(None) } else { Self::new(settings).map(Some) }
    }

    fn new(settings: Settings) -> Result<Self, OpenStackError> {
        let auth = &settings.auth;
        let auth_url = auth.get("auth_url").ok_or_else(|| missing("the URL of Keystone (auth_url)"))?;
        let auth_url = auth_url.trim_end_matches('/').trim_end_matches("/v3").trim_end_matches('/');
        let by_credential = match settings.auth_type.as_deref() {
            Some("v3applicationcredential") => true,
            Some("password" | "v3password") => false,
            None => auth.contains_key("application_credential_secret"),
            Some(other) => {
                let problem = format!(
                    "the way to prove who one is {other:?} is not known, only password and v3applicationcredential"
                );
                return Err(OpenStackError::Credentials { problem });
            }
        };
        let request = if by_credential { application_credential(auth)? } else { password(auth)? };
        Ok(Self {
            auth_url: auth_url.to_owned(),
            request: Zeroizing::new(request.to_string()),
            region: settings.region_name,
            // openstacksdk takes `internalURL` as well.
            interface: settings.interface.as_deref().unwrap_or("public").trim_end_matches("URL").to_owned(),
            certificates: settings.cacert,
        })
    }
}

fn missing(what: &str) -> OpenStackError {
    OpenStackError::Credentials { problem: format!("{what} is not given") }
}

fn needed<'a>(auth: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str, OpenStackError> {
    auth.get(name).map(String::as_str).ok_or_else(|| missing(name))
}

/// A thing by its id, or by its name and its domain. `prefix` is `user` or `project`.
fn reference(
    auth: &BTreeMap<String, String>,
    prefix: &str,
    name: &str,
) -> Result<Option<Value>, OpenStackError> {
    if let Some(id) = auth.get(&format!("{prefix}_id")) {
        return Ok(Some(json!({ "id": id })));
    }
    let Some(name) = auth.get(name) else { return Ok(None) };
    let domain = |kind: &str| {
        auth.get(&format!("{prefix}_domain_{kind}"))
            .or_else(|| auth.get(&format!("default_domain_{kind}")))
            .or_else(|| auth.get(&format!("domain_{kind}")))
    };
    let domain = match (domain("id"), domain("name")) {
        (Some(id), _) => json!({ "id": id }),
        (None, Some(name)) => json!({ "name": name }),
        (None, None) => return Err(missing(&format!("{prefix}_domain_name"))),
    };
    Ok(Some(json!({ "name": name, "domain": domain })))
}

fn password(auth: &BTreeMap<String, String>) -> Result<Value, OpenStackError> {
    let mut user = reference(auth, "user", "username")?.ok_or_else(|| missing("username"))?;
    user["password"] = json!(needed(auth, "password")?);
    let project = reference(auth, "project", "project_name")?;
    let project = project.ok_or_else(|| missing("the project (project_name)"))?;
    Ok(json!({ "auth": {
        "identity": { "methods": ["password"], "password": { "user": user } },
        "scope": { "project": project },
    } }))
}

fn application_credential(auth: &BTreeMap<String, String>) -> Result<Value, OpenStackError> {
    let secret = needed(auth, "application_credential_secret")?;
    let credential = match auth.get("application_credential_id") {
        Some(id) => json!({ "id": id, "secret": secret }),
        None => {
            let name = needed(auth, "application_credential_name")?;
            let user =
                reference(auth, "user", "username")?.ok_or_else(|| missing("application_credential_id"))?;
            json!({ "name": name, "secret": secret, "user": user })
        }
    };
    let methods = ["application_credential"];
    Ok(json!({ "auth": { "identity": { "methods": methods, "application_credential": credential } } }))
}

/// What variables say, by the names that `clouds.yaml` has for it.
fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Settings {
    const AUTH: [&str; 17] = [
        "auth_url",
        "username",
        "user_id",
        "password",
        "user_domain_name",
        "user_domain_id",
        "project_name",
        "project_id",
        "project_domain_name",
        "project_domain_id",
        "default_domain_name",
        "default_domain_id",
        "domain_name",
        "domain_id",
        "application_credential_id",
        "application_credential_name",
        "application_credential_secret",
    ];
    let of = |name: &str| variable(&format!("OS_{}", name.to_ascii_uppercase()));
    Settings {
        auth_type: of("auth_type"),
        auth: AUTH.iter().filter_map(|name| Some(((*name).to_owned(), of(name)?))).collect(),
        region_name: of("region_name"),
        interface: of("interface").or_else(|| of("endpoint_type")),
        cacert: of("cacert").map(PathBuf::from),
    }
}

/// Folders that may hold a `clouds.yaml`, the first one first. A file of another name counts as well.
fn folders(variable: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let configured = variable("OS_CLIENT_CONFIG_FILE").map(PathBuf::from);
    let own = variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let own = own.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")));
    let folders =
        [Some(PathBuf::from(".")), own.map(|own| own.join("openstack")), Some(SYSTEM_FOLDER.into())];
    let files = folders.into_iter().flatten().map(|folder| folder.join("clouds.yaml"));
    configured.into_iter().chain(files).collect()
}

/// The cloud `name` of the first file that there is; what the `secure.yaml` beside it says counts more.
fn from_files(name: &str, files: &[PathBuf]) -> Result<Settings, OpenStackError> {
    let Some(path) = files.iter().find(|path| path.is_file()) else {
        let looked: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        let problem =
            format!("the cloud {name} is to be used, and there is no clouds.yaml ({})", looked.join(", "));
        return Err(OpenStackError::Credentials { problem });
    };
    let mut settings = read(path)?.clouds.remove(name).ok_or_else(|| OpenStackError::Credentials {
        problem: format!("{} has no cloud {name}", path.display()),
    })?;
    let secure = path.with_file_name("secure.yaml");
    if secure.is_file()
        && let Some(secret) = read(&secure)?.clouds.remove(name)
    {
        settings.auth.extend(secret.auth);
    }
    Ok(settings)
}

fn read(path: &Path) -> Result<CloudsFile, OpenStackError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| OpenStackError::File {
        path: path.to_owned(),
        source,
    };
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| failed(error.into()))?);
    // Its own message would show the lines around, and a password may be there.
    serde_saphyr::from_str(&text).map_err(|error| {
        let place = error.location().map(|place| format!(" in line {}", place.line())).unwrap_or_default();
        failed(format!("it is no clouds.yaml{place}").into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUDS: &str = "clouds:\n  home:\n    auth:\n      auth_url: http://k:5000/v3/\n      username: admin\n      password: 12345\n      \
                          project_name: admin\n      user_domain_name: Default\n      project_domain_id: default\n    \
                          region_name: here\n    interface: internal\n    verify: true\n  other:\n    auth_type: v3token\n    \
                          auth: {auth_url: 'http://o'}\n";

    fn with(variables: &[(&str, &str)], cloud: Option<&str>) -> Result<Option<Credentials>, OpenStackError> {
        let variables: BTreeMap<_, _> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Credentials::find(cloud, &|name| variables.get(name).cloned())
    }

    #[test]
    fn variables_and_files_say_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clouds.yaml");
        fs::write(&file, CLOUDS).unwrap();
        let file = file.to_str().unwrap();
        let from_file = with(&[("OS_CLIENT_CONFIG_FILE", file)], Some("home")).unwrap().unwrap();
        let variables = [
            ("OS_AUTH_URL", "http://k:5000"),
            ("OS_USERNAME", "admin"),
            ("OS_PASSWORD", "12345"),
            ("OS_PROJECT_NAME", "admin"),
            ("OS_USER_DOMAIN_NAME", "Default"),
            ("OS_PROJECT_DOMAIN_ID", "default"),
            ("OS_REGION_NAME", "here"),
            ("OS_INTERFACE", "internalURL"),
        ];
        let from_variables = with(&variables, None).unwrap().unwrap();
        for found in [&from_file, &from_variables] {
            assert_eq!((found.auth_url.as_str(), found.interface.as_str()), ("http://k:5000", "internal"));
            assert_eq!(found.region.as_deref(), Some("here"));
            let request: Value = serde_json::from_str(&found.request).unwrap();
            let user = &request["auth"]["identity"]["password"]["user"];
            assert_eq!(
                *user,
                json!({ "name": "admin", "domain": { "name": "Default" }, "password": "12345" })
            );
            let project = json!({ "name": "admin", "domain": { "id": "default" } });
            assert_eq!(request["auth"]["scope"]["project"], project);
        }
        assert!(!format!("{from_file:?}").contains("12345"));
        // What lies in the file of secrets counts more.
        fs::write(folder.path().join("secure.yaml"), "clouds: {home: {auth: {password: other}}}").unwrap();
        let again = with(&[("OS_CLIENT_CONFIG_FILE", file), ("OS_CLOUD", "home")], None).unwrap().unwrap();
        assert!(again.request.contains("\"other\"") && !again.request.contains("12345"));
    }

    #[test]
    fn an_application_credential_needs_no_project() {
        let found = with(
            &[
                ("OS_AUTH_TYPE", "v3applicationcredential"),
                ("OS_AUTH_URL", "https://k/identity/v3"),
                ("OS_APPLICATION_CREDENTIAL_ID", "id"),
                ("OS_APPLICATION_CREDENTIAL_SECRET", "secret"),
            ],
            None,
        );
        let found = found.unwrap().unwrap();
        assert_eq!(found.auth_url, "https://k/identity");
        let request: Value = serde_json::from_str(&found.request).unwrap();
        let identity = &request["auth"]["identity"];
        assert_eq!(identity["application_credential"], json!({ "id": "id", "secret": "secret" }));
        assert_eq!(request["auth"].get("scope"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(with(&[], None).unwrap().is_none());
        let url = ("OS_AUTH_URL", "http://k");
        let user = ("OS_USERNAME", "admin");
        let told = |variables: &[(&str, &str)], cloud| with(variables, cloud).unwrap_err().to_string();
        assert!(told(&[user], None).contains("auth_url"));
        assert!(told(&[url, user], None).contains("user_domain_name"));
        assert!(told(&[url, user, ("OS_USER_DOMAIN_ID", "d")], None).contains("password"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clouds.yaml");
        let variable = ("OS_CLIENT_CONFIG_FILE", file.to_str().unwrap());
        fs::write(&file, CLOUDS).unwrap();
        assert!(told(&[variable], Some("nowhere")).contains("has no cloud nowhere"));
        assert!(told(&[variable], Some("other")).contains("v3token"));
        fs::write(&file, "clouds:\n  home:\n    auth: {password: 'secret'\n").unwrap();
        let error = with(&[variable], Some("home")).unwrap_err();
        let text = format!("{error} {}", std::error::Error::source(&error).unwrap());
        assert!(text.contains("clouds.yaml in line") && !text.contains("secret"), "{text}");
    }
}
