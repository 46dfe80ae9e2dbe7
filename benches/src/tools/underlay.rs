use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_tests::s3::S3Server;
use underlay_tests::{Error, Result};

use super::{Disk, Mode, Output, Tool, command, emptied};

/// This workspace's program.
#[derive(Debug)]
pub struct Underlay {
    program: PathBuf,
    folder: PathBuf,
    location: String,
    environment: BTreeMap<&'static str, String>,
    name: &'static str,
}

impl Underlay {
    /// With a repository in a folder.
    pub fn local(folder: &Path) -> Result<Self> {
        let folder = emptied(folder, "underlay")?;
        let location = folder.join("repository").display().to_string();
        Ok(Self { program: program()?, folder, location, environment: BTreeMap::new(), name: "underlay" })
    }

    /// With a repository in a server's bucket.
    pub fn remote(server: &S3Server, prefix: &str, folder: &Path) -> Result<Self> {
        let folder = emptied(folder, "underlay-s3")?;
        let environment = BTreeMap::from([
            ("AWS_ENDPOINT_URL", server.endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", server.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", server.secret_key.clone()),
            ("AWS_REGION", server.region.clone()),
        ]);
        let location = format!("s3://{}/{prefix}", server.bucket);
        Ok(Self { program: program()?, folder, location, environment, name: "underlay on S3" })
    }

    /// The program with its repository and key set.
    pub fn with<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = command(&self.program, arguments);
        command.envs(&self.environment).env("UNDERLAY_REPO", &self.location);
        command
            .env("UNDERLAY_KEY_FILE", self.folder.join("key"))
            .env("UNDERLAY_STATE_DIR", self.folder.join("state"));
        command
    }
}

impl Tool for Underlay {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn init(&self) -> Vec<Command> {
        vec![self.with(["init"])]
    }

    fn backup(&self, disk: &Disk, mode: Mode) -> Option<Vec<Command>> {
        let mut backup = self.with(["backup", "--json", "--no-progress", "--vm", &disk.vm]);
        match mode {
            Mode::Usual => {}
            Mode::Everything => drop(backup.arg("--no-memo")),
            Mode::Unchecked => drop(backup.arg("--no-encode-check")),
        }
        backup.arg(&disk.image);
        Some(vec![backup])
    }

    fn restore(&self, disk: &Disk, folder: &Path, output: Output) -> (Vec<Command>, PathBuf) {
        let (format, name) = match output {
            Output::Raw => ("raw", "disk.raw"),
            Output::Qcow2 => ("qcow2", "disk.qcow2"),
        };
        let path = folder.join(name);
        let snapshot = format!("{}@latest", disk.vm);
        let mut restore = self.with(["restore", &snapshot, "--no-progress", "--format", format, "--to"]);
        restore.arg(&path);
        (vec![restore], path)
    }

    fn repository(&self) -> &Path {
        Path::new(&self.location)
    }
}

/// `underlay`, built beside the program that asks.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).map(|folder| folder.join("underlay")).find(|path| path.is_file());
    beside.ok_or_else(|| {
        Error::new("there is no `underlay` beside this program: cargo build --release -p underlay-client")
    })
}
