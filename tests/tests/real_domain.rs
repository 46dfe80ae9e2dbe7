//! A running guest under libvirt: three points in time, each of them whole, while the guest runs on; and what administrators do
//! between backups.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use underlay_tests::commands::{output, run};
use underlay_tests::host::Host;

/// Bytes of guest data that a layer allocates, as QEMU sees it.
fn allocated(layer: &Path) -> u64 {
    let map = run("qemu-img", ["map", "-U", "--output=json", layer.to_str().unwrap()]).unwrap();
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let own = map.as_array().unwrap().iter().filter(|run| run["depth"] == 0 && run["data"] == true);
    own.map(|run| run["length"].as_u64().unwrap()).sum()
}

#[test]
fn guest_goes_on_while_three_points_in_time_are_kept() {
    let host = Host::with_guest().unwrap();
    let (web, pid) = (&host.web, host.web.qemu_pid().unwrap());
    let started = Instant::now();
    let up = web.uptime().unwrap();
    let mut snapshots = Vec::new();
    for point in ["one", "two", "three"] {
        host.scribble(point).unwrap();
        web.write_file("/etc/underlay-marker", point.as_bytes()).unwrap();
        web.exec(&format!("echo {point} > /data/point; sync")).unwrap();
        let active: Vec<_> = ["vda", "vdb"].map(|disk| web.chain(disk).unwrap()[0].clone()).into();
        let done = host.backup(["--require-quiesce"]).unwrap();
        assert_eq!(
            (&done["strategy"], &done["consistency"]),
            (&"rotate".into(), &"filesystem".into()),
            "{done}"
        );
        assert!(done["unfinished"].is_null(), "{done}");
        for (disk, depth) in [("vda", 3), ("vdb", 2)] {
            assert_eq!(
                web.chain(disk).unwrap().len(),
                depth,
                "base, one frozen, active: {:?}",
                web.chain(disk)
            );
        }
        assert_eq!(host.strays().unwrap(), Vec::<std::path::PathBuf>::new());
        host.expect_newest_equals_frozen().unwrap();
        if point != "one" {
            // The overlays are merged and gone; what they allocated is known from the frozen layer's growth at most. What
            // was read is bounded by what the guest can have written.
            assert!(active.iter().all(|overlay| !overlay.exists()), "{active:?}");
            assert!(done["layers_known"].as_u64().unwrap() >= 3, "{done}");
            assert!(done["bytes_read"].as_u64().unwrap() < 32 << 20, "{done}");
        }
        snapshots.push(done["snapshot"].as_str().unwrap().to_owned());
    }
    host.expect_intact().unwrap();
    assert_eq!(web.qemu_pid().unwrap(), pid);
    assert!(web.uptime().unwrap() >= up + started.elapsed() - Duration::from_secs(5), "the guest ran on");
    web.destroy().unwrap();
    for (point, snapshot) in ["one", "two", "three"].into_iter().zip(&snapshots) {
        let folder = host.path(point);
        let name = format!("web-{point}");
        let mut restore = host.underlay.command(["restore", snapshot, "--define", "--name", &name, "--to"]);
        assert!(restore.arg(format!("{}/", folder.display())).status().unwrap().success());
        let restored = host.libvirtd.machine(&name).unwrap();
        assert_ne!(restored.uuid(), web.uuid());
        let info = run("qemu-img", ["info", folder.join("vda.qcow2").to_str().unwrap()]).unwrap();
        assert!(!info.contains("backing file"), "{info}");
        restored.start().unwrap();
        restored.wait_for_agent().unwrap();
        assert!(web.console().contains(&format!("UNDERLAY-MARKER: {point}")), "{}", web.console());
        restored.exec("mount /dev/vdb /data").unwrap();
        assert_eq!(restored.exec("cat /data/point").unwrap().trim(), point);
        let sums = restored
            .exec("cd /root && sha256sum --quiet -c sums && cd /data && sha256sum --quiet -c sums; ls");
        let files = sums.unwrap();
        for other in ["one", "two", "three"] {
            let expected = ["one", "two", "three"].iter().position(|p| *p == other)
                <= ["one", "two", "three"].iter().position(|p| *p == point);
            assert_eq!(files.lines().any(|file| file == other), expected, "{point}: {files}");
        }
        restored.destroy().unwrap();
    }
}

