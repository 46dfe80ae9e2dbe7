//! Incremental equals full: whatever a guest did between backups, every snapshot restores exactly.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use underlay_client::image::Format;
use underlay_tests::commands::run;
use underlay_tests::lab::Lab;

/// What a guest does to its disk.
#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, length: u64, seed: u8 },
    Zero { at: u64, length: u64 },
    Discard { at: u64, length: u64 },
    Resize { by: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0u64..9_000_000, 1u64..600_000);
    prop_oneof![
        6 => (place(), 1u8..=255).prop_map(|((at, length), seed)| Step::Write { at, length, seed }),
        2 => place().prop_map(|(at, length)| Step::Zero { at, length }),
        2 => place().prop_map(|(at, length)| Step::Discard { at, length }),
        1 => (-3_000_000i64..3_000_000).prop_map(|by| Step::Resize { by }),
    ]
}

/// Overlays `below` with what `steps` do.
fn overlay(below: Option<&Path>, path: &Path, size: &mut u64, steps: &[Step]) {
    let mut create = vec!["create".to_owned(), "-q".into(), "-f".into(), "qcow2".into()];
    if let Some(below) = below {
        create.extend(["-F".into(), "qcow2".into(), "-b".into(), below.to_str().unwrap().into()]);
    }
    for step in steps {
        if let Step::Resize { by } = step {
            *size = size.saturating_add_signed(*by).max(1 << 20) / 512 * 512;
        }
    }
    create.extend([path.to_str().unwrap().into(), size.to_string()]);
    run("qemu-img", &create).unwrap();
    let mut commands = vec!["-f".to_owned(), "qcow2".into(), path.to_str().unwrap().into()];
    for step in steps {
        let within = |at: u64, length: u64| {
            let at = at % *size / 512 * 512;
            (at, length.min(*size - at).next_multiple_of(512).min(*size - at))
        };
        let command = match *step {
            Step::Write { at, length, seed } => {
                let (at, length) = within(at, length);
                format!("write -q -P {seed} {at} {length}")
            }
            Step::Zero { at, length } => {
                let (at, length) = within(at, length);
                format!("write -q -z {at} {length}")
            }
            Step::Discard { at, length } => {
                let (at, length) = within(at, length);
                format!("discard -q {at} {length}")
            }
            Step::Resize { .. } => continue,
        };
        commands.extend(["-c".into(), command]);
    }
    run("qemu-io", &commands).unwrap();
}

fn flattened(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("flat");
    run("qemu-img", ["convert", "-O", "raw", "-f", "qcow2", image.to_str().unwrap(), raw.to_str().unwrap()]).unwrap();
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(&raw).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_point_in_time_restores_exactly(
        layers in proptest::collection::vec(proptest::collection::vec(step(), 1..12), 2..6),
        size in 1u64..10_000_000,
    ) {
        let lab = Lab::in_memory();
        let fresh = Lab::in_memory();
        let mut size = size.max(1 << 20) / 512 * 512;
        let mut below: Option<PathBuf> = None;
        let mut points = Vec::new();
        for (at, steps) in layers.iter().enumerate() {
            let path = lab.path(&format!("layer {at}.qcow2"));
            overlay(below.as_deref(), &path, &mut size, steps);
            let outcome = lab.backup("vm", &path, Format::Qcow2).unwrap();
            prop_assert_eq!(outcome.layers_known, at, "each frozen layer is read once");
            points.push((lab.snapshot(outcome.snapshot).disks[0].root, flattened(&path)));
            below = Some(path);
        }
        for (root, bytes) in &points {
            prop_assert!(lab.read(root) == *bytes, "an increment does not restore to what QEMU sees");
        }
        // The last one again, from nothing: the same content, so the same root but for the keys.
        let outcome = fresh.backup("vm", below.as_deref().unwrap(), Format::Qcow2).unwrap();
        let root = fresh.snapshot(outcome.snapshot).disks[0].root;
        prop_assert!(fresh.read(&root) == points.last().unwrap().1);
        // In one repository, applying the overlays equals building the tree of the flattened disk.
        let flat = lab.path("flat.raw");
        fs::write(&flat, &points.last().unwrap().1).unwrap();
        let outcome = lab.backup("flat", &flat, Format::Raw).unwrap();
        prop_assert_eq!(lab.snapshot(outcome.snapshot).disks[0].root, points.last().unwrap().0);
        prop_assert_eq!(outcome.bytes_new, 0, "nothing of it is new");
    }
}
