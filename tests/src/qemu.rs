use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::commands::{qemu_value, spawn};
use crate::guest::MARKER_PREFIX;
use crate::{Error, Result, commands};

/// How long a guest may take to print something early in its boot. Idle, it takes 15 s here; CI machines are not idle.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(180);

/// How an image file encodes its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl Format {
    /// The name QEMU's options use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What becomes of a guest's writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// They go to the disk file.
    Keep,
    /// They go to a temporary file: the disk file stays as it is.
    Discard,
}

/// A running virtual machine, killed when dropped.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    console: Arc<Console>,
}

/// What the guest has printed so far.
#[derive(Debug, Default)]
struct Console {
    state: Mutex<Printed>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Printed {
    text: String,
    ended: bool,
}

impl Guest {
    /// Boots the disk in the file `disk`: 512 MiB of memory, one processor, no network, no hardware virtualisation.
    pub fn boot(disk: &Path, format: Format, writes: Writes) -> Result<Self> {
        let snapshot = if writes == Writes::Discard { "on" } else { "off" };
        let drive = format!(
            "file={},format={},if=virtio,cache=unsafe,snapshot={snapshot}",
            qemu_value(disk),
            format.name()
        );
        Self::boot_drive(&drive, &[])
    }

    /// Boots from whatever `drive` says in the notation of QEMU's `-drive`, such as `file=nbd://...,format=raw,
    /// if=virtio`, with more of QEMU's options after it.
    pub fn boot_drive(drive: &str, options: &[&str]) -> Result<Self> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-cpu", "max", "-m", "512", "-smp", "1", "-nodefaults", "-no-reboot"]);
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none"]);
        command.args(["-drive", drive]).args(options);
        let mut qemu = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let console = Arc::new(Console::default());
        let (printed, complaints) = (qemu.stdout.take(), qemu.stderr.take());
        let reader = Arc::clone(&console);
        thread::spawn(move || {
            reader.follow(printed);
            reader.follow(complaints);
            reader.end();
        });
        Ok(Self { qemu, console })
    }

    /// Waits until the console shows `text`.
    ///
    /// Fails after `patience`, or as soon as QEMU has ended; the error quotes the end of the console.
    pub fn wait_for(&self, text: &str, patience: Duration) -> Result<()> {
        self.wait(text, patience, |printed| printed.contains(text).then_some(()))
    }

    /// Waits for the guest's marker and returns it: proof that its kernel, its root file system and its init work.
    pub fn marker(&self) -> Result<String> {
        self.wait(MARKER_PREFIX, BOOT_PATIENCE, |printed| {
            let (line, _) = printed.split_once(MARKER_PREFIX)?.1.split_once('\n')?;
            Some(line.to_owned())
        })
    }

    fn wait<T>(&self, what: &str, patience: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + patience;
        let mut state = self.console.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(&state.text) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended {
                    "QEMU ended".into()
                } else {
                    format!("{} s passed", patience.as_secs())
                };
                let tail: Vec<_> = state.text.lines().rev().take(30).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(Error::new(format!(
                    "{why} before the console showed {what:?}; it ends:\n{tail}"
                )));
            }
            let waited = self.console.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything the console has shown so far.
    #[must_use]
    pub fn console(&self) -> String {
        self.console.state.lock().unwrap_or_else(PoisonError::into_inner).text.clone()
    }

    /// Waits for QEMU to end by itself, as it does when the guest switches off or restarts.
    pub fn wait_for_exit(&mut self, patience: Duration) -> Result<ExitStatus> {
        let mut status = None;
        commands::wait_until("the guest switching off", patience, || {
            status = self.qemu.try_wait()?;
            Ok(status.is_some())
        })?;
        status.ok_or_else(|| Error::new("QEMU has not ended"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Console {
    fn follow(&self, stream: Option<impl Read>) {
        let Some(mut stream) = stream else { return };
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).replace('\r', "");
            self.state.lock().unwrap_or_else(PoisonError::into_inner).text.push_str(&text);
            self.changed.notify_all();
        }
    }

    fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.changed.notify_all();
    }
}
