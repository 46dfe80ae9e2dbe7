//! Whenever a backup of an instance is killed or stands still, and whatever Nova does then, nothing is lost and nothing is left.
//!
//! What a backup changes it changes in steps, so that the moment after one is the moment before the next. Nova acts at each of these
//! moments in three ways: the backup was killed, and whoever comes next is Nova; it was killed, and `underlay recover` comes before
//! Nova; it stands still, and goes on when Nova is done.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use underlay_tests::commands::{output, wait_until};
use underlay_tests::compute_node::{ComputeNode, expect_intact, scribble, sha256};
use underlay_tests::held::Held;
use underlay_tests::openstack::Instance;
use underlay_tests::program::Underlay;

/// What Nova does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    HardReboot,
    StopAndStart,
    CreateImage,
    Delete,
}

impl Deed {
    fn of(self, instance: &Instance) -> underlay_tests::Result<()> {
        match self {
            Self::HardReboot => instance.hard_reboot(),
            Self::StopAndStart => instance.stop().and_then(|()| instance.start()),
            Self::CreateImage => instance.create_image("of its own").map(drop),
            Self::Delete => instance.delete(),
        }
    }
}

/// What has become of the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Killed,
    KilledAndRecovered,
    Paused,
}

const FATES: [Fate; 3] = [Fate::Killed, Fate::KilledAndRecovered, Fate::Paused];

/// A backup that goes on slowly: of each fifth of a second it works for two milliseconds. It must not stand still in the
/// middle of a read: QEMU waits for whoever has asked for a block to take it, when it begins a job with that disk.
struct Slowed {
    backup: Child,
    full_speed: Arc<AtomicBool>,
    brake: JoinHandle<()>,
}

impl Slowed {
    /// Starts a backup, and slows it down once it reads.
    fn start(command: &mut Command, steps: &Path) -> Self {
        let _ = fs::remove_file(steps);
        let command = command.env("STEPS_FILE", steps);
        let backup = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = wait_until("a backup reading", Duration::from_secs(60), || {
            Ok(fs::read_to_string(steps).is_ok_and(|steps| steps.contains("Capture before")))
        });
        begun.unwrap();
        let full_speed = Arc::new(AtomicBool::new(false));
        let process = Pid::from_child(&backup);
        let released = Arc::clone(&full_speed);
        let brake = std::thread::spawn(move || {
            while !released.load(Ordering::Relaxed) {
                for (signal, milliseconds) in [(Signal::STOP, 198), (Signal::CONT, 2)] {
                    kill_process(process, signal).unwrap();
                    std::thread::sleep(Duration::from_millis(milliseconds));
                }
            }
        });
        Self { backup, full_speed, brake }
    }

    /// Lets it go on to its end, which it has not reached yet unless it failed: how it ended, and what it said.
    fn go_on(self, steps: &Path) -> (ExitStatus, String) {
        let steps = fs::read_to_string(steps).unwrap();
        self.full_speed.store(true, Ordering::Relaxed);
        self.brake.join().unwrap();
        let ended = self.backup.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        let in_time = !ended.status.success() || !steps.contains("Capture after");
        assert!(in_time, "it has read all too soon: {steps}");
        (ended.status, told)
    }
}

/// An instance, a backup of which can be interrupted at each of its moments.
struct Patient {
    node: ComputeNode,
    web: Instance,
    killed: Underlay,
    moments: Vec<String>,
}

impl Patient {
    fn new() -> Self {
        let node = ComputeNode::start().unwrap();
        let killed = node.underlay.through("underlay-killed").unwrap();
        let web = node.cloud.boot("web").unwrap();
        let mut patient = Self { node, web, killed, moments: Vec::new() };
        patient.admit();
        let steps = patient.node.path("steps");
        assert!(output(patient.backup().env("STEPS_FILE", &steps)).unwrap().status.success());
        patient.moments = fs::read_to_string(&steps).unwrap().lines().map(str::to_owned).collect();
        println!("{}", patient.moments.join(", "));
        patient
    }

    /// Two backups, so that the next one is by a bitmap and has an old one to remove.
    fn admit(&self) {
        let machine = self.node.machine(&self.web).unwrap();
        scribble(&machine, "first").unwrap();
        self.node.backup(&self.web, []).unwrap();
        self.node.backup(&self.web, []).unwrap();
    }

    fn backup(&self) -> Command {
        self.killed.command(["backup", "--instance", self.web.uuid()])
    }

    /// Whether the guest's file systems are frozen then: whoever writes in it would wait.
    fn is_frozen(&self, at: usize) -> bool {
        let place = |moment: &str| self.moments.iter().position(|found| found == moment).unwrap();
        (place("Quiesce after")..=place("Thaw before")).contains(&at)
    }

