//! underlay killed at every step of a backup of a running guest, QEMU killed while it merges, libvirtd killed and restarted: afterwards
//! the guest's data is intact, the chain short, and the next backup exact.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use underlay_client::domain::Step;
use underlay_tests::commands::{output, run, wait_until};
use underlay_tests::host::Host;

/// Steps that a strategy's ordinary backup has. A new step must be put somewhere.
fn belongs(step: Step, strategy: &str) -> bool {
    match step {
        Step::Record | Step::Freeze | Step::Capture | Step::Remove => true,
        Step::Commit | Step::Remember => strategy == "rotate",
        Step::CommitActive => strategy == "pivot",
        // Taken after a failure, and by recovery: see the tests further down and those of the state machine.
        Step::Thaw | Step::Pivot | Step::CommitStopped | Step::Define | Step::SetAside => false,
        // Those of bitmaps: `real_domain_bitmap` has them.
        Step::Quiesce
        | Step::BeginCheckpoint
        | Step::BeginPull
        | Step::EndPull
        | Step::Resume
        | Step::ForgetCheckpoint
        | Step::KnowCheckpoint
        | Step::RemoveCheckpoint
        | Step::RemoveBitmap => false,
    }
}

const STEPS: [Step; 12] = [
    Step::Record,
    Step::Freeze,
    Step::Thaw,
    Step::Capture,
    Step::Commit,
    Step::CommitActive,
    Step::Pivot,
    Step::CommitStopped,
    Step::Define,
    Step::Remember,
    Step::Remove,
    Step::SetAside,
];

/// The moments of one backup, such as `Freeze before`.
fn moments(host: &Host, strategy: &str) -> Vec<String> {
    let file = host.path(&format!("steps-{strategy}"));
    let killed = host.underlay.through("underlay-killed").unwrap();
    let mut command = killed.command(["backup", "--domain", "web", "--strategy", strategy]);
    assert!(output(command.env("STEPS_FILE", &file)).unwrap().status.success());
    std::fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect()
}

/// Kills a backup at each of its moments.
fn killed_at_every_step(strategy: &str) {
    let host = Host::with_guest().unwrap();
    host.backup([]).unwrap();
    host.backup([]).unwrap();
    let moments = moments(&host, strategy);
    println!("{strategy}: {}", moments.join(", "));
    for step in STEPS {
        let found = moments.iter().any(|moment| *moment == format!("{step:?} before"));
        assert_eq!(found, belongs(step, strategy), "{step:?} in {moments:?}");
    }
    let killed = host.underlay.through("underlay-killed").unwrap();
    let pid = host.web.qemu_pid().unwrap();
    for (at, moment) in moments.iter().enumerate() {
        host.scribble(&format!("a{at}")).unwrap();
        let mut command = killed.command(["backup", "--domain", "web", "--strategy", strategy]);
        let ended = output(command.env("KILL_AT", at.to_string())).unwrap();
        let complaint = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.signal(), Some(9), "{moment}: {complaint}");
        let actions = host.recover().unwrap();
        println!("{at} {moment}: {}", actions.join("; "));
        expect_sound(&host, moment);
        host.scribble(&format!("b{at}")).unwrap();
        host.backup(["--strategy=rotate"]).unwrap();
        expect_sound(&host, moment);
        host.expect_newest_equals_frozen().unwrap();
    }
    host.expect_intact().unwrap();
    assert_eq!(host.web.qemu_pid().unwrap(), pid, "the guest ran on");
    let checked = host.underlay.output(["check", "--read-data"]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    host.web.shut_down().unwrap();
    for layer in [host.web.chain("vda").unwrap(), host.web.chain("vdb").unwrap()].concat() {
        run("qemu-img", ["check", "-q", layer.to_str().unwrap()]).unwrap();
    }
}

/// No operation pending, short chains, no file of ours outside them, and a guest that can write.
fn expect_sound(host: &Host, moment: &str) {
    if let Ok(record) = host.record() {
        assert!(record["operation"].is_null() && record["thaw_pending"] == false, "{moment}: {record}");
    }
    for (disk, most) in [("vda", 3), ("vdb", 2)] {
        let chain = host.web.chain(disk).unwrap();
        assert!(chain.len() <= most, "{moment}: {chain:?}");
    }
    assert_eq!(host.strays().unwrap(), Vec::<PathBuf>::new(), "{moment}");
    host.web.exec("echo alive >/root/alive && echo alive >/data/alive && sync").unwrap();
}

#[test]
fn guest_survives_a_rotating_backup_killed_at_every_step() {
    killed_at_every_step("rotate");
}

#[test]
fn guest_survives_a_pivoting_backup_killed_at_every_step() {
    killed_at_every_step("pivot");
}

