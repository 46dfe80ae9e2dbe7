//! Domains of every kind, as administrators have them: what is refused is refused by name before anything was touched, what is
//! taken is backed up exactly and left as it was found.
//!
//! No system is on these machines' disks. Their firmware looks for one for ever; who writes is QEMU's own monitor.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use underlay_tests::commands::{output, run, wait_until};
use underlay_tests::held::Held;
use underlay_tests::host::answer;
use underlay_tests::libvirt::{Definition, DomainSpec, Libvirtd, Machine};
use underlay_tests::mounts::has_own_mounts;
use underlay_tests::program::Underlay;
use underlay_tests::qemu::Format;

const NOVA: &str = "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'/>";

/// A libvirtd, a repository, and a folder for images.
struct Place {
    underlay: Underlay,
    disks: PathBuf,
    libvirtd: Libvirtd,
}

impl Place {
    fn new() -> Self {
        let libvirtd = Libvirtd::start().unwrap();
        let repository = libvirtd.folder().join("repo");
        let underlay = Underlay::init(repository.to_str().unwrap(), libvirtd.folder()).unwrap();
        let underlay = underlay.with_variable("UNDERLAY_CONNECT", libvirtd.uri());
        let disks = libvirtd.folder().join("disks");
        fs::create_dir(&disks).unwrap();
        Self { underlay, disks, libvirtd }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disks.join(name)
    }

    /// A domain `web` that runs from one qcow2 image.
    fn running(&self) -> Machine {
        let web = self.libvirtd.define(&self.spec("web")).unwrap();
        web.start().unwrap();
        web
    }

    /// A domain with one qcow2 image of its own.
    fn spec(&self, name: &str) -> DomainSpec {
        let disk = self.path(&format!("{name}.qcow2"));
        qcow2(&disk, None);
        DomainSpec::new(name).disk("vda", &disk, Format::Qcow2)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.underlay.command([]);
        command.args(arguments);
        command
    }

    fn backup(&self, options: &[&str]) -> Output {
        output(self.command(&["backup", "--json"]).args(options)).unwrap()
    }

    /// A backup of one domain that succeeds; what it says, as a document and on stderr.
    #[track_caller]
    fn done(&self, options: &[&str]) -> (Value, String) {
        let done = self.backup(options);
        assert_eq!(done.status.code(), Some(0), "{options:?}: {}", complaint(&done));
        let told = answer(&done).unwrap();
        assert!(told["unfinished"].is_null(), "{told}");
        (told, complaint(&done))
    }

    /// A backup that is refused before anything was touched; what it says on stderr.
    #[track_caller]
    fn refused(&self, options: &[&str], expected: &[&str]) {
        let before = (self.files(), self.definitions());
        let refused = self.backup(options);
        let told = complaint(&refused);
        assert_eq!(refused.status.code(), Some(1), "{options:?}: {told}");
        for part in expected {
            assert!(told.contains(part), "no {part:?} in {told}");
        }
        assert_eq!((self.files(), self.definitions()), before);
    }

    /// Every file beside the disks.
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(&self.disks).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn definitions(&self) -> Vec<String> {
        let names = self.libvirtd.virsh(["list", "--all", "--uuid"]).unwrap();
        let uuids = names.lines().filter(|line| !line.is_empty());
        uuids
            .flat_map(|uuid| [vec!["dumpxml", uuid], vec!["dumpxml", uuid, "--inactive"]])
            .map(|arguments| self.libvirtd.virsh(arguments).unwrap())
            .collect()
    }

    /// Has QEMU write to a running machine's disk as its guest would.
    fn write(&self, machine: &Machine, device: &str, pattern: &str) {
        let command = format!("qemu-io -d {device} \"write -P {pattern}\"");
        self.libvirtd.virsh(["qemu-monitor-command", machine.uuid(), "--hmp", &command]).unwrap();
    }

    /// Compares a disk of a machine's newest snapshot with an image that nobody writes to, and with patterns that were written.
    #[track_caller]
    fn expect_exact(&self, vm: &str, target: &str, image: &Path, format: &str, patterns: &[&str]) {
        let raw = self.libvirtd.folder().join("restored.raw");
        let mut restore = self.command(&["restore", &format!("{vm}@latest"), "--disk", target]);
        restore.args(["--force", "--format", "raw", "--to"]).arg(&raw);
        let restored = output(&mut restore).unwrap();
        assert!(restored.status.success(), "{}", complaint(&restored));
        let (raw, image) = (raw.to_str().unwrap(), image.to_str().unwrap());
        run("qemu-img", ["compare", "-q", "-U", "-f", "raw", "-F", format, raw, image]).unwrap();
        for pattern in patterns {
            let read = run("qemu-io", ["-r", "-f", "raw", "-c", &format!("read -P {pattern}"), raw]).unwrap();
            assert!(!read.contains("failed"), "{pattern}: {read}");
        }
    }

