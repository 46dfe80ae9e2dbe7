use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_tests::{Result, rivals};

use super::restic::converted;
use super::{Disk, Mode, Output, Tool, command, emptied};

/// borg: content-defined chunks of 2 MiB on average, or fixed ones; keyed BLAKE2, zstd, AES.
#[derive(Debug)]
pub struct Borg {
    python: PathBuf,
    folder: PathBuf,
    repository: PathBuf,
    chunks: Option<&'static str>,
}

impl Borg {
    /// Installs it first, if need be. `chunks` as its option `--chunker-params` has it.
    pub fn new(folder: &Path, chunks: Option<&'static str>) -> Result<Self> {
        let folder = emptied(folder, if chunks.is_some() { "borg-fixed" } else { "borg" })?;
        Ok(Self { python: rivals::borg_python()?, repository: folder.join("repository"), folder, chunks })
    }

    fn with<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut borg = command(&self.python, ["-m", "borg"]);
        borg.args(arguments).env("BORG_REPO", &self.repository).env("BORG_PASSPHRASE", "bench");
        borg.env("BORG_BASE_DIR", &self.folder);
        borg
    }
}

impl Tool for Borg {
    fn name(&self) -> String {
        if self.chunks.is_some() { "borg, fixed 4 MiB" } else { "borg" }.to_owned()
    }

    fn init(&self) -> Vec<Command> {
        vec![self.with(["init", "--encryption", "repokey-blake2"])]
    }

    fn backup(&self, disk: &Disk, mode: Mode) -> Option<Vec<Command>> {
        let mut create = self.with(["create", "--compression", "zstd,3"]);
        if let Some(chunks) = self.chunks {
            create.args(["--sparse", "--chunker-params", chunks]);
        }
        match mode {
            Mode::Usual => {}
            Mode::Everything => drop(create.args(["--files-cache", "disabled"])),
            Mode::Unchecked => return None,
        }
        create.arg(format!("::{}-{{now:%s.%f}}", disk.vm)).arg(&disk.raw);
        Some(vec![create])
    }

    fn restore(&self, disk: &Disk, folder: &Path, output: Output) -> (Vec<Command>, PathBuf) {
        // It wants an archive's full name: the newest one of this machine is looked up first.
        let script = "name=$(\"$0\" -m borg list --last 1 --format '{archive}' --glob-archives \"$1-*\") && \
                      exec \"$0\" -m borg extract --sparse \"::$name\"";
        let mut extract = self.with([]);
        let environment: Vec<_> = extract
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        extract = command(Path::new("sh"), ["-c", script]);
        extract.arg(&self.python).arg(&disk.vm).envs(environment).current_dir(folder);
        let raw = folder.join(disk.raw.strip_prefix("/").unwrap_or(&disk.raw));
        converted(extract, raw, folder, output)
    }

    fn repository(&self) -> &Path {
        &self.repository
    }
}
