//! Processes that stand still until the test lets them go on.

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Error, Result};

/// How long it may take a process to come where it is to be held.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is stopped until it is let go.
#[derive(Debug)]
pub struct Held(Child);

impl Held {
    /// Starts a command, and stops it when `reached` says so of its process id.
    pub fn at(command: &mut Command, reached: impl Fn(u32) -> bool) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let started = Instant::now();
        while !reached(child.id()) {
            if child.try_wait()?.is_some() {
                return Err(Error::new(format!("it ended too soon: {:?}", child.wait_with_output())));
            }
            if started.elapsed() > PATIENCE {
                return Err(Error::new("it does not come where it is to be held"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let held = Self(child);
        held.signal(Signal::STOP)?;
        Ok(held)
    }

    /// Starts a command that stops itself.
    pub fn by_itself(command: &mut Command) -> Result<Self> {
        Self::at(command, |process| {
            let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            status.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.0), signal).map_err(|error| Error::new(error.to_string()))
    }

    /// Lets it go on to its end.
    pub fn let_go(self) -> Result<Output> {
        self.signal(Signal::CONT)?;
        Ok(self.0.wait_with_output()?)
    }

    /// Lets it go with an interrupt.
    pub fn interrupt(self) -> Result<Output> {
        self.signal(Signal::INT)?;
        self.let_go()
    }
}
