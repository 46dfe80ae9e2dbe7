//! A flipped bit anywhere in a repository is reported by name, never returned as data.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use underlay_client::image::Format;
use underlay_client::restore::{self, DiskOutput, RestoreOptions, StreamOutput};
use underlay_store::authority::Authority;
use underlay_store::backend::{Backend, Options};
use underlay_store::check::CheckOptions;
use underlay_store::names::ObjectName;
use underlay_store::progress::Silent;
use underlay_store::repository::{Access, Repository};
use underlay_store::snapshot::{Descriptor, Snapshot};
use underlay_tests::lab::Lab;

/// Every object of the repository in `folder`, by name; the catalog is none.
fn objects(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                open.push(path);
            } else if ObjectName::parse(&name).is_some() {
                found.insert(name, path);
            }
        }
    }
    found
}

/// What a person with all keys learns: the restored disk, or the first error on the way.
fn read_back(lab: &Lab, folder: &Path, state: &Path) -> Result<Vec<u8>, String> {
    let text = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(next) = source {
            text += &format!(": {next}");
            source = next.source();
        }
        text
    };
    let bytes = fs::read(folder.join("underlay.json")).unwrap();
    Descriptor::open(&bytes, lab.key.backup()).map_err(|error| text(&error))?;
    let open = || {
        let backend = Backend::open(folder.to_str().unwrap(), Options::default())?;
        lab.runtime.block_on(Repository::open(backend, state, Access::Read))
    };
    let repository = open().map_err(|error| text(&error))?;
    let stored = lab.runtime.block_on(repository.snapshots()).map_err(|error| text(&error))?;
    let mut disk = Vec::new();
    for document in stored {
        let Some(ObjectName::Snapshot(id)) = ObjectName::parse(&document.name) else {
            panic!("{}", document.name)
        };
        let snapshot = Snapshot::open(&id, &lab.descriptor.repository, &document.bytes, lab.key.backup())
            .map_err(|error| text(&error))?;
        let root = snapshot.disks[0].root;
        let environment = restore::Environment {
            authority: &repository,
            key: &lab.key,
            repository: lab.descriptor.repository,
            runtime: lab.runtime.handle().clone(),
            progress: &Silent,
            cancel: &AtomicBool::new(false),
        };
        disk.clear();
        let output = StreamOutput::new(&mut disk, "memory", root.size);
        restore::restore(&environment, root, &output, &RestoreOptions::default())
            .map_err(|error| text(&error))?;
        Box::new(output).finish().map_err(|error| text(&error))?;
    }
    Ok(disk)
}

#[test]
fn a_flipped_bit_is_reported_and_never_returned() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path();
    let lab = Lab::on(Backend::open(repository.to_str().unwrap(), Options { create: true }).unwrap());
    let image = lab.path("vm.raw");
    let mut content = vec![0; 3 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut content[..1 << 20]);
    content[2 << 20..].fill(7);
    fs::write(&image, &content).unwrap();
    lab.backup("vm", &image, Format::Raw).unwrap();
    assert!(read_back(&lab, repository, &lab.path("state")).unwrap() == content);
    let objects = objects(repository);
    assert_eq!(objects.len(), 5, "{objects:?}");
    let mut reported = BTreeMap::new();
    for (name, path) in &objects {
        let sound = fs::read(path).unwrap();
        let flips = 60.min(sound.len() * 8);
        for flip in 0..flips {
            // Spread over the object, its first and last bytes included.
            let bit = flip * (sound.len() * 8 - 1) / (flips - 1);
            let mut damaged = sound.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(path, &damaged).unwrap();
            // With the catalog as it is, and with one rebuilt from the damaged bucket.
            for rebuilt in [false, true] {
                if rebuilt {
                    fs::rename(repository.join("catalog"), repository.join("catalog.kept")).unwrap();
                }
                match read_back(&lab, repository, &lab.path("state")) {
                    Ok(disk) => assert!(disk == content, "{name}, bit {bit}: wrong data"),
                    Err(error) => {
                        assert!(names(&error, name), "{name}, bit {bit}: {error}");
                        *reported.entry((name.as_str(), rebuilt)).or_insert(0) += 1;
                    }
                }
                if rebuilt {
                    if repository.join("catalog").exists() {
                        fs::remove_dir_all(repository.join("catalog")).unwrap();
                    }
                    fs::rename(repository.join("catalog.kept"), repository.join("catalog")).unwrap();
                }
            }
            let options = CheckOptions { scrub: true, ..CheckOptions::default() };
            let report = lab.runtime.block_on(lab.repository.check(&options, &Silent)).unwrap();
            if !name.starts_with("claims/") && name != "underlay.json" {
                assert!(
                    report.findings.iter().any(|finding| finding.object == *name),
                    "{name}, bit {bit}: {report:?}"
                );
            }
        }
        fs::write(path, Bytes::from(sound)).unwrap();
    }
    for name in objects.keys().filter(|name| !name.starts_with("claims/")) {
        assert!(reported.contains_key(&(name.as_str(), true)), "nothing about {name} was ever reported");
    }
    assert!(read_back(&lab, repository, &lab.path("state")).unwrap() == content);
}

/// Whether an error says which object it is about: by its name, or by a chunk or node of it.
fn names(error: &str, object: &str) -> bool {
    let file = object.rsplit('/').next().unwrap().trim_end_matches(".json");
    error.contains(file) || (object.starts_with("nodes/") && error.contains("node "))
}
