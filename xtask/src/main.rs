//! `cargo xtask test` and `cargo xtask demo`: the two commands a newcomer needs; and `cargo xtask bench` and `fuzz`, which take their time.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to a terminal")]

mod bench;
mod demo;
mod fuzz;
mod run;
mod test;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask test [FILTER...]   check and test everything; with filters, run only those tests (arguments of nextest)
cargo xtask demo               back up four VM disks twice, restore two points in time, show what it cost
cargo xtask bench [PART...]    hold underlay against restic, borg, casync, and this machine's limits (--quick, --rounds=N)
cargo xtask fuzz [TARGET...]   fuzz parsers for 5 minutes each (--seconds=N), guided by coverage, and keep what is new";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let done = match arguments.next().as_deref() {
        Some("test") => test::test(&arguments.collect::<Vec<_>>()),
        Some("demo") => demo::demo(),
        Some("bench") => bench::bench(&arguments.collect::<Vec<_>>()),
        Some("fuzz") => fuzz::fuzz(&arguments.collect::<Vec<_>>()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
