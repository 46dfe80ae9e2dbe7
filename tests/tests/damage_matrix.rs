//! Every kind of damage to every kind of object: what survives, and what the user is told. `docs/architecture.md` has the table.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use underlay_tests::program::Underlay;

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Delete,
    Truncate,
    Flip,
    /// Its place is taken by another of its kind.
    Swap,
    Append,
}

use Damage::{Append, Delete, Flip, Swap, Truncate};

const ALL: [Damage; 5] = [Delete, Truncate, Flip, Swap, Append];

/// What is damaged, and for packs where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Descriptor,
    Slot,
    DataHeader,
    DataFrame,
    DataTrailer,
    NodesHeader,
    NodesFrame,
    NodesTrailer,
    Snapshot,
    Claim,
    Protection,
    Mark,
    Catalog,
}

/// What a restore of the damaged snapshot gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restores {
    /// Every byte.
    Exactly,
    /// An error that names the object, and what to do. With the verbs of `mended_by`, every byte.
    AfterRepair,
    /// An error. A new backup heals it.
    AfterBackup,
}

/// What a verb is expected to exit with: `check --scrub`, and a backup before anything was repaired.
struct Row {
    object: Object,
    damage: Damage,
    restore: Restores,
    /// `check --scrub` finds damage and names this; empty: it finds nothing.
    check_names: &'static str,
    /// A backup works at once; if not, it says what to do.
    backup_works: bool,
    /// What the hint of the error names.
    mended_by: &'static [&'static [&'static str]],
}

const REPAIR: &[&[&str]] = &[&["repair"]];
const NOTHING: &[&[&str]] = &[];

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for damage in ALL {
        let mut row = |object, restore, check_names, backup_works, mended_by| {
            rows.push(Row { object, damage, restore, check_names, backup_works, mended_by });
        };
        let descriptor: &[&[&str]] = &[&["repair", "descriptor"]];
        row(Object::Descriptor, Restores::AfterRepair, "underlay.json", false, descriptor);
        // The key file opens the repository. A slot that is gone is not missed by anyone without its passphrase.
        let named = if damage == Delete { "" } else { "keys/" };
        row(Object::Slot, Restores::Exactly, named, true, NOTHING);
        // Only bytes past the end, or a trailer that the catalog knows, leave all of a pack readable.
        let lost = if damage == Append { Restores::Exactly } else { Restores::AfterBackup };
        let whole_pack = |part: Restores| if damage == Flip { part } else { lost };
        row(Object::DataHeader, lost, "packs/", true, NOTHING);
        row(Object::DataFrame, lost, "packs/", true, NOTHING);
        let trailer = if damage == Truncate { Restores::Exactly } else { whole_pack(Restores::Exactly) };
        row(Object::DataTrailer, trailer, "packs/", true, NOTHING);
        // Nodes are found by the catalog, and each carries a checksum: a header that nobody needs costs nothing.
        row(Object::NodesHeader, whole_pack(Restores::Exactly), "nodes/", true, NOTHING);
        row(Object::NodesFrame, lost, "nodes/", true, NOTHING);
        row(Object::NodesTrailer, trailer, "nodes/", true, NOTHING);
        row(Object::Snapshot, Restores::Exactly, "snapshots/", true, REPAIR);
        let claim: &[&[&str]] = &[&["repair", "claim"]];
        match damage {
            // Nobody claims it: the next to write does.
            Delete => row(Object::Claim, Restores::Exactly, "", true, NOTHING),
            _ => row(Object::Claim, Restores::Exactly, "claims/", false, claim),
        }
        let named = |name| if damage == Delete { "" } else { name };
        row(Object::Protection, Restores::Exactly, named("protected/"), true, REPAIR);
        row(Object::Mark, Restores::Exactly, named("damaged/"), true, REPAIR);
        let catalog: &[&[&str]] = &[&["repair", "catalog"]];
        match damage {
            // It is built from the objects.
            Delete => row(Object::Catalog, Restores::Exactly, "", true, NOTHING),
            // Pages past its end are nobody's.
            Append => row(Object::Catalog, Restores::Exactly, "", true, catalog),
            _ => row(Object::Catalog, Restores::Exactly, "catalog", false, catalog),
        }
    }
    rows
}