#[test]
fn guest_increments_read_what_the_overlay_allocates() {
    let host = Host::with_guest().unwrap();
    host.backup(["--no-quiesce"]).unwrap();
    host.web.exec("dd if=/dev/urandom of=/root/large bs=1M count=24; sync").unwrap();
    let overlays = ["vda", "vdb"].map(|disk| host.web.chain(disk).unwrap()[0].clone());
    // Nothing writes while the overlays are measured and then frozen.
    host.web.exec("sync").unwrap();
    host.libvirtd.virsh(["suspend", "web"]).unwrap();
    let written: u64 = overlays.iter().map(|overlay| allocated(overlay)).sum();
    let done = host.backup(["--no-quiesce"]).unwrap();
    host.libvirtd.virsh(["resume", "web"]).unwrap();
    let read = done["bytes_read"].as_u64().unwrap();
    println!("the overlays allocated {written} bytes, {read} were read");
    assert!(written > 24 << 20, "{written}");
    // Cutting around a change reads the chunks at its borders: 1.72 times the bytes at worst, and spot checks.
    assert!(
        read >= written / 2 && read <= written + written * 3 / 4 + (1 << 20),
        "{read} read, {written} allocated"
    );
    host.expect_newest_equals_frozen().unwrap();
}

#[test]
fn guest_disks_changed_by_an_administrator_are_backed_up_as_they_are() {
    let host = Host::with_guest().unwrap();
    let web = &host.web;
    host.scribble("first").unwrap();
    host.backup([]).unwrap();
    host.backup([]).unwrap();

    host.scribble("pulled").unwrap();
    host.libvirtd.virsh(["blockpull", "web", "vdb", "--wait"]).unwrap();
    assert_eq!(web.chain("vdb").unwrap().len(), 1);
    host.backup([]).unwrap();
    host.expect_newest_equals_frozen().unwrap();
    assert_eq!(web.chain("vdb").unwrap().len(), 2);

    host.scribble("before the power fails").unwrap();
    web.destroy().unwrap();
    host.start_guest().unwrap();
    host.backup([]).unwrap();
    host.expect_newest_equals_frozen().unwrap();
    host.expect_intact().unwrap();

    // Off, and the overlay merged by hand: the layer below is not what the last backup knew.
    host.scribble("committed by hand").unwrap();
    web.shut_down().unwrap();
    let overlay = web.chain("vda").unwrap()[0].clone();
    run("qemu-img", ["commit", "-q", overlay.to_str().unwrap()]).unwrap();
    let offline = host.backup([]).unwrap();
    assert_eq!(
        (&offline["strategy"], &offline["consistency"]),
        (&serde_json::Value::Null, &"offline".into())
    );
    for disk in ["vda", "vdb"] {
        host.expect_newest_equals(disk, &web.chain(disk).unwrap()[0]).unwrap();
    }
    host.start_guest().unwrap();
    host.scribble("afterwards").unwrap();
    host.backup([]).unwrap();
    host.expect_newest_equals_frozen().unwrap();

    // A snapshot of the administrator's own on top: it stays, and nothing of it is lost.
    let own = host.path("disks/own.stale.qcow2");
    let diskspec = format!("vda,snapshot=external,file={}", own.display());
    let snapshot = ["snapshot-create-as", "web", "own", "--disk-only", "--atomic", "--no-metadata"];
    host.libvirtd
        .virsh(snapshot.into_iter().chain(["--diskspec", &diskspec, "--diskspec", "vdb,snapshot=no"]))
        .unwrap();
    for name in ["above", "and again", "and once more"] {
        host.scribble(&name.replace(' ', "-")).unwrap();
        host.backup([]).unwrap();
        host.expect_newest_equals_frozen().unwrap();
    }
    let depth = web.chain("vda").unwrap().len();
    assert!(depth <= 5, "base, ours, ours below theirs, theirs, active: {:?}", web.chain("vda"));
    host.expect_intact().unwrap();
    let resized = ["blockresize", "web", "vdb", "300M"];
    host.libvirtd.virsh(resized).unwrap();
    web.exec("resize2fs /dev/vdb").unwrap();
    host.scribble("grown").unwrap();
    for _ in 0..2 {
        host.backup([]).unwrap();
        host.expect_newest_equals_frozen().unwrap();
    }
    host.expect_intact().unwrap();
}

