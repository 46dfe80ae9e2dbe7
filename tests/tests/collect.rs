//! Collecting space: what goes, what stays, and that nobody is hurt who works meanwhile.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use underlay_client::image::Format;
use underlay_store::Error;
use underlay_store::authority::{Authority, Withdrawal};
use underlay_store::backend::{Backend, Fault, Faults, Operation, Rule};
use underlay_store::catalog::Location;
use underlay_store::check::CheckOptions;
use underlay_store::gc::{GcOptions, GcReport};
use underlay_store::id::{ChunkId, NodeId, SnapshotId};
use underlay_store::names::{self, ObjectName};
use underlay_store::pack::{self, Frame, PackId, PackKind, PackWriter};
use underlay_store::progress::Silent;
use underlay_store::repository::{Access, Repository};
use underlay_tests::lab::Lab;
use underlay_tests::program::Underlay;

const MIB: usize = 1 << 20;

/// Bytes that do not compress, another for each seed.
fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A disk of these pieces of noise, 1 MiB each.
fn disk(seeds: &[&str]) -> Vec<u8> {
    seeds.iter().flat_map(|seed| noise(seed, MIB)).collect()
}

fn back_up(lab: &Lab, vm: &str, disk: &[u8]) -> SnapshotId {
    let image = lab.path(&format!("{vm}.raw"));
    std::fs::write(&image, disk).unwrap();
    lab.backup(vm, &image, Format::Raw).unwrap().snapshot
}

fn gc(lab: &Lab, options: &GcOptions) -> GcReport {
    lab.runtime.block_on(lab.repository.gc(options, &Silent)).unwrap()
}

fn thorough() -> GcOptions {
    GcOptions { max_unused: 0.0, ..GcOptions::default() }
}

fn forget(lab: &Lab, snapshot: SnapshotId) {
    lab.runtime.block_on(lab.repository.forget(snapshot)).unwrap();
}

fn sound(lab: &Lab) {
    let options = CheckOptions { scrub: true, ..CheckOptions::default() };
    let report = lab.runtime.block_on(lab.repository.check(&options, &Silent)).unwrap();
    assert!(report.is_sound() && report.notices.is_empty(), "{report:?}");
}

fn holds(lab: &Lab, snapshot: SnapshotId, disk: &[u8]) {
    assert!(lab.read(&lab.snapshot(snapshot).disks[0].root) == disk);
}

/// Names of all packs in the bucket.
fn packs(lab: &Lab, backend: &Backend) -> Vec<(String, u64)> {
    lab.runtime.block_on(async {
        let mut all = backend.list(names::PACKS).await.unwrap();
        all.extend(backend.list(names::NODES).await.unwrap());
        all
    })
}

#[test]
fn what_nothing_needs_goes_and_the_bucket_is_not_listed() {
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let (old, new) = (disk(&["a", "b", "c", "d"]), disk(&["e", "f"]));
    let (first, second) = (back_up(&lab, "one", &old), back_up(&lab, "two", &new));
    let untouched = gc(&lab, &thorough());
    assert_eq!((untouched.dropped.packs, untouched.copied_from.packs), (0, 0), "{untouched:?}");

    forget(&lab, first);
    let before = packs(&lab, &backend);
    lab.traffic();
    let foreseen = gc(&lab, &GcOptions { dry_run: true, ..thorough() });
    assert_eq!(packs(&lab, &backend), before);
    let report = gc(&lab, &thorough());
    let traffic = lab.traffic_by_folder();
    assert_eq!(report.dropped, foreseen.dropped);
    assert_eq!(report.dropped.packs, 2, "{report:?}");
    assert!(report.freed() > 4 << 20, "{report:?}");
    for folder in ["packs", "nodes"] {
        assert_eq!(traffic.get(folder).map_or(0, |traffic| traffic.lists), 0, "{traffic:?}");
    }
    assert_eq!(traffic["packs"].deletes + traffic["nodes"].deletes, report.dropped.packs);
    assert_eq!(packs(&lab, &backend).len(), before.len() - 2);
    holds(&lab, second, &new);
    sound(&lab);
    assert_eq!(gc(&lab, &thorough()).freed(), 0, "nothing is left to do");

    forget(&lab, second);
    gc(&lab, &thorough());
    assert_eq!(packs(&lab, &backend), [], "nothing is needed any more");
    let again = back_up(&lab, "one", &old);
    holds(&lab, again, &old);
    sound(&lab);
}