/// A repository with two machines, and another one with the same, to swap objects with.
struct Place {
    folder: tempfile::TempDir,
    underlay: Underlay,
    disk: Vec<u8>,
    snapshot: String,
}

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Files below a folder, the largest first.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort_by_key(|path| (std::cmp::Reverse(fs::metadata(path).unwrap().len()), path.clone()));
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { assert!(fs::copy(&path, &target).is_ok()) }
    }
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
        let disk = [noise(1, 1 << 20), vec![0; 2 << 20], noise(2, 1 << 20)].concat();
        let mut place = Self { folder, underlay, disk, snapshot: String::new() };
        let passphrase = place.path("passphrase");
        fs::write(&passphrase, "correct horse").unwrap();
        let file = passphrase.to_str().unwrap();
        place.underlay.json(["key", "add", "--new-passphrase-file", file]).unwrap();
        fs::write(place.path("vm.raw"), &place.disk).unwrap();
        place.snapshot = place.backup();
        place.underlay.json(["protect", &place.snapshot]).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn backup(&self) -> String {
        let image = self.path("vm.raw");
        let outcome = self.underlay.json(["backup", "--vm", "web", image.to_str().unwrap()]).unwrap();
        outcome["snapshot"].as_str().unwrap().to_owned()
    }

    fn object(&self, object: Object) -> PathBuf {
        let repository = self.path("repo");
        let first = |folder: &str| files(&repository.join(folder)).remove(0);
        match object {
            Object::Descriptor => repository.join("underlay.json"),
            Object::Slot => first("keys"),
            Object::DataHeader | Object::DataFrame | Object::DataTrailer => first("packs"),
            Object::NodesHeader | Object::NodesFrame | Object::NodesTrailer => first("nodes"),
            Object::Snapshot => repository.join(format!("snapshots/{}.json", self.snapshot)),
            Object::Claim => first("claims"),
            Object::Protection => first("protected"),
            Object::Mark => first("damaged"),
            Object::Catalog => repository.join("catalog/catalog.sqlite"),
        }
    }

    /// Whether the snapshot restores exactly; if not, what is said. Wrong data is never taken.
    fn restore(&self, snapshot: &str) -> Result<(), String> {
        let to = self.path("back.raw");
        let path = to.to_str().unwrap();
        let output = self.underlay.output(["restore", snapshot, "--to", path, "--format", "raw"]).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        match output.status.success() {
            true => {
                assert!(fs::read(&to).unwrap() == self.disk, "wrong data");
                fs::remove_file(to).unwrap();
                Ok(())
            }
            false => {
                assert!(!to.exists(), "half a disk");
                Err(said)
            }
        }
    }

    fn run(&self, verb: &[&str]) -> (Option<i32>, String) {
        let output = self.underlay.command([]).args(verb).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    fn damage(&self, object: Object, damage: Damage, other: &Self) {
        let path = self.object(object);
        if object == Object::Catalog {
            // What is in its log has to be in the file: it is damaged at rest.
            for ending in ["-wal", "-shm"] {
                assert!(!path.with_file_name(format!("catalog.sqlite{ending}")).exists());
            }
        }
        let mut bytes = fs::read(&path).unwrap();
        let at = match object {
            Object::DataHeader | Object::NodesHeader => 60,
            Object::DataFrame => 20_000,
            Object::NodesFrame => 200,
            Object::DataTrailer | Object::NodesTrailer => bytes.len() - 20,
            Object::Catalog => 20,
            _ => bytes.len() / 2,
        };
        match damage {
            Delete => return fs::remove_file(path).unwrap(),
            Truncate => bytes.truncate(at),
            Flip => bytes[at] ^= 1,
            Swap => bytes = fs::read(other.object(object)).unwrap(),
            Append => bytes.extend_from_slice(&[7; 100]),
        }
        fs::write(path, bytes).unwrap();
    }
}

/// Puts a mark on a snapshot whose data is whole: one that a repair would lift.
fn mark(place: &Place) {
    let pack = place.object(Object::DataFrame);
    let sound = fs::read(&pack).unwrap();
    fs::remove_file(&pack).unwrap();
    assert_eq!(place.run(&["repair"]).0, Some(12));
    fs::write(pack, sound).unwrap();
    assert_eq!(place.run(&["check", "--scrub"]).0, Some(0));
}

/// The same place in another folder.
fn twin(place: &Place) -> Place {
    let folder = tempfile::tempdir().unwrap();
    copy(place.folder.path(), folder.path());
    let underlay = place.underlay.moved(folder.path());
    let (disk, snapshot) = (place.disk.clone(), place.snapshot.clone());
    Place { folder, underlay, disk, snapshot }
}

