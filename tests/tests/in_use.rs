//! An image that somebody writes to is not backed up.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use underlay_client::image::{Chain, Format, ImageError, OpenOptions};
use underlay_tests::commands::{run, spawn, terminate, wait_until};
use underlay_tests::lab::Lab;

#[test]
fn an_image_that_a_process_writes_to_is_refused_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let options = OpenOptions { format: Some(Format::Qcow2), ..OpenOptions::default() };
    let (base, top) = (folder.path().join("base.qcow2"), folder.path().join("top.qcow2"));
    run("qemu-img", ["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "8M"]).unwrap();
    run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", top.to_str().unwrap()],
    )
    .unwrap();
    let socket = folder.path().join("socket");
    let mut writer =
        spawn(Command::new("qemu-nbd").args(["-t", "-f", "qcow2", "-k"]).args([&socket, &top])).unwrap();
    wait_until("qemu-nbd listens", Duration::from_secs(20), || Ok(socket.exists())).unwrap();
    let refused = Chain::open(&top, &options).unwrap_err();
    assert!(matches!(&refused, ImageError::InUse { path } if *path == top), "{refused}");
    // The frozen layer below is only read, so it may be read here too.
    Chain::open(&base, &options).unwrap();
    terminate(&mut writer);
    Chain::open(&top, &options).unwrap();
}

/// Writes through a memory map, twice to the same page, which stays dirty and writable in between.
const MAPPED_WRITER: &str = "
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(file, 0)
for byte in (1, 2):
    memory[5000] = byte
    print('written', flush=True)
    sys.stdin.readline()
";

#[test]
fn a_write_through_a_memory_map_is_a_change() {
    let lab = Lab::in_memory();
    let image = lab.path("vm.raw");
    fs::write(&image, vec![9; 1 << 20]).unwrap();
    let mut python = Command::new("python3");
    let mut writer = python
        .args(["-c", MAPPED_WRITER])
        .arg(&image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(writer.stdout.take().unwrap()).lines();
    for byte in [1, 2] {
        said.next().unwrap().unwrap();
        let outcome = lab.backup("vm", &image, Format::Raw).unwrap();
        assert_eq!(lab.read(&lab.snapshot(outcome.snapshot).disks[0].root)[5000], byte);
        writer.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
    writer.wait().unwrap();
}
