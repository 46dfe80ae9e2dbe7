//! Seeded mutations of valid images: exact data or an error, in bounded time and memory, never a panic.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its own functions too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use underlay_client::image::{Chain, Format, ImageError, OpenOptions};
use underlay_tests::images::{Random, Workshop, flatten};

const SIZE: u64 = 256 << 10;
const MUTATIONS: u64 = 10_000;
/// How many mutants that read as something new each thread compares with QEMU.
const COMPARED: u64 = 100;
/// A disk that a mutation has made larger than this is walked but not read whole.
const LARGEST: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(5);

/// An image with the file that is mutated, and where its metadata lies.
struct Victim {
    top: PathBuf,
    file: PathBuf,
    bytes: Vec<u8>,
    exact: Vec<u8>,
    /// Byte ranges that mutations prefer: header, extensions, L1, L2, refcounts.
    targets: Vec<(u64, u64)>,
    /// A damaged zstd frame without a checksum can decode to other bytes in QEMU's version of libzstd (1.5.4) than
    /// in ours (1.5.7). Only mutants whose frames are untouched can be compared.
    zstd: bool,
}

#[derive(Default)]
struct Tally {
    refused: AtomicU64,
    same: AtomicU64,
    compared: AtomicU64,
    unlike_qemu: Mutex<Vec<String>>,
}

#[test]
fn ten_thousand_mutants_read_exactly_or_fail() {
    let threads = 2;
    let tally = Tally::default();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let tally = &tally;
            scope.spawn(move || mutate(thread, MUTATIONS / threads, tally));
        }
    });
    let unlike = tally.unlike_qemu.into_inner().unwrap();
    assert!(unlike.is_empty(), "{}", unlike.join("\n"));
    // The test bites: mutants are refused, survive, and change, in numbers.
    let [refused, same, compared] =
        [tally.refused, tally.same, tally.compared].map(|count| count.load(Ordering::Relaxed));
    assert!(refused > 1000 && same > 1000 && compared > 50, "{refused} refused, {same} same, {compared} new");
    let memory = peak_memory();
    assert!(memory < 400 << 20, "used {memory} bytes of memory");
}

fn mutate(seed: u64, count: u64, tally: &Tally) {
    let dir = tempfile::tempdir().unwrap();
    let victims = victims(dir.path());
    let mut random = Random(1000 + seed);
    let mut compared = 0;
    for round in 0..count {
        let victim = &victims[(round % victims.len() as u64) as usize];
        let mut bytes = victim.bytes.clone();
        let change = change(&mut bytes, &victim.targets, &mut random);
        fs::write(&victim.file, &bytes).unwrap();
        let started = Instant::now();
        let outcome = read(&victim.top);
        let name = format!("seed {seed}, round {round}: {} in {}", change.said, victim.file.display());
        assert!(started.elapsed() < PATIENCE, "{name} took {:?}", started.elapsed());
        match outcome {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                tally.refused.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Some(disk)) if disk == victim.exact => {
                tally.same.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Some(disk)) if compared < COMPARED && !(victim.zstd && change.data) => {
                compared += 1;
                compare(&victim.top, &disk, &name, tally);
            }
            Ok(_) => {}
        }
        fs::write(&victim.file, &victim.bytes).unwrap();
    }
}

/// A mutant that QEMU reads too must read the same; one that QEMU refuses over things we do not use is fine.
fn compare(top: &Path, disk: &[u8], name: &str, tally: &Tally) {
    let flat = top.with_file_name("flat.raw");
    if flatten(top, "qcow2", &flat).is_err() {
        return;
    }
    tally.compared.fetch_add(1, Ordering::Relaxed);
    if fs::read(&flat).unwrap() != disk {
        tally.unlike_qemu.lock().unwrap().push(name.to_owned());
    }
}

/// Reads all of the disk in every way, unless it has become too large.
fn read(top: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    let options = OpenOptions { format: Some(Format::Qcow2), ..OpenOptions::default() };
    let chain = Chain::open(top, &options)?;
    let index = chain.len() - 1;
    let size = chain.virtual_size();
    for layer in 0..=index {
        for extent in chain.extents(layer)?.take(10_000) {
            extent?;
        }
    }
    chain.map(index, size.saturating_sub(LARGEST), LARGEST)?;
    let mut disk = vec![0; size.min(LARGEST) as usize];
    chain.read_at(index, 0, &mut disk)?;
    Ok((size <= LARGEST).then_some(disk))
}

