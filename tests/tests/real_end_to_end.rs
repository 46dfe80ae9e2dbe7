//! The program as a user runs it: on a directory, on two S3 servers that others wrote, and with a guest that boots.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use underlay_tests::commands::run;
use underlay_tests::guest;
use underlay_tests::program::Underlay;
use underlay_tests::qemu::{Format, Guest, Writes};
use underlay_tests::s3::S3Server;

fn compare(a: &Path, a_format: &str, b: &Path, b_format: &str) {
    run("qemu-img", ["compare", "-f", a_format, "-F", b_format, a.to_str().unwrap(), b.to_str().unwrap()])
        .unwrap();
}

fn overlay(base: &Path, path: &Path, writes: &str) {
    run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.to_str().unwrap(), path.to_str().unwrap()],
    )
    .unwrap();
    run("qemu-io", ["-f", "qcow2", path.to_str().unwrap(), "-c", writes]).unwrap();
}

fn base(folder: &Path) -> PathBuf {
    let base = folder.join("base.qcow2");
    let content = folder.join("content");
    std::fs::create_dir(&content).unwrap();
    run("cp", ["-r", "/usr/share/doc", content.to_str().unwrap()]).unwrap();
    let raw = folder.join("base.raw");
    run("mke2fs", ["-q", "-t", "ext4", "-d", content.to_str().unwrap(), raw.to_str().unwrap(), "300M"])
        .unwrap();
    run("qemu-img", ["convert", "-O", "qcow2", raw.to_str().unwrap(), base.to_str().unwrap()]).unwrap();
    base
}

/// Two machines on one base, two points in time each, restored elsewhere; then a full check.
fn end_to_end(underlay: &Underlay, folder: &Path) {
    let base = base(folder);
    let mut points = Vec::new();
    for vm in ["web", "mail"] {
        let monday = folder.join(format!("{vm} monday.qcow2"));
        overlay(&base, &monday, "write -P 17 10M 3M");
        let first = underlay.backup(vm, &monday).unwrap();
        let tuesday = folder.join(format!("{vm} tuesday.qcow2"));
        overlay(&monday, &tuesday, if vm == "web" { "write -P 33 11M 300k" } else { "write -z 10M 1M" });
        let second = underlay.backup(vm, &tuesday).unwrap();
        assert_eq!(second["layers_read"], 1);
        assert!(second["bytes_read"].as_u64().unwrap() < 2 << 20, "{second}");
        points.extend([(first, monday), (second, tuesday)]);
    }
    let listed = underlay.json(["list"]).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 4, "{listed}");
    let elsewhere = underlay.elsewhere(folder);
    for (at, (point, image)) in points.iter().enumerate() {
        let snapshot = point["snapshot"].as_str().unwrap();
        let (qcow2, raw) = (folder.join(format!("{at}.qcow2")), folder.join(format!("{at}.raw")));
        elsewhere.restore(snapshot, &qcow2, "qcow2").unwrap();
        elsewhere.restore(snapshot, &raw, "raw").unwrap();
        run("qemu-img", ["check", "-q", qcow2.to_str().unwrap()]).unwrap();
        compare(&qcow2, "qcow2", image, "qcow2");
        compare(&raw, "raw", image, "qcow2");
    }
    let checked = underlay.output(["check", "--read-data"]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn on_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
    end_to_end(&underlay, folder.path());
}

#[test]
fn on_garage() {
    let (server, folder) = (S3Server::garage().unwrap(), tempfile::tempdir().unwrap());
    let underlay = Underlay::init_s3(&server, "a-prefix/vms", folder.path()).unwrap();
    end_to_end(&underlay, folder.path());
}

#[test]
fn on_moto() {
    let (server, folder) = (S3Server::moto().unwrap(), tempfile::tempdir().unwrap());
    let underlay = Underlay::init_s3(&server, "vms", folder.path()).unwrap();
    end_to_end(&underlay, folder.path());
}

/// A real Debian guest with a change in its overlay comes back as a file that boots alone and shows the change.
#[test]
fn guest_boots_from_what_was_restored() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().join("here");
    std::fs::create_dir(&here).unwrap();
    let image = here.join("vm.qcow2");
    guest::overlay(&guest::image().unwrap(), &image).unwrap();
    guest::set_marker(&image, "changed on tuesday").unwrap();
    let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
    let base = guest::image().unwrap();
    let base_folder = base.parent().unwrap().to_str().unwrap();
    underlay
        .json([
            "backup",
            "--vm",
            "guest",
            "--format",
            "qcow2",
            "--allow-dir",
            base_folder,
            image.to_str().unwrap(),
        ])
        .unwrap();
    std::fs::remove_dir_all(&here).unwrap();
    for (name, format) in [("restored.qcow2", Format::Qcow2), ("restored.raw", Format::Raw)] {
        let restored = folder.path().join(name);
        underlay.restore("guest@latest", &restored, name_of(format)).unwrap();
        let guest = Guest::boot(&restored, format, Writes::Discard).unwrap();
        guest.wait_for("UNDERLAY-MARKER: changed on tuesday", Duration::from_secs(180)).unwrap();
    }
    let restored = folder.path().join("restored.qcow2");
    let info = run("qemu-img", ["info", restored.to_str().unwrap()]).unwrap();
    assert!(!info.contains("backing file"), "{info}");
}

fn name_of(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    }
}
