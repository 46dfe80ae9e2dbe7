use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::run::{Result, cargo, show};

/// How a step went.
struct Outcome {
    step: &'static str,
    seconds: u64,
    error: Option<String>,
}

/// What nextest counted.
#[derive(Clone, Copy, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Checks and tests the workspace. With `filters` it runs only the tests they select, and no other check.
///
/// A step that fails does not stop the later ones, unless they need it: one run shows everything that is wrong.
pub fn test(filters: &[String]) -> Result<()> {
    let mut outcomes = Vec::new();
    let mut tally = Tally::default();
    let prepared = step(&mut outcomes, "packages", || show(&mut kit("packages")))
        && step(&mut outcomes, "nextest", install_nextest);
    if prepared {
        if filters.is_empty() {
            check(&mut outcomes);
            step(&mut outcomes, "parts", || show(&mut kit("parts")));
        }
        step(&mut outcomes, "quick tests", || nextest("default", filters, &mut tally));
        step(&mut outcomes, "real tests", || nextest("real", filters, &mut tally));
    }
    summarise(&outcomes, tally)
}

fn check(outcomes: &mut Vec<Outcome>) {
    step(outcomes, "format", || show(&mut cargo(["fmt", "--all", "--check"])));
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    step(outcomes, "clippy", || show(&mut cargo(clippy)));
    step(outcomes, "dependencies", || show(&mut kit("deny")));
}

fn step(outcomes: &mut Vec<Outcome>, name: &'static str, action: impl FnOnce() -> Result<()>) -> bool {
    println!("==> {name}");
    let start = Instant::now();
    let error = action().err();
    if let Some(error) = &error {
        println!("{name}: {error}");
    }
    let succeeded = error.is_none();
    outcomes.push(Outcome { step: name, seconds: start.elapsed().as_secs(), error });
    succeeded
}

/// The kit's own program: it knows what tests need, and shares its cache with them.
fn kit(verb: &str) -> Command {
    cargo(["run", "--quiet", "--locked", "--package", "underlay-tests", "--bin", "kit", "--", verb])
}

fn install_nextest() -> Result<()> {
    if cargo(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
    {
        return Ok(());
    }
    println!("installing cargo-nextest (a few minutes, once)");
    let mut install = cargo(["install", "--quiet", "--locked", "cargo-nextest"]);
    show(install.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"))
}

/// Runs one profile of `.config/nextest.toml`, passes its output on, and adds what it counted to `tally`.
fn nextest(profile: &str, filters: &[String], tally: &mut Tally) -> Result<()> {
    let mut command =
        cargo(["nextest", "run", "--workspace", "--locked", "--no-tests=pass", "--profile", profile]);
    let child = command.args(filters).stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("nextest cannot start: {error}"))?;
    for line in child.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).split(b'\n')) {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line);
        eprintln!("{line}");
        if let Some(counted) = Tally::parse(&line) {
            tally.passed += counted.passed;
            tally.failed += counted.failed;
            tally.skipped += counted.skipped;
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("profile {profile}: {status}")) }
}

impl Tally {
    /// Reads nextest's closing line: `Summary [ 1.2s] 12 tests run: 11 passed (1 slow), 1 failed, 3 skipped`.
    fn parse(line: &str) -> Option<Self> {
        let counts = line.trim_start().strip_prefix("Summary [")?.split_once(" run: ")?.1;
        let mut tally = Self::default();
        for part in counts.split(", ") {
            let mut words = part.split_whitespace();
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
                continue;
            };
            match what {
                "passed" => tally.passed += number,
                "failed" | "timed" | "exec" => tally.failed += number,
                "skipped" => tally.skipped += number,
                _ => {}
            }
        }
        Some(tally)
    }
}

fn summarise(outcomes: &[Outcome], tally: Tally) -> Result<()> {
    println!("\n==> summary");
    for outcome in outcomes {
        let verdict = if outcome.error.is_none() { "ok" } else { "FAILED" };
        println!("{:>6} s  {:<13} {verdict}", outcome.seconds, outcome.step);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.error.is_some()).map(|o| o.step).collect();
    match failed.as_slice() {
        [] if tally.passed == 0 => Err(format!("no test ran ({} skipped)", tally.skipped)),
        [] => Ok(()),
        failed => Err(format!("failed: {}", failed.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_closing_line_of_nextest() {
        let line =
            "     Summary [  22.831s] 12 tests run: 9 passed (1 slow), 2 failed, 1 timed out, 3 skipped";
        let tally = Tally::parse(line).unwrap();
        assert_eq!((tally.passed, tally.failed, tally.skipped), (9, 3, 3));
        assert!(Tally::parse("        PASS [   0.005s] ( 1/12) Summary").is_none());
    }
}
