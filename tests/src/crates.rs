use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::commands::run_command;
use crate::{Result, cache};

/// cargo-deny: checks licences and sources of the dependencies, by the rules in `deny.toml`. One to two minutes.
pub fn cargo_deny() -> Result<PathBuf> {
    let program = Program { name: "cargo-deny", version: "0.20.2", arguments: &[], optimisation: "0" };
    Ok(program.install()?.join("bin/cargo-deny"))
}

/// A program on the crate registry, compiled on first use and kept in the cache.
#[derive(Debug)]
pub(crate) struct Program {
    /// Name of its crate.
    pub name: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// More arguments of `cargo install`, such as features.
    pub arguments: &'static [&'static str],
    /// Optimisation level: a program that only tests need is compiled fast, not fast itself.
    pub optimisation: &'static str,
}

impl Program {
    fn recipe(&self) -> String {
        format!("1 {} {} {}", self.version, self.arguments.join(" "), self.optimisation)
    }

    /// The folder that [`Self::install`] made before; `None` if it never did.
    pub fn installed(&self) -> Result<Option<PathBuf>> {
        cache::built(self.name, &self.recipe())
    }

    /// Returns the folder whose `bin` holds the program.
    pub fn install(&self) -> Result<PathBuf> {
        cache::build_once(self.name, &self.recipe(), |folder| {
            let target = folder.join("target");
            let mut command = Command::new("cargo");
            command.args(["install", self.name, "--version", self.version, "--locked"]).args(self.arguments);
            command.args(["--root".as_ref(), folder.as_os_str()]).current_dir(folder);
            for (setting, value) in [
                ("CARGO_TARGET_DIR", target.as_os_str()),
                ("CARGO_PROFILE_RELEASE_LTO", OsStr::new("off")),
                ("CARGO_PROFILE_RELEASE_DEBUG", OsStr::new("0")),
                ("CARGO_PROFILE_RELEASE_OPT_LEVEL", OsStr::new(self.optimisation)),
                ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", OsStr::new("16")),
            ] {
                command.env(setting, value);
            }
            run_command(&mut command)?;
            Ok(fs::remove_dir_all(target)?)
        })
    }
}
