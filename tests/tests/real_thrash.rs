//! Backups, restores, forgets and collections at once, in processes of their own, killed at random: whatever was acknowledged and
//! not dropped is exact at the end, and nothing is damaged.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use underlay_tests::program::Underlay;
use underlay_tests::s3::S3Server;

const PIECE: usize = 128 << 10;
const PIECES: usize = 32;
/// Contents that a piece of a disk can have: few, so that what was dropped comes back, and so do machines share it.
const CONTENTS: u64 = 60;

/// Numbers that look random, another row for each name.
struct Dice(blake3::OutputReader);

impl Dice {
    fn new(name: &str) -> Self {
        Self(blake3::Hasher::new().update(name.as_bytes()).finalize_xof())
    }

    fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }
}

fn piece(content: u64) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    blake3::Hasher::new().update(&content.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// What the storm knows.
struct Storm<'a> {
    underlay: &'a Underlay,
    folder: &'a Path,
    end: Instant,
    /// Snapshots that were acknowledged and that nobody has begun to drop, with what they hold.
    acknowledged: Mutex<BTreeMap<String, blake3::Hash>>,
    killed: AtomicU64,
    backups: AtomicU64,
    restores: AtomicU64,
    forgotten: AtomicU64,
    collections: AtomicU64,
    deleted_packs: AtomicU64,
}

