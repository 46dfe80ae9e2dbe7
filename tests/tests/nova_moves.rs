//! What Nova does to an instance between backups that gives it another disk or another host: nothing is lost, no instance gets into
//! `ERROR`, and the next backup is exact.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underlay_tests::commands::{output, run, wait_until};
use underlay_tests::compute_node::{ComputeNode, Host, expect_intact, scribble};
use underlay_tests::openstack::{Instance, InstanceFolders};

/// The id of a new flavor whose disk has so many GiB.
fn flavor(node: &ComputeNode, disk: u64) -> Value {
    let flavor = json!({"flavor": {"name": format!("disk {disk}"), "ram": 512, "vcpus": 1, "disk": disk}});
    node.cloud.request("compute", "POST", "/flavors", Some(&flavor)).unwrap()["flavor"]["id"].clone()
}

/// Has Nova change the flavor. The instance runs with the new one, and waits to be told whether that stays.
fn resize(web: &Instance, flavor: &Value) -> underlay_tests::Result<()> {
    web.act(&json!({"resize": {"flavorRef": flavor}}))?;
    web.wait_for("VERIFY_RESIZE")
}

fn confirm(web: &Instance) {
    web.act(&json!({"confirmResize": null})).unwrap();
    web.wait_for("ACTIVE").unwrap();
}

fn read(backup: &Value) -> u64 {
    backup["bytes_read"].as_u64().unwrap()
}

