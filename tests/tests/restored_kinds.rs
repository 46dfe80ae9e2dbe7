//! Images of every kind, backed up and restored: as QEMU sees them, byte for byte.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use underlay_client::image::Format;
use underlay_client::restore::OutputFormat;
use underlay_tests::commands::{run, run_command};
use underlay_tests::images::image_kinds;
use underlay_tests::lab::Lab;

/// Runs `qemu-img` where the image lies: QEMU looks for an external data file in the current directory.
fn qemu_img(folder: &Path, arguments: &[&str], paths: [&Path; 2]) -> underlay_tests::Result<String> {
    run_command(Command::new("qemu-img").args(arguments).args(paths).current_dir(folder))
}

/// Fails unless QEMU finds both disks equal, in size too.
fn compare(folder: &Path, top: &Path, top_format: &str, restored: &Path, format: &str) {
    let formats = ["-f", top_format, "-F", format];
    let strict = qemu_img(folder, &[&["compare", "-s"][..], &formats].concat(), [top, restored]);
    if let Err(error) = strict {
        // What is allocated may differ: a restore writes no zeros. Sizes and bytes may not.
        assert!(error.to_string().contains("block status mismatch"), "{error:?}");
        qemu_img(folder, &[&["compare"][..], &formats].concat(), [top, restored]).unwrap();
    }
}

#[test]
fn every_kind_of_image_comes_back_as_qemu_sees_it() {
    let lab = Lab::in_memory();
    for (at, kind) in image_kinds().into_iter().enumerate() {
        let folder = lab.path(&format!("kind {at}"));
        fs::create_dir(&folder).unwrap();
        let case = kind.build(&folder).unwrap();
        let format = if case.format == "raw" { Format::Raw } else { Format::Qcow2 };
        let outcome = lab
            .backup(&format!("vm{at}"), &case.top, format)
            .unwrap_or_else(|error| panic!("{}: {error}", kind.name));
        let root = lab.snapshot(outcome.snapshot).disks[0].root;
        let (raw, qcow2) = (folder.join("restored.raw"), folder.join("restored.qcow2"));
        lab.restore(root, &raw, OutputFormat::Raw).unwrap();
        lab.restore(root, &qcow2, OutputFormat::Qcow2).unwrap();
        run("qemu-img", ["check", "-q", "-f", "qcow2", qcow2.to_str().unwrap()])
            .unwrap_or_else(|error| panic!("{}: {error:?}", kind.name));
        compare(&folder, &case.top, case.format, &raw, "raw");
        compare(&folder, &case.top, case.format, &qcow2, "qcow2");
        // Small disks against `qemu-img convert` itself, every byte and the length.
        if root.size <= 64 << 20 {
            let converted = folder.join("converted.raw");
            let convert = ["convert", "-O", "raw", "-f", case.format];
            qemu_img(&folder, &convert, [&case.top, &converted]).unwrap();
            assert!(fs::read(&converted).unwrap() == fs::read(&raw).unwrap(), "{}", kind.name);
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
