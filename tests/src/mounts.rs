//! Mounts that end with the test that made them.

use std::process::Command;

use crate::commands::run_command;
use crate::{Error, Result};

/// Set in a process that has mounts of its own.
const OWN_MOUNTS: &str = "UNDERLAY_TESTS_OWN_MOUNTS";

/// Runs the test of that name once more, in a process whose mounts end with it; whether this is that process.
pub fn has_own_mounts(test: &str) -> Result<bool> {
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return Ok(true);
    }
    let program = std::env::current_exe().map_err(|error| Error::new(error.to_string()))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--fork", "--kill-child"]);
    command.arg(program).args(["--exact", test, "--nocapture"]);
    run_command(command.env(OWN_MOUNTS, "1"))?;
    Ok(false)
}
