//! Running other programs: never through a shell, never reached by the terminal's interrupt, and told in the log as an
//! administrator would type them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::HypervisorError;

/// Bytes of one output that are kept; the rest is read and dropped.
const MAXIMUM_OUTPUT: u64 = 64 << 20;
/// Characters of a program's complaint that are kept.
const MAXIMUM_MESSAGE: usize = 300;
/// How long a command that only reads may still take once the user asked to stop: what cleans up after an interrupt must be able
/// to see what there is.
const GRACE: Duration = Duration::from_secs(3);
/// Between two looks at a running program.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at a program that has closed its outputs.
const SHORT_PAUSE: Duration = Duration::from_millis(1);

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommandLine {
    program: &'static str,
    arguments: Vec<OsString>,
    input: Option<Vec<u8>>,
}

/// How long to wait for a command.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait<'a> {
    /// It only reads: it ends at the limit, and soon after the user asks to stop.
    Reading { limit: Duration, cancel: &'a AtomicBool },
    /// It changes something, or what follows depends on its answer: only the limit ends it.
    Changing { limit: Option<Duration> },
}

impl CommandLine {
    pub(super) fn new(program: &'static str) -> Self {
        Self { program, arguments: Vec::new(), input: None }
    }

    /// Adds one argument.
    pub(super) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub(super) fn args(self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// What it reads from its standard input, instead of nothing.
    pub(super) fn input(mut self, input: &str) -> Self {
        self.input = Some(input.as_bytes().to_vec());
        self
    }

    /// Runs it and returns what it printed.
    pub(super) fn run(&self, wait: Wait) -> Result<Vec<u8>, HypervisorError> {
        tracing::info!("{self}");
        let mut child = self.start().map_err(|source| self.cannot_start(source))?;
        let (open, closed) = channel();
        let output = collect(child.stdout.take(), open.clone());
        let complaint = collect(child.stderr.take(), open);
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), self.input.clone()) {
            // A program that does not read to the end says itself what it did not like.
            thread::spawn(move || drop(pipe.write_all(&input)));
        }
        let status = self.wait(&mut child, &closed, wait)?;
        let (output, complaint) = (output.join().unwrap_or_default(), complaint.join().unwrap_or_default());
        if status.success() {
            return Ok(output);
        }
        Err(HypervisorError::Failed { command: self.to_string(), message: message(&complaint, status) })
    }

    fn start(&self) -> io::Result<Child> {
        let stdin = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        Command::new(self.program)
            .args(&self.arguments)
            .env("LC_ALL", "C")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
    }

    fn wait(
        &self,
        child: &mut Child,
        closed: &Receiver<()>,
        wait: Wait,
    ) -> Result<ExitStatus, HypervisorError> {
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().map_err(|source| self.cannot_start(source))? {
                return Ok(status);
            }
            let waited = started.elapsed();
            let (limit, cancelled) = match wait {
                Wait::Reading { limit, cancel } => (Some(limit), cancel.load(Ordering::Relaxed)),
                Wait::Changing { limit } => (limit, false),
            };
            if cancelled && waited >= GRACE {
                end(child);
                return Err(HypervisorError::Interrupted);
            }
            if let Some(limit) = limit.filter(|limit| waited >= *limit) {
                end(child);
                return Err(HypervisorError::TimedOut {
                    command: self.to_string(),
                    seconds: limit.as_secs(),
                });
            }
            if closed.recv_timeout(PAUSE) == Err(RecvTimeoutError::Disconnected) {
                thread::sleep(SHORT_PAUSE);
            }
        }
    }

    fn cannot_start(&self, source: io::Error) -> HypervisorError {
        HypervisorError::Program { program: self.program.to_owned(), source }
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.program)?;
        self.arguments.iter().try_for_each(|argument| write!(formatter, " {}", quoted(argument)))
    }
}

/// Ends a program and whatever it started.
fn end(child: &mut Child) {
    // It has not been waited for, so that its number is still its own.
    if let Err(error) = kill_process_group(Pid::from_child(child), Signal::KILL) {
        tracing::warn!(%error, "a program that took too long cannot be ended");
        return;
    }
    drop(child.wait());
}

/// Reads a pipe to its end, so that the program at its other end never waits. Then drops `open`.
fn collect(pipe: Option<impl Read + Send + 'static>, open: Sender<()>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            // What could not be read is missing from the output, and whoever reads that will notice.
            drop(pipe.by_ref().take(MAXIMUM_OUTPUT).read_to_end(&mut kept));
            drop(io::copy(&mut pipe, &mut io::sink()));
        }
        drop(open);
        kept
    })
}

/// A program's complaint on one line. virsh begins its own with `error: `; what else it prints is left out then.
fn message(complaint: &[u8], status: ExitStatus) -> String {
    let text = String::from_utf8_lossy(complaint);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let first = lines.iter().position(|line| line.starts_with("error: ")).unwrap_or(0);
    let told: Vec<_> =
        lines[first..].iter().map(|line| line.strip_prefix("error: ").unwrap_or(line)).collect();
    let told = told.join("; ").replace(char::is_control, " ");
    if told.is_empty() {
        return status.to_string();
    }
    match told.char_indices().nth(MAXIMUM_MESSAGE) {
        Some((end, _)) => format!("{}…", &told[..end]),
        None => told,
    }
}

/// An argument as a shell would have to be given it.
fn quoted(argument: &OsStr) -> String {
    let text = argument.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:=@%+,-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else if text.chars().any(char::is_control) {
        let escaped = text.chars().map(|c| match c {
            '\'' | '\\' => format!("\\{c}"),
            c if c.is_control() => c.to_string().bytes().map(|byte| format!("\\x{byte:02x}")).collect(),
            c => c.to_string(),
        });
        format!("$'{}'", escaped.collect::<String>())
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests;
