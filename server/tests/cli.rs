//! The program `underlay-server` as its operator runs it. That this file is here also makes cargo build the program for other tests.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underlay-server"));
    command.arg("--config").arg(folder.join("server.toml")).args(arguments);
    command.env_remove("UNDERLAY_SERVER_CONFIG").output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn configure(folder: &Path, text: &str) {
    std::fs::write(folder.join("server.toml"), text).unwrap();
}

#[test]
fn tokens_are_made_listed_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    configure(folder.path(), &format!("listen = \"127.0.0.1:0\"\nstate = {state:?}\n"));
    let arguments = ["token", "create", "--scope", "restore,backup", "--repository", "vms", "--vm", "web*"];
    let token =
        said(&run(folder.path(), &[&arguments[..], &["--expires", "90d", "--label", "host 1"]].concat()));
    assert!(token.starts_with("ult1_") && token.len() == 86, "{token}");
    let listed = said(&run(folder.path(), &["token", "list"]));
    let id = &token[5..21];
    for part in [id, "backup,restore", "vms", "web*", "host 1"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    assert!(!listed.contains(&token[22..]) && !listed.contains("revoked"), "{listed}");
    said(&run(folder.path(), &["token", "revoke", id]));
    assert!(said(&run(folder.path(), &["token", "list"])).contains("revoked"));
    assert!(complaint(&run(folder.path(), &["token", "revoke", "00"])).contains("no token 00"));
    let odd = ["token", "create", "--scope", "backup", "--repository", "VMs"];
    assert!(complaint(&run(folder.path(), &odd)).contains("VMs"));
}

#[test]
fn the_fingerprint_stays() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    configure(folder.path(), &format!("listen = \"127.0.0.1:0\"\nstate = {state:?}\n"));
    let first = said(&run(folder.path(), &["fingerprint"]));
    assert!(first.starts_with("sha256:"), "{first}");
    assert_eq!(first, said(&run(folder.path(), &["fingerprint"])));
}

#[test]
fn a_wrong_configuration_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    assert!(complaint(&run(folder.path(), &["serve"])).contains("server.toml"));
    configure(folder.path(), "listen = \"127.0.0.1:0\"\nstate = \"/s\"\nlimitz = 1\n");
    let error = complaint(&run(folder.path(), &["serve"]));
    assert!(error.contains("line 3") && error.contains("limitz"), "{error}");
    configure(folder.path(), "listen = \"192.0.2.1:1\"\nstate = \"/nowhere/s\"\ninsecure_http = true\n");
    assert!(complaint(&run(folder.path(), &["serve"])).contains("insecure_http_anywhere"));
    let state = folder.path().join("state");
    configure(folder.path(), &format!("listen = \"127.0.0.1:0\"\nstate = {state:?}\n"));
    assert!(complaint(&run(folder.path(), &["serve", "--take-over", "x"])).contains("\"x\""));
}
