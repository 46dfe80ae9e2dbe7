//! What a backup costs, counted: reads, requests, bytes, memory. Each test is a process of its own.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use underlay_client::image::Format;
use underlay_store::backend::{Backend, Options};
use underlay_tests::commands::run;
use underlay_tests::lab::Lab;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Bytes that do not compress, different for every seed.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn on_disk() -> (tempfile::TempDir, Lab) {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::open(folder.path().to_str().unwrap(), Options { create: true }).unwrap();
    (folder, Lab::on(backend))
}

fn overlay(base: &Path, base_format: &str, path: &Path, writes: &[(u64, u64, u64)]) {
    run(
        "qemu-img",
        [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            base_format,
            "-b",
            base.to_str().unwrap(),
            path.to_str().unwrap(),
        ],
    )
    .unwrap();
    let mut commands = vec!["-f".to_owned(), "qcow2".into(), path.to_str().unwrap().into()];
    let sources = tempfile::tempdir().unwrap();
    for (at, length, seed) in writes {
        let source = sources.path().join(seed.to_string());
        fs::write(&source, noise(*seed, *length)).unwrap();
        commands.extend(["-c".into(), format!("write -q -s {} {at} {length}", source.display())]);
    }
    run("qemu-io", &commands).unwrap();
}

/// The most memory this process ever used, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * KIB
}

fn assert_memory_bounded() {
    let peak = peak_memory();
    assert!(peak <= 300 * MIB, "{} MiB used", peak / MIB);
}

#[test]
fn twenty_machines_on_one_base_cost_one_base() {
    let (_folder, lab) = on_disk();
    let base = lab.path("base.raw");
    fs::write(&base, noise(1, 64 * MIB)).unwrap();
    let (mut read, mut uploaded) = (0, 0);
    for vm in 0..20 {
        let image = lab.path(&format!("vm{vm}.qcow2"));
        overlay(&base, "raw", &image, &[(vm * 3 * MIB, MIB, 100 + vm)]);
        let outcome = lab.backup(&format!("vm{vm}"), &image, Format::Qcow2).unwrap();
        read += outcome.bytes_read;
        uploaded += outcome.bytes_uploaded;
    }
    // The base once, each overlay once, and around each change the chunks that it touches.
    let content = 64 * MIB + 20 * MIB;
    assert!(read >= content && read <= content + 20 * 400 * KIB, "{read} bytes read");
    assert!(uploaded <= content + 20 * 250 * KIB, "{uploaded} bytes uploaded");
    let traffic = lab.traffic();
    assert!(traffic.put_bytes <= uploaded + 20 * KIB, "{traffic:?}");
    assert_memory_bounded();
}

#[test]
fn an_unchanged_chain_is_not_read_and_uploads_only_a_snapshot() {
    let (_folder, lab) = on_disk();
    let (base, image) = (lab.path("base.raw"), lab.path("vm.qcow2"));
    fs::write(&base, noise(1, 32 * MIB)).unwrap();
    overlay(&base, "raw", &image, &[(5 * MIB, MIB, 7)]);
    lab.backup("vm", &image, Format::Qcow2).unwrap();
    lab.traffic();
    let again = lab.backup("vm", &image, Format::Qcow2).unwrap();
    assert_eq!((again.bytes_read, again.bytes_new, again.layers_read), (0, 0, 0));
    let traffic = lab.traffic();
    assert_eq!(traffic.puts, 1, "{traffic:?}");
    assert!(traffic.put_bytes < 8 * KIB, "{traffic:?}");
    assert_eq!(again.bytes_uploaded, traffic.put_bytes);
}

