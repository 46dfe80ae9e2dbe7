//! Backups of a running guest by dirty bitmaps: only what it wrote is read, its chain is never touched, and a bitmap that cannot be believed
//! costs reading, never data.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use underlay_client::domain::Step;
use underlay_tests::commands::{output, run, wait_until};
use underlay_tests::held::Held;
use underlay_tests::host::{self, Host};
use underlay_tests::libvirt::{Definition, DomainSpec, Libvirtd};
use underlay_tests::mounts::has_own_mounts;
use underlay_tests::program::Underlay;
use underlay_tests::qemu::Format;

const BITMAP: &str = "--strategy=bitmap";

/// What a snapshot's disks hold, by their names.
fn roots(host: &Host, backup: &Value) -> Vec<(String, Value)> {
    let shown = host.underlay.json(["show", backup["snapshot"].as_str().unwrap()]).unwrap();
    let disks = shown["roots"].as_array().unwrap();
    disks.iter().map(|disk| (disk["name"].as_str().unwrap().to_owned(), disk["root"].clone())).collect()
}

fn read(backup: &Value) -> u64 {
    backup["bytes_read"].as_u64().unwrap()
}

/// Backs the guest up while it stands still, once by its bitmap and once all of it: both must find the same. The first one's answer.
fn expect_exact(host: &Host, moment: &str) -> Value {
    host.libvirtd.virsh(["suspend", "web"]).unwrap();
    let by_bitmap = host.backup([BITMAP, "--no-quiesce"]).unwrap();
    let whole = host.backup([BITMAP, "--no-quiesce", "--no-memo"]).unwrap();
    host.libvirtd.virsh(["resume", "web"]).unwrap();
    assert_eq!(roots(host, &by_bitmap), roots(host, &whole), "{moment}");
    by_bitmap
}

/// Nothing of ours is left in libvirt's records, beside the disks, or in the chains.
fn expect_untouched(host: &Host, moment: &str) {
    let checkpoints = host.libvirtd.virsh(["checkpoint-list", "web", "--name"]).unwrap();
    assert_eq!(checkpoints.trim(), "", "{moment}");
    let job = host.libvirtd.virsh(["domjobinfo", "web"]).unwrap();
    assert!(job.contains("None"), "{moment}: {job}");
    assert_eq!(host.strays().unwrap(), Vec::<PathBuf>::new(), "{moment}");
    assert_eq!(
        (host.web.chain("vda").unwrap().len(), host.web.chain("vdb").unwrap().len()),
        (2, 1),
        "{moment}"
    );
    let record = host.record().unwrap();
    assert!(
        record.get("pull").is_none() && record["operation"].is_null() && record["thaw_pending"] == false,
        "{moment}: {record}"
    );
    host.web.exec("echo alive >/root/alive && echo alive >/data/alive && sync").unwrap();
}

/// The bitmaps that a disk of the stopped guest has, sound or not.
fn bitmaps(host: &Host, disk: &str) -> Vec<String> {
    bitmaps_of(&host.disks().join(disk))
}