#[test]
fn what_is_alive_moves_out_of_packs_that_are_mostly_dead() {
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let first = back_up(&lab, "one", &disk(&["a", "b", "c", "d"]));
    let kept = disk(&["x", "b"]);
    let second = back_up(&lab, "two", &kept);
    forget(&lab, first);
    let lazy = gc(&lab, &GcOptions { max_unused: 10.0, ..thorough() });
    assert_eq!(lazy.copied_from.packs, 0);
    assert!(lazy.unused > 3 << 20, "{lazy:?}");
    holds(&lab, second, &kept);

    // A reader who looked before finds its way after.
    let reader =
        lab.runtime.block_on(Repository::open(backend.clone(), &lab.path("reader"), Access::Read)).unwrap();
    let report = gc(&lab, &thorough());
    assert_eq!(report.copied_from.packs, 1, "{report:?}");
    assert!(report.unused < 64 << 10 && report.freed() > 2 << 20, "{report:?}");
    holds(&lab, second, &kept);
    sound(&lab);
    drop(reader);
    // Copies of two sessions' chunks, with both their keys, are copied once more.
    let third = disk(&["x", "b", "y"]);
    let last = back_up(&lab, "two", &third);
    forget(&lab, second);
    gc(&lab, &thorough());
    holds(&lab, last, &third);
    sound(&lab);
}

#[test]
fn what_a_backup_was_promised_stays_until_it_ends_or_is_shut_out() {
    let lab = Lab::in_memory();
    let old = disk(&["a", "b"]);
    let first = back_up(&lab, "one", &old);
    let root = lab.snapshot(first).disks[0].root;
    let (chunks, _) = lab.ids_below(&root);
    let authority = &lab.repository;
    let runtime = &lab.runtime;
    let session = runtime.block_on(authority.open_session("two")).unwrap().session;
    assert!(runtime.block_on(authority.have_chunks(session, &chunks)).unwrap().iter().all(|have| *have));
    forget(&lab, first);
    let report = gc(&lab, &thorough());
    assert_eq!((report.open_sessions, report.dropped.bytes < 1 << 20), (1, true), "{report:?}");
    let places = runtime.block_on(authority.locate_chunks(&chunks)).unwrap();
    assert!(places.iter().all(|places| !places.is_empty()));

    let report = gc(&lab, &GcOptions { lease: Duration::ZERO, ..thorough() });
    assert_eq!((report.fenced_sessions, report.open_sessions), (1, 0), "{report:?}");
    assert!(report.freed() > 1 << 20, "{report:?}");
    let refused = runtime.block_on(authority.have_chunks(session, &chunks)).unwrap_err();
    assert!(matches!(refused, Error::Session { state: "fenced", .. }), "{refused}");
    let places = runtime.block_on(authority.locate_chunks(&chunks)).unwrap();
    assert!(places.iter().all(Vec::is_empty));
}

#[test]
fn dead_nodes_are_not_offered_once_what_hangs_below_them_may_go() {
    let lab = Lab::in_memory();
    let first = back_up(&lab, "one", &disk(&["a", "b", "c"]));
    // Its nodes lie in a pack of their own; the chunks of "b" and "c" go, those of "a" stay.
    let second = back_up(&lab, "two", &disk(&["a"]));
    let (_, nodes) = lab.ids_below(&lab.snapshot(first).disks[0].root);
    let runtime = &lab.runtime;
    let have = |ids: &[NodeId]| {
        let session = runtime.block_on(lab.repository.open_session("three")).unwrap().session;
        let have = runtime.block_on(lab.repository.have_nodes(session, ids)).unwrap();
        runtime.block_on(lab.repository.abandon(session)).unwrap();
        have
    };
    assert!(have(&nodes).iter().all(|have| *have));
    forget(&lab, first);
    gc(&lab, &thorough());
    assert!(have(&nodes).iter().all(|have| !have));
    holds(&lab, second, &disk(&["a"]));
}

