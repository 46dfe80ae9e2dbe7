use std::fs::{self, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::commands::{find_program, output, qemu_value, run, spawn, terminate, wait_until};
use crate::debian::Archive;
use crate::{Error, Result, cache};

/// What the guest prints on its serial console, followed by the content of `/etc/underlay-marker`.
pub const MARKER_PREFIX: &str = "UNDERLAY-MARKER: ";
/// The marker of the guest as built.
pub const DEFAULT_MARKER: &str = "golden";

/// The boot record that starts the partition flagged bootable.
pub(crate) const BOOT_RECORD: &str = "/usr/lib/syslinux/mbr/mbr.bin";
/// The boot loader that UEFI firmware starts, and what it needs beside it.
pub(crate) const UEFI_LOADER: &str = "/usr/lib/SYSLINUX.EFI/efi64/syslinux.efi";
pub(crate) const UEFI_LOADER_CORE: &str = "/usr/lib/syslinux/modules/efi64/ldlinux.e64";

const MEBIBYTE: u64 = 1 << 20;
const DISK_BYTES: u64 = 1024 * MEBIBYTE;
/// Partition 1, FAT: the boot loader, the kernel and its initial file system.
const BOOT_OFFSET: u64 = MEBIBYTE;
const BOOT_BYTES: u64 = 64 * MEBIBYTE;
/// Partition 2, ext4: everything else, to the end of the disk.
const ROOT_OFFSET: u64 = BOOT_OFFSET + BOOT_BYTES;

const PACKAGES: &str = "linux-image-cloud-amd64,qemu-guest-agent,busybox-static,systemd-sysv,udev";
/// A small initial file system: unpacking a full one takes most of the boot without hardware virtualisation.
const SMALL_INITRD: &str = "mkdir -p \"$1/etc/initramfs-tools/conf.d\" && \
    echo MODULES=list > \"$1/etc/initramfs-tools/conf.d/underlay\" && \
    printf 'virtio_pci\\nvirtio_blk\\next4\\n' > \"$1/etc/initramfs-tools/modules\"";
const BOOT_MENU: &str = "DEFAULT debian\nLABEL debian\nKERNEL vmlinuz\nINITRD initrd.img\n\
    APPEND root=/dev/vda2 rw console=ttyS0 quiet mitigations=off\n";
const MARKER_SCRIPT: &str = "#!/bin/sh\n\
    echo \"UNDERLAY-MARKER: $(cat /etc/underlay-marker)\" > /dev/ttyS0\n\
    if [ -e /etc/underlay-poweroff ]; then systemctl --no-block poweroff; fi\n";
const MARKER_UNIT: &str = "[Unit]\nDescription=Print the marker on the serial console\n\
    DefaultDependencies=no\nAfter=local-fs.target\n\
    [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/local/sbin/underlay-marker\n\
    [Install]\nWantedBy=sysinit.target\n";

/// Runs what lies in `/etc/qemu/fsfreeze-hook.d` around a freeze: the script is Debian's own, calling it is left to the
/// administrator.
const AGENT_HOOKS: &str = "[Service]\nExecStart=\nExecStart=-/usr/sbin/qemu-ga -F/etc/qemu/fsfreeze-hook\n";
/// Drivers and units that no test needs. Without them the guest boots faster.
const NO_MODULES: [&str; 12] = [
    "kvm_amd",
    "kvm_intel",
    "aesni_intel",
    "ghash_clmulni_intel",
    "sha512_ssse3",
    "sha256_ssse3",
    "sha1_ssse3",
    "crct10dif_pclmul",
    "crc32_pclmul",
    "serio_raw",
    "evdev",
    "button",
];
const NO_UNITS: [&str; 12] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "getty@tty1.service",
    "modprobe@.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
];

