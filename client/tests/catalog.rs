//! A catalog that is old, damaged or out of reach costs time, not snapshots.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn underlay(folder: &Path, verb: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underlay"));
    command.args(verb).current_dir(folder).env("UNDERLAY_STATE_DIR", folder.join("state"));
    command
        .env("UNDERLAY_REPO", "repository")
        .env("UNDERLAY_KEY_FILE", "key")
        .env_remove("UNDERLAY_PASSPHRASE");
    command.output().unwrap()
}

fn done(folder: &Path, verb: &[&str]) {
    let output = underlay(folder, verb);
    assert!(output.status.success(), "{verb:?}: {output:?}");
}

/// Checks everything, restores the newest snapshot and compares it with `content`.
fn restores(folder: &Path, content: &[u8]) {
    done(folder, &["check", "--read-data"]);
    is_restored(folder, content);
}

fn is_restored(folder: &Path, content: &[u8]) {
    done(folder, &["restore", "vm@latest", "--force", "--to", "restored.raw"]);
    assert!(fs::read(folder.join("restored.raw")).unwrap() == content);
}

#[test]
fn snapshots_outlive_the_catalog() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let (image, catalog) = (folder.join("disk.raw"), folder.join("repository/catalog"));
    let backup = ["backup", "--vm", "vm", "disk.raw"];
    done(folder, &["init"]);
    fs::write(&image, vec![1; 1 << 20]).unwrap();
    done(folder, &backup);
    let old = fs::read(catalog.join("catalog.sqlite")).unwrap();
    let newer = vec![2; 3 << 20];
    fs::write(&image, &newer).unwrap();
    done(folder, &backup);

    // Put back from an older copy: the snapshot made since is found, with what it stands on.
    fs::write(catalog.join("catalog.sqlite"), &old).unwrap();
    restores(folder, &newer);
    done(folder, &backup);
    restores(folder, &newer);

    // Damaged: a check says so, everything can be read, a backup is refused and says what to do.
    fs::write(catalog.join("catalog.sqlite"), b"nonsense").unwrap();
    let told = underlay(folder, &["check", "--read-data"]);
    assert_eq!(told.status.code(), Some(12), "{told:?}");
    assert!(String::from_utf8_lossy(&told.stdout).starts_with("damage: catalog: "), "{told:?}");
    is_restored(folder, &newer);
    let refused = underlay(folder, &backup);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("underlay repair catalog"), "{refused:?}");

    // Not to be opened or made at all, as on a read-only medium.
    fs::remove_dir_all(&catalog).unwrap();
    fs::write(&catalog, b"in the way").unwrap();
    restores(folder, &newer);

    // This host is still the owner.
    fs::remove_file(&catalog).unwrap();
    done(folder, &backup);
    restores(folder, &newer);
}