    /// A backup is interrupted at a moment, Nova does something, and the next backup finds all as it should be.
    fn suffers(&mut self, at: usize, fate: Fate, deed: Deed) {
        let machine = self.node.machine(&self.web).unwrap();
        scribble(&machine, &format!("before-{at}-{fate:?}")).unwrap();
        let paused = match fate {
            Fate::Paused => Some(Held::by_itself(self.backup().env("PAUSE_AT", at.to_string())).unwrap()),
            Fate::Killed | Fate::KilledAndRecovered => {
                let ended = output(self.backup().env("KILL_AT", at.to_string())).unwrap();
                let told = String::from_utf8_lossy(&ended.stderr);
                assert_eq!(ended.status.signal(), Some(9), "{told}");
                None
            }
        };
        if !self.is_frozen(at) {
            scribble(&machine, &format!("meanwhile-{at}-{fate:?}")).unwrap();
        }
        if fate == Fate::KilledAndRecovered {
            self.node.underlay.run(&["recover"]).unwrap();
        }
        if let Err(error) = deed.of(&self.web) {
            // libvirt undefines no domain of which it knows checkpoints.
            let is_in_the_way =
                deed == Deed::Delete && fate == Fate::Killed && error.to_string().contains("checkpoints");
            assert!(is_in_the_way, "{error}\n{}", self.node.cloud.trouble());
            println!("        not deleted before it is recovered");
            self.node.underlay.run(&["recover"]).unwrap();
            self.web.delete_after_error().unwrap();
        }
        if let Some(paused) = paused {
            let ended = paused.let_go().unwrap();
            let (status, told) = (ended.status, String::from_utf8_lossy(&ended.stderr));
            // Done, failed or done in part: it says so.
            assert!(matches!(status.code(), Some(0 | 1 | 3)), "{status}: {told}");
            assert!(status.success() || told.contains("underlay: "), "{status}: {told}");
            println!("        {status}: {}", told.lines().last().unwrap_or_default());
        }
        if deed == Deed::Delete {
            self.is_replaced();
        } else {
            self.is_well(at.is_multiple_of(3));
        }
    }

    /// The next backup is an ordinary one, the guest has all it wrote, and nothing is left behind.
    fn is_well(&self, exactly: bool) {
        self.node.machine(&self.web).unwrap();
        self.node.backup(&self.web, []).unwrap();
        expect_intact(&self.node.machine(&self.web).unwrap()).unwrap();
        if exactly {
            self.node.expect_exact(&self.web).unwrap();
        }
        self.node.expect_untouched(&self.web).unwrap();
    }

    /// Nothing of the deleted instance is left but its snapshots, and another one takes its place.
    fn is_replaced(&mut self) {
        self.node.underlay.run(&["recover"]).unwrap();
        assert!(!self.web.folder().exists());
        let servers = self.node.cloud.request("compute", "GET", "/servers", None).unwrap();
        assert_eq!(servers["servers"], json!([]));
        let names = self.node.libvirtd().unwrap().virsh(["list", "--all", "--name"]).unwrap();
        assert_eq!(names.trim(), "");
        self.web = self.node.cloud.boot("web").unwrap();
        self.admit();
    }
}

/// Nova does this whenever a backup has been interrupted.
fn at_every_moment(deed: Deed) {
    let mut patient = Patient::new();
    let base = patient.node.base().unwrap();
    let sum = sha256(&base).unwrap();
    let started = Instant::now();
    let moments = patient.moments.clone();
    let after = moments.iter().enumerate().filter(|(at, moment)| *at == 0 || moment.ends_with("after"));
    for (at, moment) in after {
        for fate in FATES {
            println!("{:5.0} s, {moment}: {fate:?}", started.elapsed().as_secs_f64());
            patient.suffers(at, fate, deed);
        }
    }
    assert_eq!(sha256(&base).unwrap(), sum);
    let checked = patient.node.underlay.output(["check", "--read-data"]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn hard_reboot_at_every_moment_loses_nothing() {
    at_every_moment(Deed::HardReboot);
}

#[test]
fn stop_and_start_at_every_moment_lose_nothing() {
    at_every_moment(Deed::StopAndStart);
}

#[test]
fn an_image_created_at_every_moment_loses_nothing() {
    at_every_moment(Deed::CreateImage);
}

#[test]
fn delete_at_every_moment_leaves_nothing_behind() {
    at_every_moment(Deed::Delete);
}

#[test]
fn nova_may_act_in_the_middle_of_a_read() {
    let mut patient = Patient::new();
    let steps = patient.node.path("reading");
    let deeds = [Deed::CreateImage, Deed::HardReboot, Deed::StopAndStart, Deed::Delete];
    for deed in deeds {
        let machine = patient.node.machine(&patient.web).unwrap();
        scribble(&machine, &format!("before-{deed:?}")).unwrap();
        let slowed = Slowed::start(patient.backup().arg("--no-memo"), &steps);
        scribble(&machine, &format!("meanwhile-{deed:?}")).unwrap();
        deed.of(&patient.web).unwrap();
        let (status, told) = slowed.go_on(&steps);
        println!("{deed:?}: {status}: {told}");
        // Whatever ends QEMU ends the read. So does Nova's image: it first has libvirt end all jobs with the disk.
        assert!(status.code() == Some(1) && told.contains("hint: "), "{status}: {told}");
        assert!(!told.contains("could not be ended"), "{told}");
        match deed {
            Deed::Delete => patient.is_replaced(),
            _ => patient.is_well(true),
        }
    }
}
