//! The rules, one by one; then many openers of one file; then all of it against a model.

use crate::pack::{Codec, Entry, PackKind};
use std::process::Command;

use super::*;
use crate::id::{ChunkId, NodeId, PackName, Root, SessionId, SnapshotId};

mod doomed;
mod model;
mod overview;
mod retired;
mod snapshots;

use snapshots::{commit, import};

const REPOSITORY: RepositoryId = RepositoryId::new([7; 16]);

fn catalog() -> Catalog {
    Catalog::in_memory(REPOSITORY).unwrap()
}

fn session(n: u8) -> SessionId {
    SessionId::new([n; 16])
}

fn snapshot(n: u8) -> SnapshotId {
    SnapshotId::new([n; 16])
}

fn chunk(n: u8) -> ChunkId {
    ChunkId::new([n; 32])
}

fn node(n: u8) -> NodeId {
    NodeId::new([n; 32])
}

fn root(size: u64, n: u8) -> Root {
    Root { size, node: Some(node(n)) }
}

fn entry(n: u8, at: usize) -> Entry {
    Entry { id: [n; 32], offset: 100 * at as u32, payload_length: 90, plain_length: 4096, codec: Codec::Zstd }
}

fn pack(name: u8, kind: PackKind, ids: &[u8]) -> PackRecord {
    let entries = ids.iter().enumerate().map(|(at, n)| entry(*n, at)).collect();
    PackRecord { name: PackName::new([name; 32]), kind, size: 1000, entries }
}

fn is_session_error<T: fmt::Debug>(result: Result<T>, expected: &str) {
    match result {
        Err(Error::Session { state, .. }) => assert_eq!(state, expected),
        other => panic!("{other:?}"),
    }
}

/// Everything an open session may do, on one that is not.
fn nothing_works(catalog: &Catalog, id: SessionId, state: &str) {
    is_session_error(catalog.have_chunks(id, &[], 0), state);
    is_session_error(catalog.have_nodes(id, &[], 0), state);
    is_session_error(catalog.pin_roots(id, &[]), state);
    is_session_error(catalog.add_pack(id, &pack(200, PackKind::Data, &[200])), state);
    is_session_error(catalog.is_own_node(id, &[]), state);
    is_session_error(catalog.is_pinned_node(id, &[]), state);
    is_session_error(catalog.known_chunks(id, &[]), state);
    is_session_error(catalog.session_roots(id), state);
    is_session_error(commit(catalog, id, snapshot(200), 1, b"", &[]), state);
    assert!(!catalog.has_snapshot(snapshot(200)).unwrap());
}

#[test]
fn times_only_grow() {
    let catalog = catalog();
    assert_eq!(catalog.open_session(session(1), "vm", 1000).unwrap(), 1000);
    assert_eq!(catalog.open_session(session(2), "vm", 1000).unwrap(), 1001);
    assert_eq!(catalog.open_session(session(3), "other", 5).unwrap(), 1002);
    assert_eq!(catalog.open_session(session(4), "vm", 2000).unwrap(), 2000);
    import(&catalog, snapshot(1), 9000, b"", &[]).unwrap();
    assert_eq!(catalog.open_session(session(5), "vm", 2000).unwrap(), 9001);
}

#[test]
fn opening_again_answers_again() {
    let catalog = catalog();
    let time = catalog.open_session(session(1), "vm", 1000).unwrap();
    assert_eq!(catalog.open_session(session(1), "vm", 2000).unwrap(), time);
    is_session_error(catalog.open_session(session(1), "another", 2000), "open");
    catalog.abandon_session(session(1)).unwrap();
    is_session_error(catalog.open_session(session(1), "vm", 2000), "abandoned");
}

