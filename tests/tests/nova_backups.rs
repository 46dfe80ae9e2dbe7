//! Instances of a real Nova: backed up while they run, given back through Glance, and whatever Nova does meanwhile.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underlay_tests::commands::{output, run, run_command};
use underlay_tests::guest::DEFAULT_MARKER;
use underlay_tests::libvirt::{Definition, Machine};
use underlay_tests::openstack::{Instance, OpenStack};
use underlay_tests::program::Underlay;
use underlay_tests::qemu::{Format, Guest, Writes};

/// A compute node, and a repository for its instances.
struct Site {
    underlay: Underlay,
    cloud: OpenStack,
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cloud = OpenStack::compute().unwrap();
        let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
        let underlay = cloud
            .administrator_variables()
            .iter()
            .fold(underlay, |underlay, (name, value)| underlay.with_variable(name, value));
        let underlay = underlay.with_variable("UNDERLAY_CONNECT", cloud.libvirtd().unwrap().uri());
        Self { underlay, cloud, folder }
    }

    fn machine(&self, instance: &Instance) -> Machine {
        let machine = self.cloud.libvirtd().unwrap().machine(instance.domain()).unwrap();
        machine.wait_for_agent().unwrap();
        machine
    }

    fn backup(&self, instance: &Instance, more: &[&str]) -> Value {
        let mut command = self.underlay.command(["backup", "--json", "--instance", instance.uuid()]);
        let answer = run_command(command.args(more)).unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()["domains"][0].clone()
    }

    /// Backs an instance up while it stands still, by its bitmap and all of it: both must find the same. The first one's answer.
    fn expect_exact(&self, instance: &Instance, moment: &str) -> Value {
        let libvirtd = self.cloud.libvirtd().unwrap();
        libvirtd.virsh(["suspend", instance.domain()]).unwrap();
        let one = self.backup(instance, &["--no-quiesce"]);
        let other = self.backup(instance, &["--no-quiesce", "--no-memo"]);
        libvirtd.virsh(["resume", instance.domain()]).unwrap();
        let roots = |backup: &Value| {
            self.underlay.json(["show", backup["snapshot"].as_str().unwrap()]).unwrap()["roots"].clone()
        };
        assert_eq!(roots(&one), roots(&other), "{moment}");
        one
    }

    /// Nova's view, its locks and libvirt's records are as if there were no backups.
    fn expect_untouched(&self, instance: &Instance, moment: &str) {
        assert_eq!(instance.status().unwrap(), ("ACTIVE".into(), None), "{moment}");
        assert!(!instance.is_locked().unwrap(), "{moment}");
        let checkpoints =
            self.cloud.libvirtd().unwrap().virsh(["checkpoint-list", instance.domain(), "--name"]).unwrap();
        assert_eq!(checkpoints.trim(), "", "{moment}");
        let strays: Vec<PathBuf> =
            std::fs::read_dir(instance.folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(
            strays.iter().all(|path| !path.to_string_lossy().contains("underlay-")),
            "{moment}: {strays:?}"
        );
    }

    /// Makes a server of a snapshot, and reads a file of its guest.
    fn note_of(&self, snapshot: &str, name: &str) -> String {
        let answer = self
            .underlay
            .json(["restore", snapshot, "--to-glance", name, "--boot", name, "--network", "none"])
            .unwrap();
        let server = self.cloud.instance(answer["server"]["id"].as_str().unwrap()).unwrap();
        let note = self.machine(&server).exec("cat /root/note").unwrap();
        server.delete().unwrap();
        note
    }
}

fn bytes(backup: &Value, what: &str) -> u64 {
    backup[what].as_u64().unwrap()
}

