//! Every input in the tree, and a few seconds of mutants of them, against every target.
//!
//! `FUZZ_SECONDS=60 cargo nextest run -p underlay-fuzz` tries mutants for longer.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and say how it went")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use underlay_fuzz::mutate::mutate;
use underlay_fuzz::{TARGETS, Target};
use underlay_tests::images::Random;

/// How long each target is tried with mutants.
const SECONDS: u64 = 2;
/// No input in the tree is longer, in bytes.
const LONGEST: u64 = 16 << 10;
/// Nor are all of them together.
const ALL: u64 = 1 << 20;

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            try_target(stringify!($name));
        })*

        #[test]
        fn every_target_is_tried() {
            let tried = [$(stringify!($name)),*];
            assert_eq!(tried.to_vec(), TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
        }
    };
}

targets! {
    descriptor snapshot slot claim deletion protection key_file paper node data_pack node_pack chunk object_name qcow2 domain_xml domain_record
    wire_binary wire_json cloud_answer clouds_yaml
}

#[test]
fn the_inputs_are_small() {
    let mut all = 0;
    for target in TARGETS {
        for (path, input) in inputs(target) {
            assert!(input.len() as u64 <= LONGEST, "{}: {} bytes", path.display(), input.len());
            all += input.len() as u64;
        }
    }
    assert!(all <= ALL, "{all} bytes");
}

/// The machinery bites: a target that fails on some mutant is found out, and the mutant is kept.
#[test]
fn a_target_that_fails_is_found_out() {
    let run = |bytes: &[u8]| assert!(!bytes.contains(&b'X'), "an X");
    let target = Target { name: "canary", run, seeds: Vec::new };
    let inputs = vec![(PathBuf::new(), b"some input".to_vec())];
    let failed = catch_unwind(|| {
        try_mutants(&target, &inputs, Duration::from_secs(20));
    });
    let said = *failed.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("canary") && said.contains("an X"), "{said}");
}

/// Every byte of every document counts: nothing that is changed anywhere is read, but by who made it anew.
#[test]
fn a_document_that_is_changed_is_refused() {
    use underlay_fuzz::documents::{GENERATION, REPOSITORY, SNAPSHOT, key};
    use underlay_store::key::{file, slot::Slot};
    use underlay_store::snapshot::{Claim, Descriptor, Snapshot};
    type Opens = fn(&[u8]) -> bool;
    let documents: [(&str, Opens); 5] = [
        ("descriptor", |bytes| Descriptor::open(bytes, key().backup()).is_ok()),
        ("snapshot", |bytes| Snapshot::open(&SNAPSHOT, &REPOSITORY, bytes, key().backup()).is_ok()),
        ("claim", |bytes| Claim::open(GENERATION, &REPOSITORY, bytes).is_ok()),
        ("key_file", |bytes| str::from_utf8(bytes).is_ok_and(|text| file::parse("k", text).is_ok())),
        ("slot", |bytes| {
            let name = String::from_utf8_lossy(bytes).lines().find_map(|line| {
                Some(format!("keys/{}.json", line.trim().strip_prefix("\"slot\": \"")?.strip_suffix("\",")?))
            });
            name.is_some_and(|name| Slot::read(&REPOSITORY, &name, bytes).is_ok())
        }),
    ];
    for (name, opens) in documents {
        for (seed, sound) in (Target::named(name).unwrap().seeds)() {
            assert!(opens(&sound), "{name} {seed}");
            for at in 0..sound.len() {
                assert!(!opens(&sound[..at]), "{name} {seed} cut to {at} bytes");
                for change in [1, 0x20, 0x80] {
                    let mut changed = sound.clone();
                    changed[at] ^= change;
                    assert!(!opens(&changed), "{name} {seed} with byte {at} changed");
                }
            }
            assert!(!opens(&[&sound[..], b" "].concat()), "{name} {seed} with a blank after it");
        }
    }
}

fn try_target(name: &str) {
    let target = Target::named(name).unwrap();
    let inputs = inputs(target);
    let seeds = inputs.iter().filter(|(path, _)| path.to_string_lossy().contains("/seed-")).count();
    assert!(seeds > 0, "no seeds for {name}: run `cargo run -p underlay-fuzz --bin fuzz-seeds`");
    for (path, input) in &inputs {
        attempt(target, input, &path.display().to_string());
    }
    let seconds = std::env::var("FUZZ_SECONDS").ok().map_or(SECONDS, |seconds| seconds.parse().unwrap());
    let tried = try_mutants(target, &inputs, Duration::from_secs(seconds));
    println!("{name}: {} inputs, {tried} mutants in {seconds} s", inputs.len());
    assert!(tried > 20, "only {tried} mutants: this target is too slow");
}

fn try_mutants(target: &Target, inputs: &[(PathBuf, Vec<u8>)], time: Duration) -> u64 {
    let start = Instant::now();
    let mut random = Random(1);
    let mut tried = 0;
    while start.elapsed() < time {
        let mut pick = || &inputs[random.below(inputs.len() as u64) as usize].1;
        let (mut input, other) = (pick().clone(), pick());
        mutate(&mut input, other, &mut random);
        attempt(target, &input, "a mutant");
        tried += 1;
    }
    tried
}

/// Runs the target; an input that it fails on is kept, to be tried again.
fn attempt(target: &Target, input: &[u8], what: &str) {
    let Err(failure) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) else { return };
    let kept = std::env::temp_dir().join(format!("underlay-fuzz-{}-{}", target.name, input.len()));
    let said = match (failure.downcast_ref::<String>(), failure.downcast_ref::<&str>()) {
        (Some(said), _) => said.clone(),
        (_, Some(said)) => (*said).to_owned(),
        _ => resume_unwind(failure),
    };
    fs::write(&kept, input).unwrap();
    panic!("{} fails on {what}, which lies in {}: {said}", target.name, kept.display());
}

/// The files below the target's folder, in order.
fn inputs(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<_> =
        fs::read_dir(target.folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}
