//! What the services of a cloud answer, and the files that say who one is there.

use std::fmt::Debug;
use std::path::Path;

use underlay_client::openstack::{
    Catalog, Created, Credentials, Flavors, Image, OpenStackError, Ports, Server, Service, complaint,
};

use crate::{Seed, allocations, assert_names};

/// What asks, as it is called in errors.
const REQUEST: &str = "GET https://cloud:9292/v2/x";
/// What parts the two files of an input.
const BETWEEN: &[u8] = b"\n=====\n";
/// Longer than any error: nothing that a cloud says is told at length.
const TOLD: usize = 1000;

/// What reading an answer may hold at once. A `{}` of two bytes is a whole entry in memory.
fn limit(bytes: &[u8]) -> usize {
    (64 << 10) + 256 * bytes.len()
}

/// An answer, read as that to each request.
///
/// # Panics
/// If an id is taken that cannot be part of a URL, an endpoint that is none, or if what is told is long or moves the cursor.
pub fn answer(bytes: &[u8]) {
    let told = allocations::within(limit(bytes), || complaint(bytes));
    assert_brief(&told);
    if let Some(server) = read(bytes, Server::parse) {
        assert_id(&server.id);
        server.image_id().into_iter().for_each(assert_id);
        assert_brief(&server.task_state.unwrap_or_default());
    }
    if let Some(image) = read(bytes, Image::parse) {
        assert_id(&image.id);
        let kept = image.run_properties();
        assert!(kept.keys().all(|name| name.starts_with("hw_") || name.starts_with("os_")), "{kept:?}");
    }
    if let Some(id) = read(bytes, Created::parse) {
        assert_id(&id);
    }
    read(bytes, Ports::parse);
    if let Some(flavors) = read(bytes, Flavors::parse) {
        flavors.find("m1.small");
    }
    if let Some(catalog) = read(bytes, Catalog::parse) {
        for service in [Service::Image, Service::Compute] {
            for (interface, region) in [("public", None), ("internal", Some("here"))] {
                match allocations::within(limit(bytes), || catalog.base(service, interface, region)) {
                    Ok(url) => assert_url(&url, service),
                    Err(error) => {
                        assert_names(service.kind(), &error);
                        assert_brief(&error.to_string());
                    }
                }
            }
        }
    }
}

fn read<T: Debug>(bytes: &[u8], parse: fn(&str, &[u8]) -> Result<T, OpenStackError>) -> Option<T> {
    match allocations::within(limit(bytes), || parse(REQUEST, bytes)) {
        Ok(found) => Some(found),
        Err(error) => {
            assert_names(REQUEST, &error);
            assert_brief(&error.to_string());
            None
        }
    }
}

fn assert_id(id: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    assert!(!id.is_empty() && id.chars().all(plain), "{id:?} is taken for an id");
}

fn assert_brief(told: &str) {
    assert!(told.len() <= 4 * TOLD, "{} bytes are told", told.len());
    assert!(told.chars().count() <= TOLD && !told.contains(char::is_control), "{told:?}");
}

/// Requests may go there: the version comes last, or the project after it, and nobody's password is in it.
fn assert_url(url: &str, service: Service) {
    let version = if service == Service::Image { "/v2" } else { "/v2.1" };
    assert!(url.starts_with("http://") || url.starts_with("https://"), "{url}");
    assert!(url.ends_with(version) || url.contains(&format!("{version}/")), "{url}");
    let authority = url.split('/').nth(2).unwrap_or_default();
    assert!(
        !authority.is_empty() && !authority.contains('@') && !url.contains(['?', '#', ' ', '\n']),
        "{url}"
    );
}

/// A `clouds.yaml` and the `secure.yaml` beside it.
///
/// # Panics
/// If a secret is told, or an error that names neither a file nor what is wrong.
pub fn files(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let between = str::from_utf8(BETWEEN).unwrap_or_default();
    let (clouds, secure) = match text.split_once(between) {
        Some((clouds, secure)) => (clouds, Some((Path::new("/etc/secure.yaml"), secure))),
        None => (text, None),
    };
    let parse = || Credentials::parse("home", Path::new("/etc/clouds.yaml"), clouds, secure);
    match allocations::within((4 << 20) + 256 * bytes.len(), parse) {
        Ok(credentials) => assert!(!format!("{credentials:?}").contains("SECRET-OF-MINE")),
        Err(error) => {
            let told = error.to_string();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(told.contains("/etc/") || told.starts_with("no access to OpenStack: "), "{told}");
            assert!(!source.contains("SECRET-OF-MINE"), "{source}");
        }
    }
}

