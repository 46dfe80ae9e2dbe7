//! A running guest whose agent is gone, hangs, fails or is left alone half-way: the backup says how consistent it is, and whatever
//! happens, the guest's file systems are not left frozen.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::json;
use underlay_tests::commands::{output, wait_until};
use underlay_tests::host::{Host, answer};
use underlay_tests::libvirt::Definition;

/// How long a guest that is not frozen takes at most to write to both disks.
const PROMPT: Duration = Duration::from_secs(10);
/// Runs commands that come through a port of their own, and answers each with its exit code.
const SHELL: &str = "while read -r line; do sh -c \"$line\" >/dev/null 2>&1 </dev/null; echo $?; done \
    <>/dev/virtio-ports/shell >&0";
/// What the agent runs around a freeze. Files in /run, which is never frozen, say how it behaves, and it notes what it was told.
const HOOK: &str = "#!/bin/sh\necho begin $1 >>/run/hook\n\
    [ -e /run/slow-$1 ] && sleep $(cat /run/slow-$1)\n\
    echo end $1 >>/run/hook\n\
    [ ! -e /run/fail-$1 ]\n";

/// A host whose guest can be told what to do when its agent cannot.
struct Place {
    host: Host,
    shell: BufReader<UnixStream>,
    _folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("shell");
        let channel = format!(
            "<channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='shell'/></channel>",
            socket.display()
        );
        let host = Host::with(|spec| spec.device(&channel)).unwrap();
        let shell = UnixStream::connect(&socket).unwrap();
        shell.set_read_timeout(Some(PROMPT)).unwrap();
        host.web.write_file("/run/shell", SHELL.as_bytes()).unwrap();
        host.web.write_file("/etc/qemu/fsfreeze-hook", HOOK.as_bytes()).unwrap();
        host.web.exec("systemd-run --unit=shell sh /run/shell && sync").unwrap();
        Self { host, shell: BufReader::new(shell), _folder: folder }
    }

    /// Runs a command in the guest without its agent. Fails when that takes longer than [`PROMPT`].
    #[track_caller]
    fn tell(&mut self, command: &str) {
        assert_eq!(self.asked(command), "0", "{command}");
    }

    #[track_caller]
    fn asked(&mut self, command: &str) -> String {
        self.shell.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.shell.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    /// The guest writes to both disks at once, and its agent knows of nothing frozen.
    #[track_caller]
    fn expect_thawed(&mut self) {
        self.tell("date >/root/written && date >/data/written && sync");
        self.host.libvirtd.virsh(["domtime", "web"]).unwrap();
        let status = self.host.web.agent(&json!({"execute": "guest-fsfreeze-status"})).unwrap();
        assert_eq!(status, "thawed");
        assert_eq!(self.host.record().unwrap()["thaw_pending"], false);
    }

    /// What the hook was told since it was last asked.
    fn hooked(&self) -> Vec<String> {
        let told = self.host.web.exec("cat /run/hook; rm -f /run/hook").unwrap();
        told.lines().map(str::to_owned).collect()
    }

    /// The chains of both disks, and what the journal says.
    fn state(&self) -> (Vec<Vec<PathBuf>>, serde_json::Value) {
        (["vda", "vdb"].map(|disk| self.host.web.chain(disk).unwrap()).into(), self.host.record().unwrap())
    }

    /// A backup that is refused, and what it said.
    #[track_caller]
    fn refused(&self) -> String {
        let refused = self.host.try_backup(["--require-quiesce"]).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        complaint(&refused)
    }

    /// A backup that falls back to crash consistency, and what it said.
    #[track_caller]
    fn falls_back(&self) -> String {
        let done = self.host.try_backup([]).unwrap();
        assert_eq!(done.status.code(), Some(0), "{}", complaint(&done));
        let told = answer(&done).unwrap();
        assert!(told["consistency"] == "crash" && told["unfinished"].is_null(), "{told}");
        assert!(complaint(&done).contains("this backup is crash-consistent"), "{}", complaint(&done));
        complaint(&done)
    }

    /// A backup with the agent's help, which is exact.
    #[track_caller]
    fn expect_quiesced(&self) {
        let done = self.host.backup(["--require-quiesce"]).unwrap();
        assert!(done["consistency"] == "filesystem" && done["unfinished"].is_null(), "{done}");
        self.host.expect_newest_equals_frozen().unwrap();
        assert_eq!(self.host.strays().unwrap(), Vec::<PathBuf>::new());
    }
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn guest_whose_agent_does_not_answer_is_backed_up_as_after_a_power_cut() {
    let mut place = Place::new();
    place.expect_quiesced();
    for (silence, reason, end) in [
        ("kill -STOP $(pidof qemu-ga)", "the guest's agent does not answer", "kill -CONT $(pidof qemu-ga)"),
        ("systemctl stop qemu-guest-agent", "no agent runs in the guest", "systemctl start qemu-guest-agent"),
    ] {
        place.host.scribble(if end.contains("CONT") { "one" } else { "two" }).unwrap();
        place.tell(silence);
        if !end.contains("CONT") {
            wait_until("the agent being gone", PROMPT, || {
                let xml = place.host.web.dump_xml(Definition::Live)?;
                Ok(xml.contains("name='org.qemu.guest_agent.0' state='disconnected'"))
            })
            .unwrap();
        }
        let before = place.state();
        let told = place.refused();
        assert!(told.contains(reason) && told.contains("hint: see to qemu-guest-agent"), "{told}");
        assert_eq!(place.state(), before, "nothing was touched");
        assert!(place.falls_back().contains(&format!("web: {reason}: this backup is crash-consistent")));

        let mut command = place.host.underlay.command(["backup", "--domain", "web", "-v", "--no-quiesce"]);
        let unasked = output(&mut command).unwrap();
        let told = complaint(&unasked);
        assert!(unasked.status.success() && told.contains("virsh --connect"), "{told}");
        for asking in ["domtime", "agent", "quiesce", "domfs", "crash"] {
            assert!(!told.contains(asking), "{asking} in {told}");
        }
        place.tell(end);
        place.host.web.wait_for_agent().unwrap();
        place.expect_thawed();
        place.expect_quiesced();
    }
    place.host.expect_intact().unwrap();
}

#[test]
fn guest_that_freezes_when_nobody_waits_any_more_is_thawed() {
    let mut place = Place::new();
    place.host.backup([]).unwrap();
    // Longer than a backup waits for a freeze.
    place.tell("rm -f /run/hook; echo 33 >/run/slow-freeze");
    let told = place.falls_back();
    assert!(told.contains("snapshot-create-as") && told.contains("timed out"), "{told}");
    place.expect_thawed();
    assert_eq!(place.hooked()[..2], ["begin freeze", "end freeze"], "it did freeze");
    place.host.expect_newest_equals_frozen().unwrap();

    let before = place.state();
    let told = place.refused();
    assert!(told.contains("its file systems cannot be frozen") && told.contains("timed out"), "{told}");
    place.expect_thawed();
    assert_eq!(place.hooked()[..2], ["begin freeze", "end freeze"], "it did freeze");
    assert_eq!(place.state(), before, "the disks are given back");
    assert_eq!(place.host.strays().unwrap(), Vec::<PathBuf>::new());

    place.tell("rm /run/slow-freeze");
    place.host.scribble("afterwards").unwrap();
    place.expect_quiesced();
    place.host.expect_intact().unwrap();
}

#[test]
fn guest_whose_hooks_fail_is_backed_up_and_writes_on() {
    let mut place = Place::new();
    place.expect_quiesced();
    // The agent does not freeze then.
    place.tell("touch /run/fail-freeze");
    assert!(place.falls_back().contains("guest-fsfreeze-freeze"));
    place.expect_thawed();
    let before = place.state();
    assert!(place.refused().contains("its file systems cannot be frozen"));
    assert_eq!(place.state(), before, "the disks are given back");
    place.expect_thawed();
    place.host.expect_newest_equals_frozen().unwrap();
    assert_eq!(place.hooked()[..2], ["begin freeze", "end freeze"]);

    // libvirt freezes, switches the disks, thaws, and then says that it failed.
    place.tell("rm /run/fail-freeze && touch /run/fail-thaw");
    place.host.scribble("one").unwrap();
    assert!(place.falls_back().contains("guest-fsfreeze-thaw"));
    place.expect_thawed();
    place.host.expect_newest_equals_frozen().unwrap();
    let before = place.state().0;
    assert!(place.refused().contains("guest-fsfreeze-thaw"));
    place.expect_thawed();
    assert_eq!(place.state().0, before, "the disks are given back");
    assert_eq!(place.host.strays().unwrap(), Vec::<PathBuf>::new());
    assert_eq!(place.hooked()[..4], ["begin freeze", "end freeze", "begin thaw", "end thaw"]);

    place.tell("rm /run/fail-thaw");
    place.host.scribble("two").unwrap();
    place.expect_quiesced();
    place.host.expect_intact().unwrap();
}

#[test]
fn guest_left_frozen_by_a_killed_backup_is_thawed_by_recovery() {
    let mut place = Place::new();
    place.expect_quiesced();
    let killed = place.host.underlay.through("underlay-killed").unwrap();
    let file = place.host.path("steps");
    let mut whole = killed.command(["backup", "--domain", "web"]);
    assert!(output(whole.env("STEPS_FILE", &file)).unwrap().status.success());
    let steps = std::fs::read_to_string(&file).unwrap();
    for moment in ["Freeze before", "Freeze after"] {
        place.host.scribble(&moment.replace(' ', "-")).unwrap();
        let at = steps.lines().position(|step| step == moment).unwrap();
        let mut command = killed.command(["backup", "--domain", "web"]);
        let ended = output(command.env("KILL_AT", at.to_string())).unwrap();
        assert_eq!(ended.status.signal(), Some(9), "{}", complaint(&ended));
        assert_eq!(place.host.record().unwrap()["thaw_pending"], true);
        // As libvirtd leaves it when it dies in the middle.
        place.host.libvirtd.virsh(["domfsfreeze", "web"]).unwrap();
        let actions = place.host.recover().unwrap();
        assert!(actions.iter().any(|action| action.contains("were thawed")), "{actions:?}");
        place.expect_thawed();
        place.expect_quiesced();
    }
    place.host.expect_intact().unwrap();
}

#[test]
fn guest_whose_libvirtd_dies_while_it_freezes_is_thawed() {
    let mut place = Place::new();
    place.expect_quiesced();
    for patient in [true, false] {
        place.tell("rm -f /run/hook; echo 10 >/run/slow-freeze");
        let mut command = place.host.underlay.command(["backup", "--domain", "web", "--json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut backup = command.spawn().unwrap();
        wait_until("the freeze", PROMPT, || Ok(place.asked("grep -q 'begin freeze' /run/hook") == "0"))
            .unwrap();
        thread::sleep(Duration::from_secs(3));
        if !patient {
            // With everything else on the host.
            backup.kill().unwrap();
        }
        place.host.libvirtd.kill().unwrap();
        thread::sleep(Duration::from_secs(2));
        place.host.libvirtd.start_again().unwrap();
        let ended = backup.wait_with_output().unwrap();
        if patient {
            assert_eq!(ended.status.code(), Some(0), "{}", complaint(&ended));
            assert_eq!(answer(&ended).unwrap()["consistency"], "crash");
            place.expect_thawed();
        }
        let actions = place.host.recover().unwrap();
        assert_eq!(patient, actions.is_empty(), "{actions:?}");
        place.expect_thawed();
        assert_eq!(place.hooked()[..2], ["begin freeze", "end freeze"], "it did freeze");
        place.tell("rm /run/slow-freeze");
        place.host.scribble(if patient { "one" } else { "two" }).unwrap();
        place.expect_quiesced();
    }
    place.host.expect_intact().unwrap();
}