/// Ends a collection at its n-th request, for every n, and lets another one finish.
#[test]
fn a_collection_that_is_cut_off_anywhere_is_finished_by_the_next() {
    let (mut cut, mut last) = (0, false);
    while !last {
        for fault in [Fault::Before, Fault::After] {
            let faults = Faults::none();
            let backend = Backend::memory();
            let lab = Lab::on(backend.with_faults(Arc::clone(&faults)));
            let first = back_up(&lab, "one", &disk(&["a", "b", "c"]));
            let kept = disk(&["x", "b"]);
            let second = back_up(&lab, "two", &kept);
            forget(&lab, first);
            faults.add(Rule { operation: None, name: String::new(), skip: cut, times: u64::MAX, fault });
            last = lab.runtime.block_on(lab.repository.gc(&thorough(), &Silent)).is_ok();
            faults.clear();
            let report = gc(&lab, &thorough());
            assert!(
                last || report.finished.packs + report.dropped.packs + report.copied_from.packs > 0
                    || cut > 3,
                "{cut}"
            );
            holds(&lab, second, &kept);
            sound(&lab);
            let left: u64 = packs(&lab, &backend).iter().map(|(_, size)| size).sum();
            assert!(left < (2 << 20) + (128 << 10), "{left} bytes are left after request {cut} failed");
        }
        cut += 1;
    }
    assert!(cut > 15, "{cut} requests");
}

#[test]
fn a_damaged_pack_is_not_copied_under_a_sound_name() {
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let first = back_up(&lab, "one", &disk(&["a", "b", "c"]));
    let second = back_up(&lab, "two", &disk(&["b"]));
    forget(&lab, first);
    let listed = lab.runtime.block_on(backend.list(names::PACKS)).unwrap();
    let (name, size) = listed.into_iter().max_by_key(|(_, size)| *size).unwrap();
    lab.runtime.block_on(async {
        let mut bytes = backend.get(&name).await.unwrap().to_vec();
        bytes[size as usize / 2] ^= 1;
        backend.delete(&name).await.unwrap();
        backend.put(&name, bytes.into()).await.unwrap();
    });
    let report = gc(&lab, &thorough());
    assert!(report.damaged.len() == 1 && report.damaged[0].contains(&name), "{report:?}");
    assert!(packs(&lab, &backend).iter().any(|(left, _)| *left == name), "it may be all that is left");
    let _ = second;
}

#[test]
fn whoever_takes_over_relies_on_nothing_that_is_being_deleted() {
    let backend = Backend::memory();
    let faults = Faults::none();
    let lab = Lab::on(backend.with_faults(Arc::clone(&faults)));
    let content = disk(&["a", "b"]);
    let first = back_up(&lab, "one", &content);
    let (chunks, _) = lab.ids_below(&lab.snapshot(first).disks[0].root);
    forget(&lab, first);
    // Cut off after the record was written and before anything was deleted.
    faults.add(Rule::always(Operation::Delete, "", Fault::Before));
    lab.runtime.block_on(lab.repository.gc(&thorough(), &Silent)).unwrap_err();
    assert_eq!(packs(&lab, &backend).len(), 2);
    let state = lab.path("other");
    let other = lab.runtime.block_on(Repository::open(backend.clone(), &state, Access::TakeOver)).unwrap();
    let promised = lab.runtime.block_on(async {
        let session = other.open_session("two").await.unwrap().session;
        let promised = other.have_chunks(session, &chunks).await.unwrap();
        other.abandon(session).await.unwrap();
        promised
    });
    assert!(promised.iter().all(|have| !have), "its packs may go at any moment");
    // The one who was shut out deletes nothing any more; the new owner ends what was begun.
    faults.clear();
    let refused = lab.runtime.block_on(lab.repository.gc(&thorough(), &Silent)).unwrap_err();
    assert!(matches!(refused, Error::OwnedElsewhere { .. }), "{refused}");
    let report = lab.runtime.block_on(other.gc(&thorough(), &Silent)).unwrap();
    assert_eq!(report.finished.packs, 2, "{report:?}");
    assert_eq!(packs(&lab, &backend), []);
}

