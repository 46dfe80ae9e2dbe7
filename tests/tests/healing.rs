//! What a check finds damaged is stored anew by the next backup that sees it; marks say what was lost until then.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use underlay_tests::program::Underlay;

/// A repository in a folder, with one machine backed up twice: the second state differs in its last part.
struct Place {
    folder: tempfile::TempDir,
    underlay: Underlay,
    states: [Vec<u8>; 2],
    snapshots: Vec<String>,
}

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
        let first = [noise(1, 3 << 20), vec![0; 2 << 20], noise(2, 1 << 20)].concat();
        let second = [noise(1, 3 << 20), vec![0; 2 << 20], noise(3, 1 << 20)].concat();
        let mut place = Self { folder, underlay, states: [first, second], snapshots: Vec::new() };
        for state in 0..2 {
            let id = place.backup(state);
            place.snapshots.push(id);
        }
        place
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("vm.raw")
    }

    /// Backs the machine up in this state; the image is only written if it is in another.
    fn backup(&self, state: usize) -> String {
        if fs::read(self.image()).ok().as_ref() != Some(&self.states[state]) {
            fs::write(self.image(), &self.states[state]).unwrap();
        }
        let image = self.image();
        let outcome = self.underlay.json(["backup", "--vm", "web", image.to_str().unwrap()]).unwrap();
        outcome["snapshot"].as_str().unwrap().to_owned()
    }

    fn restores(&self, snapshot: &str, state: usize) {
        let to = self.folder.path().join("back.raw");
        self.underlay.restore(snapshot, &to, "raw").unwrap();
        assert!(fs::read(&to).unwrap() == self.states[state], "{snapshot}");
        fs::remove_file(to).unwrap();
    }

    /// Objects below a folder, the largest first.
    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.folder.path().join("repo").join(folder)];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { open.push(path) } else { found.push(path) }
            }
        }
        found.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
        found
    }

    fn marks(&self) -> usize {
        let folder = self.folder.path().join("repo/damaged");
        fs::read_dir(folder).map_or(0, Iterator::count)
    }

    /// Runs a verb that ends with this exit code; its JSON answer.
    #[track_caller]
    fn ends<const N: usize>(&self, code: i32, arguments: [&str; N]) -> Value {
        let output = self.underlay.command(arguments).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn affected(report: &Value) -> usize {
    report["affected"].as_array().unwrap().len()
}

#[test]
fn the_next_backup_heals_what_a_check_found() {
    type Way = (&'static str, fn(&Path), &'static [&'static str]);
    let ways: [Way; 4] = [
        ("flip", |pack| flip(pack, 40_000), &["--scrub"]),
        ("flip, read with keys", |pack| flip(pack, 40_000), &["--read-data"]),
        ("truncate", |pack| fs::write(pack, &fs::read(pack).unwrap()[..100_000]).unwrap(), &[]),
        ("delete", |pack| fs::remove_file(pack).unwrap(), &[]),
    ];
    for (name, damage, options) in ways {
        for kind in ["packs", "nodes"] {
            let place = Place::new();
            let pack = place.objects(kind).remove(0);
            match (kind, name) {
                ("nodes", "flip" | "flip, read with keys") => flip(&pack, 200),
                ("nodes", "truncate") => fs::write(&pack, &fs::read(&pack).unwrap()[..150]).unwrap(),
                _ => damage(&pack),
            }
            let mut check = place.underlay.command(["check", "--json"]);
            let output = check.args(options).output().unwrap();
            assert_eq!(output.status.code(), Some(12), "{kind}, {name}: {output:?}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(affected(&report["report"]) > 0, "{kind}, {name}: {report}");
            // The image did not change since, and its memo vouches for it: it is read again all the same.
            let again = place.backup(1);
            place.restores(&again, 1);
            // What was only in the first state is lost with it, unless that comes back.
            place.backup(0);
            let report = place.underlay.output(["check", "--read-data", "--json"]).unwrap();
            let report: Value = serde_json::from_slice(&report.stdout).unwrap();
            assert_eq!(affected(&report["report"]), 0, "{kind}, {name}: {report}");
            for (snapshot, state) in place.snapshots.iter().zip([0, 1]) {
                place.restores(snapshot, state);
            }
            assert_eq!(place.ends(0, ["repair"])["repair"]["may_heal"], 0, "{kind}, {name}");
            place.ends(0, ["check"]);
        }
    }
}

#[test]
fn a_snapshot_that_lost_data_is_marked_until_it_is_whole_again() {
    let place = Place::new();
    let pack = place.objects("packs").remove(0);
    let sound = fs::read(&pack).unwrap();
    flip(&pack, 40_000);
    let planned = place.ends(12, ["check", "--scrub"]);
    assert_eq!(affected(&planned["report"]), 2);
    let would = place.ends(12, ["repair", "--dry-run"]);
    assert_eq!(would["repair"]["marked"].as_array().unwrap().len(), 2, "{would}");
    assert_eq!(place.marks(), 0, "a dry run changes nothing");
    place.ends(12, ["repair"]);
    assert_eq!(place.marks(), 2);
    let listed = place.ends(0, ["list"]);
    assert_eq!(listed[0]["damaged"]["disks"][0]["name"], "vda", "{listed}");
    let shown = place.underlay.output(["show", &place.snapshots[0]]).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("DAMAGED") && shown.contains("--allow-holes"), "{shown}");
    // A lost catalog knows nothing of it; the marks do.
    fs::remove_dir_all(place.folder.path().join("repo/catalog")).unwrap();
    assert_eq!(place.ends(0, ["list"])[0]["damaged"]["disks"][0]["name"], "vda");
    let again = place.ends(12, ["repair"]);
    assert_eq!(again["repair"]["unmarked"].as_array().unwrap().len(), 0, "{again}");
    assert_eq!(place.marks(), 2);
    // A policy does not count them: the newest good one stays.
    let good = place.backup(1);
    let bad = place.snapshots[1].clone();
    let decided = place.ends(0, ["forget", "--keep-last", "1", "--dry-run"]);
    let reasons = |id: &str| {
        let all = decided["snapshots"].as_array().unwrap();
        all.iter().find(|each| each["snapshot"] == id).unwrap()["reasons"].to_string()
    };
    assert_eq!(reasons(&good), r#"["newest","last"]"#);
    assert_eq!(reasons(&bad), "[]");
    // That backup healed the second snapshot; the cable is mended, and so is the first.
    let healed = place.ends(12, ["repair"]);
    assert_eq!(healed["repair"]["unmarked"].as_array().unwrap().len(), 1, "{healed}");
    fs::write(&pack, sound).unwrap();
    let whole = place.ends(0, ["repair"]);
    assert_eq!(whole["repair"]["check"]["reinstated"], 1, "{whole}");
    assert_eq!(place.marks(), 0);
    place.restores(&place.snapshots[0], 0);
}

#[test]
fn what_is_left_of_a_disk_can_be_had() {
    let place = Place::new();
    let to = place.folder.path().join("web.raw");
    let path = to.to_str().unwrap();
    let whole = place.ends(0, ["restore", "web@latest", "--to", path, "--allow-holes"]);
    assert!(whole["disks"][0].get("holes").is_none() && to.exists(), "{whole}");
    fs::remove_file(&to).unwrap();
    flip(&place.objects("packs")[0], 40_000);
    let refused = place.underlay.output(["restore", "web@latest", "--to", path]).unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(12), "{said}");
    assert!(said.contains("--allow-holes") && !to.exists(), "{said}");
    let partial = place.ends(3, ["restore", "web@latest", "--to", path, "--allow-holes"]);
    let holes = partial["disks"][0]["holes"].as_array().unwrap().clone();
    assert_eq!(holes.len(), 1, "{partial}");
    assert!(!to.exists());
    let (offset, length) =
        (holes[0]["offset"].as_u64().unwrap() as usize, holes[0]["length"].as_u64().unwrap() as usize);
    let mut expected = place.states[1].clone();
    expected[offset..offset + length].fill(0);
    assert!(fs::read(place.folder.path().join("web.raw.incomplete")).unwrap() == expected);
    let piped = place.underlay.output(["restore", "web@latest", "--to", "-", "--allow-holes"]).unwrap();
    assert_eq!(piped.status.code(), Some(3));
    assert!(piped.stdout == expected);
    assert!(String::from_utf8(piped.stderr).unwrap().contains(&format!("offset {offset}, {length} bytes")));
}

#[test]
fn a_restore_check_says_what_sha256sum_would() {
    let place = Place::new();
    place.restores(&place.snapshots[0], 0);
    let to = place.folder.path().join("x.raw");
    fs::write(&to, &place.states[0]).unwrap();
    let sum = std::process::Command::new("sha256sum").arg(&to).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let first = &place.snapshots[0];
    let checked = place.ends(0, ["check", "--restore", first, "--restore", "web@latest"]);
    assert_eq!(checked["restored"][0]["sha256"], sum, "{checked}");
    assert_eq!(checked["restored"][0]["size"], 6 << 20);
    assert_ne!(checked["restored"][1]["sha256"], sum);
    flip(&place.objects("packs")[0], 40_000);
    let checked = place.ends(12, ["check", "--restore", first]);
    assert!(checked["restored"][0]["error"].as_str().unwrap().contains("cannot be restored"), "{checked}");
}

#[test]
fn a_scrub_goes_on_where_the_last_one_stopped() {
    let place = Place::new();
    let packs = (place.objects("packs").len() + place.objects("nodes").len()) as u64;
    let mut left = packs;
    while left > 0 {
        let checked = place.ends(0, ["check", "--scrub", "--budget", "1"]);
        let scrub = &checked["report"]["scrub"];
        left -= 1;
        assert_eq!((&scrub["packs"], &scrub["never"]), (&1.into(), &left.into()), "{scrub}");
        assert_eq!(scrub["recorded"], true);
    }
    let said = place.underlay.output(["check", "--scrub"]).unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("the oldest check of a pack is of") && said.contains("0 days ago"), "{said}");
    // Another host, which does not own it.
    let elsewhere = place.underlay.elsewhere(place.folder.path());
    fs::remove_dir_all(place.folder.path().join("repo/catalog")).unwrap();
    let said = elsewhere.output(["check", "--scrub"]).unwrap();
    assert!(said.status.success(), "{said:?}");
    assert!(String::from_utf8(said.stderr).unwrap().contains("could not be recorded"));
}

#[test]
fn the_catalog_is_built_anew_and_loses_no_snapshot() {
    let place = Place::new();
    let repository = place.folder.path().join("repo");
    let lost = repository.join(format!("snapshots/{}.json", place.snapshots[0]));
    fs::remove_file(&lost).unwrap();
    let would = place.ends(0, ["repair", "catalog", "--dry-run"]);
    assert_eq!(would["catalog"]["put_back"][0], place.snapshots[0].as_str(), "{would}");
    assert!(!lost.exists());
    let done = place.ends(0, ["repair", "catalog"]);
    assert_eq!(done["catalog"]["put_back"][0], place.snapshots[0].as_str(), "{done}");
    assert_eq!((&done["catalog"]["unindexed"], &done["catalog"]["differing"]), (&0.into(), &0.into()));
    let kept = done["catalog"]["kept"].as_str().unwrap().to_owned();
    assert!(kept.contains("catalog.sqlite.old-") && Path::new(&kept).exists(), "{kept}");
    place.ends(0, ["check"]);
    for (snapshot, state) in place.snapshots.iter().zip([0, 1]) {
        place.restores(snapshot, state);
    }
    // Its own again: backups go on without a take-over.
    let again = place.backup(1);
    place.restores(&again, 1);
}

#[test]
fn a_snapshots_document_is_put_back_from_the_catalog() {
    let place = Place::new();
    let object = place.folder.path().join(format!("repo/snapshots/{}.json", place.snapshots[0]));
    let sound = fs::read(&object).unwrap();
    for damage in [true, false] {
        match damage {
            true => flip(&object, 300),
            false => fs::remove_file(&object).unwrap(),
        }
        place.ends(12, ["check"]);
        let done = place.ends(0, ["repair"]);
        assert_eq!(done["repair"]["put_back"][0], place.snapshots[0].as_str(), "{done}");
        assert!(fs::read(&object).unwrap() == sound);
        place.ends(0, ["check"]);
    }
}

#[test]
fn a_collection_keeps_the_sound_copy_of_what_was_healed() {
    let place = Place::new();
    let pack = place.objects("packs").remove(0);
    flip(&pack, 40_000);
    place.ends(12, ["check", "--scrub"]);
    let kept = place.ends(0, ["gc", "--max-unused", "0%"]);
    assert_eq!((&kept["report"]["dropped"]["packs"], pack.exists()), (&0.into(), true), "{kept}");
    place.backup(1);
    place.backup(0);
    let report = place.ends(0, ["gc", "--max-unused", "0%"]);
    assert_eq!((&report["report"]["dropped"]["packs"], pack.exists()), (&1.into(), false), "{report}");
    place.ends(0, ["check", "--read-data", "--scrub"]);
    for (snapshot, state) in place.snapshots.iter().zip([0, 1]) {
        place.restores(snapshot, state);
    }
}

#[test]
fn what_was_healed_outlives_a_lost_catalog() {
    // Which of two copies a new catalog meets first is chance: the damaged one, sooner or later.
    let mut met = 0;
    for _ in 0..6 {
        let place = Place::new();
        let pack = place.objects("packs").remove(0);
        flip(&pack, 40_000);
        place.ends(12, ["check", "--scrub"]);
        place.backup(1);
        place.backup(0);
        place.ends(0, ["repair"]);
        assert_eq!(place.marks(), 0);
        fs::remove_dir_all(place.folder.path().join("repo/catalog")).unwrap();
        let output = place.underlay.output(["gc", "--max-unused", "0%", "--json"]).unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["report"]["keepers"].as_u64().unwrap() > 0, "{report}");
        let damaged = report["report"]["damaged"].as_array().unwrap().len();
        assert_eq!(output.status.code(), Some(if damaged > 0 { 12 } else { 0 }), "{report}");
        met += damaged;
        assert!(!pack.exists(), "{report}");
        for (snapshot, state) in place.snapshots.iter().zip([0, 1]) {
            place.restores(snapshot, state);
        }
        place.ends(0, ["check", "--read-data", "--scrub"]);
    }
    assert!(met > 0, "no damaged copy was ever met first");
}

#[test]
fn an_old_copy_of_a_catalog_promises_nothing_that_was_deleted_since() {
    let place = Place::new();
    let catalog = place.folder.path().join("repo/catalog");
    let old = place.folder.path().join("old");
    fs::create_dir(&old).unwrap();
    for entry in fs::read_dir(&catalog).unwrap() {
        let path = entry.unwrap().path();
        assert!(fs::copy(&path, old.join(path.file_name().unwrap())).is_ok());
    }
    // Both states go, and with them all packs; another machine stays.
    let image = place.folder.path().join("other.raw");
    fs::write(&image, noise(7, 1 << 20)).unwrap();
    place.underlay.json(["backup", "--vm", "other", image.to_str().unwrap()]).unwrap();
    for snapshot in &place.snapshots {
        place.ends(0, ["forget", snapshot.as_str()]);
    }
    assert_eq!(place.ends(0, ["gc"])["report"]["dropped"]["packs"], 4);
    fs::remove_dir_all(&catalog).unwrap();
    fs::rename(&old, &catalog).unwrap();
    let again = place.backup(1);
    place.restores(&again, 1);
    place.ends(0, ["check", "--read-data", "--scrub"]);
    assert_eq!(place.ends(0, ["list"]).as_array().unwrap().len(), 2);
}
