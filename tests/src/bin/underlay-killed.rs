//! The program `underlay`, killed or paused at a step of its choice.
//!
//! `KILL_AT=7` ends it with SIGKILL at the seventh moment (from 0) that its observer hears of; `PAUSE_AT=7` has it stand still
//! there until somebody sends it SIGCONT; `STEPS_FILE=PATH` appends every moment to a file, a line each, such as `Freeze before`.
//! Without these it is `underlay`.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Signal, getpid, kill_process};
use underlay_client::domain::{Moment, Observer, Step};

struct Killer {
    /// The moment, and what happens there.
    at: Option<(usize, Signal)>,
    steps: Option<std::ffi::OsString>,
    seen: AtomicUsize,
}

impl Observer for Killer {
    fn reached(&self, step: Step, moment: Moment) {
        let moment = match moment {
            Moment::Before => "before",
            Moment::After => "after",
        };
        if let Some(path) = &self.steps {
            let mut file =
                OpenOptions::new().append(true).create(true).open(path).expect("a file for the steps");
            writeln!(file, "{step:?} {moment}").expect("room for the steps");
        }
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        if let Some((at, signal)) = self.at
            && at == seen
        {
            kill_process(getpid(), signal).expect("a process may kill or pause itself");
        }
    }
}

fn main() -> ExitCode {
    let moment = |name, signal| {
        let at = std::env::var(name).ok()?;
        Some((at.parse().unwrap_or_else(|_| panic!("{name}={at} is no number")), signal))
    };
    let at = moment("KILL_AT", Signal::KILL).or_else(|| moment("PAUSE_AT", Signal::STOP));
    let steps = std::env::var_os("STEPS_FILE");
    underlay_client::cli::main_observed(Arc::new(Killer { at, steps, seen: AtomicUsize::new(0) }))
}