fn bitmaps_of(disk: &Path) -> Vec<String> {
    let told = run("qemu-img", ["info", "-U", "--output=json", disk.to_str().unwrap()]).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    let bitmaps = told["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    bitmaps.iter().map(|bitmap| bitmap["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn guest_is_read_only_where_it_wrote_and_its_chain_stays() {
    let host = Host::with_guest().unwrap();
    let before = host.web.dump_xml(Definition::Inactive).unwrap();
    let live = host.web.dump_xml(Definition::Live).unwrap();
    host.scribble("one").unwrap();
    let first = host.backup([BITMAP]).unwrap();
    assert_eq!(
        (first["strategy"].as_str(), first["consistency"].as_str()),
        (Some("bitmap"), Some("filesystem"))
    );
    expect_untouched(&host, "first");

    host.web.exec("dd if=/dev/urandom of=/data/large bs=1M count=64 2>/dev/null; sync").unwrap();
    host.scribble("two").unwrap();
    let second = host.backup([BITMAP]).unwrap();
    println!("first read {} bytes, 64 MiB later {}", read(&first), read(&second));
    assert!((64 << 20..96 << 20).contains(&read(&second)), "{second}");
    expect_untouched(&host, "second");
    assert_eq!(host.web.dump_xml(Definition::Inactive).unwrap(), before);
    assert_eq!(host.web.dump_xml(Definition::Live).unwrap(), live);

    // The guest stands still: what was read is what lies in the files once QEMU has ended.
    host.scribble("three").unwrap();
    let third = expect_exact(&host, "third");
    assert!(read(&third) < 48 << 20, "{third}");
    host.libvirtd.virsh(["suspend", "web"]).unwrap();
    host.backup([BITMAP, "--no-quiesce"]).unwrap();
    host.web.destroy().unwrap();
    host.web.wait_until_off().unwrap();
    host.expect_newest_equals("vda", &host.disks().join("web.qcow2")).unwrap();
    host.expect_newest_equals("vdb", &host.disks().join("data.qcow2")).unwrap();
    assert_eq!((bitmaps(&host, "web.qcow2").len(), bitmaps(&host, "data.qcow2").len()), (2, 2));

    // A bitmap outlives an orderly end of QEMU.
    host.start_guest().unwrap();
    host.scribble("four").unwrap();
    let fourth = expect_exact(&host, "after a restart");
    assert!(read(&fourth) < read(&first) / 2, "{fourth}");
    host.expect_intact().unwrap();

    // Another strategy in between: the bitmaps are not believed any more, nor left behind.
    host.backup(["--strategy=pivot"]).unwrap();
    assert!(host.record().unwrap().get("tracking").is_none());
    host.scribble("five").unwrap();
    let fifth = expect_exact(&host, "after a pivot");
    assert!(read(&fifth) >= read(&first) / 2, "{fifth}");
    expect_untouched(&host, "fifth");
    let checked = host.underlay.output(["check", "--read-data"]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn guest_goes_on_when_a_scratch_file_finds_no_room() {
    if !has_own_mounts("guest_goes_on_when_a_scratch_file_finds_no_room").unwrap() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().to_str().unwrap();
    run("mount", ["-t", "tmpfs", "-o", "size=200m,mode=755", "none", small]).unwrap();
    let host = Host::with_guest().unwrap();
    host.web.exec("dd if=/dev/urandom of=/data/old bs=1M count=20 2>/dev/null; sync").unwrap();
    let observed = host.underlay.through("underlay-killed").unwrap();
    let mut command = observed.command(["backup", "--domain", "web", BITMAP, "--overlay-dir", small]);
    // It stands still when the disks are shown, and nothing is read yet.
    let file = host.path("steps");
    host.backup([BITMAP, "--overlay-dir", small]).unwrap();
    assert!(output(command.env("STEPS_FILE", &file)).unwrap().status.success());
    let moments = std::fs::read_to_string(&file).unwrap();
    let at = moments.lines().position(|moment| moment == "Capture before").unwrap();
    let mut command = observed.command(["backup", "--domain", "web", BITMAP, "--overlay-dir", small]);
    let held = Held::by_itself(command.env("PAUSE_AT", at.to_string())).unwrap();
    let free = rustix::fs::statvfs(small).unwrap();
    let rest = std::fs::File::create(folder.path().join("rest")).unwrap();
    rustix::fs::fallocate(&rest, rustix::fs::FallocateFlags::empty(), 0, free.f_bavail * free.f_bsize)
        .unwrap();
    host.web.exec("(dd if=/dev/zero of=/data/old bs=1M count=20 conv=notrunc,fsync; echo kept >/data/done; sync) >/dev/null 2>&1 &").unwrap();
    wait_until("a guest without room", Duration::from_secs(60), || {
        Ok(host.libvirtd.virsh(["domstate", "web", "--reason"])?.contains("I/O error"))
    })
    .unwrap();
    let ended = held.let_go().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("found no room: it goes on, and the backup was given up"), "{told}");
    assert!(told.contains("--overlay-dir"), "{told}");
    wait_until("the guest's write", Duration::from_secs(60), || {
        Ok(host.web.exec("cat /data/done").is_ok_and(|text| text == "kept\n"))
    })
    .unwrap();
    expect_exact(&host, "after a backup without room");
    expect_untouched(&host, "after a backup without room");
}

/// QEMU waits for whoever has asked it for a block, before it lets anybody else at the disk.
#[test]
fn guest_is_not_suspended_with_its_backup() {
    let host = Host::with_guest().unwrap();
    let file = host.path("steps");
    let observed = host.underlay.through("underlay-killed").unwrap();
    let mut command = observed.command(["backup", "--domain", "web", BITMAP]);
    command.env("STEPS_FILE", &file).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut backup = command.spawn().unwrap();
    let patience = Duration::from_secs(60);
    let reads = || Ok(std::fs::read_to_string(&file).is_ok_and(|steps| steps.contains("Capture before")));
    wait_until("a backup reading", patience, reads).unwrap();
    kill_process(Pid::from_child(&backup), Signal::TSTP).unwrap();
    wait_until("its end", patience, || Ok(backup.try_wait()?.is_some())).unwrap();
    let ended = backup.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && told.contains("not suspended"), "{told}");
}

/// Backs up, and says what the user is told.
fn told(host: &Host) -> (Value, String) {
    let output = host.try_backup([BITMAP, "--no-quiesce"]).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    (host::answer(&output).unwrap(), told)
}

#[test]
fn guest_whose_bitmap_cannot_be_believed_is_read_whole() {
    let host = Host::with_guest().unwrap();
    let first = host.backup([BITMAP]).unwrap();
    let tracked = || host.record().unwrap()["tracking"]["checkpoint"].as_str().unwrap().to_owned();
    let expect_whole = |what: &str, words: &str| {
        let (backup, told) = told(&host);
        assert!(told.contains(words), "{what}: {told}");
        assert!(read(&backup) > read(&first) / 2, "{what}: {backup}");
        expect_exact(&host, what);
        expect_untouched(&host, what);
    };

    // QEMU dies: what it noted since it began is lost, and it says so.
    host.scribble("before-the-crash").unwrap();
    run("kill", ["-9", &host.web.qemu_pid().unwrap().to_string()]).unwrap();
    host.web.wait_until_off().unwrap();
    host.start_guest().unwrap();
    host.scribble("after-the-crash").unwrap();
    expect_whole("killed", "cannot be used");

    // Somebody removes it; somebody puts another file in the disk's place, with the bitmap in it.
    let (system, data) = (host.disks().join("web.qcow2"), host.disks().join("data.qcow2"));
    host.web.shut_down().unwrap();
    // Unsound ones are removed, too: `qemu-img resize` would refuse to work on the disk.
    assert_eq!((bitmaps(&host, "web.qcow2").len(), bitmaps(&host, "data.qcow2").len()), (2, 2));
    run("qemu-img", ["bitmap", "--remove", data.to_str().unwrap(), &tracked()]).unwrap();
    host.start_guest().unwrap();
    expect_whole("removed", "cannot be used");
    host.web.shut_down().unwrap();
    let copy = host.disks().join("copy");
    run("cp", [system.to_str().unwrap(), copy.to_str().unwrap()]).unwrap();
    std::fs::rename(&copy, &system).unwrap();
    host.start_guest().unwrap();
    expect_whole("replaced", "another file than before");

    // Made again under its name, after so little was written that no chunk that is read again would show it: its witness does.
    let make_again = |name: &str| {
        host.web.shut_down().unwrap();
        for disk in [&system, &data] {
            let disk = disk.to_str().unwrap();
            run("qemu-img", ["bitmap", "--remove", disk, name]).unwrap();
            run("qemu-img", ["bitmap", "--add", disk, name]).unwrap();
        }
        host.start_guest().unwrap();
    };
    host.scribble("before-it-was-made-again").unwrap();
    make_again(&tracked());
    expect_whole("made again", "was made again under its name");

    // Its witness made again: what the bitmap has noted is all there.
    host.scribble("before-the-witness-was-made-again").unwrap();
    make_again(&format!("{}-witness", tracked()));
    let increment = expect_exact(&host, "the witness made again");
    assert!(read(&increment) < read(&first) / 2, "{increment}");

    // No snapshot holds any more what the disks held.
    let mut forget = host.underlay.command(["forget", "--keep-last", "1"]);
    assert!(output(&mut forget).unwrap().status.success());
    let all = host.underlay.json(["list"]).unwrap();
    let newest = all.as_array().unwrap().last().unwrap()["snapshot"].as_str().unwrap().to_owned();
    assert!(host.underlay.output(["forget", &newest]).unwrap().status.success());
    expect_whole("forgotten", "no snapshot holds any more");
    host.expect_intact().unwrap();
}

#[test]
fn bitmaps_that_a_crash_has_made_unsound_are_removed_by_recover() {
    // What it boots from is of no account: QEMU keeps bitmaps for whoever writes, or nobody.
    let libvirtd = Libvirtd::start().unwrap();
    let disk = libvirtd.folder().join("web.qcow2");
    run("qemu-img", ["create", "-q", "-f", "qcow2", disk.to_str().unwrap(), "256M"]).unwrap();
    let write = |what: &str| run("qemu-io", ["-f", "qcow2", "-c", what, disk.to_str().unwrap()]).unwrap();
    write("write -q -P 7 0 32M");
    let web = libvirtd.define(&DomainSpec::new("web").disk("vda", &disk, Format::Qcow2)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
    let underlay = underlay.with_variable("UNDERLAY_CONNECT", libvirtd.uri());
    let backup = || {
        underlay.json(["backup", "--domain", "web", BITMAP, "--no-quiesce"]).unwrap()["domains"][0].clone()
    };
    let recover = || underlay.json(["recover", "--domain", "web"]).unwrap()["domains"][0]["actions"].clone();
    let resize =
        || output(Command::new("qemu-img").args(["resize", "-f", "qcow2"]).arg(&disk).arg("+64M")).unwrap();
    let restart = || {
        web.destroy().unwrap();
        web.start().unwrap();
    };
    // QEMU dies with a bitmap that it had read from the disk.
    let crash = || {
        restart();
        run("kill", ["-9", &web.qemu_pid().unwrap().to_string()]).unwrap();
        web.wait_until_off().unwrap();
    };
    let expect_gone = |moment: &str| {
        let done = recover();
        assert!(done[0].as_str().unwrap().contains("not sound any more"), "{moment}: {done}");
        assert_eq!(recover(), json!([]), "{moment}");
    };

    // Sound ones stay, running or not, and are in nobody's way.
    web.start().unwrap();
    assert!(read(&backup()) >= 32 << 20);
    assert_eq!(recover(), json!([]));
    web.destroy().unwrap();
    assert_eq!((recover(), bitmaps_of(&disk).len()), (json!([]), 2));
    write("write -q -P 8 40M 1M");
    assert!(resize().status.success());
    web.start().unwrap();
    let grown = backup();
    assert!((1 << 20..16 << 20).contains(&read(&grown)), "{grown}");

    crash();
    let refused = resize();
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("inconsistent"), "{told}");
    expect_gone("stopped");
    assert_eq!(bitmaps_of(&disk).len(), 0);
    assert!(resize().status.success());
    write("write -q -P 9 50M 1M");
    web.start().unwrap();
    assert!(read(&backup()) >= 34 << 20);

    crash();
    web.start().unwrap();
    expect_gone("running");
    web.destroy().unwrap();
    assert_eq!(bitmaps_of(&disk).len(), 0);
    assert!(resize().status.success());
    web.start().unwrap();
    assert!(read(&backup()) >= 34 << 20);
    let checked = underlay.output(["check", "--read-data"]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

/// The steps that a backup by bitmap has, but for thawing again what an agent froze.
const STEPS: [Step; 9] = [
    Step::Record,
    Step::Quiesce,
    Step::BeginCheckpoint,
    Step::BeginPull,
    Step::ForgetCheckpoint,
    Step::Capture,
    Step::EndPull,
    Step::KnowCheckpoint,
    Step::RemoveCheckpoint,
];

#[test]
fn guest_survives_a_backup_by_bitmap_killed_at_every_step() {
    let host = Host::with_guest().unwrap();
    host.backup([BITMAP]).unwrap();
    host.backup([BITMAP]).unwrap();
    let file = host.path("steps");
    let killed = host.underlay.through("underlay-killed").unwrap();
    let backup = || killed.command(["backup", "--domain", "web", BITMAP]);
    assert!(output(backup().env("STEPS_FILE", &file)).unwrap().status.success());
    let moments: Vec<String> = std::fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
    println!("{}", moments.join(", "));
    for step in STEPS {
        assert!(moments.contains(&format!("{step:?} before")), "{step:?} in {moments:?}");
    }
    let place = |moment: &str| moments.iter().position(|found| found == moment).unwrap();
    let pid = host.web.qemu_pid().unwrap();
    for (at, moment) in moments.iter().enumerate() {
        host.scribble(&format!("a{at}")).unwrap();
        let ended = output(backup().env("KILL_AT", at.to_string())).unwrap();
        assert_eq!(ended.status.signal(), Some(9), "{moment}: {}", String::from_utf8_lossy(&ended.stderr));
        // Half of them are brought in order by the next backup.
        if at % 2 == 0 {
            println!("{at} {moment}: {}", host.recover().unwrap().join("; "));
            expect_untouched(&host, moment);
        }
        // A guest whose file systems are frozen cannot write, until whoever comes next has thawed them.
        if at % 2 == 0 || !(place("Quiesce after")..=place("Thaw before")).contains(&at) {
            host.scribble(&format!("b{at}")).unwrap();
        }
        // Not while it stands still: its agent could not thaw what a killed backup froze.
        host.backup([BITMAP]).unwrap();
        if at % 3 == 0 {
            expect_exact(&host, moment);
        }
        expect_untouched(&host, moment);
    }
    host.expect_intact().unwrap();
    assert_eq!(host.web.qemu_pid().unwrap(), pid, "the guest ran on");
    host.web.shut_down().unwrap();
    for disk in ["web.qcow2", "data.qcow2"] {
        assert_eq!(bitmaps(&host, disk).len(), 2, "{disk}: {:?}", bitmaps(&host, disk));
        run("qemu-img", ["check", "-q", host.disks().join(disk).to_str().unwrap()]).unwrap();
    }
}
