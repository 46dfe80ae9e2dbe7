//! The programs that are compared, each behind the same few verbs.

mod borg;
mod casync;
mod limits;
mod restic;
mod rustic;
mod underlay;

use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_tests::Result;
use underlay_tests::s3::S3Server;

use crate::measure::folder_bytes;

pub use borg::Borg;
pub use casync::Casync;
pub use limits::{b3sum, limits};
pub use restic::Restic;
pub use rustic::Rustic;
pub use underlay::Underlay;

/// A disk as each program gets it.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its machine's name.
    pub vm: String,
    /// The qcow2 image: what underlay reads.
    pub image: PathBuf,
    /// The same content as a sparse raw file: what all others read. Making it is not part of what is measured.
    pub raw: PathBuf,
}

/// How a disk is backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As anybody would.
    Usual,
    /// Everything is read, whatever is known of the file.
    Everything,
    /// As anybody would, but what is encoded is not decoded again. Only underlay decodes it at all.
    Unchecked,
}

/// A restored disk's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// A sparse file.
    Raw,
    /// A qcow2 image; programs that know none restore a raw file, which `qemu-img` converts.
    Qcow2,
}

/// A backup program with a repository of its own.
pub trait Tool {
    /// Its name in tables.
    fn name(&self) -> String;

    /// Commands that make an empty repository.
    fn init(&self) -> Vec<Command>;

    /// Commands that back a disk up; `None` if it has no such mode.
    fn backup(&self, disk: &Disk, mode: Mode) -> Option<Vec<Command>>;

    /// Commands that restore the latest backup of a disk into `folder`, and the file that will be there.
    fn restore(&self, disk: &Disk, folder: &Path, output: Output) -> (Vec<Command>, PathBuf);

    /// The folder that the repository lies in.
    fn repository(&self) -> &Path;

    /// Bytes of the repository's files.
    fn stored(&self) -> Result<u64> {
        folder_bytes(self.repository())
    }
}

/// Which programs to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tools {
    /// Underlay and restic.
    Few,
    /// All.
    All,
}

impl Tools {
    /// The programs, each with an empty folder below `folder`. Fetches what is missing.
    pub fn ready(self, folder: &Path) -> Result<Vec<Box<dyn Tool>>> {
        let mut tools: Vec<Box<dyn Tool>> =
            vec![Box::new(Underlay::local(folder)?), Box::new(Restic::new(folder)?)];
        if self == Self::All {
            tools.push(Box::new(Borg::new(folder, None)?));
            tools.push(Box::new(Borg::new(folder, Some("fixed,4194304"))?));
            tools.push(Box::new(Casync::new(folder)?));
            tools.extend(Rustic::new(folder)?.map(|rustic| Box::new(rustic) as Box<dyn Tool>));
        }
        Ok(tools)
    }
}

/// Underlay with its repository on a server.
pub fn underlay_on(server: &S3Server, prefix: &str, folder: &Path) -> Result<Underlay> {
    Underlay::remote(server, prefix, folder)
}

fn command<S: AsRef<std::ffi::OsStr>>(program: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Makes the folder of a program anew.
fn emptied(folder: &Path, name: &str) -> Result<PathBuf> {
    let folder = folder.join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// `qemu-img convert` from a raw file.
fn to_qcow2(raw: &Path, image: &Path) -> Command {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args([raw, image]);
    convert
}