#[test]
fn a_session_ends_once() {
    let catalog = catalog();
    assert_eq!(catalog.session_state(session(1)).unwrap(), None);
    nothing_works(&catalog, session(1), "unknown");
    is_session_error(catalog.abandon_session(session(1)), "unknown");
    is_session_error(catalog.fence_session(session(1)), "unknown");
    for n in 1..=3 {
        catalog.open_session(session(n), "vm", 0).unwrap();
        assert_eq!(catalog.session_state(session(n)).unwrap(), Some(SessionState::Open));
    }

    commit(&catalog, session(1), snapshot(1), 1, b"doc", &[]).unwrap();
    assert_eq!(catalog.session_state(session(1)).unwrap(), Some(SessionState::Committed));
    nothing_works(&catalog, session(1), "committed");
    is_session_error(catalog.abandon_session(session(1)), "committed");
    is_session_error(catalog.fence_session(session(1)), "committed");

    catalog.abandon_session(session(2)).unwrap();
    catalog.fence_session(session(2)).unwrap();
    assert_eq!(catalog.session_state(session(2)).unwrap(), Some(SessionState::Abandoned));
    nothing_works(&catalog, session(2), "abandoned");

    catalog.fence_session(session(3)).unwrap();
    catalog.abandon_session(session(3)).unwrap();
    assert_eq!(catalog.session_state(session(3)).unwrap(), Some(SessionState::Fenced));
    nothing_works(&catalog, session(3), "fenced");
}

#[test]
fn a_session_that_ended_holds_nothing() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    let catalog = catalog();
    is_shared(&catalog);
    catalog.import_pack(&pack(1, PackKind::Data, &[1])).unwrap();
    let held = || {
        let sql = "SELECT (SELECT count(*) FROM pins), (SELECT count(*) FROM session_roots)";
        catalog.lock().query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    for n in 1..=4 {
        catalog.open_session(session(n), "vm", 0).unwrap();
        catalog.have_chunks(session(n), &[chunk(1)], 0).unwrap();
        catalog.pin_roots(session(n), &[Root { size: 1, node: None }]).unwrap();
    }
    assert_eq!(held(), (4, 4));
    commit(&catalog, session(1), snapshot(1), 1, b"doc", &[]).unwrap();
    assert_eq!(held(), (3, 3));
    catalog.abandon_session(session(2)).unwrap();
    catalog.fence_session(session(3)).unwrap();
    assert_eq!(held(), (1, 1));
    assert_eq!(catalog.known_chunks(session(4), &[chunk(1)]).unwrap(), [true]);
}

#[test]
fn having_pins() {
    let catalog = catalog();
    for n in 1..=2 {
        catalog.open_session(session(n), "vm", 0).unwrap();
    }
    catalog.add_pack(session(1), &pack(1, PackKind::Data, &[3, 1, 2])).unwrap();
    let asked = [chunk(9), chunk(2), chunk(1), chunk(2)];
    assert_eq!(catalog.known_chunks(session(2), &asked).unwrap(), [false; 4]);
    assert_eq!(catalog.have_chunks(session(2), &asked, 0).unwrap(), [false, true, true, true]);
    assert_eq!(
        catalog.known_chunks(session(2), &[chunk(1), chunk(2), chunk(3)]).unwrap(),
        [true, true, false]
    );
    assert_eq!(
        catalog.known_chunks(session(1), &[chunk(1), chunk(3), chunk(4)]).unwrap(),
        [true, true, false]
    );
}

