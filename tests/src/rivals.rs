use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::commands::{run, run_command};
use crate::crates::Program;
use crate::debian::Archive;
use crate::{Error, Result, cache};

/// The release whose restic is unpacked: 0.18, which compresses and has the current repository format.
const RESTIC_SUITE: &str = "trixie";

/// Pinned: a comparison names its versions.
const BORG_PACKAGE: &str = "borgbackup==1.4.5";
/// What borg is compiled with.
const BORG_LIBRARIES: [&str; 7] =
    ["gcc", "pkg-config", "libacl1-dev", "libssl-dev", "liblz4-dev", "libzstd-dev", "libxxhash-dev"];

/// A program in a folder of its own, with libraries that the machine may lack.
#[derive(Clone, Debug)]
pub struct Unpacked {
    program: PathBuf,
    libraries: [PathBuf; 2],
}

impl Unpacked {
    fn new(folder: &Path, program: &str) -> Self {
        Self {
            program: folder.join("usr/bin").join(program),
            libraries: ["lib", "usr/lib"].map(|libraries| folder.join(libraries).join("x86_64-linux-gnu")),
        }
    }

    /// The program, to be given arguments.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if self.libraries.iter().any(|folder| folder.is_dir()) {
            let folders = self.libraries.each_ref().map(|folder| folder.display().to_string());
            command.env("LD_LIBRARY_PATH", folders.join(":"));
        }
        command
    }
}

/// casync, unpacked from this machine's own release on first use.
pub fn casync() -> Result<Unpacked> {
    let folder = cache::build_once("casync", "1", |folder| {
        let archive = Archive::of_this_machine()?;
        let suite = archive.codename.clone();
        ["casync", "libfuse2"]
            .iter()
            .try_for_each(|package| unpack_package(&archive, &suite, package, folder))
    })?;
    Ok(Unpacked::new(&folder, "casync"))
}

/// b3sum, unpacked from this machine's own release on first use.
pub fn b3sum() -> Result<Unpacked> {
    let folder = cache::build_once("b3sum", "1", |folder| {
        let archive = Archive::of_this_machine()?;
        let suite = archive.codename.clone();
        unpack_package(&archive, &suite, "b3sum", folder)
    })?;
    Ok(Unpacked::new(&folder, "b3sum"))
}

/// A Python that has borg installed, as `-m borg`: compiled on first use, in about a minute.
pub fn borg_python() -> Result<PathBuf> {
    let folder = cache::build_once("borg", &format!("1 {BORG_PACKAGE}"), |folder| {
        if !rustix::process::geteuid().is_root() {
            let needed = BORG_LIBRARIES.join(" ");
            return Err(Error::new(format!(
                "as root, run: apt-get install {needed}; then try again as root"
            )));
        }
        let install = ["install", "-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600"];
        run_command(
            Command::new("apt-get")
                .args(install)
                .args(BORG_LIBRARIES)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )?;
        run("python3", ["-m".as_ref(), "venv".as_ref(), folder.as_os_str()])?;
        let python = folder.join("bin/python").display().to_string();
        run(&python, ["-m", "pip", "install", "--quiet", BORG_PACKAGE]).map(drop)
    })?;
    Ok(folder.join("bin/python"))
}

/// rustic, compiled as its own release is but for link-time optimisation: half an hour on two cores.
pub fn rustic() -> Result<PathBuf> {
    Ok(RUSTIC.install()?.join("bin/rustic"))
}

/// rustic, if [`rustic`] was called before.
pub fn rustic_if_built() -> Result<Option<PathBuf>> {
    Ok(RUSTIC.installed()?.map(|folder| folder.join("bin/rustic")))
}

const RUSTIC: Program = Program {
    name: "rustic-rs",
    version: "0.11.4",
    arguments: &["--no-default-features"],
    optimisation: "3",
};

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
