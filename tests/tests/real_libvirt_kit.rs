//! Proof that the kit's libvirtd is real and alone: guests boot under it and can be told to do things, it finds them
//! again after a crash, and nothing of it outlives the test.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use underlay_tests::commands::wait_until;
use underlay_tests::guest;
use underlay_tests::libvirt::{Definition, DiskSpec, DomainSpec, Libvirtd};
use underlay_tests::qemu::Format;

/// Set in the process that is killed.
const HOLD: &str = "UNDERLAY_TESTS_HOLD_A_MACHINE";

#[test]
fn guest_obeys_and_outlives_libvirtd() {
    let disks = tempfile::tempdir().unwrap();
    let disk = |name: &str| disks.path().join(name);
    guest::overlay(&guest::image().unwrap(), &disk("web & more.qcow2")).unwrap();
    let mut libvirtd = Libvirtd::start().unwrap();
    let spec = DomainSpec::new("web").disk("vda", &disk("web & more.qcow2"), Format::Qcow2);
    let web = libvirtd.define(&spec).unwrap();
    assert!(!web.is_running().unwrap());
    web.start().unwrap();
    web.wait_for_agent().unwrap();
    assert!(web.console().contains("UNDERLAY-MARKER: golden"), "{}", web.console());

    assert_eq!(web.exec("echo it is $((40 + 2))").unwrap(), "it is 42\n");
    let failed = web.exec("echo before; echo after >&2; exit 3").unwrap_err().to_string();
    assert!(failed.contains("ended with 3\nbefore\nafter"), "{failed}");
    let content: Vec<_> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    web.write_file("/root/it's a file", &content).unwrap();
    assert_eq!(web.read_file("/root/it's a file").unwrap(), content);
    assert_eq!(web.sha256("/dev/null").unwrap()[..8], *"e3b0c442");

    // A snapshot that freezes: the guest's hooks run before and after.
    web.exec("printf '#!/bin/sh\\necho $1 >> /run/frozen\\n' > /etc/qemu/fsfreeze-hook.d/note").unwrap();
    web.exec("chmod +x /etc/qemu/fsfreeze-hook.d/note").unwrap();
    let below = web.chain("vda").unwrap();
    assert_eq!(below, [disk("web & more.qcow2"), guest::image().unwrap()]);
    let diskspec = format!("vda,snapshot=external,file={}", disk("next.qcow2").display());
    let snapshot = ["snapshot-create-as", "web", "next", "--disk-only", "--atomic", "--quiesce"];
    libvirtd.virsh(snapshot.into_iter().chain(["--no-metadata", "--diskspec", &diskspec])).unwrap();
    assert_eq!(web.chain("vda").unwrap(), [vec![disk("next.qcow2")], below].concat());
    assert!(web.dump_xml(Definition::Inactive).unwrap().contains("next.qcow2"));
    assert_eq!(web.exec("cat /run/frozen").unwrap(), "freeze\nthaw\n");

    let (qemu, uptime) = (web.qemu_pid().unwrap(), web.uptime().unwrap());
    libvirtd.kill().unwrap();
    libvirtd.virsh(["list"]).unwrap_err();
    assert!(alive(qemu));
    libvirtd.start_again().unwrap();
    assert!(web.is_running().unwrap());
    web.wait_for_agent().unwrap();
    assert_eq!(web.qemu_pid().unwrap(), qemu);
    assert!(web.uptime().unwrap() > uptime);
    libvirtd.restart().unwrap();
    assert!(web.is_running().unwrap());

    web.shut_down().unwrap();
    web.start().unwrap();
    let (folder, qemu) = (libvirtd.folder().to_owned(), web.qemu_pid().unwrap());
    drop(libvirtd);
    assert_nothing_is_left(&folder, qemu);
}

