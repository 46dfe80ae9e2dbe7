//! Disks of real Debian guests.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_tests::commands::run_command;
use underlay_tests::debian::Archive;
use underlay_tests::{Result, cache, guest};

/// Mounts, installs, unmounts.
const SCRIPT: &str = include_str!("guest.sh");
/// Steps of the script, in order.
const STEPS: [&str; 5] = ["minimal", "independent", "toolchain", "clones", "database"];

/// A disk of the comparison: qcow2, read-only, 2 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its file without the ending, and its machine's name.
    pub name: &'static str,
    /// What is on it.
    pub what: &'static str,
    /// The guest whose image its own is an overlay on.
    pub base: Option<&'static str>,
    /// Whether a database is on it.
    pub database: bool,
}

/// All disks, in the order in which they are backed up into one repository.
pub const GUESTS: [Guest; 8] = [
    Guest { name: "minimal", what: "a minimal Debian", base: None, database: false },
    Guest { name: "toolchain", what: "the same, with compilers", base: Some("minimal"), database: false },
    Guest {
        name: "services",
        what: "the same, with PostgreSQL and nginx",
        base: Some("minimal"),
        database: false,
    },
    Guest { name: "independent", what: "another installation of that release", base: None, database: false },
    Guest {
        name: "clone-a",
        what: "the minimal one, with some packages",
        base: Some("minimal"),
        database: false,
    },
    Guest {
        name: "clone-b",
        what: "the same packages after another history",
        base: Some("minimal"),
        database: false,
    },
    Guest {
        name: "database",
        what: "PostgreSQL with pgbench's tables, on `services`",
        base: Some("services"),
        database: true,
    },
    Guest {
        name: "database-after",
        what: "the same disk after 6,000 transactions",
        base: Some("database"),
        database: true,
    },
];

/// The images, with their names without the ending. Built once, as root: five minutes, and 4.5 GB in the cache. A smoke test
/// makes do with the guest that the kit's tests boot, in place of the first.
pub fn guests(quick: bool) -> Result<Vec<(&'static str, PathBuf)>> {
    if quick {
        return Ok(vec![(GUESTS[0].name, guest::image()?)]);
    }
    let archive = Archive::of_this_machine()?;
    let recipe = format!("1 {} {} {SCRIPT}", archive.codename, STEPS.join(" "));
    let folder = cache::build_once("bench-guests", &recipe, |folder| build(&archive, folder))?;
    Ok(GUESTS.iter().map(|guest| (guest.name, folder.join(format!("{}.qcow2", guest.name)))).collect())
}

fn build(archive: &Archive, folder: &Path) -> Result<()> {
    let (script, sources) = (folder.join("guest.sh"), folder.join("sources.list"));
    fs::write(&script, SCRIPT)?;
    fs::write(&sources, archive.source_line(&archive.codename) + "\n")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh"]).arg(&script).arg(folder).arg(&archive.codename).arg(&sources).args(STEPS);
    run_command(&mut command)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "qcow2") {
            fs::set_permissions(path, Permissions::from_mode(0o444))?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
