//! The program `underlay`, killed at a step of its choice.
//!
//! `KILL_AT=7` ends it with SIGKILL at the seventh moment (from 0) that its observer hears of; `STEPS_FILE=PATH` appends every
//! moment to a file, a line each, such as `Freeze before`. Without both it is `underlay`.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Signal, getpid, kill_process};
use underlay_client::domain::{Moment, Observer, Step};

struct Killer {
    at: Option<usize>,
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
        if self.at == Some(self.seen.fetch_add(1, Ordering::Relaxed)) {
            kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
        }
    }
}

fn main() -> ExitCode {
    let at = std::env::var("KILL_AT").ok().map(|at| at.parse().expect("KILL_AT is a number"));
    let steps = std::env::var_os("STEPS_FILE");
    underlay_client::cli::main_observed(Arc::new(Killer { at, steps, seen: AtomicUsize::new(0) }))
}
