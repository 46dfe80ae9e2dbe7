//! What checks found, and how long it is remembered.

use super::snapshots::import;
use super::*;
use crate::pack::PackId;

/// All is alive.
struct Everything;

impl Marked for Everything {
    fn has_node(&self, _: &NodeId) -> bool {
        true
    }

    fn has_chunk(&self, _: &ChunkId) -> bool {
        true
    }
}

#[test]
fn what_was_found_damaged_is_not_offered_and_tried_last() {
    let catalog = catalog();
    let name = |n: u8| PackName::new([n; 32]);
    catalog.open_session(session(1), "vm", 1).unwrap();
    catalog.import_packs(&[pack(1, PackKind::Data, &[1, 2]), pack(2, PackKind::Data, &[1])]).unwrap();
    let have = |n: u8| catalog.have_chunks(session(1), &[chunk(n)], 1).unwrap()[0];
    let places = |n: u8| -> Vec<(PackName, bool)> {
        let found = catalog.locate_chunks(&[chunk(n)]).unwrap().remove(0);
        found.into_iter().map(|place| (place.pack, place.retired)).collect()
    };
    let kept = || -> Vec<u64> {
        catalog.survey(&Everything).unwrap().packs.iter().map(|pack| pack.live_entries).collect()
    };
    assert_eq!(kept(), [2, 0]);
    let place = |pack, id: u8, wrong| Retired::Place { pack: name(pack), id: [id; 32], wrong };
    assert_eq!(catalog.retire(&[Retired::Pack(name(1)), Retired::Pack(name(9))]).unwrap(), 1);
    assert_eq!(catalog.retire(&[Retired::Pack(name(1))]).unwrap(), 0, "again");
    assert_eq!(kept(), [1, 1], "a collection keeps the sound copy of chunk 1");
    assert!(have(1) && !have(2));
    assert_eq!(places(1), [(name(2), false), (name(1), true)]);
    assert_eq!(catalog.suspected_packs().unwrap(), [PackId::new(PackKind::Data, name(1))]);
    assert!(catalog.packs(PackKind::Data).unwrap()[0].retired);
    // Whatever else somebody with keys found wrong in it stays out of use when the pack is read.
    assert_eq!(catalog.retire(&[place(1, 1, false), place(1, 1, true), place(2, 1, false)]).unwrap(), 3);
    assert!(!have(1));
    assert_eq!(kept(), [2, 1], "whatever is left is better than nothing, and nobody knows which");
    assert_eq!(catalog.packs_are_sound(&[name(1), name(2)], 77).unwrap(), 2);
    assert!(have(1) && have(2));
    assert_eq!(places(1), [(name(2), false), (name(1), true)]);
    assert_eq!(places(2), [(name(1), false)]);
    assert!(catalog.packs(PackKind::Data).unwrap().iter().all(|pack| pack.checked == 77 && !pack.retired));
    // A pack that goes takes all of it along: numbers of packs are used again.
    catalog.lock().execute("DELETE FROM packs", ()).unwrap();
    let left: i64 = catalog.lock().query_row("SELECT count(*) FROM retired", (), |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[test]
fn a_root_that_lost_something_is_not_live_until_it_is_whole() {
    let catalog = catalog();
    import(&catalog, snapshot(1), 1, b"x", &[root(4096, 1), root(4096, 2)]).unwrap();
    catalog.open_session(session(1), "vm", 1).unwrap();
    let pinned = || catalog.pin_roots(session(1), &[root(4096, 1), root(4096, 2)]).unwrap();
    catalog.set_affected_roots(&[root(4096, 1)], true).unwrap();
    assert_eq!(pinned(), [false, true]);
    catalog.set_affected_roots(&[root(4096, 2)], false).unwrap();
    assert_eq!(pinned(), [false, false]);
    catalog.set_affected_roots(&[], true).unwrap();
    assert_eq!(pinned(), [true, true]);
}

#[test]
fn a_catalog_that_contradicts_a_pack_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("a"), folder.path().join("b"));
    let catalog = Catalog::open(&path, REPOSITORY).unwrap();
    let record = pack(1, PackKind::Data, &[1, 2]);
    catalog.import_pack(&record).unwrap();
    Catalog::open(&other, REPOSITORY).unwrap().import_pack(&record).unwrap();
    assert!(catalog.agrees_with(&record).unwrap());
    assert_eq!((catalog.places_unlike(&other).unwrap(), catalog.faults().unwrap()), (0, vec![]));
    catalog.lock().execute("UPDATE chunks SET offset = 7 WHERE id = ?1", [[1u8; 32]]).unwrap();
    assert!(!catalog.agrees_with(&record).unwrap());
    assert_eq!(catalog.places_unlike(&other).unwrap(), 1);
    catalog.places_unlike(&folder.path().join("none/there")).unwrap_err();
    assert!(!catalog.agrees_with(&pack(1, PackKind::Data, &[1, 2, 3])).unwrap());
    assert!(!catalog.agrees_with(&pack(2, PackKind::Data, &[1, 2])).unwrap());
}

/// Another process finds a pack damaged between its writer's attempt that got no answer and the next one.
#[test]
fn a_pack_that_its_writer_stores_once_more_is_whole() {
    let whole = pack(1, PackKind::Data, &[1, 2, 3]);
    let cut_off = PackRecord { size: 400, entries: vec![whole.entries[0], entry(9, 1)], ..whole.clone() };
    a_pack_is_whole_once_more(&whole, &cut_off);
    // A bit of an id has flipped: as many, and as long.
    let entries = vec![whole.entries[0], whole.entries[1], Entry { id: [9; 32], ..whole.entries[2] }];
    a_pack_is_whole_once_more(&whole, &PackRecord { entries, ..whole.clone() });
}

fn a_pack_is_whole_once_more(whole: &PackRecord, found: &PackRecord) {
    let catalog = catalog();
    catalog.open_session(session(1), "vm", 0).unwrap();
    catalog.import_pack(found).unwrap();
    catalog.add_pack(session(1), whole).unwrap();
    let ids = [chunk(1), chunk(2), chunk(3), chunk(9)];
    assert_eq!(catalog.have_chunks(session(1), &ids, 0).unwrap(), [true, true, true, false]);
    let [known] = &catalog.packs(PackKind::Data).unwrap()[..] else { panic!("one pack") };
    assert_eq!((known.size, known.entries), (1000, 3));
    catalog.add_pack(session(1), whole).unwrap();
    assert_eq!(catalog.have_chunks(session(1), &ids[..3], 0).unwrap(), [true; 3]);
}
