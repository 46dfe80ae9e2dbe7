//! Repositories of every version of the format stay readable: those in `tests/golden/` were written by the code of their day.
//!
//! Each is opened by every key, read whole, and compared with its manifest. What names chunks and nodes must not change silently
//! either: the restored disks are backed up again, and nothing of them is new.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its own functions too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use underlay_store::id::RepositoryId;
use underlay_store::key::{file, slot::Slot};
use underlay_store::names::ObjectName;
use underlay_store::pack::{self, PackId, PackKind};
use underlay_store::snapshot::{Claim, Descriptor, Snapshot};
use underlay_store::tree::Node;
use underlay_tests::golden;
use underlay_tests::program::Underlay;

/// A copy of a golden repository that may be written to.
struct Golden {
    folder: TempDir,
    underlay: Underlay,
    manifest: Value,
}

impl Golden {
    fn copy(version: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(version);
        let folder = tempfile::tempdir().unwrap();
        copy(&source, folder.path());
        let manifest =
            serde_json::from_slice(&fs::read(folder.path().join("manifest.json")).unwrap()).unwrap();
        let location = folder.path().join("repository");
        let underlay = Underlay::existing(location.to_str().unwrap(), folder.path()).unwrap();
        Self { folder, underlay, manifest }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn snapshots(&self) -> &[Value] {
        self.manifest["snapshots"].as_array().unwrap()
    }

    fn id(&self) -> RepositoryId {
        RepositoryId::from_hex(self.manifest["repository"].as_str().unwrap()).unwrap()
    }

    /// Names of all objects below the repository's folder, and of nothing else.
    fn objects(&self) -> BTreeSet<String> {
        let repository = self.path("repository");
        let (mut found, mut open) = (BTreeSet::new(), vec![repository.clone()]);
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&repository).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    open.push(path);
                } else if !name.starts_with("catalog/") {
                    assert!(ObjectName::parse(&name).is_some(), "{name}");
                    found.insert(name);
                }
            }
        }
        found
    }

    /// What a run says, whatever comes of it.
    fn said<const N: usize>(&self, arguments: [&str; N]) -> String {
        let output = self.underlay.output(arguments).unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Without what this host remembers and the catalog: everything is read from the objects again.
    fn forget_catalog(&self) {
        let catalog = self.path("repository/catalog");
        if catalog.exists() {
            fs::remove_dir_all(catalog).unwrap();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Every version that is kept.
fn versions() -> Vec<String> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let folders =
        fs::read_dir(golden).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir());
    folders.map(|folder| folder.file_name().into_string().unwrap()).collect()
}

#[test]
fn every_version_that_is_kept_is_tried() {
    assert_eq!(versions(), ["v1"], "write tests for the others, too");
}

#[test]
fn every_key_opens_it() {
    let golden = Golden::copy("v1");
    let ids: BTreeSet<_> =
        golden.snapshots().iter().map(|snapshot| snapshot["snapshot"].to_string()).collect();
    let listed = |command: &mut std::process::Command| {
        let output = command.args(["--json"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        listed.as_array().unwrap().iter().map(|found| found["snapshot"].to_string()).collect::<BTreeSet<_>>()
    };
    for key in ["restore.key", "restore.paper", "backup.key"] {
        let mut command = golden.underlay.command(["list"]);
        assert_eq!(listed(command.env("UNDERLAY_KEY_FILE", golden.path(key))), ids, "{key}");
    }
    for name in ["passphrase", "backup_passphrase"] {
        let passphrase = golden.manifest[name].as_str().unwrap();
        let mut command = golden.underlay.command(["list"]);
        command.env_remove("UNDERLAY_KEY_FILE").env("UNDERLAY_PASSPHRASE", passphrase);
        assert_eq!(listed(&mut command), ids, "{name}");
    }
    let constants = [golden::PASSPHRASE, golden::BACKUP_PASSPHRASE];
    assert_eq!(
        constants,
        ["passphrase", "backup_passphrase"].map(|name| golden.manifest[name].as_str().unwrap())
    );
    let labels = golden.underlay.json(["key", "list"]).unwrap().to_string();
    assert!(labels.contains("the safe") && labels.contains("höst"), "{labels}");
}

#[test]
fn every_disk_comes_out_as_it_went_in() {
    let golden = Golden::copy("v1");
    let before = golden.objects();
    for expected in golden.snapshots() {
        let id = expected["snapshot"].as_str().unwrap();
        let shown = golden.underlay.json(["show", id]).unwrap();
        for field in ["snapshot", "vm", "time", "consistency", "private"] {
            assert_eq!(shown[field], expected[field], "{field} of {id}");
        }
        for (disk, root) in
            expected["disks"].as_array().unwrap().iter().zip(shown["roots"].as_array().unwrap())
        {
            for field in ["name", "root", "layers"] {
                assert_eq!(root[field], disk[field], "{field} of {id}");
            }
            let (name, image) = (disk["name"].as_str().unwrap(), golden.path("out.raw"));
            let mut restore =
                golden.underlay.command(["restore", id, "--disk", name, "--format", "raw", "--to"]);
            let output = restore.arg(&image).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let bytes = fs::read(&image).unwrap();
            assert_eq!(bytes.len() as u64, disk["size"].as_u64().unwrap());
            assert_eq!(pack::name_of(&bytes).to_string(), disk["sha256"], "{name} of {id}");
            fs::remove_file(&image).unwrap();
        }
    }
    golden.underlay.json(["check", "--read-data", "--scrub"]).unwrap();
    assert_eq!(golden.objects(), before, "reading changes nothing");
}

#[test]
fn the_same_content_is_found_again() {
    let golden = Golden::copy("v1");
    let packs = |golden: &Golden| {
        golden.objects().into_iter().filter(|name| name.starts_with("packs/")).collect::<Vec<_>>()
    };
    let before = packs(&golden);
    let mut taken = false;
    for expected in golden.snapshots() {
        let id = expected["snapshot"].as_str().unwrap();
        let mut disks = Vec::new();
        for disk in expected["disks"].as_array().unwrap() {
            let name = disk["name"].as_str().unwrap();
            let image = golden.path(&format!("{name}.raw"));
            let mut restore =
                golden.underlay.command(["restore", id, "--disk", name, "--format", "raw", "--to"]);
            assert!(restore.arg(&image).output().unwrap().status.success());
            disks.push(format!("{name}={}", image.display()));
        }
        let mut backup = golden.underlay.command(["backup", "--vm", "again", "--format", "raw", "--json"]);
        // The host that made it is gone.
        backup.args((!taken).then_some("--take-over")).args(&disks);
        taken = true;
        let output = backup.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(outcome["bytes_new"], 0, "chunks of {id} have other names or end elsewhere");
        let again = golden.underlay.json(["show", outcome["snapshot"].as_str().unwrap()]).unwrap();
        let found = again["roots"].as_array().unwrap();
        for disk in expected["disks"].as_array().unwrap() {
            let root = found.iter().find(|root| root["name"] == disk["name"]).unwrap();
            assert_eq!(root["root"], disk["root"], "nodes of {id} have other names");
            fs::remove_file(golden.path(&format!("{}.raw", disk["name"].as_str().unwrap()))).unwrap();
        }
    }
    assert_eq!(packs(&golden), before);
    golden.underlay.json(["check", "--read-data", "--scrub"]).unwrap();
}

#[test]
fn what_is_protected_stays() {
    let golden = Golden::copy("v1");
    for expected in golden.snapshots() {
        let protected = expected["protected"].as_bool().unwrap();
        let name = format!("repository/protected/{}.json", expected["snapshot"].as_str().unwrap());
        assert_eq!(golden.path(&name).exists(), protected);
    }
    let protected = golden.snapshots().iter().find(|snapshot| snapshot["protected"] == true).unwrap();
    let said = golden.said(["forget", protected["snapshot"].as_str().unwrap()]);
    assert!(said.contains("owned by a golden host"), "{said}");
    golden
        .underlay
        .json([
            "backup",
            "--take-over",
            "--vm",
            "x",
            "--format",
            "raw",
            golden.path("backup.key").to_str().unwrap(),
        ])
        .unwrap();
    let said = golden.said(["forget", protected["snapshot"].as_str().unwrap()]);
    assert!(said.contains("is protected"), "{said}");
}

/// Of every kind of object one is damaged, and whoever looks at it is told its name.
#[test]
fn a_flipped_byte_is_told() {
    let golden = Golden::copy("v1");
    let image = golden.path("backup.key");
    let kinds = ["underlay.json", "keys/", "claims/", "packs/", "nodes/", "snapshots/"];
    for kind in kinds {
        let objects = golden.objects();
        for name in objects.iter().filter(|name| name.starts_with(kind)) {
            let path = golden.path("repository").join(name);
            let sound = fs::read(&path).unwrap();
            for at in [sound.len() / 3, sound.len() / 2, sound.len() - 2] {
                let mut damaged = sound.clone();
                damaged[at] ^= 0x10;
                fs::write(&path, &damaged).unwrap();
                golden.forget_catalog();
                let said = match kind {
                    "keys/" => golden.said(["key", "list"]),
                    "claims/" => {
                        golden.said(["backup", "--vm", "x", "--format", "raw", image.to_str().unwrap()])
                    }
                    _ => golden.said(["check", "--scrub"]),
                };
                assert!(said.contains(name), "{name}, byte {at}: {said}");
            }
            fs::write(&path, &sound).unwrap();
        }
        assert!(objects.iter().any(|name| name.starts_with(kind)), "{kind}");
    }
    golden.forget_catalog();
    golden.underlay.json(["check", "--read-data", "--scrub"]).unwrap();
}

/// A claim that cannot be read keeps nobody from the data.
#[test]
fn a_damaged_claim_keeps_nobody_from_reading() {
    let golden = Golden::copy("v1");
    let claim =
        golden.path("repository").join(golden.objects().iter().find(|n| n.starts_with("claims/")).unwrap());
    fs::write(claim, "{}").unwrap();
    assert_eq!(golden.underlay.json(["list"]).unwrap().as_array().unwrap().len(), golden.snapshots().len());
}

/// Another version is refused with both numbers, wherever a version stands.
#[test]
fn other_versions_are_refused() {
    let golden = Golden::copy("v1");
    let key = file::read(&golden.path("restore.key"), &golden.id()).unwrap();
    let object = |name: &str| fs::read(golden.path("repository").join(name)).unwrap();
    let newer = |bytes: &[u8]| {
        let text = str::from_utf8(bytes).unwrap();
        assert!(text.contains("\"version\": 1,"));
        text.replacen("\"version\": 1,", "\"version\": 2,", 1).into_bytes()
    };
    let mut said = vec![
        Descriptor::open(&newer(&object("underlay.json")), key.backup()).unwrap_err().to_string(),
        file::parse("k", str::from_utf8(&newer(&fs::read(golden.path("restore.key")).unwrap())).unwrap())
            .unwrap_err()
            .to_string(),
        file::parse(
            "k",
            &fs::read_to_string(golden.path("restore.paper")).unwrap().replace("version 1", "version 2"),
        )
        .unwrap_err()
        .to_string(),
    ];
    for name in golden.objects() {
        let bytes = object(&name);
        let error = match ObjectName::parse(&name).unwrap() {
            ObjectName::Slot(_) => Slot::read(&golden.id(), &name, &newer(&bytes)).unwrap_err(),
            ObjectName::Claim(generation) => {
                Claim::open(generation, &golden.id(), &newer(&bytes)).unwrap_err()
            }
            ObjectName::Snapshot(id) => {
                Snapshot::open(&id, &golden.id(), &newer(&bytes), key.backup()).unwrap_err()
            }
            ObjectName::Pack(kind, pack) => {
                said.extend(versions_in_pack(&PackId::new(kind, pack), &bytes));
                continue;
            }
            ObjectName::Descriptor
            | ObjectName::Protection(_)
            | ObjectName::Deletion(..)
            | ObjectName::Closing(_)
            | ObjectName::Retired(_)
            | ObjectName::Damage(_) => continue,
        };
        assert!(error.to_string().contains(&name), "{error}");
        said.push(error.to_string());
    }
    assert!(said.len() > 40, "{}", said.len());
    for said in said {
        assert!(said.contains("version 2; this build reads version 1"), "{said}");
    }
}

/// What is said of a pack whose header, footer or first node is of another version.
fn versions_in_pack(id: &PackId, bytes: &[u8]) -> Vec<String> {
    let mut said = Vec::new();
    for at in [8, bytes.len() - 16] {
        let mut newer = bytes.to_vec();
        assert_eq!(newer[at], 1);
        newer[at] = 2;
        said.push(pack::parse(id, &newer).unwrap_err().to_string());
    }
    if id.kind == PackKind::Nodes {
        let entry = pack::parse(id, bytes).unwrap().entries[0];
        let mut node = bytes[(entry.offset + pack::FRAME_HEADER_LENGTH) as usize..]
            [..entry.plain_length as usize]
            .to_vec();
        assert!(Node::decode(&node).is_ok());
        node[0] = 2;
        said.push(Node::decode(&node).unwrap_err());
    }
    said
}