/// A merge of disk vda that takes long, as an interrupted backup would leave it.
fn begin_slow_merge(host: &Host, strategy: &str) {
    host.backup([]).unwrap();
    host.web.exec("dd if=/dev/urandom of=/root/large bs=1M count=24; sync").unwrap();
    host.scribble("merged").unwrap();
    let step = if strategy == "rotate" { "Commit before" } else { "CommitActive before" };
    let at = moments_until(host, strategy, step);
    host.web.exec("dd if=/dev/urandom of=/root/large bs=1M count=24; sync").unwrap();
    host.scribble("and-merged-again").unwrap();
    let killed = host.underlay.through("underlay-killed").unwrap();
    let mut command = killed.command(["backup", "--domain", "web", "--strategy", strategy]);
    if strategy == "pivot" {
        // What the guest writes while it is frozen is what is merged.
        command.env("KILL_AT", at.to_string());
        assert_eq!(output(&mut command).unwrap().status.signal(), Some(9));
        host.web.exec("dd if=/dev/urandom of=/root/larger bs=1M count=24; sync").unwrap();
        host.scribble("written-while-frozen").unwrap();
    } else {
        assert_eq!(output(command.env("KILL_AT", at.to_string())).unwrap().status.signal(), Some(9));
    }
    let chain: Vec<_> =
        host.web.chain("vda").unwrap().iter().map(|layer| layer.to_str().unwrap().to_owned()).collect();
    let merge = match strategy {
        "rotate" => vec!["blockcommit", "web", "vda", "--base", &chain[2], "--top", &chain[1]],
        _ => vec!["blockcommit", "web", "vda", "--base", &chain[1], "--active"],
    };
    host.libvirtd.virsh(merge.into_iter().chain(["--bandwidth", "1"])).unwrap();
    wait_until("a merge that has begun", Duration::from_secs(30), || {
        let job = host.libvirtd.virsh(["blockjob", "web", "vda", "--raw"])?;
        let done = job.lines().find_map(|line| line.trim().strip_prefix("cur=")?.parse::<u64>().ok());
        Ok(done.is_some_and(|done| done > 1 << 20))
    })
    .unwrap();
}

fn moments_until(host: &Host, strategy: &str, moment: &str) -> usize {
    let moments = moments(host, strategy);
    let at = moments.iter().position(|found| found == moment);
    at.unwrap_or_else(|| panic!("no {moment} in {moments:?}"))
}

/// The guest starts again, has all its data, and the next backups are exact.
fn expect_whole_after_restart(host: &Host) {
    host.start_guest().unwrap();
    host.expect_intact().unwrap();
    for name in ["c1", "c2"] {
        host.scribble(name).unwrap();
        host.backup(["--strategy=rotate"]).unwrap();
        host.expect_newest_equals_frozen().unwrap();
    }
    expect_sound(host, "after a restart");
    host.expect_intact().unwrap();
}

#[test]
fn guest_whose_qemu_is_killed_while_it_merges_down_loses_nothing() {
    let host = Host::with_guest().unwrap();
    begin_slow_merge(&host, "rotate");
    kill_qemu(&host);
    println!("{:?}", host.recover().unwrap());
    expect_whole_after_restart(&host);
}

#[test]
fn guest_whose_qemu_is_killed_while_it_is_given_back_loses_nothing() {
    let host = Host::with_guest().unwrap();
    begin_slow_merge(&host, "pivot");
    let original = host.web.chain("vda").unwrap()[1].clone();
    kill_qemu(&host);
    println!("{:?}", host.recover().unwrap());
    let inactive = host.web.dump_xml(underlay_tests::libvirt::Definition::Inactive).unwrap();
    assert!(
        inactive.contains(original.to_str().unwrap()),
        "the definition names the original again: {inactive}"
    );
    expect_whole_after_restart(&host);
}

#[test]
fn guest_whose_libvirtd_dies_while_it_merges_loses_nothing() {
    for strategy in ["rotate", "pivot"] {
        let mut host = Host::with_guest().unwrap();
        begin_slow_merge(&host, strategy);
        host.libvirtd.kill().unwrap();
        let refused = host.try_backup([]).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
        host.libvirtd.start_again().unwrap();
        // The job goes on, as slow as it is; whoever recovers waits for it.
        println!("{strategy}: {:?}", host.recover().unwrap());
        expect_sound(&host, strategy);
        host.scribble("afterwards").unwrap();
        host.backup(["--strategy=rotate"]).unwrap();
        host.expect_newest_equals_frozen().unwrap();
        host.expect_intact().unwrap();
    }
}

fn kill_qemu(host: &Host) {
    run("kill", ["-9", &host.web.qemu_pid().unwrap().to_string()]).unwrap();
    host.web.wait_until_off().unwrap();
    thread::sleep(Duration::from_millis(200));
}