/// The bitmaps that a disk of a stopped instance has, each with whether it is sound.
fn bitmaps(disk: &Path) -> Vec<(String, bool)> {
    let told = run("qemu-img", ["info", "-U", "--output=json", disk.to_str().unwrap()]).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    let bitmaps = told["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    let sound = |bitmap: &Value| !bitmap["flags"].as_array().unwrap().contains(&json!("in-use"));
    bitmaps.iter().map(|bitmap| (bitmap["name"].as_str().unwrap().to_owned(), sound(bitmap))).collect()
}

/// What the guest sees of its disk, in GiB.
fn size(host: &Host, web: &Instance) -> String {
    host.machine(web).unwrap().exec("echo -n $(($(cat /sys/block/vda/size) >> 21))").unwrap()
}

/// What a moment's backup read and said; it is exact, and the guest's files are what they were.
fn expect_sound(host: &Host, web: &Instance, moment: &str) -> (Value, String) {
    let machine = host.machine(web).unwrap();
    let (backup, told) = host.expect_exact(web).unwrap_or_else(|error| panic!("{moment}: {error}"));
    expect_intact(&machine).unwrap_or_else(|error| panic!("{moment}: {error}"));
    println!("{moment}: {} MiB read\n{}", read(&backup) >> 20, told.trim());
    (backup, told)
}

/// A backup is killed when it has begun to read, and leaves QEMU showing the disks.
fn kill_in_the_middle(node: &ComputeNode, web: &Instance) {
    let killed = node.underlay.through("underlay-killed").unwrap();
    let file = node.path("steps");
    let backup = || killed.command(["backup", "--instance", web.uuid()]);
    assert!(output(backup().env("STEPS_FILE", &file)).unwrap().status.success());
    let moments = std::fs::read_to_string(&file).unwrap();
    let at = moments.lines().position(|moment| moment == "Capture before").unwrap();
    let ended = output(backup().env("KILL_AT", at.to_string())).unwrap();
    assert_eq!(ended.status.signal(), Some(9), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn a_resize_costs_one_whole_read() {
    let node = ComputeNode::start().unwrap();
    let host = node.host().unwrap();
    let web = node.cloud.boot("web").unwrap();
    let sizes = [2, 3, 4].map(|disk| flavor(&node, disk));
    scribble(&node.machine(&web).unwrap(), "one").unwrap();
    let (first, _) = host.backup(&web, []).unwrap();
    host.backup(&web, []).unwrap();

    // Bitmaps in the disk are not in the way, and travel with the copy that Nova makes.
    resize(&web, &sizes[0]).unwrap();
    assert_eq!(size(&host, &web), "2");
    scribble(&host.machine(&web).unwrap(), "two").unwrap();
    let (backup, told) = expect_sound(&host, &web, "resized, not confirmed");
    assert!(told.contains("is another file than before") && read(&backup) > read(&first) / 2, "{told}");
    confirm(&web);
    scribble(&host.machine(&web).unwrap(), "three").unwrap();
    let (backup, told) = expect_sound(&host, &web, "confirmed");
    assert!(!told.contains("all of its disks is read") && read(&backup) < read(&first) / 2, "{told}");
    node.expect_untouched(&web).unwrap();

    // Taken back: the old disk is there again, with its bitmap.
    resize(&web, &sizes[1]).unwrap();
    host.machine(&web).unwrap().exec("echo lost >/root/lost; sync").unwrap();
    web.act(&json!({"revertResize": null})).unwrap();
    web.wait_for("ACTIVE").unwrap();
    assert_eq!(size(&host, &web), "2");
    scribble(&host.machine(&web).unwrap(), "four").unwrap();
    let (backup, told) = expect_sound(&host, &web, "taken back, no backup meanwhile");
    assert!(!told.contains("all of its disks is read") && read(&backup) < read(&first) / 2, "{told}");
    assert!(host.machine(&web).unwrap().exec("cat /root/lost").is_err());
    node.expect_untouched(&web).unwrap();

    // A backup that was killed in the middle of reading.
    kill_in_the_middle(&node, &web);
    scribble(&host.machine(&web).unwrap(), "five").unwrap();
    resize(&web, &sizes[2]).unwrap();
    confirm(&web);
    expect_sound(&host, &web, "resized after a backup that was killed");
    node.expect_untouched(&web).unwrap();
    web.stop().unwrap();
    let left = bitmaps(&web.folder().join("disk"));
    assert!(left.len() == 2 && left.iter().all(|(_, is_sound)| *is_sound), "{left:?}");
    web.delete().unwrap();
}

/// QEMU dies with a bitmap that it had read from the disk, and notices nothing.
fn crash(host: &Host, web: &Instance) {
    web.stop().unwrap();
    web.start().unwrap();
    let machine = host.libvirtd.machine(web.domain()).unwrap();
    run("kill", ["-9", &machine.qemu_pid().unwrap().to_string()]).unwrap();
    let off = || Ok(web.status()? == ("SHUTOFF".into(), None));
    wait_until("Nova noticing", Duration::from_secs(60), off).unwrap();
}

#[test]
fn after_a_crash_of_qemu_a_resize_waits_for_underlay() {
    let node = ComputeNode::start().unwrap();
    let host = node.host().unwrap();
    let web = node.cloud.boot("web").unwrap();
    let sizes = [2, 3].map(|disk| flavor(&node, disk));
    scribble(&node.machine(&web).unwrap(), "one").unwrap();
    host.backup(&web, []).unwrap();
    crash(&host, &web);
    let disk = web.folder().join("disk");
    assert!(matches!(bitmaps(&disk).as_slice(), [(_, false), (_, false)]), "{:?}", bitmaps(&disk));

    // Nova copies the disk, cannot make it larger, and gives up. Nothing is lost.
    assert!(resize(&web, &sizes[0]).is_err());
    web.wait_for("ERROR").unwrap();
    assert!(node.cloud.trouble().contains("is inconsistent and cannot be used"), "{}", node.cloud.trouble());
    web.act(&json!({"os-resetState": {"state": "active"}})).unwrap();
    web.hard_reboot().unwrap();
    expect_intact(&node.machine(&web).unwrap()).unwrap();

    // Once underlay has looked after it, Nova can.
    let said = node.underlay.run(&["recover"]).unwrap();
    assert!(said.contains("not sound any more"), "{said}");
    resize(&web, &sizes[1]).unwrap();
    confirm(&web);
    assert_eq!(size(&host, &web), "3");
    expect_sound(&host, &web, "resized after a crash");

    // The same of one that is off, as after a crash of its host.
    crash(&host, &web);
    assert!(matches!(bitmaps(&disk).as_slice(), [(_, false), (_, false)]), "{:?}", bitmaps(&disk));
    node.underlay.run(&["recover"]).unwrap();
    assert!(bitmaps(&disk).is_empty(), "{:?}", bitmaps(&disk));
    web.delete().unwrap();
}

/// Has Nova do something, waits for the status, and for the one after a second deed.
fn there_and_back(web: &Instance, deeds: [(&str, &str); 2]) {
    for (deed, status) in deeds {
        web.act(&json!({deed: null})).unwrap();
        web.wait_for(status).unwrap();
    }
}

#[test]
fn whatever_stops_an_instance_for_a_while_its_next_backup_is_exact() {
    let node = ComputeNode::start().unwrap();
    let host = node.host().unwrap();
    let web = node.cloud.boot("web").unwrap();
    scribble(&node.machine(&web).unwrap(), "one").unwrap();
    let (first, _) = host.backup(&web, []).unwrap();
    // The disk stays, and so does its bitmap.
    for deeds in [
        [("pause", "PAUSED"), ("unpause", "ACTIVE")],
        [("suspend", "SUSPENDED"), ("resume", "ACTIVE")],
        [("rescue", "RESCUE"), ("unrescue", "ACTIVE")],
    ] {
        scribble(&node.machine(&web).unwrap(), deeds[0].0).unwrap();
        there_and_back(&web, deeds);
        let (backup, told) = expect_sound(&host, &web, deeds[0].0);
        assert!(!told.contains("all of its disks is read") && read(&backup) < read(&first) / 2, "{told}");
        node.expect_untouched(&web).unwrap();
    }
    // It comes back from an image.
    scribble(&node.machine(&web).unwrap(), "shelve").unwrap();
    there_and_back(&web, [("shelve", "SHELVED_OFFLOADED"), ("unshelve", "ACTIVE")]);
    let (_, told) = expect_sound(&host, &web, "shelve");
    assert!(told.contains("is another file than before"), "{told}");
    node.expect_untouched(&web).unwrap();
    let before = node.backup(&web, []).unwrap();

    // It begins anew; what it was can be had back.
    let image = node.cloud.image_named("debian").unwrap();
    web.act(&json!({"rebuild": {"imageRef": image.id}})).unwrap();
    web.wait_for("ACTIVE").unwrap();
    assert!(node.machine(&web).unwrap().exec("cat /root/sums").is_err());
    scribble(&node.machine(&web).unwrap(), "anew").unwrap();
    let (_, told) = expect_sound(&host, &web, "rebuild");
    assert!(told.contains("is another file than before"), "{told}");
    node.expect_untouched(&web).unwrap();
    web.stop().unwrap();
    let snapshot = before["snapshot"].as_str().unwrap();
    node.underlay.run(&["restore", snapshot, "--to-instance", web.uuid()]).unwrap();
    web.start().unwrap();
    let machine = node.machine(&web).unwrap();
    assert!(machine.exec("cat /root/sums").unwrap().contains("shelve"));
    expect_sound(&host, &web, "restored");
    web.delete().unwrap();
}

/// Has Nova move a running instance to its other host.
fn move_live(node: &ComputeNode, web: &Instance, to: &str) {
    web.act(&json!({"os-migrateLive": {"host": to, "block_migration": "auto"}})).unwrap();
    web.wait_for("ACTIVE").unwrap();
    assert_eq!(web.host().unwrap(), to, "{}", node.cloud.trouble());
}

/// Has Nova stop an instance, move it to its other host, and start it there.
fn move_cold(node: &ComputeNode, web: &Instance, to: &str) {
    web.act(&json!({"migrate": null})).unwrap();
    web.wait_for("VERIFY_RESIZE").unwrap();
    confirm(web);
    assert_eq!(web.host().unwrap(), to, "{}", node.cloud.trouble());
}

/// A backup that was killed leaves a pull under way. libvirt moves no guest meanwhile, and Nova waits for what it takes for its
/// migration, until the pull has ended. Then it says ERROR, as of every live migration that libvirt refuses, while the guest goes on.
fn stays_while_it_is_read(node: &ComputeNode, web: &Instance) {
    kill_in_the_middle(node, web);
    web.act(&json!({"os-migrateLive": {"host": "compute-2", "block_migration": "auto"}})).unwrap();
    let refused = || Ok(node.cloud.trouble().contains("cannot acquire state change lock"));
    wait_until("libvirt giving up", Duration::from_secs(120), refused).unwrap();
    assert_eq!(web.status().unwrap(), ("MIGRATING".into(), Some("migrating".into())));
    node.underlay.run(&["recover"]).unwrap();
    web.wait_for("ERROR").unwrap();
    web.act(&json!({"os-resetState": {"state": "active"}})).unwrap();
    web.wait_for("ACTIVE").unwrap();
    assert_eq!(web.host().unwrap(), "compute");
    let host = node.host().unwrap();
    scribble(&host.machine(web).unwrap(), "stays").unwrap();
    host.backup(web, []).unwrap();
    node.expect_untouched(web).unwrap();
}

fn moves(folders: InstanceFolders) {
    let node = ComputeNode::start_two(folders).unwrap();
    let elsewhere = node.second_underlay().unwrap();
    let second = Host { underlay: &elsewhere, libvirtd: node.cloud.second_libvirtd().unwrap() };
    let first = node.host().unwrap();
    let web = node.cloud.boot_with("web", &json!({"availability_zone": "nova:compute"})).unwrap();
    assert_eq!(web.host().unwrap(), "compute");
    scribble(&first.machine(&web).unwrap(), "one").unwrap();
    first.backup(&web, []).unwrap();
    stays_while_it_is_read(&node, &web);
    for (way, move_to) in [("live", move_live as fn(&ComputeNode, &Instance, &str)), ("cold", move_cold)] {
        for (host, name) in [(second, "compute-2"), (first, "compute")] {
            let started = Instant::now();
            move_to(&node, &web, name);
            println!("{way} to {name}: {:.0} s", started.elapsed().as_secs_f64());
            scribble(&host.machine(&web).unwrap(), &format!("{way}-{name}")).unwrap();
            expect_sound(&host, &web, &format!("{folders:?}, {way}, at {name}"));
        }
    }
    web.stop().unwrap();
    println!("{:?}", bitmaps(&web.folder().join("disk")));
    web.delete().unwrap();
}

#[test]
fn an_instance_whose_disk_is_copied_moves_there_and_back() {
    moves(InstanceFolders::Own);
}

#[test]
fn an_instance_whose_disk_is_shared_moves_there_and_back() {
    moves(InstanceFolders::Shared);
}