/// A bootable Debian guest: qcow2, read-only, shared by every test. Built on first use, which takes about a minute
/// and needs root; the packages come from this machine's own archive.
///
/// It boots from BIOS and from UEFI firmware, logs root in without a password on its serial console, and runs the QEMU
/// guest agent with nothing forbidden. The agent runs every program in the guest's `/etc/qemu/fsfreeze-hook.d`
/// with the argument `freeze` before file systems are frozen and `thaw` after; as built there is none.
pub fn image() -> Result<PathBuf> {
    let archive = Archive::of_this_machine()?;
    let recipe = [
        "3", // Raised when code in this file changes what it builds.
        &archive.codename,
        PACKAGES,
        SMALL_INITRD,
        BOOT_MENU,
        MARKER_SCRIPT,
        MARKER_UNIT,
        DEFAULT_MARKER,
        AGENT_HOOKS,
        &NO_MODULES.join(" "),
        &NO_UNITS.join(" "),
    ];
    let folder = cache::build_once("guest", &recipe.join("\0"), |folder| build(&archive, folder))?;
    Ok(folder.join("guest.qcow2"))
}

/// Makes `overlay`, an empty qcow2 image backed by `base`, which is qcow2 too.
pub fn overlay(base: &Path, overlay: &Path) -> Result<()> {
    let arguments = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"].map(Path::new);
    run("qemu-img", arguments.into_iter().chain([base, overlay])).map(drop)
}

/// Changes the marker that a guest prints, in its file system, without booting it.
pub fn set_marker(disk: &Path, text: &str) -> Result<()> {
    write_file(disk, "/etc/underlay-marker", text.as_bytes())
}

/// Makes a guest switch itself off once it has printed its marker.
pub fn set_power_off(disk: &Path) -> Result<()> {
    write_file(disk, "/etc/underlay-poweroff", b"yes\n")
}

/// Writes one file into a guest's root file system, in place of any file of that name, without booting the guest.
///
/// `disk` is a qcow2 image that nobody else has open: [`image`]'s layout, in an overlay of any depth. A journal that
/// a killed guest left behind is replayed first.
pub fn write_file(disk: &Path, guest_path: &str, content: &[u8]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (source, script) = (folder.path().join("content"), folder.path().join("script"));
    fs::write(&source, content)?;
    fs::write(&script, format!("rm {guest_path}\nwrite {} {guest_path}\n", source.display()))?;

    let exported = Exported::new(disk, true)?;
    let root = exported.root_partition();
    let repaired = output(Command::new(system_program("e2fsck")).args(["-p", &root]))?;
    if repaired.status.code().is_none_or(|code| code > 1) {
        let report = String::from_utf8_lossy(&repaired.stdout).into_owned();
        return Err(Error::new(report).context(format!("{}: its root file system", disk.display())));
    }
    let script = script.display().to_string();
    run(&system_program("debugfs"), ["-w", "-f", &script, &root])?;
    drop(exported);

    // debugfs exits 0 whatever happens: what the disk now says is the proof.
    if read_file(disk, guest_path)? == content {
        Ok(())
    } else {
        Err(Error::new(format!("{}: writing {guest_path} had no effect", disk.display())))
    }
}

/// Reads one file from the root file system of a qcow2 guest disk that is not running.
pub fn read_file(disk: &Path, guest_path: &str) -> Result<Vec<u8>> {
    let exported = Exported::new(disk, false)?;
    let request = format!("cat {guest_path}");
    let shown =
        output(Command::new(system_program("debugfs")).args(["-R", &request, &exported.root_partition()]))?;
    let complaint = String::from_utf8_lossy(&shown.stderr);
    // The first line of stderr is a greeting.
    match complaint.lines().nth(1) {
        None => Ok(shown.stdout),
        Some(line) => Err(Error::new(format!("{}: {line}", disk.display()))),
    }
}

/// A disk's content as one flat file, through FUSE, for as long as this lives.
#[derive(Debug)]
struct Exported {
    daemon: Child,
    folder: tempfile::TempDir,
}

