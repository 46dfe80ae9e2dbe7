//! A real libvirtd, one for each test, and real guests under it.
//!
//! [`Libvirtd::start`] needs root. It lives in a mount namespace where temporary folders stand for libvirtd's own, and
//! in a PID namespace that ends with the test process, whatever ends that: neither a libvirtd of the machine nor
//! another test's sees it, and no process and no mount is left behind. Disks, sockets and guests' files are reached by the
//! same paths from outside; process ids are the outside's.

mod agent;
mod machine;
mod spec;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use machine::{Definition, Machine};
pub use spec::{DiskSpec, DomainSpec};

use crate::commands::{output, run_command, wait_until};
use crate::keeper::Keeper;
use crate::{Error, Result};

/// What runs inside the namespaces.
const KEEPER: &str = include_str!("keeper.bash");
/// The folders that stand for libvirtd's own, named as the keeper expects.
const FOLDERS: [&str; 5] =
    ["etc-libvirt", "var-lib-libvirt", "run-libvirt", "var-log-libvirt", "var-cache-libvirt"];
/// Guests belong to root, whose files the tests' disks are, and nothing outside the namespaces is asked for help:
/// no virtlogd, no cgroups, no ownership to restore, no security labels. Another libvirtd may find the same files there.
const QEMU_CONFIGURATION: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n\
    stdio_handler = \"file\"\nnamespaces = []\ncgroup_controllers = []\n\
    dynamic_ownership = 0\nremember_owner = 0\n\
    shared_filesystems = [\"/tmp\"]\n";
const DAEMON_CONFIGURATION: &str =
    "unix_sock_group = \"root\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n";

/// Where libvirtd listens, in its folder.
const SOCKET: &str = "run-libvirt/libvirt-sock";
/// What a second host is known by. The first one has the machine's own.
const OTHER_HOST: &str = "6d1c1f52-93a5-4c3e-9a55-0d9b3f6f3b6e";

/// A libvirtd of one's own. When it is dropped, its guests and itself are killed.
#[derive(Debug)]
pub struct Libvirtd {
    keeper: Keeper,
    virsh: Virsh,
    folder: tempfile::TempDir,
}

/// The client program, connected to one libvirtd.
#[derive(Clone, Debug)]
struct Virsh {
    uri: String,
}

impl Libvirtd {
    /// Starts a libvirtd without any domain. Takes two seconds.
    pub fn start() -> Result<Self> {
        Self::start_with(None)
    }

    /// Starts one that takes itself for another host's: guests can be migrated there. Of each two `folders`, it and its guests
    /// find the first one where the second one is.
    pub fn start_as(host: &str, folders: &[(PathBuf, PathBuf)]) -> Result<Self> {
        Self::start_with(Some((host, folders)))
    }

    fn start_with(host: Option<(&str, &[(PathBuf, PathBuf)])>) -> Result<Self> {
        // A socket's path has at most 107 bytes: never below $TMPDIR, which may be long.
        let folder = tempfile::Builder::new().prefix("lv").tempdir_in("/tmp")?;
        for name in FOLDERS {
            fs::create_dir(folder.path().join(name))?;
        }
        let configuration = folder.path().join("etc-libvirt");
        fs::write(configuration.join("qemu.conf"), QEMU_CONFIGURATION)?;
        let mut daemon = DAEMON_CONFIGURATION.to_owned();
        if let Some((name, folders)) = host {
            let _ = writeln!(daemon, "host_uuid = \"{OTHER_HOST}\"");
            let mut script = format!("hostname {name}\n");
            for (own, seen) in folders {
                let _ = writeln!(script, "mount --bind {} {} || exit", own.display(), seen.display());
            }
            fs::write(folder.path().join("host"), script)?;
        }
        fs::write(configuration.join("libvirtd.conf"), daemon)?;
        let socket = folder.path().join(SOCKET);
        let keeper = Keeper::start(KEEPER, folder.path())?;
        let virsh = Virsh { uri: format!("qemu+unix:///system?socket={}", socket.display()) };
        let mut libvirtd = Self { keeper, virsh, folder };
        libvirtd.start_again()?;
        Ok(libvirtd)
    }

    /// Kills libvirtd as a crash would. Its guests go on running.
    pub fn kill(&mut self) -> Result<()> {
        self.keeper.order("kill_it")
    }

    /// Starts a killed libvirtd on the state it left behind, and waits until it answers.
    pub fn start_again(&mut self) -> Result<()> {
        self.keeper.order("start")?;
        let answered = wait_until("libvirtd answering", Duration::from_secs(60), || {
            if output(&mut self.virsh.command(["version"]))?.status.success() {
                return Ok(true);
            }
            self.keeper.order("alive").map_err(|_| Error::new("libvirtd ended at once"))?;
            Ok(false)
        });
        answered.map_err(|error| Error::new(format!("{error}\n{}", self.log())))
    }

    /// [`Self::kill`] and [`Self::start_again`].
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start_again()
    }

    /// What `virsh -c` and `underlay --connect` take.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.virsh.uri
    }

    /// The socket it listens at.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder().join(SOCKET)
    }

    /// A process in its namespaces.
    pub fn process(&self) -> Result<u32> {
        self.keeper.process()
    }

    /// A folder that lives as long as this does, for disks and the like. Its path is short.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs one `virsh` command and returns what it printed.
    pub fn virsh<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        self.virsh.run(arguments)
    }

    /// Defines a persistent domain that is not running.
    pub fn define(&self, spec: &DomainSpec) -> Result<Machine> {
        self.told("define", spec)
    }

    /// Starts a transient domain: libvirtd forgets it when it ends.
    pub fn create(&self, spec: &DomainSpec) -> Result<Machine> {
        self.told("create", spec)
    }

    /// The domain of that name, however it came to be.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        Machine::existing(self.virsh.clone(), name, self.console_of(name))
    }

    /// What libvirtd has logged, through all its restarts.
    #[must_use]
    pub fn log(&self) -> String {
        let mut log = String::new();
        for file in ["keeper.log", "libvirtd.log"] {
            let text = fs::read(self.folder().join("var-log-libvirt").join(file)).unwrap_or_default();
            let _ = write!(log, "{}", String::from_utf8_lossy(&text));
        }
        log
    }

    fn console_of(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}.console"))
    }

    fn told(&self, verb: &str, spec: &DomainSpec) -> Result<Machine> {
        let xml = spec.xml(&self.console_of(&spec.name))?;
        let file = tempfile::NamedTempFile::new_in(self.folder())?;
        fs::write(file.path(), &xml)?;
        let done = self.virsh([verb.as_ref(), file.path().as_os_str()]);
        done.map_err(|error| error.context(format!("of this XML:\n{xml}\n")))?;
        self.machine(&spec.name)
    }
}

impl Virsh {
    fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("virsh");
        command.args(["-q", "-c", &self.uri]).args(arguments).env("LC_ALL", "C");
        command
    }

    fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        run_command(&mut self.command(arguments))
    }
}
