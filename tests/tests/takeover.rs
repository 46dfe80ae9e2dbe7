//! Two hosts and one repository: who has lost it writes nothing more, and who takes it back knows what happened meanwhile.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use underlay_client::image::Format;
use underlay_store::authority::Authority;
use underlay_store::backend::{Backend, Fault, Faults, Operation, Rule};
use underlay_store::gc::GcOptions;
use underlay_store::names::ObjectName;
use underlay_store::pack::PackKind;
use underlay_store::progress::Silent;
use underlay_store::repository::{Access, Repository};
use underlay_store::snapshot::Deletion;
use underlay_store::{Error, Result};
use underlay_tests::lab::Lab;

fn open(lab: &Lab, backend: &Backend, state: &Path, access: Access) -> Result<Repository> {
    lab.runtime.block_on(Repository::open(backend.clone(), state, access))
}

#[test]
fn a_takeover_that_was_interrupted_is_finished_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let image = lab.path("vm.raw");
    std::fs::write(&image, vec![3; 1 << 20]).unwrap();
    let dropped = lab.backup("vm", &image, Format::Raw).unwrap().snapshot;
    let here = lab.path("state");
    let there = open(&lab, &backend, &folder.path().join("there"), Access::TakeOver).unwrap();
    lab.runtime.block_on(there.forget(dropped)).unwrap();

    // Killed when its claim was written and nothing was read yet.
    let faults = Faults::script([Rule::always(Operation::List, "snapshots", Fault::Before)]);
    open(&lab, &backend.with_faults(faults), &here, Access::TakeOver).unwrap_err();
    for access in [Access::Read, Access::Write] {
        let back = open(&lab, &backend, &here, access).unwrap();
        assert!(lab.runtime.block_on(back.snapshots()).unwrap().is_empty(), "{access:?}");
    }
}

#[test]
fn whoever_was_shut_out_stays_so_though_its_host_takes_the_repository_back() {
    let folder = tempfile::tempdir().unwrap();
    let (backend, recording) = Backend::memory().with_recording();
    let lab = Lab::on(backend.clone());
    let image = lab.path("vm.raw");
    std::fs::write(&image, vec![3; 1 << 20]).unwrap();
    let here = lab.path("state");
    open(&lab, &backend, &folder.path().join("there"), Access::TakeOver).unwrap();
    let back = Arc::new(open(&lab, &backend, &here, Access::TakeOver).unwrap());
    recording.take();
    // Between the two claims the other host may have collected what this process was promised.
    for _ in 0..2 {
        lab.backup("vm", &image, Format::Raw).unwrap_err();
    }
    let protected = lab.runtime.block_on(lab.repository.open_session("vm"));
    assert!(matches!(protected, Err(Error::OwnedElsewhere { generation: 3, .. })), "{protected:?}");
    let puts: u64 = recording.take().into_values().map(|traffic| traffic.puts).sum();
    assert_eq!(puts, 0, "it writes nothing");
    lab.runtime.block_on(back.open_session("vm")).unwrap();
}

#[test]
fn what_an_owner_recorded_when_it_was_none_any_more_counts_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let image = lab.path("vm.raw");
    std::fs::write(&image, vec![3; 1 << 20]).unwrap();
    let snapshot = lab.backup("vm", &image, Format::Raw).unwrap().snapshot;
    let (chunks, _) = lab.ids_below(&lab.snapshot(snapshot).disks[0].root);
    open(&lab, &backend, &folder.path().join("there"), Access::TakeOver).unwrap();
    // The first owner had decided to delete, and was a moment late: the next one relies on these packs.
    let names = |kind: PackKind| -> Vec<_> {
        let listed = lab.runtime.block_on(backend.list(kind.folder())).unwrap();
        listed
            .iter()
            .filter_map(|(name, _)| match ObjectName::parse(name) {
                Some(ObjectName::Pack(_, name)) => Some(name),
                _ => None,
            })
            .collect()
    };
    let late = Deletion {
        repository: lab.descriptor.repository,
        generation: 1,
        number: 0,
        packs: names(PackKind::Data),
        nodes: names(PackKind::Nodes),
    };
    let name = underlay_store::names::deletion(1, 0);
    lab.runtime.block_on(backend.put(&name, late.seal().into())).unwrap();
    for host in ["third", "there", "fourth"] {
        let owner = open(&lab, &backend, &folder.path().join(host), Access::TakeOver).unwrap();
        lab.runtime.block_on(async {
            owner.gc(&GcOptions::default(), &Silent).await.unwrap();
            let session = owner.open_session("vm").await.unwrap().session;
            assert!(owner.have_chunks(session, &chunks).await.unwrap().iter().all(|have| *have), "{host}");
            owner.abandon(session).await.unwrap();
        });
    }
}
