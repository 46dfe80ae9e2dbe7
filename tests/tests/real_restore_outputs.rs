//! Proof that QEMU reads what the restore writes, and that a block device ends up holding the disk.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use underlay_client::restore::{DiskOutput, OutputFormat, Qcow2File, RestoreError, create_output};
use underlay_tests::commands::run;

/// A disk and the pieces that make it, in random order. Whatever is in no piece is zero.
struct Disk {
    bytes: Vec<u8>,
    pieces: Vec<(u64, usize)>,
}

impl Disk {
    fn random(seed: u64, size: u64) -> Self {
        let mut state = seed;
        let mut below = move |end: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % end
        };
        let (mut bytes, mut pieces, mut at) = (vec![0; size as usize], Vec::new(), 0);
        while at < size {
            let length = ((1 + below(40)) * 4096).min(size - at);
            if below(3) > 0 {
                for block in bytes[at as usize..(at + length) as usize].chunks_mut(4096) {
                    block.fill(below(5) as u8);
                }
                pieces.push((at, length as usize));
            }
            at += length;
        }
        for place in (1..pieces.len()).rev() {
            pieces.swap(place, below(place as u64 + 1) as usize);
        }
        Self { bytes, pieces }
    }

    /// Writes the pieces from four threads, and says where nothing is.
    fn write_to(&self, output: &dyn DiskOutput) {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for &(offset, length) in self.pieces.iter().skip(thread).step_by(4) {
                        let start = offset as usize;
                        output.write_at(offset, &self.bytes[start..start + length]).unwrap();
                    }
                });
            }
        });
        let mut sorted = self.pieces.clone();
        sorted.push((self.bytes.len() as u64, 0));
        sorted.sort_unstable();
        let mut end = 0;
        for (offset, length) in sorted {
            output.zero_range(end, offset - end).unwrap();
            end = offset + length as u64;
        }
    }
}

fn check(image: &Path) -> String {
    run("qemu-img", ["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), image.as_os_str()]).unwrap()
}

fn compare(qcow2: &Path, raw: &Path) {
    let formats = ["compare", "-f", "qcow2", "-F", "raw"].map(AsRef::as_ref);
    run("qemu-img", formats.into_iter().chain([qcow2.as_os_str(), raw.as_os_str()])).unwrap();
}

#[test]
fn qemu_agrees_with_every_image() {
    let folder = tempfile::tempdir().unwrap();
    let sizes =
        [0, 1, 511, 512, 4095, 4097, 65_536, 65_537, 1 << 20, (5 << 20) + 513, 24 << 20, (30 << 20) + 4096];
    for (at, size) in sizes.into_iter().enumerate() {
        let disk = Disk::random(at as u64 + 1, size);
        let raw = folder.path().join(format!("{at}.raw"));
        let qcow2 = folder.path().join(format!("{at}.qcow2"));
        for (path, format) in [(&raw, OutputFormat::Raw), (&qcow2, OutputFormat::Qcow2)] {
            let output = create_output(path, format, size, false).unwrap();
            disk.write_to(&*output);
            output.finish().unwrap();
        }
        assert!(fs::read(&raw).unwrap() == disk.bytes, "raw disk of {size} bytes");
        assert!(check(&qcow2).contains("No errors were found"), "qcow2 image of {size} bytes");
        compare(&qcow2, &raw);
        let back = folder.path().join("back");
        let formats = ["convert", "-f", "qcow2", "-O", "raw"].map(AsRef::as_ref);
        run("qemu-img", formats.into_iter().chain([qcow2.as_os_str(), back.as_os_str()])).unwrap();
        let mut bytes = fs::read(&back).unwrap();
        assert_eq!(bytes.len() as u64, size.next_multiple_of(512));
        assert!(bytes.split_off(size as usize).iter().all(|&byte| byte == 0));
        assert!(bytes == disk.bytes, "qcow2 image of {size} bytes");
    }
}

#[test]
fn qemu_accepts_a_huge_scattered_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.qcow2");
    let size = 8 << 40;
    let output = Qcow2File::create(&path, size, false).unwrap();
    // More tables than the writer keeps in memory, touched twice, and enough clusters for a second refcount block.
    for round in 0..2 {
        for table in (0..16_384u64).step_by(7) {
            output.write_at((table << 29) + round * (100 << 20), &[3; 4096]).unwrap();
        }
    }
    for cluster in 0..30_000u64 {
        output.write_at((4 << 40) + (1 << 20) + cluster * 65_536, &[4; 4096]).unwrap();
    }
    Box::new(output).finish().unwrap();
    assert!(check(&path).contains("No errors were found"));
    let map = run("qemu-img", ["map".as_ref(), "--output=json".as_ref(), path.as_os_str()]).unwrap();
    let data = map.lines().filter(|line| line.contains("\"data\": true")).count();
    assert!(data > 4_600, "{data} runs of data");
}

/// A loop device over a file full of `0xaa`, detached when dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(file: &Path, size: usize) -> Self {
        fs::write(file, vec![0xaa; size]).unwrap();
        let device = run("losetup", ["--find".as_ref(), "--show".as_ref(), file.as_os_str()]).unwrap();
        Self(device.trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = run("losetup", ["--detach".as_ref(), self.0.as_os_str()]) {
            assert!(std::thread::panicking(), "{error}");
        }
    }
}

#[test]
fn a_device_ends_up_holding_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("backing"), 16 << 20);
    let link = folder.path().join("by-id");
    symlink(&device.0, &link).unwrap();

    let refused = create_output(&link, OutputFormat::Raw, 1 << 20, false).err().unwrap();
    assert!(matches!(refused, RestoreError::TargetExists { .. }), "{refused}");
    let refused = create_output(&link, OutputFormat::Raw, (16 << 20) + 1, true).err().unwrap();
    assert!(matches!(refused, RestoreError::DeviceTooSmall { capacity: 0x100_0000, .. }), "{refused}");
    let refused = create_output(&link, OutputFormat::Qcow2, 1 << 20, true).err().unwrap();
    assert!(matches!(refused, RestoreError::NotATarget { .. }), "{refused}");

    for (seed, size) in [(7, (10 << 20) + 77), (8, 16 << 20)] {
        let disk = Disk::random(seed, size);
        let output = create_output(&link, OutputFormat::Raw, size, true).unwrap();
        // The kernel lends it to one holder at a time.
        let refused = create_output(&link, OutputFormat::Raw, size, true).err().unwrap();
        assert!(matches!(refused, RestoreError::File { .. }), "{refused}");
        disk.write_to(&*output);
        output.finish().unwrap();
        let mut bytes = vec![0; 16 << 20];
        File::open(&device.0).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        let past = bytes.split_off(size as usize);
        assert!(bytes == disk.bytes, "disk of {size} bytes");
        assert!(past.iter().all(|&byte| byte == 0xaa), "what lies past the disk is left alone");
    }
}
