//! Options that nothing would heed are refused, before anything is done.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program, with a repository in `folder` that opens by `key`.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underlay"));
    command.env("UNDERLAY_REPO", folder.join("repo")).env("UNDERLAY_STATE_DIR", folder.join("state"));
    // A variable is there for other calls, and is no mistake.
    command.env("UNDERLAY_KEY_FILE", folder.join("key")).env("UNDERLAY_CONNECT", "qemu:///system");
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn options_that_have_no_use_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (key, image) = (folder.join("key"), folder.join("vm.raw"));
    std::fs::write(&image, [5; 51_200]).unwrap();
    assert!(run(folder, &["init", "--key-file", key.to_str().unwrap()]).status.success());
    let connect = ["--connect", "qemu:///system"];
    let backup = ["backup", "--vm", "web", image.to_str().unwrap()];
    let into = ["restore", "web@latest", "--to", "/x"];
    let glance = ["restore", "web@latest", "--to-glance", "x"];
    for (verb, options, expected) in [
        (&backup[..], &connect[..], "--connect has no use without --domain or --all or --instance"),
        (&backup, &["--dry-run"], "--dry-run has no use without --domain"),
        (&backup, &["--strategy", "pivot"], "--strategy has no use without --domain"),
        (&backup, &["--exclude-disk", "vda"], "--exclude-disk has no use without --domain"),
        (&backup, &["--os-cloud", "home"], "--os-cloud has no use without --instance or --all-instances"),
        (&backup, &["--no-api"], "--no-api has no use without --instance"),
        (&["backup", "--domain", "web"], &["--os-cloud", "home"], "--os-cloud has no use without --instance"),
        (
            &["backup", "--instance", "u", "--no-api"],
            &["--os-cloud", "home"],
            "'--no-api' cannot be used with",
        ),
        (&into, &connect, "--connect has no use without --define or --to-instance"),
        (&into, &["--os-cloud", "home"], "--os-cloud has no use without --to-glance or --to-instance"),
        (&glance, &connect, "--connect has no use without --define"),
    ] {
        let refused = run(folder, &[verb, options].concat());
        let told = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{verb:?} {options:?}: {told}");
        assert!(told.contains(expected), "{verb:?} {options:?}: {told}");
    }
    let listed = run(folder, &["list", "--json"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "[]", "nothing was backed up");
    assert!(run(folder, &backup).status.success());
}