/// Answers as Keystone, Nova and Glance give them, and their complaints.
pub fn answer_seeds() -> Vec<Seed> {
    let server = r#"{"server": {"id": "6f0a7c1e-5a0b-4c8e-9a55-0d9b3f6f3b6e", "name": "web", "status": "ACTIVE", "tenant_id": "5f3a", "user_id": "u",
        "metadata": {"role": "db"}, "image": {"id": "b206a1900310484f8a9504754c84b067", "links": []}, "locked": true,
        "locked_reason": "underlay backup on host", "OS-EXT-STS:task_state": "image_snapshot",
        "flavor": {"vcpus": 1, "ram": 512, "disk": 4, "ephemeral": 0, "swap": 0, "original_name": "m1.tiny", "extra_specs": {}},
        "os-extended-volumes:volumes_attached": [{"id": "v", "delete_on_termination": false}],
        "fault": {"code": 500, "created": "2026-11-27T10:00:00Z", "message": "No valid host was found."}}}"#;
    let image = r#"{"id": "b206a190-0310-484f-8a95-04754c84b067", "name": "debian", "status": "active", "visibility": "private", "size": 3,
        "virtual_size": null, "os_hash_algo": "sha512", "os_hash_value": "00", "os_hidden": false, "hw_disk_bus": "scsi", "os_type": "linux",
        "owner_specified.x": "y", "tags": [], "min_disk": 3}"#;
    let token = r#"{"token": {"methods": ["password"], "user": {"domain": {"id": "default", "name": "Default"}, "id": "u", "name": "me"},
        "expires_at": "2026-11-27T11:00:00.000000Z", "project": {"domain": {"id": "default"}, "id": "5f3a", "name": "p"}, "is_domain": false,
        "catalog": [{"endpoints": [{"id": "e", "interface": "public", "region": "here", "region_id": "here", "url": "http://k/v3"}], "type": "identity"},
        {"endpoints": [{"interface": "internal", "region_id": "here", "url": "https://g:9292/image/v2/"},
                       {"interface": "public", "region_id": "there", "url": "http://g:9292"}], "id": "i", "type": "image", "name": "glance"},
        {"endpoints": [{"interface": "public", "region": "here", "url": "http://n:8774/v2.1/5f3a"},
                       {"interface": "internal", "region": "here", "url": "http://n:8774/compute/v2/5f3a/"}], "type": "compute", "name": "nova"}]}}"#;
    let seeds = [
        ("server", server),
        (
            "server-on-volume",
            r#"{"server": {"id": "a-b", "name": "", "status": "ERROR", "image": "", "OS-EXT-STS:task_state": null}}"#,
        ),
        (
            "created",
            r#"{"server": {"id": "a-b", "links": [], "OS-DCF:diskConfig": "MANUAL", "adminPass": "x"}}"#,
        ),
        ("image", image),
        (
            "ports",
            r#"{"interfaceAttachments": [{"port_id": "p", "net_id": "n", "fixed_ips": [{"ip_address": "10.0.0.3"}]}]}"#,
        ),
        (
            "flavors",
            r#"{"flavors": [{"id": "1", "name": "m1.small", "links": []}, {"id": "m1.small", "name": "2"}]}"#,
        ),
        ("token", token),
        ("token-unscoped", r#"{"token": {"methods": ["token"], "catalog": null, "project": null}}"#),
        ("complaint-nova", r#"{"conflictingRequest": {"code": 409, "message": "Instance x is locked"}}"#),
        (
            "complaint-keystone",
            r#"{"error": {"code": 401, "message": "The request you have made requires authentication.", "title": "Unauthorized"}}"#,
        ),
        (
            "complaint-glance",
            "<html>\n <head>\n  <title>409 Conflict</title>\n </head>\n <body>\n  <h1>409 Conflict</h1>\n  Image ID x already exists!<br /><br />\n </body>\n</html>",
        ),
    ];
    seeds.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).to_vec()
}

/// Files as people write them.
pub fn file_seeds() -> Vec<Seed> {
    let password = "clouds:\n  home:\n    auth:\n      auth_url: https://k:5000/v3/\n      username: admin\n      password: SECRET-OF-MINE\n      \
        project_name: admin\n      user_domain_name: Default\n      project_domain_id: default\n    region_name: here\n    \
        interface: internal\n    verify: true\n    cacert: ~/ca.pem\n    identity_api_version: 3\n  other: {}\n";
    let apart = "clouds:\n  home:\n    auth: &me {auth_url: 'http://k', user_id: u, project-id: p}\n    regions: [{name: one, values: {a: 1}}, two]\n\
        \x20   insecure: no\n  other: {auth: *me}\n=====\nclouds: {home: {auth: {password: SECRET-OF-MINE}}}\n";
    let credential = "{\"clouds\": {\"home\": {\"auth_type\": \"v3applicationcredential\", \"auth\": {\"auth_url\": \"https://k/identity\", \
        \"application_credential_id\": \"i\", \"application_credential_secret\": \"SECRET-OF-MINE\"}, \"image_endpoint_override\": \"http://g\"}}}";
    let system = "clouds: {home: {profile: ovh, endpoint_type: publicURL, auth: {system_scope: all, tenant_name: t, auth_url: 'http://k'}}}";
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\n\
        d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\nclouds: {home: {auth: {auth_url: *d}, regions: [*d, *d, *d]}}\n";
    [("password", password), ("apart", apart), ("credential", credential), ("system", system), ("bomb", bomb)]
        .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
        .to_vec()
}