    fn record(&self, machine: &Machine) -> Value {
        let path = self.underlay.state().join("domains").join(format!("{}.json", machine.uuid()));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// Starts a backup and stops its process as soon as it has `image` open, or even locked.
    fn backup_held_at(&self, image: &Path, locked: bool, options: &[&str]) -> Held {
        Held::at(self.command(&["backup", "--json"]).args(options), |process| {
            let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
            open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == image)).any(|entry| {
                let info = format!("/proc/{process}/fdinfo/{}", entry.file_name().to_str().unwrap());
                !locked || fs::read_to_string(info).is_ok_and(|info| info.contains("OFDLCK"))
            })
        })
        .unwrap()
    }
}

/// A block device over a file.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Self {
        Self(run("losetup", ["--find", "--show", file.to_str().unwrap()]).unwrap().trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", ["-d", self.0.to_str().unwrap()]);
    }
}

/// Makes a qcow2 image of 64 MiB that boots nothing.
fn qcow2(path: &Path, below: Option<&Path>) {
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    arguments.extend(below.iter().flat_map(|below| ["-F", "qcow2", "-b", below.to_str().unwrap()]));
    run("qemu-img", arguments.into_iter().chain([path.to_str().unwrap(), "64M"])).unwrap();
    run("qemu-io", ["-f", "qcow2", "-c", "write -q -P 1 1M 100k", path.to_str().unwrap()]).unwrap();
}

/// Fills a file with bytes that do not compress.
fn random(path: &Path, mebibytes: u64) {
    let of = format!("of={}", path.display());
    run("dd", ["if=/dev/urandom", "bs=1M", "status=none", &format!("count={mebibytes}"), &of]).unwrap();
}

fn virtio(number: usize) -> String {
    format!("/machine/peripheral/virtio-disk{number}/virtio-backend")
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file below a folder, with its size and when it was changed.
fn trace(folder: &Path) -> BTreeMap<PathBuf, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        if metadata.is_dir() {
            found.extend(trace(&path));
        }
        found.insert(path, (metadata.len(), metadata.modified().unwrap()));
    }
    found
}

#[test]
fn a_stopped_domain_cannot_be_started_while_it_is_read() {
    let place = Place::new();
    let disk = place.path("disk.raw");
    random(&disk, 48);
    let web = place.libvirtd.define(&DomainSpec::new("web").disk("vda", &disk, Format::Raw)).unwrap();
    let held = place.backup_held_at(&disk, true, &["--domain", "web"]);
    let told = web.start().unwrap_err().to_string();
    assert!(told.contains("lock"), "{told}");
    assert_eq!(place.files(), [disk.as_path()], "no overlay is made");
    // Another one at the same time, whatever its repository: the one that is held may have locked its own.
    let folder = place.libvirtd.folder().join("other");
    fs::create_dir(&folder).unwrap();
    let other = Underlay::init(folder.join("repo").to_str().unwrap(), &folder).unwrap();
    let mut busy = other.command(["backup", "--domain", "web", "--connect", place.libvirtd.uri()]);
    let busy = output(busy.env("UNDERLAY_STATE_DIR", place.underlay.state())).unwrap();
    assert_eq!(busy.status.code(), Some(1), "{}", complaint(&busy));
    let expected = ["another underlay is working on it", "hint: wait until it is done"];
    assert!(expected.iter().all(|part| complaint(&busy).contains(part)), "{}", complaint(&busy));
    let done = held.let_go().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", complaint(&done));
    let told = answer(&done).unwrap();
    assert!(told["strategy"].is_null() && told["consistency"] == "offline", "{told}");
    place.expect_exact("web", "vda", &disk, "raw", &[]);
    web.start().unwrap();
    assert!(web.is_running().unwrap());
}

