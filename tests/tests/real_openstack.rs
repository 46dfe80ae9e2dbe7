//! Restores into a real Glance, as a user of the cloud.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use underlay_tests::commands::{output, run, terminate};
use underlay_tests::openstack::OpenStack;
use underlay_tests::program::Underlay;
use underlay_tests::proxy::{Fault, Proxy};

/// Forwards what comes over TLS to an address: its arguments are a file with certificate and key, a host and a port. It says its own port.
const TUNNEL: &str = "
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(('127.0.0.1', 0))
print(listener.getsockname()[1], flush=True)
def pump(source, sink):
    try:
        while data := source.recv(65536): sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError: pass
def serve(plain):
    try: secured = context.wrap_socket(plain, server_side=True)
    except OSError: return
    service = socket.create_connection((sys.argv[2], int(sys.argv[3])))
    threading.Thread(target=pump, args=(secured, service), daemon=True).start()
    pump(service, secured)
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// A repository with a machine of two disks, and a cloud.
struct Site {
    cloud: OpenStack,
    underlay: Underlay,
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
        let site = Self { cloud: OpenStack::identity_and_images().unwrap(), underlay, folder };
        let (system, data) = (site.path("system.qcow2"), site.path("data.qcow2"));
        for (image, size, writes) in [
            (&system, "2500M", ["write -P 17 3M 9M", "write -P 5 2100M 70k", "write -z 4M 1M"]),
            (&data, "40M", ["write -P 1 0 100k", "write -P 2 20M 4k", "write -P 3 39M 1M"]),
        ] {
            run("qemu-img", ["create", "-q", "-f", "qcow2", image.to_str().unwrap(), size]).unwrap();
            for write in writes {
                run("qemu-io", ["-f", "qcow2", image.to_str().unwrap(), "-c", write]).unwrap();
            }
        }
        let disks = [("vda", &system), ("vdb", &data)];
        let disks = disks.map(|(name, image)| format!("{name}={}", image.display()));
        site.underlay.run(&["backup", "--vm", "web", &disks[0], &disks[1]]).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `underlay` with these variables besides.
    fn with(&self, variables: Vec<(&str, String)>) -> Underlay {
        variables
            .iter()
            .fold(self.underlay.clone(), |underlay, (name, value)| underlay.with_variable(name, value))
    }

    /// `underlay` that reaches Glance through a proxy with this rule.
    fn through(&self, rule: impl FnMut(&str) -> Option<Fault> + Send + 'static) -> (Underlay, Proxy) {
        let proxy = Proxy::start(self.cloud.image_url().trim_start_matches("http://"), rule).unwrap();
        let underlay = self.with(self.cloud.variables());
        (underlay.with_variable("OS_IMAGE_ENDPOINT_OVERRIDE", &proxy.url()), proxy)
    }

    /// Makes an image of the second disk, which must fail; what is said of that.
    #[track_caller]
    fn fails(&self, underlay: &Underlay, expected: &[&str]) -> String {
        let command = ["restore", "web@latest", "--disk", "vdb", "--to-glance", "x"];
        let ended = output(&mut underlay.command(command)).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{}", told(&ended));
        for words in expected {
            assert!(told(&ended).contains(words), "{words}: {}", told(&ended));
        }
        told(&ended)
    }

