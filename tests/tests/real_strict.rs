//! A strict repository in a real bucket: what it costs that writers do not trust each other, and what `underlay check --unverified` gives back.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use underlay_tests::commands::run;
use underlay_tests::images;
use underlay_tests::program::Underlay;
use underlay_tests::s3::S3Server;
use underlay_tests::server::ServerProgram;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A server on a bucket, the operator of its repository, and machines on one base.
struct Site {
    folder: PathBuf,
    server: ServerProgram,
    operator: Underlay,
    base: PathBuf,
}

impl Site {
    fn start(folder: &Path, s3: &S3Server, base: &Path, name: &str, strict: bool) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        let location = format!("s3://{}/{name}", s3.bucket);
        ServerProgram::configure(&folder, &location, "127.0.0.1:0", "").unwrap();
        ServerProgram::configure_more(&folder, &format!("strict = {strict}")).unwrap();
        let server = ServerProgram::serve(&folder, &s3.variables()).unwrap();
        let token = server.token(&["--scope", "admin,maintain,restore"]).unwrap();
        let operator = server.client(&folder, &token).unwrap();
        operator.run(&["init"]).unwrap();
        operator.run(&["key", "export", "--holds", "backup", text(&folder.join("backup.key"))]).unwrap();
        Self { folder, server, operator, base: base.to_owned() }
    }

    /// Backs up another machine on the base, from a host with a token of its own. Returns its image and the bytes that were sent.
    fn backup(&self, vm: &str) -> (PathBuf, u64) {
        let home = self.folder.join(format!("host of {vm}"));
        std::fs::create_dir(&home).unwrap();
        let token = self.server.token(&["--scope", "backup", "--vm", vm]).unwrap();
        let mut host = self.server.client(&home, &token).unwrap();
        host.key_file = self.folder.join("backup.key");
        // Beside its base: what an image names elsewhere is not read.
        let (base, site) = (text(&self.base), self.folder.file_name().unwrap().to_string_lossy());
        let image = self.base.with_file_name(format!("{vm} of {site}.qcow2"));
        run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, text(&image)]).unwrap();
        run("qemu-io", ["-f", "qcow2", text(&image), "-c", "write -P 77 100M 300k"]).unwrap();
        let outcome = host.backup(vm, &image).unwrap();
        (image, outcome["bytes_uploaded"].as_u64().unwrap())
    }

    /// `check --unverified --json`, and what it says of the packs that it read.
    fn verify(&self) -> Value {
        let answer = self.operator.json(["check", "--unverified"]).unwrap();
        let told = answer.as_object().unwrap().iter().find(|(_, value)| value.get("vouched").is_some());
        told.unwrap_or_else(|| panic!("nothing of packs that were vouched for: {answer}")).1.clone()
    }
}

#[test]
fn a_base_is_sent_by_each_writer_until_it_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let s3 = S3Server::garage().unwrap();
    let base = images::base(folder, "base").unwrap();
    let trusting = Site::start(folder, &s3, &base, "trusting", false);
    let strict = Site::start(folder, &s3, &base, "strict", true);
    let (_, first) = trusting.backup("one");
    let (_, second) = trusting.backup("two");
    let (_, strict_first) = strict.backup("one");
    let (_, strict_second) = strict.backup("two");
    let told = strict.verify();
    let (image, strict_third) = strict.backup("three");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "sent of the same base: {:.1} and {:.1} MiB; strict: {:.1} and {:.1} MiB, once verified {:.1} MiB",
        mib(first),
        mib(second),
        mib(strict_first),
        mib(strict_second),
        mib(strict_third)
    );
    assert!(first > 40 << 20 && second < 4 << 20, "sent once: {first} {second}");
    assert!(strict_second > strict_first * 9 / 10, "sent by each: {strict_first} {strict_second}");
    assert!(strict_third < 4 << 20, "and by nobody once it is verified: {strict_third}");
    let packs = told["packs"].as_u64().unwrap();
    assert!(packs >= 4 && told["vouched"] == told["packs"] && told["wrong"] == 0, "{told}");
    assert!(told["bytes"].as_u64().unwrap() > strict_first + strict_second - (1 << 20), "{told}");
    let again = strict.verify();
    assert!(again["packs"].as_u64().unwrap() < packs, "only what came since: {again}");
    let said = strict.operator.run(&["check", "--unverified"]).unwrap();
    assert!(said.contains("0 packs (0 B) verified with keys for the first time"), "{said}");
    let restored = strict.folder.join("restored.qcow2");
    strict.operator.restore("three@latest", &restored, "qcow2").unwrap();
    run("qemu-img", ["compare", "-f", "qcow2", "-F", "qcow2", text(&restored), text(&image)]).unwrap();
}

#[test]
fn who_only_backs_up_verifies_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let s3 = S3Server::garage().unwrap();
    let base = images::base(folder.path(), "base").unwrap();
    let site = Site::start(folder.path(), &s3, &base, "strict", true);
    site.backup("one");
    for scopes in ["backup", "backup,restore", "maintain"] {
        let token = site.server.token(&["--scope", scopes]).unwrap();
        let client = site.operator.clone().with_variable("UNDERLAY_TOKEN", &token);
        let refused = client.output(["check", "--unverified"]).unwrap();
        assert!(!refused.status.success(), "{scopes}: {refused:?}");
    }
    let mut without_restore_key = site.operator.clone();
    without_restore_key.key_file = site.folder.join("backup.key");
    assert!(!without_restore_key.output(["check", "--unverified"]).unwrap().status.success());
    let told = site.verify();
    assert!(told["vouched"].as_u64().unwrap() >= 2, "nobody has before: {told}");
}