#[test]
fn only_one_collection_runs() {
    let folder = tempfile::tempdir().unwrap();
    let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
    let image = folder.path().join("vm.raw");
    for state in ["a", "b"] {
        std::fs::write(&image, noise(state, 3 * MIB)).unwrap();
        underlay.json(["backup", "--vm", "web", image.to_str().unwrap()]).unwrap();
    }
    underlay.json(["forget", "--keep-last", "1"]).unwrap();
    let catalog = folder.path().join("repo/catalog/catalog.gc.lock");
    let lock = std::fs::File::create(catalog).unwrap();
    lock.lock().unwrap();
    let refused = underlay.output(["gc"]).unwrap();
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && complaint.contains("already under way"), "{complaint}");
    drop(lock);
    let foreseen = underlay.output(["gc", "--dry-run"]).unwrap();
    assert!(String::from_utf8_lossy(&foreseen.stdout).contains("2 packs (3.0"), "{foreseen:?}");
    let report = underlay.json(["gc"]).unwrap();
    assert_eq!(report["report"]["dropped"]["packs"], 2, "{report}");
    underlay.json(["check", "--read-data"]).unwrap();
    underlay.restore("web@latest", &folder.path().join("back.raw"), "raw").unwrap();
    assert!(std::fs::read(folder.path().join("back.raw")).unwrap() == noise("b", 3 * MIB));
}

/// A pack with those of the chunks in `bytes` that are among `chunks`.
fn packed_again(lab: &Lab, pack: &PackId, bytes: &[u8], chunks: &[ChunkId]) -> Bytes {
    let index = pack::parse(pack, bytes).unwrap();
    let mut writer = PackWriter::data(lab.descriptor.repository, index.header.sealed_keys.clone()).unwrap();
    for entry in index.entries.iter().filter(|entry| chunks.contains(&entry.chunk_id())) {
        let start = entry.offset as usize;
        let frame = &bytes[start..start + entry.frame_length() as usize];
        let frame = pack::parse_frame(pack, frame, entry).unwrap();
        let key = index.header.key_of(pack, &frame).unwrap();
        writer.add(&Frame::copy_of(&frame, key)).unwrap();
    }
    writer.finish().unwrap().bytes
}

/// It would be relied on as soon as the backup that stored it commits.
#[test]
fn what_an_open_session_has_stored_anew_is_read_before_the_old_copy_goes() {
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let first = back_up(&lab, "one", &disk(&["a", "b"]));
    let (chunks, _) = lab.ids_below(&lab.snapshot(first).disks[0].root);
    let (session, old) = lab.runtime.block_on(async {
        let (name, _) = backend.list(names::PACKS).await.unwrap().remove(0);
        let bytes = backend.get(&name).await.unwrap();
        let Some(ObjectName::Pack(kind, old)) = ObjectName::parse(&name) else { panic!("{name}") };
        let again = packed_again(&lab, &PackId::new(kind, old), &bytes, &chunks);
        let session = lab.repository.open_session("two").await.unwrap().session;
        let name = lab.repository.put_pack(session, PackKind::Data, again.clone()).await.unwrap();
        let name = names::pack(PackKind::Data, &name);
        let mut bytes = again.to_vec();
        bytes[2000] ^= 1;
        backend.delete(&name).await.unwrap();
        backend.put(&name, bytes.into()).await.unwrap();
        (session, old)
    });
    forget(&lab, first);
    let report = gc(&lab, &thorough());
    assert_eq!((report.open_sessions, report.damaged.len()), (1, 1), "{report:?}");
    let sound = |places: &Vec<Location>| places.iter().any(|place| place.pack == old);
    let places = || lab.runtime.block_on(lab.repository.locate_chunks(&chunks)).unwrap();
    assert!(places().iter().all(sound), "the old copy is all that there is");
    lab.runtime.block_on(lab.repository.abandon(session)).unwrap();
    gc(&lab, &thorough());
    assert!(!places().iter().any(sound));
}

