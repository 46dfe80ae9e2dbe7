//! kill -9 at any moment of a backup: nothing partial is listed, nothing durable is uploaded again, nothing is damaged.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use underlay_tests::commands::run;
use underlay_tests::program::Underlay;

const MOMENTS: u64 = 50;
const MIB: u64 = 1 << 20;

/// `length` bytes that do not compress, different for every seed.
fn noise(file: &File, seed: u64, at: u64, length: u64) {
    let mut bytes = vec![0; length as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    file.write_all_at(&bytes, at).unwrap();
}

/// Bytes of all objects below `folder`. What a killed process had begun to write has another name and is no object.
fn stored(folder: &Path) -> u64 {
    let sizes = ["-type", "f", "-not", "-name", "*#*", "-printf", "%s\n"];
    let listing = run("find", [folder.to_str().unwrap()].into_iter().chain(sizes)).unwrap();
    listing.lines().map(|size| size.parse::<u64>().unwrap()).sum()
}

#[test]
fn kills_at_fifty_moments_lose_nothing_and_repeat_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repo");
    let underlay = Underlay::init(repository.to_str().unwrap(), folder.path()).unwrap();
    let image = folder.path().join("vm.raw");
    let file = File::create(&image).unwrap();
    let start = Instant::now();
    noise(&file, 0, 0, 200 * MIB);
    underlay.json(["backup", "--vm", "vm", image.to_str().unwrap()]).unwrap();
    let (mut whole, mut acknowledged, mut written) = (start.elapsed(), 1, 200 * MIB);
    let mut killed = 0;
    for moment in 0..MOMENTS {
        // Each time something new to store: one full pack and a part of another.
        noise(&file, moment + 1, 0, 50 * MIB);
        written += 50 * MIB;
        let mut child = underlay
            .command(["backup", "--vm", "vm", image.to_str().unwrap(), "--no-progress"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Seeded moments over the whole run, its start and its commit included.
        let hash = blake3::hash(&moment.to_le_bytes());
        let share = f64::from(hash.as_bytes()[0]) / 255.0;
        thread::sleep(whole.mul_f64(share * 1.1));
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        acknowledged += usize::from(finished);
        killed += usize::from(!finished);
        let listed = underlay.json(["list"]).unwrap();
        let count = listed.as_array().unwrap().len();
        // A commit that was killed after its snapshot was stored may be listed later: it is whole.
        assert!(
            count >= acknowledged && count <= acknowledged + 1,
            "moment {moment}: {count} snapshots, {acknowledged} acknowledged"
        );
        acknowledged = count;
        let began = Instant::now();
        let next = underlay.json(["backup", "--vm", "vm", image.to_str().unwrap()]).unwrap();
        whole = began.elapsed().max(Duration::from_millis(300));
        acknowledged += 1;
        assert!(next["bytes_new"].as_u64().unwrap() <= 50 * MIB, "moment {moment}: {next}");
    }
    assert!(killed >= MOMENTS as usize / 3, "only {killed} of {MOMENTS} backups were caught in the act");
    // Noise is stored once: frames, entries, headers and a chunk or two at each border are all that comes on top.
    let packs = stored(&repository.join("packs"));
    assert!(packs <= written + written / 50, "{packs} bytes stored for {written} written");
    let checked = underlay.output(["check", "--read-data"]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let restored = folder.path().join("restored.raw");
    underlay.restore("vm@latest", &restored, "raw").unwrap();
    run("cmp", [restored.to_str().unwrap(), image.to_str().unwrap()]).unwrap();
}