/// What a mutation did, and whether it may have hit guest data.
struct Change {
    said: String,
    data: bool,
}

/// Changes a few bytes, or cuts the file.
fn change(bytes: &mut Vec<u8>, targets: &[(u64, u64)], random: &mut Random) -> Change {
    if random.below(20) == 0 {
        let size = random.below(bytes.len() as u64);
        bytes.truncate(size as usize);
        return Change { said: format!("cut to {size}"), data: true };
    }
    let (mut said, mut data) = (String::new(), false);
    for _ in 0..=random.below(3) {
        let (start, length) = match random.below(10) {
            0 => {
                data = true;
                (0, bytes.len() as u64)
            }
            _ => targets[random.below(targets.len() as u64) as usize],
        };
        let at = (start + random.below(length)).min(bytes.len() as u64 - 1) as usize;
        let word = at & !7;
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.word() as u8,
            2 if word + 8 <= bytes.len() => {
                let value = random.word() >> random.below(64);
                bytes[word..word + 8].copy_from_slice(&value.to_be_bytes());
            }
            // One entry over another: the way to sound but different tables.
            _ if word + 8 <= bytes.len() => {
                let (start, length) = targets[random.below(targets.len() as u64) as usize];
                let from = ((start + random.below(length)) & !7).min(bytes.len() as u64 - 8) as usize;
                bytes.copy_within(from..from + 8, word);
            }
            _ => bytes[at] = 0xff,
        }
        said = format!("{said}, byte {at}");
    }
    Change { said, data }
}

fn victims(dir: &Path) -> Vec<Victim> {
    let dir = dir.canonicalize().unwrap();
    let workshop = |name: &str| {
        fs::create_dir(dir.join(name)).unwrap();
        let w = Workshop { dir: dir.join(name) };
        w.noise("base.raw", SIZE, 7).unwrap();
        w
    };
    let mut victims = Vec::new();
    let overlays = ["cluster_size=512", "cluster_size=64k", "extended_l2=on,cluster_size=16k", "compat=0.10"];
    for options in overlays {
        let w = workshop(options);
        w.img(&format!("create -f qcow2 -o {options} -b base.raw -F raw top.qcow2")).unwrap();
        w.scribble("top.qcow2", SIZE, 20, 3).unwrap();
        victims.push(victim(&w, "top.qcow2"));
    }
    let compressed = [
        "compression_type=zlib,cluster_size=4k",
        "compression_type=zstd,cluster_size=4k",
        "cluster_size=512",
    ];
    for options in compressed {
        let w = workshop(&format!("compressed {options}"));
        w.img(&format!("convert -c -f raw -O qcow2 -o {options} base.raw top.qcow2")).unwrap();
        victims.push(victim(&w, "top.qcow2"));
    }
    let w = workshop("data file");
    w.img(&format!("create -f qcow2 -o data_file=guest.data,cluster_size=4k top.qcow2 {SIZE}")).unwrap();
    w.scribble("top.qcow2", SIZE, 20, 4).unwrap();
    victims.push(victim(&w, "top.qcow2"));
    let w = workshop("chain");
    w.img("create -f qcow2 -o cluster_size=4k -b base.raw -F raw middle.qcow2 200k").unwrap();
    w.scribble("middle.qcow2", 200 << 10, 20, 5).unwrap();
    w.img(&format!("create -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 {SIZE}")).unwrap();
    w.io("top.qcow2", &["write -P 3 64k 20k"]).unwrap();
    victims.push(victim(&w, "middle.qcow2"));
    victims
}

fn victim(w: &Workshop, file: &str) -> Victim {
    let (top, file) = (w.dir.join("top.qcow2"), w.dir.join(file));
    let bytes = fs::read(&file).unwrap();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = word(40);
    let l2 = word(l1 as usize) & 0x00ff_ffff_ffff_fe00;
    let refcounts = word(48);
    let table = 512.min(bytes.len() as u64 - l2);
    let targets =
        vec![(0, 112), (0, 112), (0, 600), (l1, 64), (l2, table), (l2, table), (l2, 64), (refcounts, 64)];
    let exact = read(&top).unwrap().unwrap();
    Victim { zstd: w.dir.to_string_lossy().contains("zstd"), top, file, bytes, exact, targets }
}

/// The most memory this process ever held, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