#[test]
fn a_base_elsewhere_is_read_once_libvirt_has_named_it() {
    let place = Place::new();
    let (base, disk) = (place.libvirtd.folder().join("base.qcow2"), place.path("web.qcow2"));
    qcow2(&base, None);
    qcow2(&disk, Some(&base));
    let web = place.libvirtd.define(&DomainSpec::new("web").disk("vda", &disk, Format::Qcow2)).unwrap();
    place.refused(&["--domain", "web"], &["base.qcow2", "--allow-dir"]);
    let folder = place.libvirtd.folder().to_str().unwrap();
    place.done(&["--domain", "web", "--allow-dir", folder]);
    web.start().unwrap();
    place.write(&web, &virtio(0), "7 8M 64k");
    place.done(&["--domain", "web"]);
    place.write(&web, &virtio(0), "8 9M 64k");
    web.destroy().unwrap();
    let (told, _) = place.done(&["--domain", "web"]);
    assert_eq!(told["consistency"], "offline");
    let patterns = ["1 1M 100k", "7 8M 64k", "8 9M 64k"];
    place.expect_exact("web", "vda", &web.chain("vda").unwrap()[0], "qcow2", &patterns);
}

#[test]
fn a_domain_whose_memory_is_saved_goes_on_with_the_layers_it_knew() {
    let place = Place::new();
    let web = place.running();
    let original = place.path("web.qcow2");
    let killed = place.underlay.through("underlay-killed").unwrap();
    let pivot = ["backup", "--domain", "web", "--strategy", "pivot"];
    let steps = place.libvirtd.folder().join("steps");
    assert!(output(killed.command(pivot).env("STEPS_FILE", &steps)).unwrap().status.success());
    let steps = fs::read_to_string(steps).unwrap();
    let at = steps.lines().position(|step| step == "CommitActive before").unwrap();
    let ended = output(killed.command(pivot).env("KILL_AT", at.to_string())).unwrap();
    assert_eq!(ended.status.signal(), Some(9), "{}", complaint(&ended));
    place.write(&web, &virtio(0), "7 8M 64k");
    let overlay = web.chain("vda").unwrap()[0].clone();
    place.libvirtd.virsh(["managedsave", "web"]).unwrap();

    let before = (fs::read(&overlay).unwrap(), fs::read(&original).unwrap(), place.definitions());
    let expected = ["its memory is saved", "hint: start it, then `underlay recover`"];
    place.refused(&["--domain", "web"], &expected);
    let refused = place.underlay.output(["recover"]).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(expected.iter().all(|part| complaint(&refused).contains(part)), "{refused:?}");
    assert!(before == (fs::read(&overlay).unwrap(), fs::read(&original).unwrap(), place.definitions()));

    web.start().unwrap();
    assert_eq!(web.chain("vda").unwrap()[0], overlay);
    let recovered = place.underlay.output(["recover"]).unwrap();
    assert!(recovered.status.success(), "{recovered:?}");
    assert_eq!(web.chain("vda").unwrap(), [original.as_path()]);
    assert_eq!(place.files(), [original.as_path()]);

    // Its disks are as after a power cut, but nothing is in the way of reading them.
    place.libvirtd.virsh(["managedsave", "web"]).unwrap();
    let (told, notes) = place.done(&["--domain", "web"]);
    assert!(told["consistency"] == "crash" && told["strategy"].is_null(), "{told}");
    assert!(notes.contains("web: its memory is saved"), "{notes}");
    place.expect_exact("web", "vda", &original, "qcow2", &["1 1M 100k", "7 8M 64k"]);
    web.start().unwrap();
    let (told, _) = place.done(&["--domain", "web"]);
    assert_eq!(told["strategy"], "rotate");
}