#[test]
fn guest_boots_from_uefi_with_all_kinds_of_devices() {
    let libvirtd = Libvirtd::start().unwrap();
    let file = |name: &str| libvirtd.folder().join(name);
    guest::overlay(&guest::image().unwrap(), &file("top.qcow2")).unwrap();
    std::fs::File::create(file("data.raw")).unwrap().set_len(8 << 20).unwrap();
    let data = |target: &str, name: &str, discard| DiskSpec {
        target: target.into(),
        path: file(name),
        format: Format::Raw,
        discard,
    };
    std::fs::copy(file("data.raw"), file("more.raw")).unwrap();
    let owner = "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'/>";
    let spec = DomainSpec::new("mail")
        .disk("vda", &file("top.qcow2"), Format::Qcow2)
        .disk_spec(data("vdd", "data.raw", true))
        .disk_spec(data("sda", "more.raw", false))
        .network("52:54:00:12:34:56")
        .uefi(&file("variables.fd"))
        .metadata(owner)
        .device("<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>");
    let mail = libvirtd.create(&spec).unwrap();
    mail.wait_for_agent().unwrap();
    let devices = mail.exec("udevadm settle; test -d /sys/firmware/efi && ls /sys/block").unwrap();
    assert_eq!(devices.split_whitespace().collect::<Vec<_>>(), ["sda", "vda", "vdb"]);
    assert_eq!(mail.exec("cat /sys/class/net/e*/address").unwrap(), "52:54:00:12:34:56\n");
    assert!(std::fs::metadata(file("variables.fd")).unwrap().len() > 0);
    assert!(mail.dump_xml(Definition::Live).unwrap().contains("<nova:instance"));
    assert_eq!(mail.chain("vdd").unwrap(), [file("data.raw")]);
    mail.chain("vdb").unwrap_err();
    mail.destroy().unwrap();
    mail.wait_until_off().unwrap();
}

#[test]
fn two_libvirtds_do_not_see_each_other() {
    let (one, two) = (Libvirtd::start().unwrap(), Libvirtd::start().unwrap());
    let spec = DomainSpec::new("same");
    let (first, second) = (one.define(&spec).unwrap(), two.define(&spec).unwrap());
    assert_ne!(first.uuid(), second.uuid());
    first.start().unwrap();
    assert!(first.is_running().unwrap() && !second.is_running().unwrap());
    second.start().unwrap();
    let (kept, folder, qemu) =
        (second.qemu_pid().unwrap(), one.folder().to_owned(), first.qemu_pid().unwrap());
    assert_ne!(qemu, kept);

    // A test that panics drops what it holds.
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = one;
        std::panic::resume_unwind(Box::new(()));
    }));
    panicked.unwrap_err();
    assert_nothing_is_left(&folder, qemu);
    assert!(alive(kept) && second.is_running().unwrap());
}

/// The test starts itself once more, as a process that holds a machine until it is killed.
#[test]
fn nothing_outlives_a_killed_test() {
    if std::env::var_os(HOLD).is_some() {
        return hold_a_machine();
    }
    let mut holder = Command::new(std::env::current_exe().unwrap());
    holder.args(["--exact", "nothing_outlives_a_killed_test", "--nocapture"]).env(HOLD, "1");
    let mut holder = holder.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines().map(Result::unwrap);
    let held = lines.find_map(|line| Some(line.split_once("holds ")?.1.to_owned())).unwrap();
    let (qemu, folder) = held.split_once(' ').unwrap();
    let (qemu, folder) = (qemu.parse().unwrap(), PathBuf::from(folder));
    assert!(alive(qemu));
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_until("the end of what a killed test held", Duration::from_secs(10), || {
        Ok(!alive(qemu) && processes_of(&folder).is_empty())
    })
    .unwrap();
    // Only the folder is left: nobody was there to remove it.
    std::fs::remove_dir_all(&folder).unwrap();
}

#[expect(clippy::print_stdout, reason = "the killer reads it")]
fn hold_a_machine() {
    let libvirtd = Libvirtd::start().unwrap();
    let machine = libvirtd.define(&DomainSpec::new("held")).unwrap();
    machine.start().unwrap();
    println!("holds {} {}", machine.qemu_pid().unwrap(), libvirtd.folder().display());
    std::thread::sleep(Duration::from_secs(60));
}

fn assert_nothing_is_left(folder: &Path, qemu: u32) {
    assert!(!alive(qemu), "QEMU is left");
    assert!(!folder.exists(), "{} is left", folder.display());
    assert_eq!(processes_of(folder), Vec::<PathBuf>::new());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()), "{mounts}");
}

fn alive(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// Processes that have a file below `folder` mounted: those of its libvirtd's namespace.
fn processes_of(folder: &Path) -> Vec<PathBuf> {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let mounted = |process: &PathBuf| std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    processes.filter(|process| mounted(process).contains(&format!("/{name}/"))).collect()
}
