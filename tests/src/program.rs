use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::commands::{output, run_command};
use crate::s3::S3Server;
use crate::{Error, Result};

/// A repository and how this user reaches it: location, key file, state folder, environment.
#[derive(Clone, Debug)]
pub struct Underlay {
    program: PathBuf,
    /// Where the repository is.
    pub location: String,
    /// The restore key.
    pub key_file: PathBuf,
    pub(crate) state: PathBuf,
    environment: BTreeMap<String, String>,
    /// Whose namespaces it runs in, if not in the test's.
    inside: Option<u32>,
}

impl Underlay {
    /// Makes a new repository at `location`; key file and state go below `folder`.
    pub fn init(location: &str, folder: &Path) -> Result<Self> {
        Self::at(location, folder)?.initialised()
    }

    /// Makes a new repository in a server's bucket, under `prefix`.
    pub fn init_s3(server: &S3Server, prefix: &str, folder: &Path) -> Result<Self> {
        let mut underlay = Self::at(&format!("s3://{}/{prefix}", server.bucket), folder)?;
        let variables = server.variables();
        underlay.environment.extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        underlay.initialised()
    }

    /// A repository that is there already; its restore key lies in `folder`, and state goes below it.
    pub fn existing(location: &str, folder: &Path) -> Result<Self> {
        Self::at(location, folder)
    }

    fn at(location: &str, folder: &Path) -> Result<Self> {
        Ok(Self {
            program: program("underlay")?,
            location: location.to_owned(),
            key_file: folder.join("restore.key"),
            state: folder.join("state"),
            environment: BTreeMap::new(),
            inside: None,
        })
    }

    fn initialised(self) -> Result<Self> {
        run_command(&mut self.command(["init"]))?;
        Ok(self)
    }

    /// The same with another environment variable set.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same through another program beside the tests, such as `underlay-killed`.
    pub fn through(&self, name: &str) -> Result<Self> {
        Ok(Self { program: program(name)?, ..self.clone() })
    }

    /// The folder with what this host remembers.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The same repository from another host: nothing is remembered there.
    pub fn elsewhere(&self, folder: &Path) -> Self {
        Self { state: folder.join("state elsewhere"), ..self.clone() }
    }

    /// The same in the namespaces of a process, such as one of another host.
    #[must_use]
    pub fn inside(self, process: u32) -> Self {
        Self { inside: Some(process), ..self }
    }

    /// The same in a copy of the folder that it was made in.
    pub fn moved(&self, folder: &Path) -> Self {
        let mut moved = self.elsewhere(folder);
        moved.location = folder.join("repo").display().to_string();
        moved.key_file = folder.join("restore.key");
        moved.state = folder.join("state");
        moved
    }

    /// The program with everything but the verb's own arguments set.
    pub fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = match self.inside {
            None => Command::new(&self.program),
            Some(process) => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &process.to_string(), "--mount", "--uts", "--pid", "--"]);
                command.arg(&self.program);
                command
            }
        };
        command.args(arguments).envs(&self.environment);
        for variable in ["UNDERLAY_PASSPHRASE", "UNDERLAY_PASSPHRASE_FILE"] {
            command.env_remove(variable);
        }
        command.env("UNDERLAY_REPO", &self.location).env("UNDERLAY_STATE_DIR", &self.state);
        command.env("UNDERLAY_KEY_FILE", &self.key_file);
        command
    }

    /// Runs a verb to its end, whatever its exit code.
    pub fn output<const N: usize>(&self, arguments: [&str; N]) -> Result<Output> {
        output(&mut self.command(arguments))
    }

    /// Runs a verb that must succeed; what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run_command(self.command([]).args(arguments))
    }

    /// Runs a verb that must succeed, with `--json`; its answer.
    pub fn json<const N: usize>(&self, arguments: [&str; N]) -> Result<Value> {
        let mut command = self.command(arguments);
        let answer = run_command(command.arg("--json"))?;
        serde_json::from_str(&answer)
            .map_err(|error| Error::new(format!("{command:?} answered {answer:?}: {error}")))
    }

    /// Backs up one image; the answer of `--json`.
    pub fn backup(&self, vm: &str, image: &Path) -> Result<Value> {
        let image = image.to_str().ok_or_else(|| Error::new("an image path that is not UTF-8"))?;
        self.json(["backup", "--vm", vm, "--format", "qcow2", image])
    }

    /// Restores the only disk of a snapshot.
    pub fn restore(&self, snapshot: &str, to: &Path, format: &str) -> Result<String> {
        run_command(self.command(["restore", snapshot, "--format", format, "--to"]).arg(to))
    }
}

/// A program of this workspace, built beside the test that asks.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().map_err(|error| Error::new(error.to_string()))?;
    let program = test.ancestors().skip(2).map(|folder| folder.join(name)).find(|program| program.is_file());
    program.ok_or_else(|| {
        Error::new(format!("there is no `{name}` beside the tests: run `cargo build --workspace` first"))
    })
}