#[test]
fn the_sound_copy_of_what_is_found_damaged_stays() {
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let first = back_up(&lab, "one", &disk(&["a", "b", "c", "d", "e"]));
    // "b" is stored twice: another backup was promised nothing.
    let kept = disk(&["b"]);
    let (name, copy) = lab.runtime.block_on(async {
        let (name, _) = backend.list(names::PACKS).await.unwrap().remove(0);
        let bytes = backend.get(&name).await.unwrap();
        (name, bytes)
    });
    let second = back_up(&lab, "two", &kept);
    let (chunks, _) = lab.ids_below(&lab.snapshot(second).disks[0].root);
    lab.runtime.block_on(async {
        let Some(ObjectName::Pack(kind, name)) = ObjectName::parse(&name) else { panic!("{name}") };
        let pack = PackId::new(kind, name);
        let index = pack::parse(&pack, &copy).unwrap();
        let session = lab.repository.open_session("three").await.unwrap().session;
        let again = packed_again(&lab, &pack, &copy, &chunks);
        lab.repository.put_pack(session, PackKind::Data, again).await.unwrap();
        lab.repository.abandon(session).await.unwrap();
        // The older place of "b" is damaged, and nobody knows.
        let mut bytes = copy.to_vec();
        let needed = index.entries.iter().find(|entry| chunks.contains(&entry.chunk_id())).unwrap();
        bytes[needed.offset as usize + 100] ^= 1;
        backend.delete(&pack.to_string()).await.unwrap();
        backend.put(&pack.to_string(), bytes.into()).await.unwrap();
    });
    forget(&lab, first);
    let report = gc(&lab, &thorough());
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    holds(&lab, second, &kept);
}

#[test]
fn what_was_stored_wrong_stays_out_of_use_until_its_pack_goes() {
    let backend = Backend::memory();
    let lab = Lab::on(backend.clone());
    let content = disk(&["a", "b"]);
    let first = back_up(&lab, "one", &content);
    let (chunks, _) = lab.ids_below(&lab.snapshot(first).disks[0].root);
    let places = lab.runtime.block_on(lab.repository.locate_chunks(&chunks[..1])).unwrap();
    let liar = Withdrawal { chunks: vec![(chunks[0], places[0][0].pack)], ..Withdrawal::default() };
    let withdrawn = lab.runtime.block_on(lab.repository.withdraw(&liar)).unwrap();
    assert_eq!((withdrawn.retired, withdrawn.catalog_differs), (1, false));
    let second = back_up(&lab, "two", &content);
    let records = || lab.runtime.block_on(backend.list(names::RETIRED)).unwrap().len();
    assert_eq!(records(), 1);

    // Another catalog knows it, too, whichever place it met first.
    let state = lab.path("anew");
    let opening = Repository::open(backend.clone(), &state, Access::TakeOver);
    let anew = lab.runtime.block_on(opening).unwrap();
    let known = lab.runtime.block_on(anew.locate_chunks(&chunks[..1])).unwrap();
    let out_of_use: Vec<bool> = known[0].iter().map(|place| place.retired).collect();
    assert_eq!(out_of_use, [false, true], "{known:?}");
    assert_eq!(known[0][1].pack, places[0][0].pack);
    lab.runtime.block_on(anew.gc(&thorough(), &Silent)).unwrap();
    holds(&lab, first, &content);
    holds(&lab, second, &content);
    for snapshot in [first, second] {
        lab.runtime.block_on(anew.forget(snapshot)).unwrap();
    }
    lab.runtime.block_on(anew.gc(&thorough(), &Silent)).unwrap();
    assert_eq!((packs(&lab, &backend), records()), (Vec::new(), 0));
}