#[test]
fn guest_disks_written_in_lock_step_are_never_restored_out_of_step() {
    let host = Host::with_guest().unwrap();
    // The guest writes a number to one disk, then to the other, and so on, each durable before the next: to sectors that no
    // file system uses.
    let writer = "i=0; while [ ! -e /run/stop ]; do i=$((i+1)); \
        echo $i | dd of=/dev/vda bs=512 seek=1024 conv=sync,notrunc,fsync 2>/dev/null; \
        echo $i | dd of=/dev/vdb bs=512 conv=sync,notrunc,fsync 2>/dev/null; done";
    host.web.write_file("/root/writer", writer.as_bytes()).unwrap();
    host.web.exec("systemd-run --unit=writer sh /root/writer").unwrap();
    let step = |disk: &str, sector: u64| {
        let path = host.path("step.raw");
        let mut command = host.underlay.command(["restore", "web@latest", "--disk", disk, "--force", "--to"]);
        assert!(output(command.arg(&path)).unwrap().status.success());
        let mut bytes = [0; 512];
        File::open(&path).unwrap().read_exact_at(&mut bytes, sector * 512).unwrap();
        String::from_utf8_lossy(&bytes).trim_matches(['\0', '\n', ' ']).parse::<u64>().unwrap()
    };
    let mut last = 0;
    for options in [
        ["--no-quiesce", "--strategy=rotate"],
        ["--require-quiesce", "--strategy=rotate"],
        ["--no-quiesce", "--strategy=pivot"],
    ] {
        for _ in 0..3 {
            host.backup(options).unwrap();
            let (first, second) = (step("vda", 1024), step("vdb", 0));
            println!("{options:?}: {first} and {second}");
            assert!(
                first == second || first == second + 1,
                "{options:?}: vda is at {first}, vdb at {second}"
            );
            assert!(first > last, "the guest writes on");
            last = first;
        }
    }
    host.web.exec("touch /run/stop").unwrap();
}

#[test]
fn guest_under_load_stalls_only_for_moments() {
    let host = Host::with_guest().unwrap();
    // Every turn writes and syncs, and notes how long it took: the longest is the longest stall.
    let writer = "worst=0; last=$(cut -d' ' -f1 /proc/uptime | tr -d .); n=0; while [ ! -e /run/stop ]; do \
        dd if=/dev/urandom of=/data/load bs=256k count=2 conv=fsync 2>/dev/null; n=$((n+1)); \
        now=$(cut -d' ' -f1 /proc/uptime | tr -d .); took=$((now-last)); last=$now; \
        [ $took -gt $worst ] && worst=$took; echo $worst $n >/run/worst.new; mv /run/worst.new /run/worst; done";
    host.web.write_file("/root/writer", writer.as_bytes()).unwrap();
    host.web.exec("systemd-run --unit=writer sh /root/writer").unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let read = || {
        let text = host.web.exec("cat /run/worst").unwrap();
        let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        (numbers[0], numbers[1])
    };
    let (calm, _) = read();
    for strategy in ["rotate", "rotate", "rotate", "pivot", "pivot"] {
        let before = read().1;
        let mut command = host.underlay.command(["backup", "--domain", "web", "--strategy", strategy]);
        assert!(output(&mut command).unwrap().status.success());
        assert!(read().1 > before, "the guest wrote on");
    }
    let (worst, turns) = read();
    println!("longest turn of the writer: {calm}0 ms at rest, {worst}0 ms while backed up, {turns} turns");
    assert!(worst < 3000, "the guest stalled for {worst}0 ms");
    host.web.exec("touch /run/stop").unwrap();
}
