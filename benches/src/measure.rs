//! Runs commands to their end and says what they cost.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use underlay_tests::{Error, Result};
use wait4::Wait4;

/// What commands run one after another cost together.
///
/// The kernel counts processor time of a process and of all its descendants that were waited for; of memory it keeps the most
/// that any one of them ever had resident, mapped files included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Wall-clock seconds until the last command had ended.
    pub seconds: f64,
    /// The same and the time until the file that was written is on the disk, where one was named.
    pub synced: f64,
    /// Processor seconds, of user and kernel.
    pub cpu: f64,
    /// The largest resident set, in bytes.
    pub peak: u64,
}

/// Everything one measurement gives: what it cost and what the last command printed.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What it cost.
    pub cost: Cost,
    /// Standard output of the last command.
    pub output: String,
}

/// Runs commands one after another. `written` is a file that is synced at the end.
pub fn measure(commands: Vec<Command>, written: Option<&Path>) -> Result<Measured> {
    let mut cost = Cost::default();
    let mut output = String::new();
    let start = Instant::now();
    for mut command in commands {
        let folder = tempfile::tempdir()?;
        let (out, err) = (folder.path().join("out"), folder.path().join("err"));
        command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
        let child = command.spawn().map_err(|error| Error::new(format!("{}: {error}", shown(&command))))?;
        let ended = child.wait4()?;
        if !ended.status.success() {
            let said = std::fs::read_to_string(&err)?;
            return Err(Error::new(format!("{} ended with {}\n{said}", shown(&command), ended.status)));
        }
        cost.cpu += (ended.rusage.utime + ended.rusage.stime).as_secs_f64();
        cost.peak = cost.peak.max(ended.rusage.maxrss);
        output = std::fs::read_to_string(&out)?;
    }
    cost.seconds = start.elapsed().as_secs_f64();
    if let Some(file) = written {
        File::open(file)?.sync_all()?;
    }
    cost.synced = start.elapsed().as_secs_f64();
    Ok(Measured { cost, output })
}

/// The command as one could type it; variables in front.
pub fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        let value = value?.to_string_lossy().into_owned();
        Some(format!("{}={value}", name.to_string_lossy()))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    variables.chain(words.map(|word| word.to_string_lossy().into_owned())).collect::<Vec<_>>().join(" ")
}

/// Bytes of all files below `folder`.
pub fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        sum += if found.is_dir() { folder_bytes(&entry.path())? } else { found.len() };
    }
    Ok(sum)
}

/// The middle of what was measured; the mean of both middles of an even number. 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_those_of_the_commands() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done";
        let measured = measure(vec![shell("true"), shell(busy)], None).unwrap();
        assert_eq!(measured.output, "done\n");
        assert!(measured.cost.cpu > 0.01 && measured.cost.peak > 100_000, "{:?}", measured.cost);
        assert!(measured.cost.seconds > 0.01 && measured.cost.synced >= measured.cost.seconds);
        let failed = measure(vec![shell("echo no luck >&2; exit 3")], None).unwrap_err();
        assert!(failed.to_string().contains("no luck"), "{failed}");
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
