use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// A Bash script that is the first process of a PID namespace, and of a mount namespace with a host name of its own. Whatever it starts ends
/// with it, and it ends with the test process, whatever ends that: its standard input is a pipe that only the test holds.
#[derive(Debug)]
pub(crate) struct Keeper {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Keeper {
    /// Starts `script`, whose only argument is `folder`. It reads orders, one a line, and answers each by its exit code.
    pub(crate) fn start(script: &str, folder: &Path) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new("the tests' namespaces need root: run `cargo xtask test` as root"));
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--uts", "--pid", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "bash", "-c", script, "keeper"]).arg(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(|error| Error::from(error).context("unshare"))?;
        let (orders, answers) = (process.stdin.take(), process.stdout.take());
        let answers = BufReader::new(answers.ok_or_else(|| Error::new("unshare has no stdout"))?);
        Ok(Self { process, orders, answers })
    }

    /// The script's process id, as it is outside.
    pub(crate) fn process(&self) -> Result<u32> {
        let unshare = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        let first = children.split_whitespace().next().and_then(|id| id.parse().ok());
        first.ok_or_else(|| Error::new("the keeper has ended"))
    }

    /// Has the script do one thing; fails when that does.
    pub(crate) fn order(&mut self, words: &str) -> Result<()> {
        let orders = self.orders.as_mut().ok_or_else(|| Error::new("the keeper takes no orders"))?;
        orders.write_all(format!("{words}\n").as_bytes())?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        match answer.trim() {
            "0" => Ok(()),
            "" => Err(Error::new(format!("{words}: the keeper has ended"))),
            code => Err(Error::new(format!("the keeper: {words} returned {code}"))),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The script ends with its input, and with it all its namespace: `unshare` returns when the last is gone.
        drop(self.orders.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
