use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_tests::{Result, rivals};

use super::restic::converted;
use super::{Disk, Mode, Output, Tool, command, emptied};

/// rustic: restic's format, written in Rust.
#[derive(Debug)]
pub struct Rustic {
    program: PathBuf,
    folder: PathBuf,
    repository: PathBuf,
}

impl Rustic {
    /// `None` unless it was built before, as `bench --build-rustic` does: that takes many minutes.
    pub fn new(folder: &Path) -> Result<Option<Self>> {
        let Some(program) = rivals::rustic_if_built()? else { return Ok(None) };
        let folder = emptied(folder, "rustic")?;
        Ok(Some(Self { program, repository: folder.join("repository"), folder }))
    }

    fn with<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut rustic = command(&self.program, arguments);
        rustic.env("RUSTIC_REPOSITORY", &self.repository).env("RUSTIC_PASSWORD", "bench");
        rustic.env("RUSTIC_CACHE_DIR", self.folder.join("cache")).env("RUSTIC_NO_PROGRESS", "true");
        rustic
    }
}

impl Tool for Rustic {
    fn name(&self) -> String {
        "rustic".to_owned()
    }

    fn init(&self) -> Vec<Command> {
        vec![self.with(["init"])]
    }

    fn backup(&self, disk: &Disk, mode: Mode) -> Option<Vec<Command>> {
        let mut backup = self.with(["backup", "--host", &disk.vm]);
        match mode {
            Mode::Usual => {}
            Mode::Everything => drop(backup.arg("--force")),
            Mode::Unchecked => return None,
        }
        backup.arg(&disk.raw);
        Some(vec![backup])
    }

    fn restore(&self, disk: &Disk, folder: &Path, output: Output) -> (Vec<Command>, PathBuf) {
        let name = disk.raw.file_name().unwrap_or_default();
        let source = format!("latest:{}", disk.raw.parent().unwrap_or(Path::new("/")).display());
        let mut restore = self.with(["restore", "--filter-host", &disk.vm, &source]);
        restore.arg(folder);
        converted(restore, folder.join(name), folder, output)
    }

    fn repository(&self) -> &Path {
        &self.repository
    }
}