#[test]
fn nodes_are_trusted_once_proven() {
    let catalog = catalog();
    for n in 1..=3 {
        catalog.open_session(session(n), "vm", 0).unwrap();
    }
    catalog.add_pack(session(1), &pack(1, PackKind::Nodes, &[1, 2])).unwrap();
    assert_eq!(catalog.have_nodes(session(2), &[node(1)], 0).unwrap(), [false]);
    assert_eq!(catalog.is_pinned_node(session(2), &[node(1)]).unwrap(), [false]);
    assert_eq!(catalog.have_nodes(session(1), &[node(1)], 0).unwrap(), [true]);
    assert_eq!(catalog.is_own_node(session(1), &[node(3), node(2)]).unwrap(), [false, true]);
    assert_eq!(catalog.is_own_node(session(2), &[node(1)]).unwrap(), [false]);

    commit(&catalog, session(1), snapshot(1), 1, b"doc", &[root(4096, 1)]).unwrap();
    assert_eq!(catalog.have_nodes(session(2), &[node(2), node(1), node(5)], 0).unwrap(), [true, true, false]);
    assert_eq!(
        catalog.is_pinned_node(session(2), &[node(2), node(1), node(5)]).unwrap(),
        [true, true, false]
    );
    assert_eq!(catalog.is_pinned_node(session(3), &[node(1)]).unwrap(), [false]);
    // A chunk of the same id is something else.
    assert_eq!(catalog.have_chunks(session(2), &[chunk(1)], 0).unwrap(), [false]);
    assert_eq!(catalog.known_chunks(session(2), &[chunk(1)]).unwrap(), [false]);
}

#[test]
fn roots_hang_from_live_snapshots() {
    let catalog = catalog();
    for n in 1..=2 {
        catalog.open_session(session(n), "vm", 0).unwrap();
    }
    let zeros = Root { size: 1 << 63, node: None };
    let asked = [root(4096, 1), root(8192, 1), zeros, root(4096, 2)];
    assert_eq!(catalog.pin_roots(session(1), &asked).unwrap(), [false, false, true, false]);
    assert_eq!(catalog.session_roots(session(1)).unwrap(), [zeros]);
    let roots = [root(4096, 1), root(4096, 1), Root { size: 5, node: None }];
    commit(&catalog, session(1), snapshot(1), 1, b"doc", &roots).unwrap();
    assert_eq!(catalog.pin_roots(session(2), &asked).unwrap(), [true, false, true, false]);
    let mut held = catalog.session_roots(session(2)).unwrap();
    held.sort();
    assert_eq!(held, [root(4096, 1), zeros]);
}

#[test]
fn a_pack_is_added_once_whoever_writes_it() {
    let catalog = catalog();
    for n in 1..=2 {
        catalog.open_session(session(n), "vm", 0).unwrap();
    }
    let first = pack(1, PackKind::Data, &[1, 2, 1]);
    catalog.add_pack(session(1), &first).unwrap();
    catalog.add_pack(session(1), &first).unwrap();
    catalog.import_pack(&first).unwrap();
    assert_eq!(catalog.known_chunks(session(2), &[chunk(1)]).unwrap(), [false]);
    catalog.add_pack(session(2), &first).unwrap();
    for n in 1..=2 {
        assert_eq!(catalog.known_chunks(session(n), &[chunk(1)]).unwrap(), [true]);
    }
    let other = PackRecord { kind: PackKind::Nodes, ..first.clone() };
    assert!(matches!(catalog.add_pack(session(2), &other), Err(Error::Invalid { what: "pack", .. })));
    assert_eq!(
        catalog.totals().unwrap(),
        Totals { packs: 1, pack_bytes: 1000, chunks: 2, plain_bytes: 8192, ..Totals::default() }
    );
    let found = catalog.locate_chunks(&[chunk(1)]).unwrap();
    assert_eq!(found[0].iter().map(|l| l.offset).collect::<Vec<_>>(), [0], "of two the first counts");
}

#[test]
fn packs_are_imported_together() {
    let (one_by_one, together) = (catalog(), catalog());
    let packs = [
        pack(4, PackKind::Nodes, &[9, 1, 1]),
        pack(2, PackKind::Data, &[7, 3, 1]),
        pack(3, PackKind::Data, &[1, 7, 5, 7]),
        pack(2, PackKind::Data, &[7, 3, 1]),
    ];
    packs.iter().for_each(|pack| one_by_one.import_pack(pack).unwrap());
    together.import_packs(&packs).unwrap();
    together.import_packs(&packs).unwrap();
    for ids in [[1, 3, 5], [7, 9, 2]] {
        let (chunks, nodes) = (ids.map(chunk), ids.map(node));
        assert_eq!(together.locate_chunks(&chunks).unwrap(), one_by_one.locate_chunks(&chunks).unwrap());
        assert_eq!(together.locate_nodes(&nodes).unwrap(), one_by_one.locate_nodes(&nodes).unwrap());
    }
    assert_eq!(together.totals().unwrap(), one_by_one.totals().unwrap());
    assert_eq!(together.totals().unwrap().chunks, 6);
}

