use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_tests::{Result, rivals};

use super::restic::converted;
use super::{Disk, Mode, Output, Tool, command, emptied};

/// casync: content-defined chunks of 64 KiB on average, SHA-512/256, zstd. Encrypts nothing.
#[derive(Debug)]
pub struct Casync {
    program: rivals::Unpacked,
    repository: PathBuf,
}

impl Casync {
    /// Unpacks it first, if need be.
    pub fn new(folder: &Path) -> Result<Self> {
        Ok(Self { program: rivals::casync()?, repository: emptied(folder, "casync")?.join("repository") })
    }

    fn with(&self, verb: &str) -> Command {
        let mut casync = self.program.command();
        casync.args([verb, "--store"]).arg(self.repository.join("store.castr"));
        casync
    }

    fn index(&self, disk: &Disk) -> PathBuf {
        self.repository.join(format!("{}.caibx", disk.vm))
    }
}

impl Tool for Casync {
    fn name(&self) -> String {
        "casync".to_owned()
    }

    fn init(&self) -> Vec<Command> {
        vec![command(Path::new("mkdir"), ["-p".as_ref(), self.repository.join("store.castr").as_os_str()])]
    }

    fn backup(&self, disk: &Disk, mode: Mode) -> Option<Vec<Command>> {
        let mut make = self.with("make");
        make.arg(self.index(disk)).arg(&disk.raw);
        (mode != Mode::Unchecked).then(|| vec![make])
    }

    fn restore(&self, disk: &Disk, folder: &Path, output: Output) -> (Vec<Command>, PathBuf) {
        let raw = folder.join("disk.raw");
        let mut extract = self.with("extract");
        extract.arg(self.index(disk)).arg(&raw);
        converted(extract, raw, folder, output)
    }

    fn repository(&self) -> &Path {
        &self.repository
    }
}
