//! Dropping snapshots: what goes, what stays, and what is seen by whoever comes later.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use underlay_client::image::Format;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::backend::{Backend, Fault, Faults, Operation, Rule};
use underlay_store::check::CheckOptions;
use underlay_store::id::SnapshotId;
use underlay_store::names;
use underlay_store::progress::Silent;
use underlay_store::repository::{Access, Repository};
use underlay_tests::lab::Lab;
use underlay_tests::program::Underlay;

/// Backs up three states of one raw disk.
fn three_points(lab: &Lab) -> Vec<(SnapshotId, Vec<u8>)> {
    let image = lab.path("vm.raw");
    let states = [1u8, 2, 3].map(|state| {
        let mut disk = vec![0; 8 << 20];
        blake3::Hasher::new().update(b"same").finalize_xof().fill(&mut disk[..4 << 20]);
        blake3::Hasher::new().update(&[state]).finalize_xof().fill(&mut disk[5 << 20..6 << 20]);
        disk
    });
    states
        .into_iter()
        .map(|disk| {
            std::fs::write(&image, &disk).unwrap();
            (lab.backup("vm", &image, Format::Raw).unwrap().snapshot, disk)
        })
        .collect()
}

fn listed(repository: &Repository, lab: &Lab) -> Vec<String> {
    let documents = lab.runtime.block_on(repository.snapshots()).unwrap();
    documents.into_iter().map(|document| document.name).collect()
}

#[test]
fn a_dropped_snapshot_is_gone_and_the_others_are_whole() {
    // A bucket, as far as the catalog goes: each host has its own.
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let points = three_points(&lab);
    let (first, _) = points[0];
    let elsewhere = |access| {
        let state = folder.path().join("elsewhere");
        lab.runtime.block_on(Repository::open(backend.clone(), &state, access))
    };
    assert_eq!(listed(&elsewhere(Access::Read).unwrap(), &lab).len(), 3);
    lab.runtime.block_on(async {
        lab.repository.protect(first, true).await.unwrap();
        lab.repository.protect(first, true).await.unwrap();
        assert_eq!(lab.repository.protected().await.unwrap(), [first]);
        let refused = lab.repository.forget(first).await.unwrap_err();
        assert!(matches!(refused, Error::Protected { snapshot } if snapshot == first), "{refused}");
        lab.repository.protect(first, false).await.unwrap();
        lab.repository.forget(first).await.unwrap();
        lab.repository.forget(first).await.unwrap();
        assert_eq!(backend.size(&names::snapshot(&first)).await.unwrap(), None);
        let unknown = lab.repository.protect(first, true).await.unwrap_err();
        assert!(matches!(unknown, Error::NoSnapshot { .. }), "{unknown}");
    });
    assert_eq!(listed(&lab.repository, &lab).len(), 2);
    // Whoever reads from elsewhere, with a catalog that still knew it, does not see it any more.
    assert_eq!(listed(&elsewhere(Access::Read).unwrap(), &lab).len(), 2);
    for (id, disk) in &points[1..] {
        assert!(lab.read(&lab.snapshot(*id).disks[0].root) == *disk);
    }
    let report = lab.runtime.block_on(lab.repository.check(&CheckOptions::default(), &Silent)).unwrap();
    assert!(report.is_sound(), "{report:?}");
    // What it alone held is still stored, and is found again: nothing is uploaded twice before a collection.
    let image = lab.path("vm.raw");
    std::fs::write(&image, &points[0].1).unwrap();
    let again = lab.backup("vm", &image, Format::Raw).unwrap();
    assert_eq!(again.bytes_new, 0);
    assert!(lab.read(&lab.snapshot(again.snapshot).disks[0].root) == points[0].1);
}