impl Exported {
    fn new(disk: &Path, writable: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let flat = folder.path().join("flat");
        fs::write(&flat, b"")?;
        let on = if writable { "on" } else { "off" };
        let read_only = if writable { "off" } else { "on" };
        let file = format!("driver=file,node-name=file,read-only={read_only},filename={}", qemu_value(disk));
        let layer = format!("driver=qcow2,node-name=disk,read-only={read_only},file=file");
        let export = format!(
            "fuse,id=flat,node-name=disk,mountpoint={},writable={on},allow-other=off",
            qemu_value(&flat)
        );
        let errors = folder.path().join("errors");
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &file, "--blockdev", &layer, "--export", &export]);
        command.stdout(Stdio::null()).stderr(fs::File::create(&errors)?);
        let mut exported = Self { daemon: spawn(&mut command)?, folder };
        wait_until("the flat view of a disk", Duration::from_secs(20), || {
            if exported.daemon.try_wait()?.is_some() {
                return Err(Error::new(format!("{}: {}", disk.display(), fs::read_to_string(&errors)?)));
            }
            Ok(fs::metadata(&flat)?.len() > 0)
        })?;
        Ok(exported)
    }

    /// The root partition, in the notation of e2fsprogs.
    fn root_partition(&self) -> String {
        format!("{}?offset={ROOT_OFFSET}", self.folder.path().join("flat").display())
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        terminate(&mut self.daemon);
    }
}

/// Fills `folder` with `guest.qcow2`. Uses no loop device and no mount: nothing is left behind when it is killed.
fn build(archive: &Archive, folder: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new("a guest's files belong to root: build it as root, with `cargo xtask test`"));
    }
    let (root, raw) = (folder.join("root"), folder.join("guest.raw"));
    let sources = folder.join("sources.list");
    fs::write(&sources, archive.source_line(&archive.codename) + "\n")?;
    let include = format!("--include={PACKAGES}");
    let hook = format!("--essential-hook={SMALL_INITRD}");
    let (root_text, sources_text) = (root.display().to_string(), sources.display().to_string());
    run(
        "mmdebstrap",
        ["--quiet", "--variant=minbase", &hook, &include, &archive.codename, &root_text, &sources_text],
    )?;
    customise(&root)?;
    write_disk(&root, &raw, folder)?;
    let image = folder.join("guest.qcow2");
    run(
        "qemu-img",
        ["convert", "-f", "raw", "-O", "qcow2"].map(Path::new).into_iter().chain([&*raw, &*image]),
    )?;
    fs::set_permissions(&image, Permissions::from_mode(0o444))?;
    fs::remove_dir_all(&root)?;
    for left_over in [raw, sources, folder.join("boot.fat"), folder.join("boot.cfg")] {
        fs::remove_file(left_over)?;
    }
    Ok(())
}

/// Makes the unpacked system a guest that tests can tell apart and log in to.
fn customise(root: &Path) -> Result<()> {
    let write = |path: &str, content: &str| fs::write(root.join(path), content);
    write("etc/hostname", "underlay-guest\n")?;
    write("etc/fstab", "/dev/vda2 / ext4 rw 0 1\n")?;
    write("etc/underlay-marker", DEFAULT_MARKER)?;
    write("usr/local/sbin/underlay-marker", MARKER_SCRIPT)?;
    fs::set_permissions(root.join("usr/local/sbin/underlay-marker"), Permissions::from_mode(0o755))?;
    write("etc/systemd/system/underlay-marker.service", MARKER_UNIT)?;
    let wants = root.join("etc/systemd/system/sysinit.target.wants");
    fs::create_dir_all(&wants)?;
    symlink("../underlay-marker.service", wants.join("underlay-marker.service"))?;
    let accounts = fs::read_to_string(root.join("etc/shadow"))?;
    write("etc/shadow", &accounts.replacen("root:*:", "root::", 1))?;
    fs::create_dir_all(root.join("etc/systemd/system/qemu-guest-agent.service.d"))?;
    write("etc/systemd/system/qemu-guest-agent.service.d/hooks.conf", AGENT_HOOKS)?;
    let blacklist: String = NO_MODULES.iter().map(|module| format!("blacklist {module}\n")).collect();
    write("etc/modprobe.d/underlay.conf", &blacklist)?;
    for unit in NO_UNITS {
        symlink("/dev/null", root.join("etc/systemd/system").join(unit))?;
    }
    Ok(())
}

