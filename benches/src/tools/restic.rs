use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_tests::{Result, rivals};

use super::{Disk, Mode, Output, Tool, command, emptied, to_qcow2};

/// restic: content-defined chunks of 1 MiB on average, SHA-256, zstd, AES.
#[derive(Debug)]
pub struct Restic {
    program: PathBuf,
    folder: PathBuf,
    repository: PathBuf,
}

impl Restic {
    /// Unpacks it first, if need be.
    pub fn new(folder: &Path) -> Result<Self> {
        let folder = emptied(folder, "restic")?;
        Ok(Self { program: rivals::restic()?, repository: folder.join("repository"), folder })
    }

    fn with<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut restic = command(&self.program, arguments);
        restic.env("RESTIC_REPOSITORY", &self.repository).env("RESTIC_PASSWORD", "bench");
        restic.env("RESTIC_CACHE_DIR", self.folder.join("cache"));
        restic
    }
}

impl Tool for Restic {
    fn name(&self) -> String {
        "restic".to_owned()
    }

    fn init(&self) -> Vec<Command> {
        vec![self.with(["init", "--quiet"])]
    }

    fn backup(&self, disk: &Disk, mode: Mode) -> Option<Vec<Command>> {
        let mut backup = self.with(["backup", "--quiet", "--host", &disk.vm]);
        match mode {
            Mode::Usual => {}
            Mode::Everything => drop(backup.arg("--force")),
            Mode::Unchecked => return None,
        }
        backup.arg(&disk.raw);
        Some(vec![backup])
    }

    fn restore(&self, disk: &Disk, folder: &Path, output: Output) -> (Vec<Command>, PathBuf) {
        let mut restore =
            self.with(["restore", "latest", "--quiet", "--sparse", "--host", &disk.vm, "--target"]);
        restore.arg(folder);
        // It restores a file below all folders that it lay in.
        let raw = folder.join(disk.raw.strip_prefix("/").unwrap_or(&disk.raw));
        converted(restore, raw, folder, output)
    }

    fn repository(&self) -> &Path {
        &self.repository
    }
}

/// What a program needs that restores raw files only.
pub(super) fn converted(
    restore: Command,
    raw: PathBuf,
    folder: &Path,
    output: Output,
) -> (Vec<Command>, PathBuf) {
    match output {
        Output::Raw => (vec![restore], raw),
        Output::Qcow2 => {
            let image = folder.join("disk.qcow2");
            (vec![restore, to_qcow2(&raw, &image)], image)
        }
    }
}
