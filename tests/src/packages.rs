use std::fs;
use std::path::Path;
use std::process::Command;

use crate::commands::{find_program, run_command};
use crate::debian::Archive;
use crate::{Error, Result};

/// A Debian package that a test needs, and how to tell that it is there.
#[derive(Clone, Copy, Debug)]
struct Package {
    name: &'static str,
    proof: Proof,
    /// The release before trixie has a QEMU too old for us: these come from its backports, all of one version.
    backport: bool,
}

#[derive(Clone, Copy, Debug)]
enum Proof {
    Program(&'static str),
    File(&'static str),
    PythonModule(&'static str),
}

/// What lets libvirtd run machines.
const QEMU_DRIVER: &str = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so";

/// Made for the machine's own Python, which need not be the first on `PATH`.
const LIBVIRT_MODULE: &str = "/usr/lib/python3/dist-packages/libvirt.py";

const PACKAGES: &[Package] = &[
    Package { name: "qemu-utils", proof: Proof::Program("qemu-img"), backport: true },
    Package { name: "qemu-system-x86", proof: Proof::Program("qemu-system-x86_64"), backport: true },
    Package { name: "libvirt-daemon-system", proof: Proof::Program("libvirtd"), backport: true },
    Package { name: "libvirt-daemon-driver-qemu", proof: Proof::File(QEMU_DRIVER), backport: true },
    Package { name: "libvirt-clients", proof: Proof::Program("virsh"), backport: true },
    Package { name: "virtinst", proof: Proof::Program("virt-install"), backport: false },
    Package { name: "ovmf", proof: Proof::File("/usr/share/OVMF/OVMF_CODE_4M.fd"), backport: false },
    Package { name: "mmdebstrap", proof: Proof::Program("mmdebstrap"), backport: false },
    Package { name: "e2fsprogs", proof: Proof::Program("debugfs"), backport: false },
    Package { name: "fdisk", proof: Proof::Program("sfdisk"), backport: false },
    Package { name: "mtools", proof: Proof::Program("mcopy"), backport: false },
    Package { name: "syslinux", proof: Proof::Program("syslinux"), backport: false },
    Package { name: "syslinux-common", proof: Proof::File(crate::guest::BOOT_RECORD), backport: false },
    Package { name: "syslinux-efi", proof: Proof::File(crate::guest::UEFI_LOADER), backport: false },
    Package { name: "iproute2", proof: Proof::Program("ip"), backport: false },
    Package { name: "openssl", proof: Proof::Program("openssl"), backport: false },
    Package { name: "strace", proof: Proof::Program("strace"), backport: false },
    Package { name: "systemd", proof: Proof::Program("systemd-analyze"), backport: false },
    Package { name: "curl", proof: Proof::Program("curl"), backport: false },
    Package { name: "chromium", proof: Proof::Program("chromium"), backport: false },
    Package { name: "prometheus", proof: Proof::Program("promtool"), backport: false },
    Package { name: "python3", proof: Proof::Program("python3"), backport: false },
    Package { name: "python3-venv", proof: Proof::PythonModule("ensurepip"), backport: false },
    Package { name: "python3-libvirt", proof: Proof::File(LIBVIRT_MODULE), backport: false },
];

/// What only a whole OpenStack needs. Where systemd runs, the last one starts a service of its own.
const OF_NOVA: &[Package] = &[
    // Nova makes configuration drives and ephemeral disks with them.
    Package { name: "dosfstools", proof: Proof::Program("mkfs.vfat"), backport: false },
    Package { name: "genisoimage", proof: Proof::Program("genisoimage"), backport: false },
    Package { name: "mariadb-server-core", proof: Proof::Program("mariadbd"), backport: false },
    Package { name: "mariadb-client-core", proof: Proof::Program("mariadb"), backport: false },
    // Nova copies disks between hosts with it.
    Package { name: "rsync", proof: Proof::Program("rsync"), backport: false },
    Package { name: "rabbitmq-server", proof: Proof::File(crate::openstack::RABBITMQ), backport: false },
];

/// Installs the packages that are missing, from the machine's own archive. Does nothing when none is.
///
/// Needs root; for anyone else the error is the one line that root would run.
pub fn install_missing() -> Result<()> {
    install(PACKAGES)
}

/// The same for what only a whole OpenStack needs.
pub(crate) fn install_missing_of_nova() -> Result<()> {
    install(OF_NOVA)
}

fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|package| !package.is_installed()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let archive = Archive::of_this_machine()?;
    let backports =
        Some(format!("{}-backports", archive.codename)).filter(|_| archive.codename == "bookworm");
    let mut steps = Vec::new();
    if let Some(suite) = backports.as_ref().filter(|suite| !archive.suites.contains(suite)) {
        steps.push(format!("echo '{}' > /etc/apt/sources.list.d/{suite}.list", archive.source_line(suite)));
    }
    steps.push("apt-get -q update".to_owned());
    let install = "apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=600";
    for backport in [true, false] {
        let of_this_kind = missing.iter().filter(|package| package.backport == backport);
        let names: Vec<_> = of_this_kind.map(|package| package.name).collect();
        let target =
            backports.as_ref().filter(|_| backport).map(|suite| format!(" -t {suite}")).unwrap_or_default();
        if !names.is_empty() {
            steps.push(format!("{install}{target} {}", names.join(" ")));
        }
    }
    let script = steps.join(" && ");
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(format!("the tests need packages; as root, run:\n{script}")));
    }
    run_command(Command::new("sh").args(["-c", &script]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    match missing.iter().find(|package| !package.is_installed()) {
        None => Ok(()),
        Some(package) => {
            Err(Error::new(format!("{} is installed, yet {:?} is not there", package.name, package.proof)))
        }
    }
}

/// Names of the packages that [`install_missing`] would install now.
#[must_use]
pub fn missing() -> Vec<&'static str> {
    PACKAGES.iter().filter(|package| !package.is_installed()).map(|package| package.name).collect()
}

impl Package {
    fn is_installed(&self) -> bool {
        match self.proof {
            Proof::Program(program) => find_program(program).is_some(),
            Proof::File(file) => fs::exists(Path::new(file)).unwrap_or(false),
            Proof::PythonModule(module) => {
                run_command(Command::new("python3").args(["-c", &format!("import {module}")])).is_ok()
            }
        }
    }
}
