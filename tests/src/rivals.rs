use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::commands::{run, run_command};
use crate::debian::Archive;
use crate::{Error, Result, cache};

/// The release whose restic is unpacked: 0.18, which compresses and has the current repository format.
const RESTIC_SUITE: &str = "trixie";

/// The restic program, unpacked from a Debian package on first use. Installs nothing on the machine.
pub fn restic() -> Result<PathBuf> {
    let folder = cache::build_once("restic", &format!("1 {RESTIC_SUITE}"), |folder| {
        unpack_package(&Archive::of_this_machine()?, RESTIC_SUITE, "restic", folder)
    })?;
    Ok(folder.join("usr/bin/restic"))
}

/// Downloads `package` from another suite of the machine's own archive and unpacks it into `folder`. The package
/// lists and apt's state are kept apart from the machine's, so that it never installs from that suite by accident.
fn unpack_package(archive: &Archive, suite: &str, package: &str, folder: &Path) -> Result<()> {
    let state = tempfile::tempdir()?;
    let path = |name: &str| state.path().join(name).display().to_string();
    for name in ["lists/partial", "parts", "cache", "download"] {
        fs::create_dir_all(state.path().join(name))?;
    }
    fs::write(path("sources.list"), archive.source_line(suite) + "\n")?;
    let settings = [
        format!("Dir::Etc::sourcelist={}", path("sources.list")),
        format!("Dir::Etc::sourceparts={}", path("parts")),
        format!("Dir::Etc::preferencesparts={}", path("parts")),
        format!("Dir::State::lists={}", path("lists")),
        format!("Dir::Cache={}", path("cache")),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let options: Vec<_> = settings.iter().flat_map(|setting| ["-o", setting]).collect();
    run("apt-get", options.iter().chain(&["-q", "update"]))?;
    let mut download = Command::new("apt-get");
    download.args(&options).args(["-q", "download", package]).current_dir(path("download"));
    run_command(&mut download)?;
    let downloaded = fs::read_dir(path("download"))?.next();
    let file = downloaded.ok_or_else(|| Error::new(format!("apt-get downloaded no {package}")))??.path();
    run("dpkg-deb", ["-x".as_ref(), file.as_os_str(), folder.as_os_str()]).map(drop)
}