#[test]
fn an_id_may_lie_in_several_places() {
    let catalog = catalog();
    catalog.open_session(session(1), "vm", 0).unwrap();
    catalog.add_pack(session(1), &pack(1, PackKind::Data, &[5, 1])).unwrap();
    catalog.add_pack(session(1), &pack(2, PackKind::Data, &[1])).unwrap();
    catalog.add_pack(session(1), &pack(3, PackKind::Nodes, &[1])).unwrap();
    let place = |name, at| {
        let Entry { offset, payload_length, plain_length, codec, .. } = entry(0, at);
        Location {
            pack: PackName::new([name; 32]),
            offset,
            payload_length,
            plain_length,
            codec,
            retired: false,
        }
    };
    let found = catalog.locate_chunks(&[chunk(9), chunk(1), chunk(5)]).unwrap();
    assert_eq!(found, [vec![], vec![place(1, 1), place(2, 0)], vec![place(1, 0)]]);
    assert_eq!(catalog.locate_nodes(&[node(1)]).unwrap(), [vec![place(3, 0)]]);
}

#[test]
fn what_gc_condemned_is_read_but_not_offered() {
    for condemn in [
        "UPDATE packs SET state = 1, condemned = 3 WHERE pack = 1",
        "UPDATE packs SET state = 2, condemned = 3 WHERE pack = 1",
        "UPDATE chunks SET condemned = 3; UPDATE nodes SET condemned = 3",
    ] {
        let catalog = catalog();
        catalog.open_session(session(1), "vm", 0).unwrap();
        catalog.import_pack(&pack(1, PackKind::Data, &[1])).unwrap();
        catalog.lock().execute_batch(condemn).unwrap();
        assert_eq!(catalog.have_chunks(session(1), &[chunk(1)], 0).unwrap(), [false]);
        assert_eq!(catalog.known_chunks(session(1), &[chunk(1)]).unwrap(), [false]);
        assert_eq!(catalog.locate_chunks(&[chunk(1)]).unwrap()[0].len(), 1);
        // A second copy is offered, and read first.
        catalog.import_pack(&pack(2, PackKind::Data, &[1])).unwrap();
        assert_eq!(catalog.have_chunks(session(1), &[chunk(1)], 0).unwrap(), [true]);
        assert_eq!(catalog.locate_chunks(&[chunk(1)]).unwrap()[0][0].pack, PackName::new([2; 32]));
    }
}

#[test]
fn what_is_found_in_the_bucket_must_be_proven() {
    let catalog = catalog();
    catalog.open_session(session(1), "vm", 0).unwrap();
    for (name, kind) in [(1, PackKind::Data), (3, PackKind::Nodes), (2, PackKind::Nodes)] {
        catalog.import_pack(&pack(name, kind, &[name])).unwrap();
    }
    assert_eq!(catalog.have_chunks(session(1), &[chunk(1)], 0).unwrap(), [true]);
    assert_eq!(catalog.have_nodes(session(1), &[node(2), node(3)], 0).unwrap(), [false, false]);
    catalog.mark_proven(&[PackName::new([3; 32]), PackName::new([99; 32])]).unwrap();
    assert_eq!(catalog.have_nodes(session(1), &[node(2), node(3)], 0).unwrap(), [false, true]);
    let packs = catalog.packs(PackKind::Nodes).unwrap();
    let shown: Vec<_> = packs.iter().map(|p| (p.name.as_bytes()[0], p.proven, p.session, p.state)).collect();
    assert_eq!(shown, [(2, false, None, PackState::Live), (3, true, None, PackState::Live)]);
}