#[test]
fn what_stands_in_the_way_of_a_running_domain_is_named() {
    let place = Place::new();
    let web = place.running();
    let virsh = |arguments: &[&str]| place.libvirtd.virsh(arguments).unwrap();
    let backup = ["--domain", "web"];

    virsh(&["snapshot-create-as", "web", "before-the-upgrade", "--disk-only", "--atomic"]);
    place.refused(&backup, &["libvirt keeps snapshots of it (before-the-upgrade)", "virsh snapshot-delete"]);
    virsh(&["snapshot-delete", "web", "before-the-upgrade", "--metadata"]);

    virsh(&["checkpoint-create-as", "web", "theirs"]);
    place.refused(&backup, &["libvirt keeps checkpoints of it (theirs)", "virsh checkpoint-delete"]);
    virsh(&["checkpoint-delete", "web", "theirs"]);

    let copy = place.libvirtd.folder().join("copy.qcow2");
    virsh(&["blockcopy", "web", "vda", copy.to_str().unwrap(), "--transient-job"]);
    place.refused(&backup, &["disk vda has a block job already", "virsh blockjob"]);
    virsh(&["blockjob", "web", "vda", "--abort"]);

    let inactive = web.dump_xml(Definition::Inactive).unwrap();
    let active = web.chain("vda").unwrap()[0].to_str().unwrap().to_owned();
    let file = place.libvirtd.folder().join("changed.xml");
    fs::write(&file, inactive.replace(&active, "/elsewhere/web.qcow2")).unwrap();
    virsh(&["define", file.to_str().unwrap()]);
    let expected = [&format!("writes to {active} now, and to /elsewhere/web.qcow2"), "virsh edit"];
    place.refused(&backup, &expected.map(AsRef::as_ref));
    fs::write(&file, inactive).unwrap();
    virsh(&["define", file.to_str().unwrap()]);

    place.refused(&["--domain", "nobody"], &["there is no domain \"nobody\"", "virsh list --all"]);
    place.refused(&["--domain", "web", "--exclude-disk", "vdx"], &["no disk vdx", "its disks are vda"]);
    place.done(&backup);

    let spec = place.spec("guest-of-a-day");
    let transient = place.libvirtd.create(&spec).unwrap();
    let backup = ["--domain", "guest-of-a-day"];
    place.refused(&backup, &["it is transient", "--strategy pivot"]);
    for pattern in ["7 8M 64k", "8 9M 64k"] {
        place.write(&transient, &virtio(0), pattern);
        let (told, _) = place.done(&[&backup[..], &["--strategy", "pivot"]].concat());
        assert_eq!(told["strategy"], "pivot");
        let original = place.path("guest-of-a-day.qcow2");
        assert_eq!(transient.chain("vda").unwrap(), [original.as_path()]);
        place.expect_exact("guest-of-a-day", "vda", &original, "qcow2", &[pattern]);
    }
}

#[test]
fn overlays_that_would_not_fit_are_refused() {
    if !has_own_mounts("overlays_that_would_not_fit_are_refused").unwrap() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().to_str().unwrap();
    run("mount", ["-t", "tmpfs", "-o", "size=16m", "none", small]).unwrap();
    let place = Place::new();
    let web = place.running();
    let backup = ["--domain", "web", "--overlay-dir", small];
    place.refused(&backup, &["has 16 MiB free, and its overlays may need 64 MiB", "make room"]);
    assert_eq!(fs::read_dir(small).unwrap().count(), 0);
    run("mount", ["-o", "remount,size=80m", small]).unwrap();
    place.done(&backup);
    assert!(web.chain("vda").unwrap()[0].starts_with(small));
    web.destroy().unwrap();
}

