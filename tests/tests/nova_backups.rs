//! Instances of a real Nova: backed up while they run, given back through Glance, or into themselves.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underlay_tests::commands::output;
use underlay_tests::compute_node::{ComputeNode, sha256};
use underlay_tests::guest::DEFAULT_MARKER;
use underlay_tests::libvirt::Definition;
use underlay_tests::openstack::Instance;
use underlay_tests::qemu::{Format, Guest, Writes};

/// Makes a server of a snapshot, and reads a file of its guest.
fn note_of(node: &ComputeNode, snapshot: &str, name: &str) -> String {
    let answer = node
        .underlay
        .json(["restore", snapshot, "--to-glance", name, "--boot", name, "--network", "none"])
        .unwrap();
    let server = node.cloud.instance(answer["server"]["id"].as_str().unwrap()).unwrap();
    let note = node.machine(&server).unwrap().exec("cat /root/note").unwrap();
    server.delete().unwrap();
    note
}

fn bytes(backup: &Value, what: &str) -> u64 {
    backup[what].as_u64().unwrap()
}

/// The second point takes the place of an instance's own disk, while it is stopped.
fn comes_back_into_itself(node: &ComputeNode, web: &Instance, snapshot: &str) {
    let into = |code: i32| {
        let mut command = node.underlay.command(["restore", snapshot, "--to-instance", web.uuid()]);
        let ended = output(&mut command).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    assert!(into(1).contains("is not shut off"));
    web.stop().unwrap();
    into(0);
    web.start().unwrap();
    let machine = node.machine(web).unwrap();
    assert_eq!(machine.exec("cat /root/note; ls /root/data3 2>&1 | wc -l").unwrap(), "point 2\n1\n");
    assert!(machine.exec("ls /root/data3").is_err());
    let kept = std::fs::read_dir(web.folder()).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(kept.filter(|path| path.to_string_lossy().contains("disk.before-")).count(), 1);
    node.expect_exact(web).expect("after its disk was replaced");
}

/// A flattened file boots without OpenStack, and the command that does it is told.
fn boots_anywhere(node: &ComputeNode, snapshot: &str) {
    let file = node.path("anywhere.qcow2");
    let told =
        node.underlay.json(["restore", snapshot, "--disk", "vda", "--to", file.to_str().unwrap()]).unwrap();
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
    let node = ComputeNode::start().unwrap();
    let (web, mail) = (node.cloud.boot("web").unwrap(), node.cloud.boot("mail").unwrap());
    let machine = node.machine(&web).unwrap();
    let base = node.base().unwrap();
    let before =
        (machine.dump_xml(Definition::Live).unwrap(), machine.chain("vda").unwrap(), sha256(&base).unwrap());
    let pid = machine.qemu_pid().unwrap();
    let mut points = Vec::new();
    for (at, size) in [(1, 4), (2, 8), (3, 64)] {
        let write = format!(
            "echo point {at} >/root/note; dd if=/dev/urandom of=/root/data{at} bs=1M count={size} 2>/dev/null; sync"
        );
        machine.exec(&write).unwrap();
        let started = Instant::now();
        let backup = node.backup(&web, []).unwrap();
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
    let after =
        (machine.dump_xml(Definition::Live).unwrap(), machine.chain("vda").unwrap(), sha256(&base).unwrap());
    assert_eq!(after, before);
    assert_eq!(machine.qemu_pid().unwrap(), pid, "the guest ran on");
    node.expect_untouched(&web).expect("after three backups");

    // The second instance on that image sends its own changes only.
    let other = node.machine(&mail).unwrap();
    other.exec("echo mail >/root/note; sync").unwrap();
    let first = node.backup(&mail, []).unwrap();
    println!("second instance on the image: {} MiB sent", bytes(&first, "bytes_uploaded") >> 20);
    assert!(bytes(&first, "bytes_uploaded") < 40 << 20, "{first}");
    other.destroy().unwrap();
    mail.delete().unwrap();

    // What is kept of the instance.
    let shown = node.underlay.json(["show", &points[0].1]).unwrap();
    let kept = &shown["private"]["instance"];
    assert_eq!(
        (kept["name"].as_str(), kept["flavor"]["memory"].as_u64()),
        (Some("web"), Some(512)),
        "{shown}"
    );
    assert!(kept["image"].is_string() && kept["project"].is_string(), "{kept}");

    for (at, snapshot) in &points {
        assert_eq!(note_of(&node, snapshot, &format!("restored {at}")), format!("point {at}\n"));
    }
    machine.exec("cat /root/data1 /root/data2 /root/data3 >/dev/null").unwrap();
    node.expect_exact(&web).expect("at the end");

    comes_back_into_itself(&node, &web, &points[1].1);
    boots_anywhere(&node, &points[0].1);
    web.delete().unwrap();
}

#[test]
fn every_kind_of_disk_is_backed_up_by_either_strategy() {
    let node = ComputeNode::start().unwrap();
    let flavor = json!({"flavor": {"name": "all", "ram": 512, "vcpus": 1, "disk": 3, "OS-FLV-EXT-DATA:ephemeral": 1, "swap": 64}});
    let flavor = node.cloud.request("compute", "POST", "/flavors", Some(&flavor)).unwrap();
    let more =
        json!({"flavorRef": flavor["flavor"]["id"], "config_drive": true, "metadata": {"role": "web"}});
    let web = node.cloud.boot_with("web", &more);
    let web = web.unwrap_or_else(|error| panic!("{error}\n{}", node.cloud.log()));
    let machine = node.machine(&web).unwrap();
    machine
        .exec("echo kept >/root/note; echo swapped | dd of=/dev/vdc conv=notrunc 2>/dev/null; sync")
        .unwrap();
    let before = (machine.dump_xml(Definition::Live).unwrap(), machine.chain("vda").unwrap());
    let mut disks = Vec::new();
    for strategy in ["bitmap", "pivot"] {
        let backup = node.backup(&web, ["--strategy", strategy]).unwrap();
        assert_eq!(backup["strategy"], strategy);
        node.expect_untouched(&web).expect(strategy);
        assert_eq!(
            (machine.dump_xml(Definition::Live).unwrap(), machine.chain("vda").unwrap()),
            before,
            "{strategy}"
        );
        let shown = node.underlay.json(["show", backup["snapshot"].as_str().unwrap()]).unwrap();
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
    let killed = node.underlay.through("underlay-killed").unwrap();
    let mut command = killed.command(["backup", "--instance", web.uuid()]);
    assert_eq!(output(command.env("KILL_AT", "0")).unwrap().status.signal(), Some(9));
    assert!(web.is_locked().unwrap());
    node.backup(&web, []).unwrap();
    assert!(!web.is_locked().unwrap());

    let config = disks.iter().find(|name| !name.starts_with("vd")).unwrap();
    let drive = node.path("config.raw");
    let snapshot = format!("{}@latest", web.uuid());
    node.underlay.run(&["restore", &snapshot, "--disk", config, "--to", drive.to_str().unwrap()]).unwrap();
    assert!(std::fs::read(&drive).unwrap() == std::fs::read(web.folder().join("disk.config")).unwrap());
    // After a pivot the disk is what it was, for Nova too.
    web.hard_reboot().unwrap();
    let machine = node.machine(&web).unwrap();
    assert_eq!(machine.exec("cat /root/note; head -c 8 /dev/vdc").unwrap(), "kept\nswapped\n");
    let left_out = node.backup(&web, ["--exclude-disk", "vdc"]).unwrap();
    let shown = node.underlay.json(["show", left_out["snapshot"].as_str().unwrap()]).unwrap();
    assert_eq!(shown["roots"].as_array().unwrap().len(), 3);
    web.delete().unwrap();
}
