//! Domains that look as Nova's do, without Nova: what is given back to them, and what boots of them anywhere else.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use underlay_tests::commands::{output, run, run_command, spawn, wait_until};
use underlay_tests::guest;
use underlay_tests::libvirt::{Definition, DomainSpec, Libvirtd};
use underlay_tests::program::Underlay;
use underlay_tests::qemu::Format;

const UUID: &str = "6f0a7c1e-5a0b-4c8e-9a55-0d9b3f6f3b6e";
const NOVA: &str = "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:name>web</nova:name>\
    <nova:flavor name='m1'><nova:memory>512</nova:memory><nova:vcpus>1</nova:vcpus></nova:flavor></nova:instance>";

/// A libvirtd, a repository, and the folder of one instance.
struct Site {
    underlay: Underlay,
    instance: PathBuf,
    libvirtd: Libvirtd,
}

impl Site {
    /// With a stopped instance whose disk is made by `make`, and a snapshot of it.
    fn new(make: impl FnOnce(&Path)) -> Self {
        let libvirtd = Libvirtd::start().unwrap();
        let repository = libvirtd.folder().join("repo");
        let underlay = Underlay::init(repository.to_str().unwrap(), libvirtd.folder()).unwrap();
        let underlay = underlay.with_variable("UNDERLAY_CONNECT", libvirtd.uri());
        let instance = libvirtd.folder().join("instances").join(UUID);
        fs::create_dir_all(&instance).unwrap();
        let disk = instance.join("disk");
        make(&disk);
        let spec = DomainSpec::new("instance-00000001").uuid(UUID).metadata(NOVA);
        libvirtd.define(&spec.disk("vda", &disk, Format::Qcow2)).unwrap();
        underlay.run(&["backup", "--instance", UUID, "--vm", "web", "--no-api"]).unwrap();
        Self { underlay, instance, libvirtd }
    }

    fn restore_to_instance(&self) -> Command {
        self.underlay.command(["restore", "web@latest", "--to-instance", UUID])
    }

    /// Names of the files of the instance.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.instance).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn qemu_img(arguments: &[&str]) {
    run("qemu-img", arguments).unwrap();
}

#[test]
fn what_a_killed_restore_left_in_an_instance_is_removed_by_the_next() {
    let site = Site::new(|disk| {
        // Nothing of it compresses: giving it back takes a while.
        let raw = disk.with_file_name("raw");
        run("dd", ["if=/dev/urandom", &format!("of={}", raw.display()), "bs=1M", "count=192", "status=none"])
            .unwrap();
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), disk.to_str().unwrap()]);
        fs::remove_file(raw).unwrap();
    });
    let mut killed = spawn(&mut site.restore_to_instance()).unwrap();
    let start = Instant::now();
    let begun = |name: &String| name.starts_with(".disk.restored-") && name.contains(".underlay-partial-");
    while !site.files().iter().any(begun) {
        assert!(start.elapsed() < Duration::from_secs(60) && killed.try_wait().unwrap().is_none());
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(site.files().iter().filter(|name| begun(name)).count(), 1, "{:?}", site.files());
    // Others were killed a little later: before the new disk took its name, and when the old one had both.
    let place = |name: &str| site.instance.join(name);
    fs::write(place("disk.restored-1764000000000"), "a whole disk").unwrap();
    fs::hard_link(place("disk"), place("disk.before-1764000000001")).unwrap();
    // These are not ours, or hold something.
    let others = ["disk.before-1764000000002", "disk.before-mine", "disk.restored-1.qcow2"];
    others.iter().for_each(|name| fs::write(place(name), "x").unwrap());
    fs::hard_link(place("disk"), site.libvirtd.folder().join("as it was")).unwrap();

    let done = output(&mut site.restore_to_instance()).unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", told(&done));
    let removed: Vec<_> =
        told(&done).lines().filter(|line| line.starts_with("note: removed ")).map(str::to_owned).collect();
    assert_eq!(removed.len(), 3, "{}", told(&done));
    let files = site.files();
    assert!(others.iter().all(|other| files.iter().any(|name| name == other)), "{files:?}");
    // Besides them, the disk and what it had.
    assert_eq!(files.len(), others.len() + 2, "{files:?}");
    let (disk, before) = (place("disk"), site.libvirtd.folder().join("as it was"));
    qemu_img(&[
        "compare",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        disk.to_str().unwrap(),
        before.to_str().unwrap(),
    ]);
    let kept = files
        .iter()
        .find(|name| name.starts_with("disk.before-") && !others.contains(&name.as_str()))
        .unwrap();
    assert!(fs::read(place(kept)).unwrap() == fs::read(before).unwrap());
}

#[test]
fn guest_boots_by_the_command_that_a_restore_prints() {
    let site = Site::new(|disk| assert!(fs::copy(guest::image().unwrap(), disk).unwrap() > 0));
    // Quotes, too, reach virt-install as they are; it then writes them to its XML in a way that libvirt does not read back.
    let file = site.libvirtd.folder().join("any, where.qcow2");
    let restored = site
        .underlay
        .json(["restore", "web@latest", "--disk", "vda", "--to", file.to_str().unwrap()])
        .unwrap();
    let printed = restored["virt_install"].as_str().unwrap();
    let network = "--network network=default,model=virtio";
    assert!(printed.contains(network), "{printed}");
    let command = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", line]).env("LIBVIRT_DEFAULT_URI", site.libvirtd.uri());
        command.env("HOME", site.libvirtd.folder());
        run_command(&mut command).unwrap()
    };
    // As it stands it makes a definition of which libvirt takes every word.
    let network_xml = site.libvirtd.folder().join("default.xml");
    fs::write(&network_xml, "<network><name>default</name><bridge name='virbr0'/></network>").unwrap();
    site.libvirtd.virsh(["net-define", network_xml.to_str().unwrap()]).unwrap();
    let xml = command(&format!("{printed} --print-xml"));
    for expected in
        ["<driver name=\"qemu\" type=\"qcow2\"", "bus=\"virtio\"", "<source network=\"default\"/>"]
    {
        assert!(xml.contains(expected), "{expected}: {xml}");
    }
    // To start that network would change the machine's own: here it runs without. Nor is there hardware to run it fast, and its console
    // is to be read.
    let console = site.libvirtd.folder().join("web.console");
    let here = format!("--network none --virt-type qemu --serial file,path={}", console.display());
    command(&printed.replace(network, &here));
    let machine = site.libvirtd.machine("web").unwrap();
    assert_eq!(machine.chain("vda").unwrap(), [file]);
    let booted = || Ok(machine.console().contains(guest::DEFAULT_MARKER));
    wait_until("the guest's marker on its console", Duration::from_secs(240), booted).unwrap_or_else(
        |error| panic!("{error}: {} {}", machine.console(), machine.dump_xml(Definition::Live).unwrap()),
    );
    machine.destroy().unwrap();
}