    /// What the image's file holds, as QEMU reads it, is what this disk holds.
    fn expect_image(&self, id: &str, format: &str, disk: &Path) {
        let back = self.path(&format!("{id}.{format}"));
        self.cloud.download_image(id, &back).unwrap();
        if format == "qcow2" {
            run("qemu-img", ["check", "-q", "-f", format, back.to_str().unwrap()]).unwrap();
        }
        let files = [disk.to_str().unwrap(), back.to_str().unwrap()];
        run("qemu-img", ["compare", "-f", "qcow2", "-F", format, files[0], files[1]]).unwrap();
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn disks_become_images_without_a_copy() {
    let site = Site::new();
    let underlay = site.with(site.cloud.variables());
    let arguments = ["restore", "web@latest", "--disk", "vda", "--to-glance", "web restored"];
    let answer = underlay.json(arguments).unwrap();
    let image = site.cloud.image(answer["image"]["id"].as_str().unwrap()).unwrap();
    assert_eq!((&*image.status, &*image.disk_format, &*image.name), ("active", "qcow2", "web restored"));
    assert_eq!(image.os_hash_value.as_deref(), answer["image"]["hash"].as_str());
    assert_eq!(image.size, answer["image"]["size"].as_u64());
    // Eight MiB of data and tables, not the whole disk.
    assert!(image.size.unwrap() < 10 << 20, "{answer}");
    assert_eq!(image.properties["min_disk"], 3);
    assert_eq!(image.properties["underlay_vm"], "web");
    assert_eq!(image.properties["underlay_snapshot"], answer["snapshot"]);
    site.expect_image(&image.id, "qcow2", &site.path("system.qcow2"));

    // With an application credential of a clouds.yaml, raw.
    let credential = site.cloud.application_credential().unwrap();
    let file = site.path("clouds.yaml");
    let (url, id, secret) = (site.cloud.auth_url(), &credential.id, &credential.secret);
    fs::write(
        &file,
        format!(
            "clouds:\n  home:\n    auth_type: v3applicationcredential\n    region_name: RegionOne\n    auth:\n      \
             auth_url: {url}\n      application_credential_id: {id}\n      application_credential_secret: {secret}\n"
        ),
    )
    .unwrap();
    let underlay = site.underlay.clone().with_variable("OS_CLIENT_CONFIG_FILE", file.to_str().unwrap());
    let arguments = ["restore", "web@latest", "--disk", "vdb", "--to-glance", "data", "--format", "raw"];
    underlay.run(&[&arguments[..], &["--os-cloud", "home"]].concat()).unwrap();
    let image = site.cloud.image_named("data").unwrap();
    assert_eq!((&*image.disk_format, image.size), ("raw", Some(40 << 20)));
    site.expect_image(&image.id, "raw", &site.path("data.qcow2"));

    // The same image as a stream.
    let output = site
        .underlay
        .output(["restore", "web@latest", "--disk", "vda", "--to", "-", "--format", "qcow2"])
        .unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let piped = site.path("piped.qcow2");
    fs::write(&piped, &output.stdout).unwrap();
    run("qemu-img", ["check", "-q", "-f", "qcow2", piped.to_str().unwrap()]).unwrap();
    let files = [site.path("system.qcow2"), piped];
    run(
        "qemu-img",
        ["compare", "-f", "qcow2", "-F", "qcow2", files[0].to_str().unwrap(), files[1].to_str().unwrap()],
    )
    .unwrap();
}

#[test]
fn what_cannot_be_is_told_and_leaves_no_image() {
    let site = Site::new();
    let restore = |underlay: &Underlay, more: &[&str]| {
        let mut command = underlay.command(["restore", "web@latest", "--to-glance", "x"]);
        output(command.args(more)).unwrap()
    };
    let expect = |output: Output, code: i32, words: &[&str]| {
        assert_eq!(output.status.code(), Some(code), "{}", told(&output));
        for word in words {
            assert!(told(&output).contains(word), "{word}: {}", told(&output));
        }
    };
    expect(restore(&site.underlay, &["--disk", "vda"]), 2, &["no cloud is named", "OS_CLOUD"]);
    let underlay = site.with(site.cloud.variables());
    expect(restore(&underlay, &[]), 2, &["several disks", "--disk (vda, vdb)"]);
    expect(restore(&underlay, &["--disk", "vdx"]), 2, &["no disk \"vdx\""]);
    expect(restore(&underlay, &["--disk", "vda", "--boot", "y"]), 2, &["no flavor is known", "--flavor"]);
    let stranger = underlay.clone().with_variable("OS_PASSWORD", "wrong");
    expect(restore(&stranger, &["--disk", "vda"]), 1, &["401", "check user, password"]);
    let lost = underlay.clone().with_variable("OS_AUTH_URL", "http://127.0.0.1:9/v3");
    expect(restore(&lost, &["--disk", "vda"]), 1, &["http://127.0.0.1:9/v3/auth/tokens does not answer"]);
    let elsewhere = underlay.clone().with_variable("OS_REGION_NAME", "Nowhere");
    expect(restore(&elsewhere, &["--disk", "vda"]), 1, &["no endpoint", "region Nowhere", "OS_REGION_NAME"]);

    // A pack is gone: what was sent so far is no image.
    let packs = site.path("repo/packs");
    let list = run("find", [packs.to_str().unwrap(), "-type", "f"]).unwrap();
    list.lines().for_each(|pack| fs::remove_file(pack).unwrap());
    expect(restore(&underlay, &["--disk", "vda"]), 12, &[]);
    let images = site.cloud.images().unwrap();
    assert!(images.is_empty(), "{images:?}");
}

/// Answers `status` to every request of which these are the first words.
fn refusing(start: &'static str, status: &'static str) -> impl FnMut(&str) -> Option<Fault> + Send {
    move |request| {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        request.starts_with(start).then(|| Fault::Answer(answer.into_bytes()))
    }
}

#[test]
fn whatever_becomes_of_an_answer_no_image_is_left() {
    let site = Site::new();
    let nothing = || site.cloud.images().unwrap();
    // Glance makes the image, and nobody hears of it.
    let lost = |request: &str| (request == "POST /v2/images").then_some(Fault::LoseAnswer);
    let (underlay, proxy) = site.through(lost);
    site.fails(&underlay, &["/v2/images does not answer"]);
    assert!(nothing().is_empty(), "{:?}", nothing());
    assert!(
        proxy.seen().iter().any(|request| request.starts_with("DELETE /v2/images/")),
        "{:?}",
        proxy.seen()
    );

    // The same, and it cannot be removed either: then it is named.
    let mut forbidden = refusing("DELETE", "403 Forbidden");
    let (underlay, _proxy) = site.through(move |request| lost(request).or_else(|| forbidden(request)));
    let said = site.fails(&underlay, &["may be left behind", "403"]);
    let left = nothing();
    assert!(
        left.len() == 1 && said.contains(&format!("`openstack image delete {}`", left[0].id)),
        "{said} {left:?}"
    );
    site.cloud.delete_image(&left[0].id).unwrap();

    // An image of somebody else's that has the same id is not touched.
    let (underlay, proxy) = site.through(refusing("POST", "409 Conflict"));
    site.fails(&underlay, &["the cloud has one of that id, which is not touched"]);
    assert!(proxy.seen().iter().all(|request| request.starts_with("POST")), "{:?}", proxy.seen());

    // A token that Glance finds too old when it has the whole file.
    let (underlay, proxy) = site.through(refusing("PUT", "401 Unauthorized"));
    site.fails(&underlay, &["the token ran out while its file was sent", "[token] expiration"]);
    assert_eq!(proxy.seen().iter().filter(|request| request.starts_with("PUT")).count(), 1);
    assert!(nothing().is_empty(), "{:?}", nothing());
}

#[test]
fn answers_that_make_no_sense_are_told_and_leave_no_image() {
    type Make = fn() -> Fault;
    let site = Site::new();
    let faults: [(Make, &str); 5] = [
        (|| Fault::CutOff, "it is cut off after"),
        (|| Fault::Change(|body| [body, b" ".repeat(3 << 20)].concat()), "it is longer than 2097152 bytes"),
        (|| Fault::Change(|_| [&b"{\"x\": "[..], &b"[".repeat(200_000)].concat()), " at line 1 column "),
        (|| Fault::Change(|_| b"{\"token\": 5, \"id\": 5}".to_vec()), "invalid type"),
        (|| Fault::Change(|_| b"<html>It works!</html>".to_vec()), "expected value at line 1"),
    ];
    for (fault, problem) in faults {
        let to_glance = move |request: &str| (request == "POST /v2/images").then(fault);
        let (underlay, proxy) = site.through(to_glance);
        site.fails(&underlay, &[&format!("POST {}/v2/images: ", proxy.url()), problem]);
        assert!(site.cloud.images().unwrap().is_empty(), "{problem}");

        let keystone = site.cloud.auth_url().replace("http://", "").replace("/v3", "");
        let proxy = Proxy::start(&keystone, move |_| Some(fault())).unwrap();
        let underlay = site.with(site.cloud.variables()).with_variable("OS_AUTH_URL", &proxy.url());
        let said = site.fails(&underlay, &[&format!("POST {}/v3/auth/tokens: ", proxy.url()), problem]);
        assert!(!said.contains("left behind"), "{said}");
    }
}

#[test]
fn nobody_else_is_given_the_password() {
    let site = Site::new();
    let address = site.cloud.auth_url().replace("http://", "").replace("/v3", "");
    // A redirect is not followed.
    let elsewhere = Proxy::start(&address, |_| None).unwrap();
    let place = format!("{}/v3/auth/tokens", elsewhere.url());
    let answer = format!("HTTP/1.1 308 Permanent Redirect\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::start(&address, move |_| Some(Fault::Answer(answer.clone().into_bytes()))).unwrap();
    let user = site.with(site.cloud.variables());
    let redirected = user.clone().with_variable("OS_AUTH_URL", &proxy.url());
    site.fails(&redirected, &["308", &format!("it sends us to {place}"), "OS_AUTH_URL"]);
    assert_eq!(elsewhere.seen(), Vec::<String>::new());

    // A certificate that nobody vouches for ends it at once, and is named.
    let both = site.path("both.pem");
    let (subject, names) = ("/CN=cloud", "subjectAltName=IP:127.0.0.1");
    let certificate = site.path("certificate.pem");
    let files = [both.to_str().unwrap(), certificate.to_str().unwrap()];
    let key =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject, "-addext", names];
    // Without this it would be an authority's, which none of rustls' clients takes for a server's.
    let own = ["-addext", "basicConstraints=critical,CA:FALSE"];
    run("openssl", key.into_iter().chain(own).chain(["-keyout", files[0], "-out", files[1]])).unwrap();
    let text = fs::read_to_string(&both).unwrap() + &fs::read_to_string(&certificate).unwrap();
    fs::write(&both, text).unwrap();
    let (host, port) = address.split_once(':').unwrap();
    let mut tunnel = Command::new("python3");
    tunnel.args(["-c", TUNNEL, files[0], host, port]).stdout(Stdio::piped());
    let mut tunnel = tunnel.spawn().unwrap();
    let port = BufReader::new(tunnel.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    let secured = user.with_variable("OS_AUTH_URL", &format!("https://127.0.0.1:{port}/v3"));
    let start = Instant::now();
    site.fails(&secured, &["is not to be trusted", "OS_CACERT"]);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}: it was tried again", start.elapsed());
    let into = ["restore", "web@latest", "--disk", "vdb", "--to-glance"];
    let vouched = secured.clone().with_variable("OS_CACERT", files[1]);
    let done = output(vouched.command(into).arg("vouched")).unwrap();
    assert!(done.status.success() && !told(&done).contains("not verified"), "{}", told(&done));
    let insecure = secured.with_variable("OS_INSECURE", "true");
    let done = output(insecure.command(into).arg("insecure")).unwrap();
    assert!(
        done.status.success() && told(&done).contains("its certificate is not verified"),
        "{}",
        told(&done)
    );
    terminate(&mut tunnel);
}
