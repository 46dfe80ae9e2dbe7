//! An image that somebody writes to is not backed up.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use underlay_client::image::{Chain, Format, ImageError, OpenOptions};
use underlay_tests::commands::{run, spawn, terminate, wait_until};

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