#[test]
fn snapshots_come_oldest_first_with_their_documents() {
    let catalog = catalog();
    catalog.open_session(session(1), "vm", 5).unwrap();
    import(&catalog, snapshot(9), 1, b"one", &[root(1, 1)]).unwrap();
    import(&catalog, snapshot(9), 1, b"again", &[]).unwrap();
    import(&catalog, snapshot(2), 3, b"three", &[]).unwrap();
    commit(&catalog, session(1), snapshot(5), 2, b"two", &[]).unwrap();
    let expected = [(9, &b"one"[..]), (5, b"two"), (2, b"three")].map(|(n, d)| (snapshot(n), d.to_vec()));
    assert_eq!(catalog.snapshots().unwrap(), expected);
    catalog.open_session(session(2), "vm", 5).unwrap();
    let again = commit(&catalog, session(2), snapshot(5), 2, b"x", &[root(2, 2)]);
    assert!(matches!(again, Err(Error::Invalid { what: "snapshot", .. })));
    assert_eq!(catalog.session_state(session(2)).unwrap(), Some(SessionState::Open));
    assert_eq!(catalog.pin_roots(session(2), &[root(2, 2), root(1, 1)]).unwrap(), [false, true]);
}

/// Opens a session of its own and writes packs, while others do the same.
fn work(path: &Path, n: u8) {
    let catalog = Catalog::open(path, REPOSITORY).unwrap();
    catalog.open_session(session(n), "vm", 0).unwrap();
    for round in 0..20_u8 {
        let mut name = [n; 32];
        name[31] = round;
        let record = PackRecord { name: PackName::new(name), ..pack(0, PackKind::Data, &[n, round, 250]) };
        catalog.add_pack(session(n), &record).unwrap();
        assert_eq!(catalog.have_chunks(session(n), &[chunk(n), chunk(250)], 0).unwrap(), [true, true]);
    }
    commit(&catalog, session(n), snapshot(n), 0, b"", &[]).unwrap();
}

/// Only a child of the test below does anything here.
#[test]
fn child() {
    if let Some(path) = std::env::var_os("UNDERLAY_TEST_CATALOG") {
        work(Path::new(&path), 101);
        work(Path::new(&path), 102);
    }
}

#[test]
fn many_processes_and_threads_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "catalog::tests::child"])
        .env("UNDERLAY_TEST_CATALOG", &path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::scope(|scope| {
        for n in 1..=3 {
            let path = &path;
            scope.spawn(move || work(path, n));
        }
    });
    assert!(child.wait().unwrap().success());
    let catalog = Catalog::open(&path, REPOSITORY).unwrap();
    let totals = catalog.totals().unwrap();
    assert_eq!((totals.snapshots, totals.packs), (5, 100));
    assert_eq!(catalog.locate_chunks(&[chunk(250)]).unwrap()[0].len(), 100);
    let mut times: Vec<i64> =
        (0..3).map(|n| catalog.open_session(session(150 + n), "vm", 0).unwrap()).collect();
    times.dedup();
    assert_eq!(times, [6, 7, 8], "five sessions had a time of their own");
}

#[test]
fn what_was_answered_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    work(&path, 1);
    let catalog = Catalog::open(&path, REPOSITORY).unwrap();
    catalog.open_session(session(2), "vm", 0).unwrap();
    assert_eq!(catalog.have_chunks(session(2), &[chunk(1)], 0).unwrap(), [true]);
    drop(catalog);
    let catalog = Catalog::open(&path, REPOSITORY).unwrap();
    assert_eq!(catalog.session_state(session(1)).unwrap(), Some(SessionState::Committed));
    assert_eq!(catalog.known_chunks(session(2), &[chunk(1)]).unwrap(), [true]);
    assert!(catalog.has_snapshot(snapshot(1)).unwrap());
}
