//! Who one is in a cloud, and where it is: the `OS_*` variables or a `clouds.yaml`, as the `openstack` command reads them.

mod files;
mod settings;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::OpenStackError;
use super::catalog::{Service, checked_url};
use settings::Settings;
pub(super) use settings::Trust;

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
    /// Who is believed to be the cloud.
    pub(super) trust: Trust,
    /// Where Glance is, whatever the catalog says.
    image_url: Option<String>,
    /// Where Nova is.
    compute_url: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("auth_url", &self.auth_url).finish_non_exhaustive()
    }
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
        let given = Settings::from_variables(variable);
        let named = cloud.map(str::to_owned).or_else(|| variable("OS_CLOUD"));
        if let Some(name) = named {
            return Self::new(files::find(&name, variable)?.with(given)).map(Some);
        }
        if given.auth.is_empty() { Ok(None) } else { Self::new(given).map(Some) }
    }

    /// Those of the cloud `name` in the text of a `clouds.yaml`, and in that of a `secure.yaml`, which counts more.
    ///
    /// # Errors
    /// [`OpenStackError::Credentials`] or [`OpenStackError::File`], which names the file by `path`.
    pub fn parse(
        name: &str,
        path: &Path,
        clouds: &str,
        secure: Option<(&Path, &str)>,
    ) -> Result<Self, OpenStackError> {
        Self::new(files::cloud(name, path, clouds, secure)?)
    }

    fn new(settings: Settings) -> Result<Self, OpenStackError> {
        let auth = &settings.auth;
        let Some(auth_url) = auth.get("auth_url") else {
            let known = settings.profile.map(|name| format!("; the profile {name:?} is not looked up"));
            return Err(missing("the URL of Keystone (auth_url)", &known.unwrap_or_default()));
        };
        let problem = |problem| OpenStackError::Credentials { problem };
        let auth_url = checked_url(auth_url).map_err(|told| problem(format!("auth_url: {told}")))?;
        let versioned = ["/v3", "/v2.0"].iter().find_map(|version| auth_url.strip_suffix(version));
        let auth_url = versioned.unwrap_or(&auth_url).trim_end_matches('/');
        let by_credential = match settings.auth_type.as_deref() {
            Some("v3applicationcredential") => true,
            Some("password" | "v3password") => false,
            None => auth.contains_key("application_credential_secret"),
            Some(other) => {
                return Err(problem(format!(
                    "the way to prove who one is {other:?} is not known, only password and v3applicationcredential"
                )));
            }
        };
        let request = if by_credential { application_credential(auth)? } else { password(auth)? };
        let interface = settings.interface.as_deref().unwrap_or("public");
        Ok(Self {
            auth_url: auth_url.to_owned(),
            request: Zeroizing::new(request.to_string()),
            region: settings.region_name.clone(),
            // openstacksdk takes `internalURL` as well.
            interface: interface.strip_suffix("URL").unwrap_or(interface).to_owned(),
            trust: settings.trust().map_err(problem)?,
            image_url: settings.image_endpoint_override,
            compute_url: settings.compute_endpoint_override,
        })
    }

    /// Whether anybody is believed to be the cloud, because the user wants that.
    pub fn trust_anybody(&self) -> bool {
        self.trust == Trust::Anybody
    }

    /// The URL of a service that counts more than the catalog.
    pub(super) fn endpoint(&self, service: Service) -> Option<&str> {
        match service {
            Service::Image => self.image_url.as_deref(),
            Service::Compute => self.compute_url.as_deref(),
        }
    }
}

/// What is not given, and what more there is to say of that.
fn missing(what: &str, more: &str) -> OpenStackError {
    OpenStackError::Credentials { problem: format!("{what} is not given{more}") }
}

fn needed<'a>(auth: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str, OpenStackError> {
    auth.get(name).map(String::as_str).ok_or_else(|| missing(name, ""))
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
        (None, None) => return Err(missing(&format!("{prefix}_domain_name"), "")),
    };
    Ok(Some(json!({ "name": name, "domain": domain })))
}

