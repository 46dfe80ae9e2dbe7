use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Lines of a failed program's output that its error quotes.
const QUOTED_LINES: usize = 40;

/// Runs `program` to its end and returns its stdout.
///
/// Fails when it cannot start or exits non-zero; the error names the whole command and quotes the end of its output.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<String> {
    run_command(Command::new(program).args(arguments))
}

/// [`run`] for a command that needs an environment or a working directory.
pub fn run_command(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::new(format!("{} {}\n{}", describe(command), output.status, quoted(&output))))
}

/// Runs a command to its end whatever its exit code, and returns what it printed. Fails only when it cannot start.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|source| cannot_start(command, &source))
}

/// Starts a command that goes on running. Its stdin is empty.
pub fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).spawn().map_err(|source| cannot_start(command, &source))
}

/// Asks a process to end, waits up to ten seconds, then kills it.
pub fn terminate(child: &mut Child) {
    let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let (Ok(None), Some(id)) = (child.try_wait(), id) {
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Calls `ready` every 20 ms until it says yes. Fails after `patience`, or at once when `ready` fails.
pub fn wait_until(what: &str, patience: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !ready()? {
        if start.elapsed() > patience {
            return Err(Error::new(format!("{what}: not within {} s", patience.as_secs())));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Where `program` is installed: on `PATH`, or in the system folders that an ordinary user's `PATH` lacks.
#[must_use]
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A path as a value in a QEMU option: commas are doubled.
#[must_use]
pub fn qemu_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn cannot_start(command: &Command, source: &std::io::Error) -> Error {
    let hint = if source.kind() == std::io::ErrorKind::NotFound {
        " (`cargo xtask test` installs what the tests need)"
    } else {
        ""
    };
    Error::new(format!("{} cannot start: {source}{hint}", describe(command)))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    format!("`{}`", words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" "))
}

fn quoted(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n")
}
