//! What this machine can do at best: programs that do one part of the work and nothing else.

use std::path::Path;
use std::process::Command;

use underlay_tests::{Result, rivals};

use super::{Disk, command, to_qcow2};

/// `b3sum` over a file: reading and hashing, with all processors.
pub fn b3sum(file: &Path) -> Result<Command> {
    let mut b3sum = rivals::b3sum()?.command();
    b3sum.arg(file);
    Ok(b3sum)
}

/// The limits, with the name of each and the file it writes. `content` holds the bytes of `disk` that are not zero.
pub fn limits(
    disk: &Disk,
    content: &Path,
    folder: &Path,
) -> Result<Vec<(&'static str, Command, Option<&'static str>)>> {
    let out = |name: &str| folder.join(name);
    let mut zstd = command(Path::new("zstd"), ["-T0", "-3", "-q", "-f", "-o"]);
    zstd.arg(out("content.zst")).arg(content);
    let mut copy = command(Path::new("cp"), ["--sparse=always"]);
    copy.arg(&disk.raw).arg(out("copy.raw"));
    let mut raw = command(Path::new("qemu-img"), ["convert", "-f", "raw", "-O", "raw"]);
    raw.arg(&disk.raw).arg(out("converted.raw"));
    let qcow2 = to_qcow2(&disk.raw, &out("converted.qcow2"));
    Ok(vec![
        ("b3sum of what is not zero", b3sum(content)?, None),
        ("zstd -T0 -3 of what is not zero", zstd, Some("content.zst")),
        ("cp --sparse=always", copy, Some("copy.raw")),
        ("qemu-img convert to raw", raw, Some("converted.raw")),
        ("qemu-img convert to qcow2", qcow2, Some("converted.qcow2")),
    ])
}
