use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::*;

fn reading(cancel: &AtomicBool, seconds: u64) -> Wait<'_> {
    Wait::Reading { limit: Duration::from_secs(seconds), cancel }
}

const CHANGING: Wait<'static> = Wait::Changing { limit: Some(Duration::from_secs(60)) };

#[test]
fn the_log_has_what_a_shell_would_need() {
    let command = CommandLine::new("virsh")
        .args(["--connect", "qemu:///system", "dumpxml", "--domain"])
        .args(["web", "", "it's", "a b", "$HOME", "vda,snapshot=no", "-x", "é", "a\nb'\\\u{1b}"]);
    assert_eq!(
        command.to_string(),
        "virsh --connect qemu:///system dumpxml --domain web '' 'it'\\''s' 'a b' '$HOME' vda,snapshot=no -x 'é' \
         $'a\\x0ab\\'\\\\\\x1b'"
    );
}

#[test]
fn a_shell_reads_the_log_as_it_was_meant() {
    let arguments =
        ["", "it's", "a b", "$HOME `x`", "!#*?[~", "-n", "é\u{85}\n\t'\\\u{1b}[1m", "\"", "x\r\n"];
    let line = CommandLine::new("printf").arg("%s\\0").args(arguments).to_string();
    let output = Command::new("bash").args(["-c", &line]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.split_terminator('\0').collect::<Vec<_>>(), arguments);
    let odd = CommandLine::new("echo").arg(OsStr::from_bytes(b"\xff")).to_string();
    assert_eq!(odd, "echo '\u{fffd}'");
}

#[test]
fn complaints_are_one_short_line() {
    let failed = ExitStatus::from_raw(1 << 8);
    let libvirts = b"2026-11-24 info : debug noise\nerror: failed to connect to the hypervisor\n\
                     error: Failed to connect socket to '/x': No such file\nmore of it\n\n";
    assert_eq!(
        message(libvirts, failed),
        "failed to connect to the hypervisor; Failed to connect socket to '/x': No such file; more of it"
    );
    assert_eq!(message(b"qemu-img: Could not open 'x'\n", failed), "qemu-img: Could not open 'x'");
    assert_eq!(message(b"\n", failed), "exit status: 1");
    assert_eq!(message(b"a\x1b[1mb\xff", failed), "a [1mb\u{fffd}");
    let long = message("é".repeat(1000).as_bytes(), failed);
    assert_eq!(long.chars().count(), MAXIMUM_MESSAGE + 1);
}

#[test]
fn what_a_program_prints_is_returned_and_what_it_complains_is_told() {
    let seen = CommandLine::new("cat").input("a\nb").run(CHANGING).unwrap();
    assert_eq!(seen, b"a\nb");
    assert_eq!(CommandLine::new("cat").run(CHANGING).unwrap(), b"", "nothing to read without an input");
    assert_eq!(CommandLine::new("printenv").arg("LC_ALL").run(CHANGING).unwrap(), b"C\n");
    let error = CommandLine::new("cat").arg("/there/is/no such file").run(CHANGING).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`cat '/there/is/no such file'` failed: cat: '/there/is/no such file': No such file or directory"
    );
}

#[test]
fn a_terminals_interrupt_does_not_reach_a_program() {
    let seen =
        CommandLine::new("cut").args(["-d", " ", "-f", "1,5", "/proc/self/stat"]).run(CHANGING).unwrap();
    let seen = String::from_utf8(seen).unwrap();
    let (process, group) = seen.trim().split_once(' ').unwrap();
    assert_eq!(process, group, "it is in a process group of its own");
}

#[test]
fn much_input_that_nobody_reads_is_no_trouble() {
    CommandLine::new("true").input(&"x".repeat(1 << 20)).run(CHANGING).unwrap();
}

#[test]
fn a_missing_program_is_told() {
    let error = CommandLine::new("underlay-has-no-such-program").run(CHANGING).unwrap_err();
    assert!(matches!(error, HypervisorError::Program { .. }), "{error}");
}

#[test]
fn a_program_that_takes_too_long_is_ended() {
    let started = Instant::now();
    let limit = Some(Duration::from_millis(200));
    let error =
        CommandLine::new("sh").args(["-c", "sleep 60 & wait"]).run(Wait::Changing { limit }).unwrap_err();
    assert!(matches!(error, HypervisorError::TimedOut { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn an_interrupt_ends_what_reads_after_a_while_and_never_what_changes() {
    let cancel = AtomicBool::new(true);
    assert_eq!(
        CommandLine::new("echo").arg("x").run(reading(&cancel, 60)).unwrap(),
        b"x\n",
        "quick answers count"
    );
    let started = Instant::now();
    let error = CommandLine::new("sleep").arg("60").run(reading(&cancel, 600)).unwrap_err();
    assert!(matches!(error, HypervisorError::Interrupted), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
}
