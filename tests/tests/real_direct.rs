//! Packs that go between clients and the bucket: on Garage, with another server that does not hold anybody to what was signed, and without
//! a way to the bucket.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use underlay_client::remote::{RemoteAuthority, RemoteOptions};
use underlay_store::cut::REGION_BLOCKS;
use underlay_store::id::{ChunkId, NodeId, RepositoryId};
use underlay_store::pack::{FinishedPack, PackWriter};
use underlay_store::tree::{Node, Run};
use underlay_tests::commands::{output, run, run_command};
use underlay_tests::conformance::{CASES, Ground};
use underlay_tests::images;
use underlay_tests::program::Underlay;
use underlay_tests::s3::S3Server;
use underlay_tests::server::{NAME, ServerProgram, new_descriptor};

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A server whose clients are sent to the bucket, and who runs it.
struct Site {
    folder: TempDir,
    server: ServerProgram,
    token: String,
    operator: Underlay,
}

impl Site {
    fn start(s3: &S3Server, address: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let server = ServerProgram::on_s3_with(path, s3, address, "direct = true").unwrap();
        let token = server.token(&["--scope", "admin,backup,maintain,restore"]).unwrap();
        let operator = server.client(path, &token).unwrap();
        Self { folder, server, token, operator }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A host of its own state.
    fn host(&self, name: &str) -> Underlay {
        std::fs::create_dir(self.path(name)).unwrap();
        self.operator.elsewhere(&self.path(name))
    }

    /// What the server's metrics say of bodies, in bytes: what came, and what went.
    fn traffic(&self) -> (u64, u64) {
        let metrics = self.curl(&["-H", &format!("Authorization: Bearer {}", self.token)], "/metrics").1;
        let of = |name: &str| {
            let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
        };
        (of("underlay_http_received_bytes_total"), of("underlay_http_sent_bytes_total"))
    }

    fn curl(&self, arguments: &[&str], path: &str) -> (u16, String) {
        curl(arguments, &format!("https://{}{path}", self.server.address))
    }

    /// Asks the server in its operator's name.
    fn ask(&self, method: &str, below: &str, body: &str) -> (u16, String) {
        let bearer = format!("Authorization: Bearer {}", self.token);
        let path = format!("/v1/repositories/{NAME}{below}");
        let mut arguments = vec!["-X", method, "-H", &bearer];
        if !body.is_empty() {
            arguments.extend(["-d", body]);
        }
        self.curl(&arguments, &path)
    }
}

/// Status and body.
fn curl(arguments: &[&str], url: &str) -> (u16, String) {
    let mut command = Command::new("curl");
    let answer = run_command(command.args(["-sk", "-w", "\n%{http_code}", url]).args(arguments)).unwrap();
    let (body, status) = answer.trim_end().rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// Makes a signed request with this file as its body.
fn make(signed: &Value, url: &str, body: &Path) -> (u16, String) {
    let headers = signed["headers"].as_object().unwrap().iter();
    let headers: Vec<String> =
        headers.map(|pair| format!("{}: {}", pair.0, pair.1.as_str().unwrap())).collect();
    let mut arguments = vec!["-T", text(body)];
    headers.iter().for_each(|header| arguments.extend(["-H", header]));
    curl(&arguments, url)
}

/// An overlay on the base, with 3 MiB of its own.
fn overlay(folder: &Path, base: &Path, number: u64) -> PathBuf {
    let image = folder.join(format!("vm{number}.qcow2"));
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(base), text(&image)]).unwrap();
    let write = format!("write -P {number} {}M 3M", 300 + 10 * number);
    run("qemu-io", ["-f", "qcow2", text(&image), "-c", &write]).unwrap();
    image
}

fn restores_exactly(host: &Underlay, snapshot: &str, image: &Path, to: &Path) {
    host.restore(snapshot, to, "qcow2").unwrap();
    run("qemu-img", ["compare", "-f", "qcow2", "-F", "qcow2", text(to), text(image)]).unwrap();
    std::fs::remove_file(to).unwrap();
}