#[test]
fn every_damage_to_every_object() {
    let (plain, other) = (Place::new(), Place::new());
    let (marked, other_marked) = (twin(&plain), twin(&other));
    mark(&marked);
    mark(&other_marked);
    let mut failed = Vec::new();
    for row in rows() {
        let has_mark = row.object == Object::Mark;
        let place = twin(if has_mark { &marked } else { &plain });
        place.damage(row.object, row.damage, if has_mark { &other_marked } else { &other });
        let cell = format!("{:?}, {:?}", row.object, row.damage);
        if std::panic::catch_unwind(|| assert_row(&place, &row, &cell)).is_err() {
            failed.push(cell);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

fn assert_row(place: &Place, row: &Row, cell: &str) {
    // Restored as it is.
    let restored = place.restore(&place.snapshot);
    match (row.restore, &restored) {
        (Restores::Exactly, Ok(())) => {}
        (Restores::AfterRepair | Restores::AfterBackup, Err(said)) => {
            assert!(said.contains("hint: ") && said.contains("underlay repair"), "{cell}: {said}");
        }
        _ => panic!("{cell}: {restored:?}"),
    }
    // What a backup says before anybody repaired anything.
    let image = place.path("vm.raw");
    let (code, said) = place.run(&["backup", "--vm", "web", image.to_str().unwrap()]);
    match row.backup_works {
        true => assert_eq!(code, Some(0), "{cell}: {said}"),
        false => assert!(code != Some(0) && said.contains("hint: "), "{cell}: {said}"),
    }
    // The check names it, and whom it touches.
    let (code, said) = place.run(&["check", "--scrub"]);
    match row.check_names.is_empty() {
        true => assert_eq!(code, Some(0), "{cell}: {said}"),
        false => assert!(code != Some(0) && said.contains(row.check_names), "{cell}: {said}"),
    }
    if row.restore == Restores::AfterBackup {
        assert!(said.contains(&format!("affected: snapshot {}", place.snapshot)), "{cell}: {said}");
    }
    for verb in row.mended_by {
        let (code, said) = place.run(verb);
        assert_eq!(code, Some(0), "{cell}, {verb:?}: {said}");
    }
    // From here on all is well.
    let again = place.backup();
    place.restore(&again).unwrap_or_else(|said| panic!("{cell}: {said}"));
    place.restore(&place.snapshot).unwrap_or_else(|said| panic!("{cell}: {said}"));
    let (code, said) = place.run(&["check", "--read-data"]);
    let slot_stays = row.object == Object::Slot && row.damage != Delete;
    let longer = row.damage == Append && row.check_names.ends_with("s/") && row.object != Object::Snapshot;
    match slot_stays || (longer && row.mended_by.is_empty()) {
        true => assert!(!said.contains("affected"), "{cell}: {said}"),
        false => assert_eq!(code, Some(0), "{cell}: {said}"),
    }
    let protected = place.path(&format!("repo/protected/{}.json", place.snapshot)).exists();
    assert_eq!(protected, (row.object, row.damage) != (Object::Protection, Delete), "{cell}");
}

/// Records of deletions, of an owner and of the next one, in a repository that both have used.
fn seasoned() -> Place {
    let place = Place::new();
    let image = place.path("gone.raw");
    fs::write(&image, noise(9, 1 << 20)).unwrap();
    let gone = place.underlay.json(["backup", "--vm", "gone", image.to_str().unwrap()]).unwrap();
    place.underlay.json(["forget", gone["snapshot"].as_str().unwrap()]).unwrap();
    place.underlay.json(["gc"]).unwrap();
    // Another catalog, another claim: it says what it found of the one before.
    fs::remove_dir_all(place.path("repo/catalog")).unwrap();
    place.backup();
    for folder in ["deletions", "closings"] {
        assert_eq!(files(&place.path("repo").join(folder)).len(), 1, "{folder}");
    }
    place
}

#[test]
fn records_of_deletions_that_cannot_be_read_stop_only_a_new_owner() {
    let (plain, other) = (seasoned(), seasoned());
    for folder in ["deletions", "closings"] {
        for damage in ALL {
            let place = twin(&plain);
            let cell = format!("{folder}, {damage:?}");
            let record = files(&place.path("repo").join(folder)).remove(0);
            let mut bytes = fs::read(&record).unwrap();
            match damage {
                Delete => fs::remove_file(&record).unwrap(),
                Truncate => bytes.truncate(bytes.len() / 2),
                Flip => {
                    let at = bytes.len() / 2;
                    bytes[at] ^= 1;
                }
                Swap => bytes = fs::read(files(&other.path("repo").join(folder)).remove(0)).unwrap(),
                Append => bytes.extend_from_slice(b"more"),
            }
            if damage != Delete {
                fs::write(&record, bytes).unwrap();
            }
            let unnoticed = (folder, damage) == ("closings", Delete);
            let (code, said) = place.run(&["check"]);
            match unnoticed {
                // The records themselves say the same.
                true => assert_eq!(code, Some(0), "{cell}: {said}"),
                false => assert!(code == Some(12) && said.contains(folder), "{cell}: {said}"),
            }
            place.backup();
            // Whoever only reads needs no record.
            fs::remove_dir_all(place.path("repo/catalog")).unwrap();
            assert_eq!(place.restore(&place.snapshot), Ok(()), "{cell}");
            let image = place.path("vm.raw");
            let (code, said) = place.run(&["backup", "--vm", "web", image.to_str().unwrap()]);
            if !unnoticed {
                assert_eq!(code, Some(12), "{cell}: {said}");
                assert!(said.contains(folder) && said.contains("underlay repair claim"), "{cell}: {said}");
                let (code, said) = place.run(&["repair", "claim"]);
                assert_eq!(code, Some(0), "{cell}: {said}");
            }
            let again = place.backup();
            for snapshot in [&place.snapshot, &again] {
                assert_eq!(place.restore(snapshot), Ok(()), "{cell}");
            }
            place.underlay.json(["gc"]).unwrap();
            let (code, said) = place.run(&["check", "--read-data"]);
            assert_eq!(code, Some(0), "{cell}: {said}");
        }
    }
}