#[test]
fn a_snapshot_is_not_dropped_by_halves() {
    for fault in [Fault::Before, Fault::After] {
        let backend = Backend::memory();
        let faults = Faults::none();
        let lab = Lab::on(backend.with_faults(Arc::clone(&faults)));
        let points = three_points(&lab);
        let (first, _) = points[0];
        faults.add(Rule::always(Operation::Delete, "snapshots", fault));
        lab.runtime.block_on(lab.repository.forget(first)).unwrap_err();
        // Dropped or not: nobody relies on it any more, and nobody takes it up again.
        assert_eq!(listed(&lab.repository, &lab).len(), 2);
        drop(lab.repository);
        let state = lab.folder.path().join("state");
        let reader = lab.runtime.block_on(Repository::open(backend.clone(), &state, Access::Read)).unwrap();
        let seen = lab.runtime.block_on(reader.snapshots()).unwrap();
        assert_eq!(seen.len(), 2, "{fault:?}");
        drop(reader);
        // The next writer finishes it.
        lab.runtime.block_on(Repository::open(backend.clone(), &state, Access::Write)).unwrap();
        let size = lab.runtime.block_on(backend.size(&names::snapshot(&first))).unwrap();
        assert_eq!(size, None, "{fault:?}");
    }
}

#[test]
fn whoever_lost_the_repository_drops_nothing() {
    // A bucket, as far as the catalog goes: each host has its own.
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let points = three_points(&lab);
    let other = folder.path().join("other host");
    lab.runtime.block_on(Repository::open(backend.clone(), &other, Access::TakeOver)).unwrap();
    let refused = lab.runtime.block_on(lab.repository.forget(points[0].0)).unwrap_err();
    assert!(matches!(refused, Error::OwnedElsewhere { .. }), "{refused}");
    let size = lab.runtime.block_on(backend.size(&names::snapshot(&points[0].0))).unwrap();
    assert!(size.is_some());
}

#[test]
fn the_program_drops_by_policy_and_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
    let image = folder.path().join("vm.raw");
    for state in 0..5u8 {
        std::fs::write(&image, vec![state; 1 << 20]).unwrap();
        for vm in ["web", "db"] {
            underlay.json(["backup", "--vm", vm, image.to_str().unwrap()]).unwrap();
        }
    }
    let first = underlay.json(["list", "web"]).unwrap()[0]["snapshot"].as_str().unwrap().to_owned();
    underlay.json(["protect", &first]).unwrap();
    let count = || underlay.json(["list"]).unwrap().as_array().unwrap().len();

    let planned = underlay.json(["forget", "--vm", "web", "--keep-last", "2", "--dry-run"]).unwrap();
    let reasons: Vec<_> =
        planned["snapshots"].as_array().unwrap().iter().map(|each| each["reasons"].to_string()).collect();
    assert_eq!(reasons, [r#"["newest","last"]"#, r#"["last"]"#, "[]", "[]", r#"["protected"]"#]);
    assert_eq!(count(), 10, "a dry run drops nothing");
    let done = underlay.json(["forget", "--vm", "web", "--keep-last", "2"]).unwrap();
    assert_eq!(done["snapshots"], planned["snapshots"]);
    assert_eq!(count(), 8);
    underlay.json(["forget", "--keep-daily", "1"]).unwrap();
    assert_eq!(count(), 3, "one of each machine, and the protected one");

    let refused = underlay.output(["forget", &first]).unwrap();
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{complaint}");
    assert!(
        complaint.contains("is protected") && complaint.contains("underlay protect --off"),
        "{complaint}"
    );
    underlay.json(["protect", "--off", &first]).unwrap();
    let said = underlay.output(["forget", &first, "db@latest"]).unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.ends_with("2 snapshots dropped, 0 kept\n"), "{said}");
    assert_eq!(count(), 1);
    assert_eq!(underlay.output(["forget", "db@latest"]).unwrap().status.code(), Some(1));
    assert_eq!(underlay.output(["forget", "--vm", "db", "--keep-last", "1"]).unwrap().status.code(), Some(2));
    underlay.restore("web@latest", &folder.path().join("back.raw"), "raw").unwrap();
    assert_eq!(std::fs::read(folder.path().join("back.raw")).unwrap(), vec![4; 1 << 20]);
}