#[test]
fn packs_do_not_pass_through_the_server() {
    let s3 = S3Server::garage().unwrap();
    let site = Site::start(&s3, "127.0.0.1:0");
    site.operator.run(&["init"]).unwrap();
    let base = images::base(site.folder.path(), "base").unwrap();
    let (one, two) = (overlay(site.folder.path(), &base, 1), overlay(site.folder.path(), &base, 2));
    let before = site.traffic();
    let stored = site.host("one").backup("one", &one).unwrap();
    let shared = site.host("two").backup("two", &two).unwrap();
    let new = |answer: &Value| answer["bytes_new"].as_u64().unwrap();
    assert!(new(&stored) > 32 * MIB && new(&shared) < 4 * MIB, "{} and {} bytes", new(&stored), new(&shared));
    let reader = site.host("three");
    restores_exactly(&reader, "one@latest", &one, &site.path("restored"));
    restores_exactly(&reader, "two@latest", &two, &site.path("restored"));
    let after = site.traffic();
    let (received, sent) = (after.0 - before.0, after.1 - before.1);
    println!(
        "{} bytes stored and read twice: {received} bytes came to the server, {sent} went",
        new(&stored)
    );
    assert!(received < 2 * MIB && sent < 4 * MIB, "{received} bytes came, {sent} went");
    site.operator.run(&["forget", "one@latest"]).unwrap();
    site.operator.run(&["gc", "--max-unused", "0%", "--fence-after", "0s"]).unwrap();
    site.operator.run(&["check", "--read-data", "--scrub"]).unwrap();
    restores_exactly(&reader, "two@latest", &two, &site.path("restored"));
}

/// What holds for every way to reach a repository.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    for (name, case) in CASES {
        println!("{name}");
        let s3 = S3Server::garage().unwrap();
        let site = Site::start(&s3, "127.0.0.1:0");
        let options = RemoteOptions {
            token: site.token.clone().into(),
            fingerprint: Some(site.server.fingerprint.clone()),
            ..RemoteOptions::default()
        };
        let authority = Arc::new(RemoteAuthority::new(&site.server.location(), &options).unwrap());
        let (key, descriptor, document) = new_descriptor();
        authority.make(document, Vec::new()).await.unwrap();
        case(Ground { authority, key, descriptor }).await;
    }
}

/// A pack that no backup would make, but which is one: a leaf whose content is nowhere.
fn pack(site: &Site) -> FinishedPack {
    let (status, descriptor) = site.ask("GET", "/descriptor", "");
    assert_eq!(status, 200, "{descriptor}");
    let descriptor: Value = serde_json::from_str(&descriptor).unwrap();
    let repository = RepositoryId::from_hex(descriptor["body"]["repository"].as_str().unwrap()).unwrap();
    let mut pack = PackWriter::nodes(repository);
    let leaf = Node::leaf([Run::Chunk(REGION_BLOCKS, ChunkId::new([7; 32]))]).unwrap();
    pack.add_node(NodeId::new([7; 32]), &leaf.encode()).unwrap();
    pack.finish().unwrap()
}