fn password(auth: &BTreeMap<String, String>) -> Result<Value, OpenStackError> {
    let mut user = reference(auth, "user", "username")?.ok_or_else(|| missing("username", ""))?;
    user["password"] = json!(needed(auth, "password")?);
    let project = reference(auth, "project", "project_name")?;
    let project = project
        .ok_or_else(|| missing("the project (project_name)", ", and instances and images belong to one"))?;
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
            let user = reference(auth, "user", "username")?
                .ok_or_else(|| missing("application_credential_id", ""))?;
            json!({ "name": name, "secret": secret, "user": user })
        }
    };
    let methods = ["application_credential"];
    Ok(json!({ "auth": { "identity": { "methods": methods, "application_credential": credential } } }))
}

#[cfg(test)]
mod tests {
    use std::fs;

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

    fn parsed(clouds: &str, secure: Option<&str>) -> Result<Credentials, OpenStackError> {
        let secure = secure.map(|text| (Path::new("secure.yaml"), text));
        Credentials::parse("c", Path::new("clouds.yaml"), clouds, secure)
    }

    const SOMEBODY: &str = "username: u, password: p, user_domain_id: d, project_id: i";

    #[test]
    fn a_cloud_is_read_as_openstacksdk_reads_it() {
        let url = "auth_url: 'https://k/identity/v2.0/'";
        let text = format!(
            "clouds: {{c: {{auth: {{{url}, {SOMEBODY}}}, regions: [{{name: one, values: {{x: y}}}}, two], verify: no, cacert: /x, \
             endpoint_type: adminURL, image_endpoint_override: 'http://g'}}, d: null}}"
        );
        let found = parsed(&text, None).unwrap();
        assert_eq!((found.auth_url.as_str(), found.region.as_deref()), ("https://k/identity", Some("one")));
        assert_eq!((found.interface.as_str(), found.endpoint(Service::Image)), ("admin", Some("http://g")));
        assert!(found.trust_anybody());
        // All of the file of secrets counts, and what is called by its former name.
        let secret =
            "clouds: {c: {region_name: two, verify: true, auth: {tenant-name: t, project_domain_id: d}}}";
        let found = parsed(&text.replace("project_id: i", "user_domain_name: n"), Some(secret)).unwrap();
        assert_eq!((found.region.as_deref(), found.trust), (Some("two"), Trust::Vouched(Some("/x".into()))));
        let request: Value = serde_json::from_str(&found.request).unwrap();
        assert_eq!(request["auth"]["scope"]["project"], json!({ "name": "t", "domain": { "id": "d" } }));
    }

    #[test]
    fn what_cannot_be_followed_is_told() {
        let told =
            |cloud: &str| parsed(&format!("clouds: {{c: {{{cloud}}}}}"), None).unwrap_err().to_string();
        assert!(told("profile: ovh, auth: {username: u}").contains("the profile \"ovh\" is not looked up"));
        assert!(told(&format!("auth: {{auth_url: 'k:5000', {SOMEBODY}}}")).contains("neither with http://"));
        let secret = told(&format!("auth: {{auth_url: 'http://me:secret@k', {SOMEBODY}}}"));
        assert!(secret.contains("a password in it") && !secret.contains("secret"), "{secret}");
        let system =
            "auth: {auth_url: 'http://k', username: u, password: p, user_domain_id: d, system_scope: all}";
        assert!(told(system).contains("images belong to one"));
        assert!(
            told(&format!("verify: perhaps, auth: {{auth_url: 'http://k', {SOMEBODY}}}"))
                .contains("verify is")
        );
    }

    #[test]
    fn variables_beside_a_named_cloud_choose_its_region_and_give_its_secret() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clouds.yaml");
        fs::write(&file, CLOUDS.replace("      password: 12345\n", "")).unwrap();
        let file = ("OS_CLIENT_CONFIG_FILE", file.to_str().unwrap());
        let given = [
            ("OS_CLOUD", "home"),
            ("OS_PASSWORD", "from a variable"),
            ("OS_USERNAME", "somebody else"),
            ("OS_REGION_NAME", "there"),
            ("OS_CACERT", "~/ca.pem"),
            ("HOME", "/home/me"),
        ];
        let found = with(&[&[file][..], &given].concat(), None).unwrap().unwrap();
        assert_eq!(found.region.as_deref(), Some("there"));
        assert_eq!(found.trust, Trust::Vouched(Some("/home/me/ca.pem".into())));
        assert!(found.request.contains("from a variable") && !found.request.contains("somebody else"));
        assert!(with(&[file, ("OS_CLOUD", "home")], None).is_err(), "there is no password");
    }
}