impl Storm<'_> {
    fn acknowledged(&self) -> MutexGuard<'_, BTreeMap<String, blake3::Hash>> {
        self.acknowledged.lock().unwrap()
    }

    fn is_over(&self) -> bool {
        Instant::now() > self.end
    }

    /// Runs a command to its end, or kills it within `patience` one time in three. `None` if it was killed.
    fn run(&self, mut command: Command, dice: &mut Dice, patience: u64) -> Option<Output> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if dice.below(3) == 0 {
            thread::sleep(Duration::from_millis(dice.below(patience)));
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        if output.status.code().is_none() {
            self.killed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(output)
    }

    fn back_up(&self, vm: &str) {
        let (mut dice, image) = (Dice::new(vm), self.folder.join(format!("{vm}.raw")));
        let mut disk = vec![0; PIECE * PIECES];
        while !self.is_over() {
            for _ in 0..=dice.below(6) {
                let at = dice.below(PIECES as u64) as usize * PIECE;
                disk[at..at + PIECE].copy_from_slice(&piece(dice.below(CONTENTS)));
            }
            std::fs::write(&image, &disk).unwrap();
            let command = self.underlay.command(["backup", "--vm", vm, "--json", image.to_str().unwrap()]);
            let Some(output) = self.run(command, &mut dice, 600) else { continue };
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            if !output.status.success() {
                assert!(complaint.contains("fenced"), "{vm}: {complaint}");
                continue;
            }
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            let snapshot = answer["snapshot"].as_str().unwrap().to_owned();
            self.acknowledged().insert(snapshot, blake3::hash(&disk));
            self.backups.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn some_snapshot(&self, dice: &mut Dice) -> Option<(String, blake3::Hash)> {
        let acknowledged = self.acknowledged();
        let at = dice.below(acknowledged.len().max(1) as u64) as usize;
        acknowledged.iter().nth(at).map(|(snapshot, hash)| (snapshot.clone(), *hash))
    }

    fn forget(&self) {
        let mut dice = Dice::new("forget");
        while !self.is_over() {
            if self.acknowledged().len() < 20 {
                thread::sleep(Duration::from_millis(100));
                continue;
            }
            let Some((snapshot, _)) = self.some_snapshot(&mut dice) else { continue };
            // From here on nobody may count on it.
            self.acknowledged().remove(&snapshot);
            let command = self.underlay.command(["forget", &snapshot]);
            let Some(output) = self.run(command, &mut dice, 200) else { continue };
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn collect(&self) {
        let mut dice = Dice::new("collect");
        while !self.is_over() {
            thread::sleep(Duration::from_millis(dice.below(500)));
            let unused = ["0%", "20%", "100%"][dice.below(3) as usize];
            let lease = ["3s", "24h"][dice.below(2) as usize];
            let command =
                self.underlay.command(["gc", "--json", "--max-unused", unused, "--fence-after", lease]);
            let Some(output) = self.run(command, &mut dice, 500) else { continue };
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            for kind in ["dropped", "copied_from", "finished"] {
                let packs = answer["report"][kind]["packs"].as_u64().unwrap();
                self.deleted_packs.fetch_add(packs, Ordering::Relaxed);
            }
            self.collections.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn restore(&self) {
        let mut dice = Dice::new("restore");
        while !self.is_over() {
            thread::sleep(Duration::from_millis(100));
            let Some((snapshot, hash)) = self.some_snapshot(&mut dice) else { continue };
            let command = self.underlay.command(["restore", &snapshot, "--to", "-", "--format", "raw"]);
            let Some(output) = self.run(command, &mut dice, 400) else { continue };
            match output.status.success() {
                true => assert!(blake3::hash(&output.stdout) == hash, "{snapshot} was restored wrong"),
                // Dropped meanwhile, perhaps.
                false => assert!(
                    !self.acknowledged().contains_key(&snapshot),
                    "{snapshot}: {}",
                    String::from_utf8_lossy(&output.stderr)
                ),
            }
            self.restores.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_survived(&self) {
        let must = |arguments: &[&str]| {
            let mut command = self.underlay.command([]);
            let output = command.args(arguments).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{arguments:?}: {told}");
            output.stdout
        };
        must(&["gc", "--max-unused", "0%", "--fence-after", "0s"]);
        must(&["check", "--read-data", "--scrub"]);
        let acknowledged = self.acknowledged();
        for (snapshot, hash) in acknowledged.iter() {
            let disk = must(&["restore", snapshot, "--to", "-", "--format", "raw"]);
            assert!(blake3::hash(&disk) == *hash, "{snapshot} is not what was backed up");
        }
        let listed: Value = serde_json::from_slice(&must(&["list", "--json"])).unwrap();
        let listed = listed.as_array().unwrap().len();
        assert!(listed >= acknowledged.len(), "{listed} of {} are listed", acknowledged.len());
    }
}

fn thrash(underlay: &Underlay, folder: &Path, seconds: u64) {
    let seconds =
        std::env::var("UNDERLAY_THRASH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(seconds);
    let storm = Storm {
        underlay,
        folder,
        end: Instant::now() + Duration::from_secs(seconds),
        acknowledged: Mutex::default(),
        killed: AtomicU64::default(),
        backups: AtomicU64::default(),
        restores: AtomicU64::default(),
        forgotten: AtomicU64::default(),
        collections: AtomicU64::default(),
        deleted_packs: AtomicU64::default(),
    };
    thread::scope(|scope| {
        for vm in ["one", "two", "three"] {
            let storm = &storm;
            scope.spawn(move || storm.back_up(vm));
        }
        scope.spawn(|| storm.forget());
        scope.spawn(|| storm.collect());
        scope.spawn(|| storm.restore());
    });
    let counts = [
        ("backups", &storm.backups),
        ("restores", &storm.restores),
        ("forgotten", &storm.forgotten),
        ("collections", &storm.collections),
        ("packs deleted", &storm.deleted_packs),
        ("processes killed", &storm.killed),
    ];
    for (what, count) in counts {
        let count = count.load(Ordering::Relaxed);
        println!("{count} {what}");
        assert!(count > 0, "no {what}: this was no storm");
    }
    storm.is_survived();
    println!("{} snapshots exact", storm.acknowledged().len());
}

#[test]
fn a_storm_on_a_directory_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
    thrash(&underlay, folder.path(), 40);
}

#[test]
fn a_storm_on_garage_is_survived() {
    let (server, folder) = (S3Server::garage().unwrap(), tempfile::tempdir().unwrap());
    let underlay = Underlay::init_s3(&server, "storm", folder.path()).unwrap();
    thrash(&underlay, folder.path(), 60);
}

#[test]
fn a_storm_on_moto_is_survived() {
    let (server, folder) = (S3Server::moto().unwrap(), tempfile::tempdir().unwrap());
    let underlay = Underlay::init_s3(&server, "storm", folder.path()).unwrap();
    thrash(&underlay, folder.path(), 40);
}
