//! Which services a cloud has, and where, as Keystone tells it with a token.

use reqwest::Url;
use serde::Deserialize;

use super::OpenStackError;
use super::answer::{parse, plain};

/// Endpoints that an error names.
const NAMED: usize = 6;

/// A service, by the type that the catalog has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Glance.
    Image,
    /// Nova.
    Compute,
}

impl Service {
    /// Its type in the catalog.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Compute => "compute",
        }
    }

    /// The version of its interface that is spoken: what every path begins with.
    fn version(self) -> &'static str {
        match self {
            Self::Image => "v2",
            Self::Compute => "v2.1",
        }
    }
}

/// The services of a cloud.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    entries: Vec<Entry>,
    /// The project that the token is for.
    project: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: TokenBody,
}

#[derive(Deserialize)]
struct TokenBody {
    #[serde(default)]
    catalog: Option<Vec<Entry>>,
    project: Option<Project>,
}

#[derive(Deserialize)]
struct Project {
    id: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

/// Other services' endpoints may be as odd as they like.
#[derive(Clone, Debug, Deserialize)]
struct Endpoint {
    #[serde(default)]
    interface: String,
    region_id: Option<String>,
    region: Option<String>,
    url: Option<String>,
}

impl Endpoint {
    fn region(&self) -> Option<&str> {
        self.region_id.as_deref().or(self.region.as_deref())
    }
}

impl Catalog {
    /// Reads what Keystone answers to `request`, one for a token.
    ///
    /// # Errors
    /// [`OpenStackError::Nonsense`].
    pub fn parse(request: &str, text: &[u8]) -> Result<Self, OpenStackError> {
        let TokenAnswer { token } = parse(request, text)?;
        Ok(Self {
            entries: token.catalog.unwrap_or_default(),
            project: token.project.map(|project| project.id),
        })
    }

    /// The URL below which a service has everything, without a slash at the end.
    ///
    /// # Errors
    /// [`OpenStackError::NoEndpoint`] without one of that interface and region, [`OpenStackError::Credentials`] if it is no URL.
    pub fn base(
        &self,
        service: Service,
        interface: &str,
        region: Option<&str>,
    ) -> Result<String, OpenStackError> {
        let endpoints: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| entry.r#type == service.kind())
            .flat_map(|entry| &entry.endpoints)
            .collect();
        let fits = |endpoint: &&&Endpoint| {
            endpoint.interface == interface && region.is_none_or(|region| endpoint.region() == Some(region))
        };
        let found = endpoints.iter().find(fits).and_then(|endpoint| endpoint.url.as_deref());
        let url = found.ok_or_else(|| {
            let named = endpoints.iter().take(NAMED).map(|endpoint| {
                plain(&format!("{} in {}", endpoint.interface, endpoint.region().unwrap_or("no region")), 80)
            });
            let offered = named.collect::<Vec<_>>().join(", ");
            OpenStackError::NoEndpoint {
                service: service.kind(),
                sought: match region {
                    Some(region) => format!("interface {interface}, region {region}"),
                    None => format!("interface {interface}"),
                },
                offered: if offered.is_empty() { "none at all".into() } else { offered },
            }
        })?;
        self.at(service, url)
    }

