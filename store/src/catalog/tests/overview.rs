//! What is known at a glance, and what was committed here.

use super::*;

#[test]
fn only_what_a_session_of_this_catalog_made_is_committed_here() {
    let catalog = catalog();
    let times: Vec<i64> = (1..=3).map(|n| catalog.open_session(session(n), "vm", 5).unwrap()).collect();
    for (n, time) in (1..).zip(&times[..2]) {
        commit(&catalog, session(n), snapshot(n), *time, b"", &[]).unwrap();
    }
    // From the bucket: at a time of its own, at that of an open session, and at that of a committed one.
    import(&catalog, snapshot(10), 1, b"", &[]).unwrap();
    import(&catalog, snapshot(11), times[2], b"", &[]).unwrap();
    import(&catalog, snapshot(12), times[1], b"", &[]).unwrap();
    let committed = |catalog: &Catalog| {
        let all = catalog.committed_snapshots().unwrap();
        all.into_iter().map(|found| (found.snapshot, found.vm, found.time_ms)).collect::<Vec<_>>()
    };
    let first = (snapshot(1), "vm".to_owned(), times[0]);
    assert_eq!(
        committed(&catalog),
        std::slice::from_ref(&first),
        "of two that claim one session, neither counts"
    );
    catalog.drop_snapshot(snapshot(12)).unwrap();
    assert_eq!(committed(&catalog), [first, (snapshot(2), "vm".to_owned(), times[1])]);
}

#[test]
fn an_overview_tells_who_writes_and_what_was_not_read_for_long() {
    let catalog = catalog();
    assert_eq!(catalog.overview().unwrap(), Overview::default());
    let opened = catalog.open_session(session(1), "vm", 70).unwrap();
    let record = pack(1, PackKind::Data, &[1]);
    catalog.add_pack(session(1), &record).unwrap();
    catalog.import_pack(&pack(2, PackKind::Nodes, &[2])).unwrap();
    let overview = catalog.overview().unwrap();
    assert_eq!((overview.never_read, overview.unread_since_ms), (2, Some(opened)));
    let [open] = &overview.sessions[..] else { panic!("{overview:?}") };
    assert_eq!((open.vm.as_str(), open.opened_ms, open.stored_bytes), ("vm", opened, record.size));
    catalog.abandon_session(session(1)).unwrap();
    for (n, time) in [(1, 5), (2, 9), (3, 7)] {
        import(&catalog, snapshot(n), time, b"", &[]).unwrap();
    }
    let overview = catalog.overview().unwrap();
    assert_eq!(overview.sessions, []);
    let [vm] = &overview.machines[..] else { panic!("{overview:?}") };
    assert_eq!((vm.vm.as_str(), vm.snapshots, vm.newest_ms), ("vm", 3, 9));
}

#[test]
fn snapshots_are_shown_without_reading_all_documents() {
    let catalog = catalog();
    let document =
        |bytes: u64| format!("{{\"body\":{{\"statistics\":{{\"disk_bytes\":{bytes}}}}}}}").into_bytes();
    for (n, time, bytes) in [(1, 5, 100), (2, 9, 20), (3, 7, 3)] {
        import(&catalog, snapshot(n), time, &document(bytes), &[]).unwrap();
    }
    import(&catalog, snapshot(4), 6, b"no document", &[]).unwrap();
    assert_eq!(catalog.disk_bytes().unwrap(), 123);
    assert_eq!(catalog.newest_of_each().unwrap(), [(snapshot(2), document(20))]);
    let newest: Vec<SnapshotId> = catalog.newest_of("vm", 2).unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(newest, [snapshot(2), snapshot(3)]);
    let heads: Vec<i64> = catalog.snapshot_heads().unwrap().into_iter().map(|head| head.time_ms).collect();
    assert_eq!(heads, [5, 6, 7, 9]);
    assert_eq!(catalog.newest_of("another", 2).unwrap(), []);
}