/// Changes 64 MiB of a disk of 1 TiB in isolated pieces of `piece` bytes, amid data without a single zero block.
/// Returns bytes read and bytes uploaded for each byte changed.
fn scattered(piece: u64) -> (f64, f64) {
    let (_folder, lab) = on_disk();
    let (base, image) = (lab.path("base.raw"), lab.path("vm.qcow2"));
    let file = File::create(&base).unwrap();
    file.set_len(1 << 40).unwrap();
    let spots = 64 * MIB / piece;
    let spot = |at: u64| at * ((1 << 40) / spots) + at * 68 * KIB;
    for at in 0..spots {
        file.write_all_at(&noise(at, 256 * KIB + piece), spot(at)).unwrap();
    }
    drop(file);
    let first = lab.backup("vm", &base, Format::Raw).unwrap();
    assert_eq!(first.bytes_new, spots * (256 * KIB + piece));
    let cluster = 64 * KIB;
    let writes: Vec<_> =
        (0..spots).map(|at| (spot(at) / cluster * cluster + 2 * cluster, piece, spots + at)).collect();
    overlay(&base, "raw", &image, &writes);
    lab.traffic();
    let second = lab.backup("vm", &image, Format::Qcow2).unwrap();
    assert_eq!(lab.traffic().put_bytes, second.bytes_uploaded);
    assert_memory_bounded();
    let changed = (spots * piece) as f64;
    let ratios = (second.bytes_read as f64 / changed, second.bytes_uploaded as f64 / changed);
    println!("pieces of {} KiB: read {:.2}x, uploaded {:.2}x", piece / KIB, ratios.0, ratios.1);
    ratios
}

#[test]
fn scattered_changes_of_a_tebibyte_cost_the_changes() {
    let (read, uploaded) = scattered(128 * KIB);
    assert!(read <= 2.0, "{read:.2}x read");
    assert!(uploaded <= 1.5 * 1.1, "{uploaded:.2}x uploaded");
}

/// One cluster at a time amid incompressible data without zeros is the worst there is: chunks of 28 KiB around it change too.
#[test]
fn single_clusters_amid_noise_are_the_worst_case() {
    let (read, uploaded) = scattered(64 * KIB);
    assert!(read <= 2.0, "{read:.2}x read");
    assert!(uploaded <= 1.75, "{uploaded:.2}x uploaded");
}

/// While one part is encoded the next is looked up already: what is on its way must not be stored twice.
#[test]
fn content_that_comes_again_within_a_backup_is_stored_once() {
    let (_folder, lab) = on_disk();
    let image = lab.path("vm.raw");
    // More than a pack, three times, then a part of a pack all over again.
    let (long, short) = (noise(1, 40 * MIB), noise(2, 2 * MIB));
    fs::write(&image, [long.repeat(3), short.repeat(40)].concat()).unwrap();
    let outcome = lab.backup("vm", &image, Format::Raw).unwrap();
    assert_eq!(outcome.bytes_new, 42 * MIB);
    assert!(outcome.bytes_uploaded < 43 * MIB, "{} bytes uploaded", outcome.bytes_uploaded);
}

#[test]
fn a_gigabyte_of_new_data_takes_bounded_memory() {
    let (_folder, lab) = on_disk();
    let image = lab.path("vm.raw");
    let file = File::create(&image).unwrap();
    for at in 0..64 {
        file.write_all_at(&noise(at, 16 * MIB), at * 16 * MIB).unwrap();
    }
    let outcome = lab.backup("vm", &image, Format::Raw).unwrap();
    assert_eq!(outcome.bytes_new, 1024 * MIB);
    let traffic = lab.traffic();
    assert!(traffic.puts <= 40, "{traffic:?}");
    println!("{} MiB peak, {:.1} s", peak_memory() / MIB, outcome.seconds);
    assert_memory_bounded();
}

/// What is stored besides packs of data (nodes, the snapshot, the claim) must not weigh on a backup of a third of a gigabyte.
#[test]
fn requests_for_a_third_of_a_gigabyte_are_few() {
    let (_folder, lab) = on_disk();
    let image = lab.path("vm.raw");
    let file = File::create(&image).unwrap();
    for at in 0..6 {
        file.write_all_at(&noise(at, 61 * MIB), at * 61 * MIB).unwrap();
    }
    lab.traffic();
    let outcome = lab.backup("vm", &image, Format::Raw).unwrap();
    assert_eq!(outcome.bytes_new, 366 * MIB);
    let traffic = lab.traffic();
    let gibibytes = outcome.bytes_uploaded as f64 / (1024 * MIB) as f64;
    // The claim was stored when the repository was made. A host that claims it anew stores one more.
    let puts = (traffic.puts + 1) as f64;
    println!("{puts} PUTs, {:.1} a GiB, {} MiB peak", puts / gibibytes, peak_memory() / MIB);
    assert!(puts <= 40.0 * gibibytes, "{traffic:?} for {gibibytes:.3} GiB");
    assert_memory_bounded();
}