/// The layer that instances of one image share.
fn base_of(site: &Site) -> PathBuf {
    let bases = site.cloud.instances_folder().join("_base");
    let files: Vec<_> = std::fs::read_dir(bases).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn sha256(path: &Path) -> String {
    run("sha256sum", [path.to_str().unwrap()]).unwrap()
}

/// The second point takes the place of an instance's own disk, while it is stopped.
fn comes_back_into_itself(site: &Site, web: &Instance, snapshot: &str) {
    let into = |code: i32| {
        let mut command = site.underlay.command(["restore", snapshot, "--to-instance", web.uuid()]);
        let ended = output(&mut command).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    assert!(into(1).contains("is not shut off"));
    web.stop().unwrap();
    into(0);
    web.start().unwrap();
    let machine = site.machine(web);
    assert_eq!(machine.exec("cat /root/note; ls /root/data3 2>&1 | wc -l").unwrap(), "point 2\n1\n");
    assert!(machine.exec("ls /root/data3").is_err());
    let kept = std::fs::read_dir(web.folder()).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(kept.filter(|path| path.to_string_lossy().contains("disk.before-")).count(), 1);
    site.expect_exact(web, "after its disk was replaced");
}

/// A flattened file boots without OpenStack, and the command that does it is told.
fn boots_anywhere(site: &Site, snapshot: &str) {
    let file = site.folder.path().join("anywhere.qcow2");
    let told =
        site.underlay.json(["restore", snapshot, "--disk", "vda", "--to", file.to_str().unwrap()]).unwrap();
    let command = told["virt_install"].as_str().unwrap();
    assert!(
        command.starts_with("virt-install --import ") && command.contains("--memory 512 --vcpus 1 "),
        "{command}"
    );
    let guest = Guest::boot(&file, Format::Qcow2, Writes::Discard).unwrap();
    guest.wait_for(DEFAULT_MARKER, Duration::from_secs(180)).unwrap();
}

#[test]
fn points_of_an_instance_become_servers() {
    let site = Site::new();
    let (web, mail) = (site.cloud.boot("web").unwrap(), site.cloud.boot("mail").unwrap());
    let machine = site.machine(&web);
    let base = base_of(&site);
    let before = (machine.dump_xml(Definition::Live).unwrap(), machine.chain("vda").unwrap(), sha256(&base));
    let pid = machine.qemu_pid().unwrap();
    let mut points = Vec::new();
    for (at, size) in [(1, 4), (2, 8), (3, 64)] {
        let write = format!(
            "echo point {at} >/root/note; dd if=/dev/urandom of=/root/data{at} bs=1M count={size} 2>/dev/null; sync"
        );
        machine.exec(&write).unwrap();
        let started = Instant::now();
        let backup = site.backup(&web, &[]);
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "underlay, point {at}: {} MiB read, {} MiB sent, {seconds:.1} s",
            bytes(&backup, "bytes_read") >> 20,
            bytes(&backup, "bytes_uploaded") >> 20
        );
        assert_eq!(backup["vm"], web.uuid());
        if at > 1 {
            // What it wrote, and what the guest writes by itself.
            assert!(bytes(&backup, "bytes_read") < (size + 24) << 20, "{backup}");
        }
        points.push((at, backup["snapshot"].as_str().unwrap().to_owned()));
        // Nova's own way to keep a point, at the same moment.
        let started = Instant::now();
        let image = web.create_image(&format!("nova {at}")).unwrap();
        println!(
            "nova, point {at}: {} MiB sent, {:.1} s",
            image.size.unwrap() >> 20,
            started.elapsed().as_secs_f64()
        );
    }
    let after = (machine.dump_xml(Definition::Live).unwrap(), machine.chain("vda").unwrap(), sha256(&base));
    assert_eq!(after, before);
    assert_eq!(machine.qemu_pid().unwrap(), pid, "the guest ran on");
    site.expect_untouched(&web, "after three backups");

    // The second instance on that image sends its own changes only.
    let other = site.machine(&mail);
    other.exec("echo mail >/root/note; sync").unwrap();
    let first = site.backup(&mail, &[]);
    println!("second instance on the image: {} MiB sent", bytes(&first, "bytes_uploaded") >> 20);
    assert!(bytes(&first, "bytes_uploaded") < 40 << 20, "{first}");
    other.destroy().unwrap();
    mail.delete().unwrap();

    // What is kept of the instance.
    let shown = site.underlay.json(["show", &points[0].1]).unwrap();
    let kept = &shown["private"]["instance"];
    assert_eq!(
        (kept["name"].as_str(), kept["flavor"]["memory"].as_u64()),
        (Some("web"), Some(512)),
        "{shown}"
    );
    assert!(kept["image"].is_string() && kept["project"].is_string(), "{kept}");

    for (at, snapshot) in &points {
        assert_eq!(site.note_of(snapshot, &format!("restored {at}")), format!("point {at}\n"));
    }
    machine.exec("cat /root/data1 /root/data2 /root/data3 >/dev/null").unwrap();
    site.expect_exact(&web, "at the end");

    comes_back_into_itself(&site, &web, &points[1].1);
    boots_anywhere(&site, &points[0].1);
    web.delete().unwrap();
    assert!(site.folder.path().exists());
}

#[test]
fn every_kind_of_disk_is_backed_up_by_either_strategy() {
    let site = Site::new();
    let flavor = json!({"flavor": {"name": "all", "ram": 512, "vcpus": 1, "disk": 3, "OS-FLV-EXT-DATA:ephemeral": 1, "swap": 64}});
    let flavor = site.cloud.request("compute", "POST", "/flavors", Some(&flavor)).unwrap();
    let more =
        json!({"flavorRef": flavor["flavor"]["id"], "config_drive": true, "metadata": {"role": "web"}});
    let web = site.cloud.boot_with("web", &more);
    let web = web.unwrap_or_else(|error| panic!("{error}\n{}", site.cloud.log()));
    let machine = site.machine(&web);
    machine
        .exec("echo kept >/root/note; echo swapped | dd of=/dev/vdc conv=notrunc 2>/dev/null; sync")
        .unwrap();
    let before = (machine.dump_xml(Definition::Live).unwrap(), machine.chain("vda").unwrap());
    let mut disks = Vec::new();
    for strategy in ["bitmap", "pivot"] {
        let backup = site.backup(&web, &["--strategy", strategy]);
        assert_eq!(backup["strategy"], strategy);
        site.expect_untouched(&web, strategy);
        assert_eq!(
            (machine.dump_xml(Definition::Live).unwrap(), machine.chain("vda").unwrap()),
            before,
            "{strategy}"
        );
        let shown = site.underlay.json(["show", backup["snapshot"].as_str().unwrap()]).unwrap();
        let names: Vec<String> = shown["roots"]
            .as_array()
            .unwrap()
            .iter()
            .map(|disk| disk["name"].as_str().unwrap().to_owned())
            .collect();
        // Root, ephemeral and swap disk, and the configuration drive.
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(shown["private"]["instance"]["metadata"]["role"], "web");
        disks = names;
    }
    // A killed backup leaves its lock, and the next one takes it off.
    let killed = site.underlay.through("underlay-killed").unwrap();
    let mut command = killed.command(["backup", "--instance", web.uuid()]);
    assert_eq!(output(command.env("KILL_AT", "0")).unwrap().status.signal(), Some(9));
    assert!(web.is_locked().unwrap());
    site.backup(&web, &[]);
    assert!(!web.is_locked().unwrap());

    let config = disks.iter().find(|name| !name.starts_with("vd")).unwrap();
    let drive = site.folder.path().join("config.raw");
    let snapshot = format!("{}@latest", web.uuid());
    site.underlay.run(&["restore", &snapshot, "--disk", config, "--to", drive.to_str().unwrap()]).unwrap();
    assert!(std::fs::read(&drive).unwrap() == std::fs::read(web.folder().join("disk.config")).unwrap());
    // After a pivot the disk is what it was, for Nova too.
    web.hard_reboot().unwrap();
    let machine = site.machine(&web);
    assert_eq!(machine.exec("cat /root/note; head -c 8 /dev/vdc").unwrap(), "kept\nswapped\n");
    let left_out = site.backup(&web, &["--exclude-disk", "vdc"]);
    let shown = site.underlay.json(["show", left_out["snapshot"].as_str().unwrap()]).unwrap();
    assert_eq!(shown["roots"].as_array().unwrap().len(), 3);
    web.delete().unwrap();
}

/// The guest writes a file, and notes what is in it.
fn scribble(machine: &Machine, name: &str) {
    let write = format!(
        "cd /root; dd if=/dev/urandom of={name} bs=64k count=20 2>/dev/null; sha256sum {name} >>sums; sync"
    );
    machine.exec(&write).unwrap();
}

/// What Nova does after a backup that was killed.
fn nova_acts(web: &Instance, at: usize) -> &'static str {
    match at % 4 {
        0 => web.hard_reboot().map(|()| "hard reboot"),
        1 => web.create_image(&format!("at {at}")).map(|_| "image"),
        2 => web.stop().and_then(|()| web.start()).map(|()| "stop and start"),
        _ => Ok("nothing"),
    }
    .unwrap()
}