#[test]
fn disks_that_cannot_be_read_are_refused_by_name_and_others_are_left_out() {
    let place = Place::new();
    let (image, seed) = (place.path("install.iso"), place.path("seed.qcow2"));
    random(&image, 1);
    qcow2(&seed, None);
    let mapped = |kind: &str, target: &str, source: &str, more: &str| {
        format!("<disk {kind}><driver name='qemu' type='raw'/>{source}<target dev='{target}'/>{more}</disk>")
    };
    let devices = [
        mapped(
            "type='network' device='disk'",
            "vdn",
            "<source protocol='nbd' name='x'><host name='h'/></source>",
            "",
        ),
        mapped("type='block' device='lun'", "sdl", "<source dev='/dev/sdz'/>", ""),
        mapped(
            "type='file' device='cdrom'",
            "hdc",
            &format!("<source file='{}'/>", image.display()),
            "<readonly/>",
        ),
        mapped("type='file' device='cdrom'", "hdd", "", "<readonly/>"),
        mapped(
            "type='file' device='disk'",
            "vdr",
            &format!("<source file='{}'/>", seed.display()),
            "<readonly/>",
        ),
        mapped(
            "type='file' device='disk'",
            "vds",
            &format!("<source file='{}'/>", seed.display()),
            "<shareable/>",
        ),
        "<controller type='scsi' model='virtio-scsi'/>".to_owned(),
    ];
    let spec = devices.iter().fold(place.spec("web"), |spec, device| spec.device(device));
    place.libvirtd.define(&spec).unwrap();
    let mut options = vec!["--domain", "web"];
    for (target, reason) in [
        ("sdl", "disk sdl is a SCSI device passed through"),
        ("vdn", "disk vdn is neither a file nor a block device (network nbd"),
        ("vds", "disk vds is shared with other domains"),
    ] {
        place.refused(&options, &[reason, &format!("--exclude-disk {target}")]);
        options.extend(["--exclude-disk", target]);
    }
    let (told, notes) = place.done(&options);
    assert!(
        notes.contains("disk vdr is read-only and is not backed up") && !notes.contains("hdc"),
        "{notes}"
    );
    let shown = place.underlay.json(["show", "web@latest"]).unwrap();
    assert_eq!(shown["disks"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(told["disk_bytes"], 64 << 20, "{told}");
}

#[test]
fn raw_files_block_devices_and_disks_that_come_and_go_are_exact() {
    let place = Place::new();
    let (raw, data, extra) = (place.path("disk.raw"), place.path("device.raw"), place.path("extra.qcow2"));
    random(&raw, 8);
    random(&data, 8);
    qcow2(&extra, None);
    let device = Loop::over(&data);
    let block = format!(
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{}'/><target dev='vdb'/></disk>\
         <controller type='scsi' model='virtio-scsi'/>",
        device.0.display()
    );
    let spec = DomainSpec::new("web").disk("vda", &raw, Format::Raw).device(&block);
    let web = place.libvirtd.define(&spec).unwrap();
    web.start().unwrap();
    place.refused(&["--domain", "web"], &["disk vdb is a block device", "--overlay-dir"]);
    let overlays = place.libvirtd.folder().join("overlays");
    fs::create_dir(&overlays).unwrap();
    let backup = ["--domain", "web", "--overlay-dir", overlays.to_str().unwrap()];
    for round in 1..=4 {
        let patterns = [format!("{round} {round}M 64k"), format!("3{round} {round}M 64k")];
        place.write(&web, &virtio(0), &patterns[0]);
        place.write(&web, &virtio(1), &patterns[1]);
        let (told, _) = place.done(&backup);
        assert_eq!(told["strategy"], "rotate");
        for (target, original, pattern) in [("vda", &raw, &patterns[0]), ("vdb", &device.0, &patterns[1])] {
            let chain = web.chain(target).unwrap();
            assert_eq!(chain.len(), 2, "what was written is merged into the original: {chain:?}");
            assert_eq!(chain.last(), Some(original));
            place.expect_exact("web", target, &chain[1], "raw", &[pattern]);
        }
        assert_eq!(fs::read_dir(&overlays).unwrap().count(), 2);
    }

    let file = place.libvirtd.folder().join("extra.xml");
    let attached = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='sda' bus='scsi'/></disk>",
        extra.display()
    );
    fs::write(&file, attached).unwrap();
    let file = file.to_str().unwrap();
    place.libvirtd.virsh(["attach-device", "web", file, "--persistent"]).unwrap();
    place.write(&web, "/machine/peripheral/scsi0-0-0-0", "77 20M 64k");
    let (_, notes) = place.done(&backup);
    assert!(notes.contains("web: disk sda was not in the last backup: it is read whole"), "{notes}");
    place.expect_exact("web", "sda", &extra, "qcow2", &["77 20M 64k"]);
    place.done(&backup);
    place.libvirtd.virsh(["detach-disk", "web", "sda", "--persistent"]).unwrap();
    wait_until("the disk being gone", Duration::from_secs(20), || Ok(web.chain("sda").is_err())).unwrap();
    let (_, notes) = place.done(&backup);
    assert!(notes.contains("web: disk sda was in the last backup and is not in this one"), "{notes}");
    let (_, notes) = place.done(&backup);
    assert!(!notes.contains("sda"), "{notes}");
    web.destroy().unwrap();
}

#[test]
fn a_domain_of_nova_goes_on_in_its_original_file() {
    let place = Place::new();
    let web = place.libvirtd.define(&place.spec("web").metadata(NOVA)).unwrap();
    let original = place.path("web.qcow2");
    web.start().unwrap();
    place.refused(&["--domain", "web", "--strategy", "rotate"], &["OpenStack Nova", "leave --strategy out"]);
    for pattern in ["7 8M 64k", "8 9M 64k"] {
        place.write(&web, &virtio(0), pattern);
        let (told, _) = place.done(&["--domain", "web"]);
        assert_eq!(told["strategy"], "pivot");
        assert_eq!(place.files(), [original.as_path()], "no overlay is left");
        assert_eq!(web.chain("vda").unwrap(), [original.as_path()]);
        let inactive = web.dump_xml(Definition::Inactive).unwrap();
        assert!(inactive.contains("disks/web.qcow2") && !inactive.contains("backingStore"), "{inactive}");
        place.expect_exact("web", "vda", &original, "qcow2", &[pattern]);
    }
}

#[test]
fn one_of_several_domains_that_is_refused_keeps_nobody_from_the_others() {
    let place = Place::new();
    for name in ["one", "two"] {
        let machine = place.libvirtd.define(&place.spec(name)).unwrap();
        if name == "one" {
            machine.start().unwrap();
        }
    }
    place.libvirtd.create(&place.spec("of a day")).unwrap();
    for options in [&["--all"][..], &["--all", "--parallel", "2"]] {
        let done = place.backup(options);
        assert_eq!(done.status.code(), Some(3), "{}", complaint(&done));
        let told: Value = serde_json::from_slice(&done.stdout).unwrap();
        let domains = told["domains"].as_array().unwrap();
        assert_eq!(domains.len(), 3);
        for domain in domains {
            let refused = domain["domain"] == "of a day";
            assert_eq!(domain["snapshot"].is_string(), !refused, "{domain}");
            assert_eq!(domain["error"].is_string(), refused, "{domain}");
            assert!(!refused || domain["hint"].is_string() && domain["exit_code"] == 1, "{domain}");
        }
        assert!(complaint(&done).contains("1 of 3 domains could not be backed up"), "{}", complaint(&done));
    }
    let listed = place.underlay.json(["list"]).unwrap().to_string();
    assert!(listed.contains("one") && listed.contains("two") && !listed.contains("of a day"), "{listed}");
}

#[test]
fn a_dry_run_leaves_no_trace_and_every_command_is_shown() {
    let place = Place::new();
    let web = place.running();
    place.libvirtd.define(&place.spec("off")).unwrap();
    let repository = PathBuf::from(&place.underlay.location);
    let seen =
        || (trace(place.underlay.state()), trace(&repository), trace(&place.disks), place.definitions());
    let dry = |arguments: &[&str], expected: &[&str]| {
        let before = seen();
        let done = output(place.command(&["backup", "--dry-run"]).args(arguments)).unwrap();
        let told = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{}", complaint(&done));
        expected.iter().for_each(|part| assert!(told.contains(part), "no {part:?} in {told}"));
        assert!(seen() == before, "something was touched");
    };
    let rotate = ["web: running, rotate", "freeze vda", "the next backup merges that"];
    dry(&["--domain", "web"], &rotate);
    place.done(&["--domain", "web"]);
    dry(&["--domain", "web"], &["web: running, rotate", "freeze vda", "merge", "and remove it"]);
    dry(&["--domain", "web", "--strategy", "pivot"], &["web: running, pivot", "which the guest goes on in"]);
    dry(&["--domain", "off"], &["off: stopped", "let nobody start the domain meanwhile"]);
    dry(&["--all"], &["web: running", "off: stopped"]);

    place.done(&["--domain", "web"]);
    place.write(&web, &virtio(0), "7 8M 64k");
    let (_, told) = place.done(&["--domain", "web", "-v"]);
    for command in ["dumpxml", "snapshot-create-as", "blockcommit"] {
        let shown = told
            .lines()
            .find(|line| line.contains(&format!(" {command} ")))
            .unwrap_or_else(|| panic!("{told}"));
        assert!(shown.contains("virsh --connect 'qemu+unix:///system?socket="), "{shown}");
    }
}

#[test]
fn odd_names_of_domains_and_files_are_only_names() {
    let place = Place::new();
    let folders = ["a dir, x=1 'é\"&<", "b"].map(|name| place.path(name));
    folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let disks = folders.each_ref().map(|folder| folder.join("it's, one=\"é\" & <two>.qcow2"));
    disks.iter().for_each(|disk| qcow2(disk, None));
    let name = "it's \"web\" & <münchen> ☃, x=1";
    let spec =
        DomainSpec::new(name).disk("vda", &disks[0], Format::Qcow2).disk("vdb", &disks[1], Format::Qcow2);
    let web = place.libvirtd.define(&spec).unwrap();
    let (stopped, _) = place.done(&["--domain", name]);
    assert_eq!(stopped["vm"], name);
    web.start().unwrap();
    let overlays = place.path("overlays, of 'all' & é");
    fs::create_dir(&overlays).unwrap();
    let together = ["--overlay-dir", overlays.to_str().unwrap()];
    for (round, options) in [&[][..], &together, &together, &[]].into_iter().enumerate() {
        let patterns = [1, 2].map(|disk| format!("{disk}{round} {}M 64k", 8 + round));
        place.write(&web, &virtio(0), &patterns[0]);
        place.write(&web, &virtio(1), &patterns[1]);
        place.done(&[&["--domain", name][..], options].concat());
        for (target, pattern) in ["vda", "vdb"].iter().zip(&patterns) {
            let chain = web.chain(target).unwrap();
            assert_eq!(chain.len(), 2, "{chain:?}");
            // Once they lie there, that is beside the disk.
            assert_eq!(chain[0].starts_with(&overlays), round > 0, "{chain:?}");
            place.expect_exact(name, target, &chain[1], "qcow2", &[pattern]);
        }
    }
    let at = place.libvirtd.define(&place.spec("web@home")).unwrap();
    let refused = place.backup(&["--domain", at.name()]);
    assert_eq!(refused.status.code(), Some(2), "{}", complaint(&refused));
    assert!(complaint(&refused).contains("--vm NAME"), "{}", complaint(&refused));
    let (told, _) = place.done(&["--domain", at.name(), "--vm", "web at home"]);
    assert_eq!(told["vm"], "web at home");
}

#[test]
fn an_interrupted_backup_gives_back_or_merges_to_the_end() {
    let place = Place::new();
    let disk = place.path("disk.raw");
    random(&disk, 48);
    let web = place.libvirtd.define(&DomainSpec::new("web").disk("vda", &disk, Format::Raw)).unwrap();
    web.start().unwrap();
    for strategy in ["rotate", "pivot"] {
        let options = ["--domain", "web", "--strategy", strategy];
        let held = place.backup_held_at(&disk, false, &options);
        place.write(&web, &virtio(0), "9 2M 64k");
        let interrupted = held.interrupt().unwrap();
        assert_eq!(interrupted.status.code(), Some(130), "{strategy}: {}", complaint(&interrupted));
        assert_eq!(web.chain("vda").unwrap(), [disk.as_path()], "{strategy}: it is given back");
        assert_eq!(place.files(), [disk.as_path()]);
        assert!(place.record(&web)["operation"].is_null());
    }
    place.done(&["--domain", "web"]);
    place.write(&web, &virtio(0), "7 8M 64k");
    place.done(&["--domain", "web"]);
    place.expect_exact("web", "vda", &disk, "raw", &["9 2M 64k", "7 8M 64k"]);

    place.write(&web, &virtio(0), "8 16M 24M");
    for strategy in ["rotate", "pivot"] {
        let options = ["backup", "--domain", "web", "--json", "--strategy", strategy];
        let held = Held::at(&mut place.command(&options), |process| {
            let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
            let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
            let all = tasks.flat_map(|task| fs::read_to_string(task.path().join("children"))).chain(children);
            let merges = |child: &str| {
                let words = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                words.split(|byte| *byte == 0).any(|word| word == b"blockcommit")
            };
            all.collect::<Vec<_>>().join(" ").split_whitespace().any(merges)
        })
        .unwrap();
        let interrupted = held.interrupt().unwrap();
        assert_eq!(interrupted.status.code(), Some(130), "{strategy}: {}", complaint(&interrupted));
        let told = answer(&interrupted).unwrap();
        assert!(told["snapshot"].is_string() && told["unfinished"].is_null(), "{strategy}: {told}");
        let chain = web.chain("vda").unwrap();
        assert_eq!(chain.len(), 2, "{strategy}: {chain:?}");
        assert!(place.files().iter().all(|file| chain.contains(file)), "{strategy}: {:?}", place.files());
        assert!(place.record(&web)["operation"].is_null());
        let told = place.underlay.json(["recover"]).unwrap();
        assert_eq!(told["domains"][0]["actions"], serde_json::json!([]), "nothing is left to do");
    }
    place.done(&["--domain", "web"]);
    place.expect_exact("web", "vda", &web.chain("vda").unwrap()[1], "raw", &["8 16M 24M"]);
}