#[test]
fn a_signed_request_stores_that_pack_and_nothing_else() {
    let s3 = S3Server::garage().unwrap();
    let site = Site::start(&s3, "127.0.0.1:0");
    site.operator.run(&["init"]).unwrap();
    let pack = pack(&site);
    let (right, wrong) = (site.path("right"), site.path("wrong"));
    let mut other = pack.bytes.to_vec();
    std::fs::write(&right, &other).unwrap();
    other[100] ^= 1;
    std::fs::write(&wrong, &other).unwrap();
    let handle = "ab".repeat(16);
    let below = format!("/sessions/{handle}/packs/nodes/{}", pack.name());
    let problem = |(status, body): (u16, String), expected: u16, kind: &str| {
        assert_eq!(status, expected, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["type"], format!("urn:underlay:problem:{kind}"), "{body}");
    };
    problem(site.ask("POST", &format!("{below}/upload"), ""), 409, "session");
    let opened = site.ask("PUT", &format!("/sessions/{handle}"), r#"{"vm":"odd"}"#);
    let opened: Value = serde_json::from_str(&opened.1).unwrap();
    assert_eq!(opened["direct"], true);
    let (status, signed) = site.ask("POST", &format!("{below}/upload"), "");
    assert_eq!(status, 200, "{signed}");
    let (_, secret) = s3.variables().into_iter().find(|(name, _)| *name == "AWS_SECRET_ACCESS_KEY").unwrap();
    assert!(!signed.contains(secret), "{signed}");
    let signed: Value = serde_json::from_str(&signed).unwrap();
    let url = signed["url"].as_str().unwrap();
    // Not these bytes, not there, and nothing counts before the server has seen it.
    assert!((400..500).contains(&make(&signed, url, &wrong).0));
    let elsewhere = url.replace("/nodes/", "/packs/");
    assert!((400..500).contains(&make(&signed, &elsewhere, &right).0));
    problem(site.ask("POST", &format!("{below}/stored"), ""), 422, "missing");
    assert_eq!(make(&signed, url, &right).0, 200);
    assert_eq!(site.ask("POST", &format!("{below}/stored"), "").0, 204);
    assert_eq!(site.ask("POST", &format!("{below}/stored"), "").0, 204, "it is repeatable");
    // A read is no write, and ends where it was signed for.
    let (status, signed) = site.ask("GET", &format!("/packs/data/{}/location", pack.name()), "");
    assert_eq!(status, 200, "{signed}");
    assert!(signed.contains("X-Amz-Expires=900"), "{signed}");
    let signed: Value = serde_json::from_str(&signed).unwrap();
    assert!((400..500).contains(&make(&signed, signed["url"].as_str().unwrap(), &right).0));
    assert_eq!(site.ask("DELETE", &format!("/sessions/{handle}"), "").0, 204);
    problem(site.ask("POST", &format!("{below}/upload"), ""), 409, "session");
}

/// moto signs for nobody: it would take anything in anybody's name.
#[test]
fn a_store_that_holds_nobody_to_what_was_signed_is_refused() {
    let s3 = S3Server::moto().unwrap();
    let site = Site::start(&s3, "127.0.0.1:0");
    let refused = site.operator.output(["init"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("other bytes than were signed for"), "{said}");
}

/// A host without a way to the bucket, removed when dropped.
struct Island(String);

impl Island {
    /// With an address for the server on the main land.
    fn new(number: u32) -> (Self, String) {
        let name = format!("underlay{number}");
        let island = Self(name.clone());
        let (inner, outer) = (format!("ul{number}a"), format!("ul{number}b"));
        let ip = |arguments: &str| run("ip", arguments.split(' ')).unwrap();
        ip(&format!("netns add {name}"));
        ip(&format!("link add {outer} type veth peer name {inner} netns {name}"));
        ip(&format!("addr add 198.18.{number}.1/30 dev {outer}"));
        ip(&format!("link set {outer} up"));
        ip(&format!("-n {name} addr add 198.18.{number}.2/30 dev {inner}"));
        ip(&format!("-n {name} link set {inner} up"));
        ip(&format!("-n {name} link set lo up"));
        (island, format!("198.18.{number}.1:0"))
    }

    fn run(&self, underlay: &Underlay, arguments: &[&str]) -> String {
        let command = underlay.command([]);
        let mut there = Command::new("ip");
        there.args(["netns", "exec", &self.0]).arg(command.get_program()).args(arguments);
        for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            there.env(name, value);
        }
        let said = output(&mut there).unwrap();
        let errors = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.success(), "{errors}");
        errors
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        let _ = run("ip", ["netns", "del", &self.0]);
    }
}

#[test]
fn without_a_way_to_the_bucket_all_goes_through_the_server_and_that_is_said() {
    let s3 = S3Server::garage().unwrap();
    let (island, address) = Island::new(std::process::id() % 200 + 1);
    let site = Site::start(&s3, &address);
    site.operator.run(&["init"]).unwrap();
    let base = images::base(site.folder.path(), "base").unwrap();
    let image = overlay(site.folder.path(), &base, 5);
    let before = site.traffic();
    let host = site.host("island");
    let said = island.run(&host, &["backup", "--vm", "vm", "--format", "qcow2", text(&image)]);
    assert!(said.contains("the bucket cannot be reached from here"), "{said}");
    assert!(site.traffic().0 - before.0 > 16 * MIB);
    let to = site.path("restored");
    island.run(&host, &["restore", "vm@latest", "--format", "qcow2", "--to", text(&to)]);
    run("qemu-img", ["compare", "-f", "qcow2", "-F", "qcow2", text(&to), text(&image)]).unwrap();
}