/// Writes partition table, boot partition and root partition into the file `raw`.
fn write_disk(root: &Path, raw: &Path, folder: &Path) -> Result<()> {
    let sector = |bytes: u64| bytes / 512;
    let table = format!(
        "label: dos\nstart={},size={},type=c,bootable\nstart={},type=83\n",
        sector(BOOT_OFFSET),
        sector(BOOT_BYTES),
        sector(ROOT_OFFSET)
    );
    let disk = fs::File::create(raw)?;
    disk.set_len(DISK_BYTES)?;
    let mut sfdisk = Command::new(system_program("sfdisk"))
        .args(["--quiet".as_ref(), raw.as_os_str()])
        .stdin(Stdio::piped())
        .spawn()?;
    sfdisk.stdin.take().ok_or_else(|| Error::new("sfdisk has no stdin"))?.write_all(table.as_bytes())?;
    if !sfdisk.wait()?.success() {
        return Err(Error::new("sfdisk refused the partition table"));
    }
    let boot = write_boot_partition(root, folder)?;
    place(&disk, 0, &fs::read(BOOT_RECORD)?)?;
    place(&disk, BOOT_OFFSET, &fs::read(boot)?)?;

    let (root, raw) = (root.display().to_string(), raw.display().to_string());
    let placed = format!("offset={ROOT_OFFSET}");
    let size = format!("{}k", (DISK_BYTES - ROOT_OFFSET) / 1024);
    // BIOS boot loaders and old rescue disks cannot read the 64bit feature.
    let features = ["-q", "-F", "-t", "ext4", "-O", "^64bit", "-L", "root"];
    run(&system_program("mke2fs"), features.into_iter().chain(["-d", &root, "-E", &placed, &raw, &size]))?;
    Ok(())
}

fn write_boot_partition(root: &Path, folder: &Path) -> Result<PathBuf> {
    let (boot, menu) = (folder.join("boot.fat"), folder.join("boot.cfg"));
    fs::File::create(&boot)?.set_len(BOOT_BYTES)?;
    fs::write(&menu, BOOT_MENU)?;
    let image = boot.display().to_string();
    run("mformat", ["-i", &image, "-F", "::"])?;
    run("mmd", ["-i", &image, "::EFI", "::EFI/BOOT"])?;
    let files = [
        (root.join("vmlinuz"), "::vmlinuz"),
        (root.join("initrd.img"), "::initrd.img"),
        (menu, "::syslinux.cfg"),
        (UEFI_LOADER.into(), "::EFI/BOOT/BOOTX64.EFI"),
        (UEFI_LOADER_CORE.into(), "::EFI/BOOT/ldlinux.e64"),
    ];
    for (source, target) in files {
        // The first two are links that point into /boot, relative to the root they lie in.
        let source = source.canonicalize()?.display().to_string();
        run("mcopy", ["-i", &image, &source, target])?;
    }
    run("syslinux", ["--install", &image])?;
    Ok(boot)
}

/// Writes `content` at `offset`, leaving holes where it is zero.
fn place(mut disk: &fs::File, offset: u64, content: &[u8]) -> Result<()> {
    let step = 64 * 1024;
    for (offset, piece) in (offset..).step_by(step).zip(content.chunks(step)) {
        if piece.iter().any(|&byte| byte != 0) {
            disk.seek(SeekFrom::Start(offset))?;
            disk.write_all(piece)?;
        }
    }
    Ok(())
}

/// The path of a program that an ordinary user's `PATH` may lack.
fn system_program(name: &str) -> String {
    find_program(name).map_or_else(|| name.to_owned(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn placed_content_reads_back() {
        let mut file = tempfile::tempfile().unwrap();
        let mut content = vec![0; 200_000];
        content[150_000] = 7;
        place(&file, 512, &content).unwrap();
        let mut back = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut back).unwrap();
        back.resize(512 + content.len(), 0);
        assert_eq!(back[512..], content);
    }
}
