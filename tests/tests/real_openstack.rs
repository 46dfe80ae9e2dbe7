//! Restores into a real Glance, as a user of the cloud.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use underlay_tests::commands::run;
use underlay_tests::openstack::OpenStack;
use underlay_tests::program::Underlay;

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
        underlay_tests::commands::output(command.args(more)).unwrap()
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
