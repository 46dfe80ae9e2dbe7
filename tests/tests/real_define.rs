//! Domains brought back into a real libvirtd: under their own name and as other machines, beside the old ones or after
//! them, and not at all where something is in the way.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use underlay_client::hypervisor;
use underlay_tests::commands::run;
use underlay_tests::guest;
use underlay_tests::kept;
use underlay_tests::libvirt::{Definition, DomainSpec, Libvirtd, Machine};
use underlay_tests::program::Underlay;
use underlay_tests::qemu::Format;

const MAC: &str = "52:54:00:12:34:56";

/// A libvirtd and a repository.
struct Place {
    libvirtd: Libvirtd,
    underlay: Underlay,
}

impl Place {
    fn new() -> Self {
        let libvirtd = Libvirtd::start().unwrap();
        let repository = libvirtd.folder().join("repo");
        let underlay = Underlay::init(repository.to_str().unwrap(), libvirtd.folder()).unwrap();
        Self { libvirtd, underlay }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.libvirtd.folder().join(name)
    }

    /// A qcow2 image with one sector that boots nothing.
    fn disk(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        run("qemu-img", ["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "8M"]).unwrap();
        run("qemu-io", ["-f", "qcow2", path.to_str().unwrap(), "-c", "write -q -P 7 1M 100k"]).unwrap();
        path
    }

    fn back_up(&self, domain: &str, options: &[&str]) {
        let mut command = self.underlay.command(["backup", "--domain", domain, "--connect"]);
        let output = command.arg(self.libvirtd.uri()).args(options).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn restore(&self, snapshot: &str, to: &Path, options: &[&str]) -> Output {
        let mut command = self.underlay.command(["restore", snapshot, "--define", "--json"]);
        command.env("UNDERLAY_CONNECT", self.libvirtd.uri()).arg("--to").arg(to).args(options);
        command.output().unwrap()
    }

    /// Restores and defines; what `--json` says of the domain, and the domain.
    #[track_caller]
    fn define(&self, snapshot: &str, to: &Path, options: &[&str]) -> (Value, Machine) {
        let output = self.restore(snapshot, to, options);
        assert!(output.status.success(), "{output:?}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let machine = self.libvirtd.machine(told["domain"]["name"].as_str().unwrap()).unwrap();
        assert_eq!(told["domain"]["uuid"], machine.uuid());
        let xml = PathBuf::from(told["domain"]["xml"].as_str().unwrap());
        assert_eq!(fs::metadata(&xml).unwrap().permissions().mode() & 0o777, 0o600);
        (told["domain"].clone(), machine)
    }

    #[track_caller]
    fn refused(&self, snapshot: &str, to: &Path, options: &[&str]) -> String {
        let before = self.libvirtd.virsh(["list", "--all", "--uuid"]).unwrap();
        let output = self.restore(snapshot, to, options);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(!to.exists(), "nothing is written");
        assert_eq!(self.libvirtd.virsh(["list", "--all", "--uuid"]).unwrap(), before);
        String::from_utf8(output.stderr).unwrap()
    }
}

/// What the inactive definition says at an XPath, such as `//genid/text()` or `//mac/@address`.
fn said(place: &Place, machine: &Machine, path: &str) -> String {
    let said = place.libvirtd.virsh(["dumpxml", "--inactive", machine.name(), "--xpath", path]).unwrap();
    let said = said.trim();
    said.split_once('"').map_or(said, |(_, value)| value.trim_end_matches('"')).to_owned()
}

fn definition(machine: &Machine) -> hypervisor::Definition {
    hypervisor::Definition::parse(machine.name(), &machine.dump_xml(Definition::Inactive).unwrap()).unwrap()
}

/// The definition's disks: target, file, format.
fn disks(machine: &Machine) -> Vec<(String, Option<PathBuf>, String)> {
    let disks = definition(machine).disks.into_iter();
    disks.map(|disk| (disk.target, disk.source.path().map(Path::to_owned), disk.format.unwrap())).collect()
}

fn disk_in(folder: &Path, target: &str, format: &str) -> (String, Option<PathBuf>, String) {
    (target.into(), Some(folder.join(format!("{target}.{format}"))), format.into())
}

fn same_disk(a: &Path, b: &Path) {
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    run("qemu-img", ["compare", "-q", "-f", "qcow2", "-F", "qcow2", a, b]).unwrap();
}

#[test]
fn a_domain_comes_back_as_itself_and_as_another() {
    let place = Place::new();
    let (root, data, scratch) =
        (place.disk("it's <a> \"root\".qcow2"), place.disk("data"), place.disk("scratch"));
    let spec = DomainSpec::new("web")
        .disk("vda", &root, Format::Qcow2)
        .disk("sdb", &data, Format::Qcow2)
        .disk("vdc", &scratch, Format::Qcow2)
        .device("<disk type='file' device='cdrom'><target dev='sdc' bus='scsi'/><readonly/></disk>")
        .network(MAC);
    let web = place.libvirtd.define(&spec).unwrap();
    place.back_up("web", &["--exclude-disk", "vdc"]);

    // The old one is there: only another one can be beside it.
    let told = place.refused("web@latest", &place.path("no"), &[]);
    assert!(told.contains("there is a domain \"web\" already") && told.contains("--name NEW"), "{told}");
    assert!(place.refused("web@latest", &place.path("no"), &["--new-identity"]).contains("--name NEW"));
    assert!(place.refused("web@latest", &place.path("no"), &["--name", "web"]).contains("--name NEW"));
    let folder = place.path("a folder & more's");
    let (_, copy) = place.define("web@latest", &folder, &["--name", "web <copy> 'ä'"]);
    assert_eq!(copy.name(), "web <copy> 'ä'");
    assert_ne!(copy.uuid(), web.uuid());
    let cdrom = ("sdc".to_owned(), None, "raw".to_owned());
    assert_eq!(
        disks(&copy),
        [disk_in(&folder, "vda", "qcow2"), disk_in(&folder, "sdb", "qcow2"), cdrom.clone()]
    );
    let mac = said(&place, &copy, "//mac/@address");
    assert!(mac != MAC && mac.starts_with("52:54:00:"), "{mac}");
    same_disk(&folder.join("vda.qcow2"), &root);
    same_disk(&folder.join("sdb.qcow2"), &data);
    web.start().unwrap();
    copy.start().unwrap();
    assert!(web.is_running().unwrap() && copy.is_running().unwrap());
    web.destroy().unwrap();

    // Another name has the UUID.
    place.libvirtd.virsh(["domrename", "web", "old"]).unwrap();
    let told = place.refused("web@latest", &place.path("no"), &[]);
    assert!(told.contains("is that of domain \"old\"") && told.contains("--new-identity"), "{told}");
    let (_, new) = place.define("web@latest", &place.path("new"), &["--new-identity", "--format", "raw"]);
    assert_eq!(new.name(), "web");
    assert!(new.uuid() != web.uuid() && new.uuid() != copy.uuid());
    assert_ne!(said(&place, &new, "//mac/@address"), MAC);
    let folder = place.path("new");
    assert_eq!(disks(&new), [disk_in(&folder, "vda", "raw"), disk_in(&folder, "sdb", "raw"), cdrom]);
    new.start().unwrap();
    new.destroy().unwrap();
    new.undefine().unwrap();

    // Nothing is left of it.
    place.libvirtd.virsh(["undefine", "old"]).unwrap();
    let (_, back) = place.define("web@latest", &place.path("back"), &[]);
    assert_eq!((back.name(), back.uuid()), ("web", web.uuid()));
    assert_eq!(said(&place, &back, "//mac/@address"), MAC);
    back.start().unwrap();
    assert!(back.is_running().unwrap());
}

#[test]
fn firmware_variables_come_back_and_start() {
    let place = Place::new();
    let nvram = place.path("web's vars.fd");
    let spec = DomainSpec::new("web").disk("vda", &place.disk("root"), Format::Qcow2).uefi(&nvram);
    let web = place.libvirtd.define(&spec).unwrap();
    // Now libvirt has made the file.
    web.start().unwrap();
    web.destroy().unwrap();
    let variables = fs::read(&nvram).unwrap();
    place.back_up("web", &[]);
    web.undefine().unwrap();
    fs::remove_file(&nvram).unwrap();
    for (folder, options) in
        [("a", &[][..]), ("b", &["--name", "copy"]), ("c", &["--name", "raw", "--format", "raw"])]
    {
        let folder = place.path(folder);
        let (_, machine) = place.define("web@latest", &folder, options);
        assert_eq!(definition(&machine).firmware.unwrap().nvram, Some(folder.join("nvram.fd")));
        assert!(fs::read(folder.join("nvram.fd")).unwrap() == variables);
        machine.start().unwrap();
        assert!(machine.is_running().unwrap());
    }
    assert!(!nvram.exists());
}

#[test]
fn everything_new_that_must_be_is_taken_by_libvirt() {
    let place = Place::new();
    let image = place.path("disk.raw");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let mut domain = kept::kept("web", &["vda"], "<smbios mode='sysinfo'/>", "");
    let smbios = format!(
        "<sysinfo type='smbios'><system><entry name='uuid'>{}</entry></system></sysinfo>",
        kept::UUID
    );
    let genid = "43dc0cf8-809b-4adb-9bea-a9abb5f3d90e";
    let cache = "<driver name='qemu' type='qcow2' discard_no_unref='on'><metadata_cache><max_size \
                 unit='bytes'>1048576</max_size></metadata_cache></driver>";
    let channel = format!("<source mode='bind' path='{}'/>", place.path("agent.sock").display());
    let channel = format!(
        "<channel type='unix'>{channel}<target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    );
    domain.xml = domain.xml.replace("  <memory", &format!("  <genid>{genid}</genid>{smbios}<memory"));
    domain.xml = domain.xml.replace("<driver name='qemu' type='qcow2'/>", cache);
    domain.xml = domain.xml.replace("</devices>", &format!("{channel}</devices>"));
    kept::back_up(&place.underlay, &domain, &[("vda", &image)]).unwrap();
    let (_, web) = place.define("web@latest", &place.path("web"), &[]);
    let new_genid = said(&place, &web, "//genid/text()");
    assert_eq!(said(&place, &web, "//entry/text()"), kept::UUID);
    assert_ne!(new_genid, genid, "the guest is to notice that it runs again from an earlier point");
    let (_, copy) = place.define("web@latest", &place.path("copy"), &["--name", "copy", "--format", "raw"]);
    assert_eq!(said(&place, &copy, "//entry/text()"), copy.uuid());
    assert!(![genid.to_owned(), new_genid].contains(&said(&place, &copy, "//genid/text()")));
    web.start().unwrap();
    copy.start().unwrap();
    assert!(web.is_running().unwrap() && copy.is_running().unwrap());
}

#[test]
fn what_libvirt_refuses_leaves_the_disks_and_says_what_to_type() {
    let place = Place::new();
    let image = place.path("disk.raw");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let mut domain = kept::kept("web", &["vda"], "", "");
    domain.xml = domain.xml.replace("x86_64'", "sparc'");
    kept::back_up(&place.underlay, &domain, &[("vda", &image)]).unwrap();
    let folder = place.path("it's web");
    let output = place.restore("web@latest", &folder, &["--format", "raw"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(told["domain"]["error"].as_str().unwrap().contains("virsh"), "{told}");
    assert!(told["disks"][0].get("error").is_none());
    let said = String::from_utf8(output.stderr).unwrap();
    let xml = folder.join("domain.xml");
    assert!(said.contains("domain web is not defined"), "{said}");
    let by_hand = said.split("definition are whole: `").nth(1).and_then(|rest| rest.split('`').next());
    assert!(fs::read(folder.join("vda.raw")).unwrap() == fs::read(&image).unwrap());
    assert_eq!(place.libvirtd.virsh(["list", "--all", "--name"]).unwrap().trim(), "");
    // Put right by hand, it is the domain.
    let text = fs::read_to_string(&xml).unwrap().replace("sparc'", "x86_64'");
    fs::write(&xml, text).unwrap();
    run("sh", ["-c", by_hand.unwrap()]).unwrap();
    place.libvirtd.machine("web").unwrap().start().unwrap();
}

#[test]
fn nothing_is_defined_on_damaged_disks_or_over_files() {
    let place = Place::new();
    let image = |name: &str, byte: u8| {
        fs::write(place.path(name), vec![byte; 1 << 20]).unwrap();
        place.path(name)
    };
    let (bad, good) = (image("bad", 1), image("good", 2));
    kept::back_up(&place.underlay, &kept::kept("one", &["vda"], "", ""), &[("vda", &bad)]).unwrap();
    let pack = place.path("repo/packs");
    let pack = fs::read_dir(pack).unwrap().next().unwrap().unwrap().path();
    let pack = fs::read_dir(pack).unwrap().next().unwrap().unwrap().path();
    let domain = kept::kept("two", &["vda", "vdb"], "", "");
    kept::back_up(&place.underlay, &domain, &[("vda", &bad), ("vdb", &good)]).unwrap();

    let folder = place.path("there");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("domain.xml"), "somebody's").unwrap();
    let output = place.restore("two@latest", &folder, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);

    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let folder = place.path("two");
    let output = place.restore("two@latest", &folder, &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("1 of 2 disks could not be restored, and the domain is not defined"), "{said}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(told.get("domain").is_none(), "{told}");
    assert!(folder.join("vdb.qcow2").exists() && !folder.join("domain.xml").exists());
    assert_eq!(place.libvirtd.virsh(["list", "--all", "--name"]).unwrap().trim(), "");
}

/// A real Debian guest runs beside its copy, which was restored from a backup of the running one.
#[test]
fn guest_runs_beside_its_restored_copy() {
    let place = Place::new();
    let image = place.path("vm.qcow2");
    guest::overlay(&guest::image().unwrap(), &image).unwrap();
    let spec = DomainSpec::new("vm").disk("vda", &image, Format::Qcow2).network(MAC);
    let vm = place.libvirtd.define(&spec).unwrap();
    vm.start().unwrap();
    vm.wait_for_agent().unwrap();
    vm.exec("echo before the backup > /root/note").unwrap();
    place.back_up("vm", &[]);
    vm.exec("echo after the backup > /root/note").unwrap();
    let (_, copy) = place.define("vm@latest", &place.path("copy"), &["--name", "copy"]);
    copy.start().unwrap();
    copy.wait_for_agent().unwrap();
    assert_eq!(copy.exec("cat /root/note").unwrap(), "before the backup\n");
    assert_eq!(vm.exec("cat /root/note").unwrap(), "after the backup\n");
    let address = |machine: &Machine| machine.exec("cat /sys/class/net/e*/address").unwrap();
    assert!(address(&vm).contains(MAC) && !address(&copy).contains(MAC));
}

/// A guest that UEFI firmware starts boots with the variables that were kept.
#[test]
fn guest_boots_with_its_restored_firmware_variables() {
    let place = Place::new();
    let (image, nvram) = (place.path("vm.qcow2"), place.path("vars.fd"));
    guest::overlay(&guest::image().unwrap(), &image).unwrap();
    let vm = place
        .libvirtd
        .define(&DomainSpec::new("vm").disk("vda", &image, Format::Qcow2).uefi(&nvram))
        .unwrap();
    vm.start().unwrap();
    vm.destroy().unwrap();
    let base = guest::image().unwrap();
    place.back_up("vm", &["--allow-dir", base.parent().unwrap().to_str().unwrap()]);
    let kept = fs::read(&nvram).unwrap();
    let folder = place.path("copy");
    let (_, copy) = place.define("vm@latest", &folder, &["--name", "copy"]);
    assert!(fs::read(folder.join("nvram.fd")).unwrap() == kept);
    copy.start().unwrap();
    copy.wait_for_agent().unwrap();
    copy.exec("test -d /sys/firmware/efi").unwrap();
    // It writes its own from now on.
    assert!(fs::read(&nvram).unwrap() == kept && fs::read(folder.join("nvram.fd")).unwrap() != kept);
}
