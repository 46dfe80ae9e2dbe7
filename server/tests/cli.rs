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

/// A run in the history of jobs.
fn ran(job: &str, planned: bool, state: &str, told: &str) -> String {
    let id = "ab".repeat(16);
    format!(
        "{{\"repository\":\"vms\",\"job\":{job:?},\"kind\":\"gc\",\"id\":\"{id}\",\"planned\":{planned},\"state\":{state:?},\
         \"started\":\"2026-11-23T17:05:09.120Z\",\"ended\":null,\"told\":{told:?}}}"
    )
}

#[test]
fn jobs_are_listed_with_when_they_are_and_what_came_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let job = |kind: &str, when: &str| format!("[[repository.job]]\nkind = {kind:?}\n{when}\n");
    let jobs = [
        job("gc", "at = \"04:30\"\non = [\"sun\"]"),
        job("scrub", "every = \"6h\""),
        job("check", "every = \"1d\""),
    ];
    let repository = "[[repository]]\nname = \"vms\"\nlocation = \"/nowhere\"\n";
    let text = format!("listen = \"127.0.0.1:0\"\nstate = {state:?}\n{repository}{}", jobs.concat());
    configure(folder.path(), &text);
    let lines = |output: &Output| -> Vec<Vec<String>> {
        let said = said(output);
        // Columns are two blanks apart at least.
        let columns = |line: &str| {
            line.split("  ").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        said.lines().map(columns).collect()
    };
    let new = lines(&run(folder.path(), &["jobs"]));
    assert_eq!(new[0], ["REPOSITORY", "JOB", "WHEN", "STATE", "STARTED", "WHAT CAME OF IT"]);
    assert_eq!(new[1], ["vms", "gc", "sun at 04:30", "-", "-", "not run yet"]);
    assert_eq!(new.len(), 4);
    std::fs::create_dir(&state).unwrap();
    let runs = [
        ran("gc", true, "done", "an older one"),
        ran("gc", true, "stopped", "somebody stopped it"),
        ran("scrub", true, "running", ""),
        ran("repair", false, "failed", "no such thing"),
    ];
    let history = format!("{{\"version\":1,\"runs\":[{}],\"known_since\":{{}}}}", runs.join(","));
    std::fs::write(state.join("jobs.json"), history).unwrap();
    let started = "2026-11-23T17:05:09.120Z";
    let listed = lines(&run(folder.path(), &["jobs"]));
    assert_eq!(
        listed[1],
        ["vms", "gc", "sun at 04:30", "stopped", started, "somebody stopped it"],
        "the last run"
    );
    assert_eq!(
        listed[2],
        ["vms", "scrub", "every 6 hours", "running", started],
        "nobody but the server may say it was cut off"
    );
    assert_eq!(listed[3], ["vms", "check", "every day", "-", "-", "not run yet"]);
    assert_eq!(listed[4], ["vms", "repair", "asked for", "failed", started, "no such thing"]);
    assert_eq!(listed.len(), 5);
    std::fs::write(state.join("jobs.json"), "{").unwrap();
    assert!(!run(folder.path(), &["jobs"]).status.success(), "a damaged history is not an empty one");
}

#[test]
fn the_document_needs_no_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let printed = said(&run(folder.path(), &["openapi"]));
    assert!(printed.starts_with('{') && printed.contains("\"openapi\": \"3.1.0\""), "{printed}");
}