    /// The same if its endpoint is known to be at that URL, which may name a version and the project.
    ///
    /// # Errors
    /// [`OpenStackError::Credentials`] if it is no URL.
    pub fn at(&self, service: Service, url: &str) -> Result<String, OpenStackError> {
        let url = checked_url(url).map_err(|problem| OpenStackError::Credentials {
            problem: format!("the endpoint of the service {}: {problem}", service.kind()),
        })?;
        Ok(based(&url, service.version(), self.project.as_deref()))
    }
}

/// A URL that requests can go to, without a slash at its end.
pub(super) fn checked_url(text: &str) -> Result<String, String> {
    // It may hold a password, so it is not told.
    let url = Url::parse(text).map_err(|error| format!("the URL cannot be understood: {error}"))?;
    if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
        return Err("the URL begins neither with http:// nor with https://".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL with a user or a password in it is not used".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a URL with a question mark or a number sign is not used".into());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The URL of that version of the service at `url`, which may name this version or another, and below it the project.
fn based(url: &str, version: &str, project: Option<&str>) -> String {
    let of_project = project.and_then(|id| url.strip_suffix(id)?.trim_end_matches("AUTH_").strip_suffix('/'));
    let unversioned = |url: &str| {
        let (base, last) = url.rsplit_once('/')?;
        let number = last.strip_prefix('v')?;
        let is_version = number.starts_with(|c: char| c.is_ascii_digit()) && number.split('.').all(is_number);
        is_version.then(|| (base.to_owned(), last == version))
    };
    match (unversioned(url), of_project.and_then(unversioned)) {
        (Some((_, true)), _) | (_, Some((_, true))) => url.to_owned(),
        (Some((base, false)), _) | (_, Some((base, false))) => format!("{base}/{version}"),
        (None, None) => format!("{url}/{version}"),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_found_with_and_without_a_version() {
        let url =
            |base: &str, service| based(&checked_url(base).unwrap(), Service::version(service), Some("5f3a"));
        for (base, expected) in [
            ("http://n:8774/", "http://n:8774/v2.1"),
            ("http://n:8774/v2.1", "http://n:8774/v2.1"),
            ("http://n/compute/v2.1/5f3a", "http://n/compute/v2.1/5f3a"),
            // Nova's first interface, which it does not have any more.
            ("http://n:8774/v2/5f3a/", "http://n:8774/v2.1"),
            ("http://n:8774/v2", "http://n:8774/v2.1"),
            // A prefix that looks like a version is none.
            ("https://n/v2/compute", "https://n/v2/compute/v2.1"),
            ("https://n/v2/compute/v2.1/", "https://n/v2/compute/v2.1"),
            ("https://n/virtual", "https://n/virtual/v2.1"),
        ] {
            assert_eq!(url(base, Service::Compute), expected, "{base}");
        }
        assert_eq!(url("http://g/image/v1", Service::Image), "http://g/image/v2");
        assert_eq!(url("http://g/image", Service::Image), "http://g/image/v2");
    }

    #[test]
    fn the_endpoint_of_that_region_and_interface_is_taken() {
        let text = br#"{"token": {"project": {"id": "p"}, "catalog": [
            {"type": "odd"}, {"type": "image", "endpoints": [
                {"interface": "public", "region": "here", "url": "http://no"},
                {"interface": "internal", "region": "there", "region_id": "there", "url": "http://no"},
                {"interface": "internal", "region_id": "here", "url": "http://yes"},
                {"interface": "admin", "url": null}]}]}}"#;
        let catalog = Catalog::parse("POST k", text).unwrap();
        assert_eq!(catalog.base(Service::Image, "internal", Some("here")).unwrap(), "http://yes/v2");
        assert_eq!(catalog.base(Service::Image, "internal", None).unwrap(), "http://no/v2");
        let told =
            |service, interface, region| catalog.base(service, interface, region).unwrap_err().to_string();
        let missing = told(Service::Image, "public", Some("there"));
        assert!(missing.contains("image (interface public, region there)"), "{missing}");
        assert!(missing.contains("public in here, internal in there"), "{missing}");
        assert!(told(Service::Image, "admin", None).contains("interface admin"));
        assert!(told(Service::Compute, "public", None).contains("none at all"));
    }

    #[test]
    fn urls_with_secrets_or_without_a_host_are_refused() {
        for text in [
            "",
            "k:5000",
            "file:///etc/passwd",
            "http://",
            "http://me:secret@k/",
            "http://k/?x",
            "http://k/#x",
        ] {
            let problem = checked_url(text).unwrap_err();
            assert!(!problem.contains("secret"), "{problem}");
        }
        assert_eq!(checked_url("https://k:5000/identity/").unwrap(), "https://k:5000/identity");
    }
}