#[test]
fn nothing_is_lost_whenever_a_backup_is_killed_and_whatever_nova_does() {
    let site = Site::new();
    let web = site.cloud.boot("web").unwrap();
    let base = base_of(&site);
    let sum = sha256(&base);
    site.machine(&web);
    site.backup(&web, &[]);
    site.backup(&web, &[]);
    let killed = site.underlay.through("underlay-killed").unwrap();
    let backup = || killed.command(["backup", "--instance", web.uuid()]);
    let file = site.folder.path().join("steps");
    assert!(output(backup().env("STEPS_FILE", &file)).unwrap().status.success());
    let moments: Vec<String> = std::fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
    println!("{}", moments.join(", "));
    let started = Instant::now();
    let frozen = |at: usize| {
        let place = |moment: &str| moments.iter().position(|found| found == moment).unwrap();
        (place("Quiesce after")..=place("Thaw before")).contains(&at)
    };
    for (at, moment) in moments.iter().enumerate() {
        let machine = site.machine(&web);
        scribble(&machine, &format!("a{at}"));
        let ended = output(backup().env("KILL_AT", at.to_string())).unwrap();
        assert_eq!(ended.status.signal(), Some(9), "{moment}: {}", String::from_utf8_lossy(&ended.stderr));
        // A guest whose file systems are frozen cannot write, until whoever comes next has thawed them.
        if !frozen(at) {
            scribble(&machine, &format!("b{at}"));
        }
        let recovered = at % 3 == 0;
        if recovered {
            site.underlay.run(&["recover"]).unwrap();
        }
        let done = nova_acts(&web, at);
        println!("{:5.0} s, {moment}: recovered {recovered}, {done}", started.elapsed().as_secs_f64());
        site.machine(&web);
        site.backup(&web, &[]);
        let checked = site.machine(&web).exec("cd /root && sha256sum --quiet -c sums");
        checked.unwrap_or_else(|error| panic!("{moment}, {done}: {error}"));
        if at % 4 == 3 {
            site.expect_exact(&web, moment);
        }
        site.expect_untouched(&web, moment);
    }
    assert_eq!(sha256(&base), sum);
    let checked = site.underlay.output(["check", "--read-data"]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    // Deleted in the middle of a backup that was killed: nothing is in the way.
    let ended = output(backup().env("KILL_AT", (moments.len() / 2).to_string())).unwrap();
    assert_eq!(ended.status.signal(), Some(9));
    web.delete().unwrap();
    site.underlay.run(&["recover"]).unwrap();
    let left = site.cloud.request("compute", "GET", "/servers", None).unwrap();
    assert_eq!(left["servers"], json!([]));
}
