//! A reader that has gone and a full disk are answered with exit codes.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::process::{Command, Stdio};

#[test]
fn printing_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let underlay = |verb: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_underlay"));
        command.args(verb).current_dir(folder.path()).env("UNDERLAY_STATE_DIR", folder.path().join("state"));
        command
            .env("UNDERLAY_REPO", "repository")
            .env("UNDERLAY_KEY_FILE", "key")
            .env_remove("UNDERLAY_PASSPHRASE");
        command
    };
    assert!(underlay(&["init"]).output().unwrap().status.success());
    for verb in [&["list"][..], &["key", "paper"], &["check", "--json"]] {
        let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
        let status = underlay(verb).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(1), "{verb:?}: the answer did not get out");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = underlay(verb).stdout(writer).status().unwrap();
        assert_eq!(status.code(), Some(0), "{verb:?}: whoever read had enough");
    }
}
