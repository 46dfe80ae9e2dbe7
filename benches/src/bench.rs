//! One run of the comparison: where it works, what it has, what it found so far.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_tests::{Error, Result};

use crate::data::Disks;
use crate::measure::{Measured, measure, shown};
use crate::results::{Results, Sample};
use crate::tools::Tools;

/// A run of the comparison.
#[derive(Debug)]
pub struct Bench {
    /// Disks.
    pub disks: Disks,
    /// Everything that is made and thrown away.
    pub work: PathBuf,
    /// How often everything is measured.
    pub rounds: usize,
    /// Small data, two programs, for a smoke test.
    pub quick: bool,
    /// Only underlay and restic, which leaves time for more rounds.
    pub few: bool,
    /// What was found.
    pub results: Results,
}

/// What a sample is of.
#[derive(Clone, Copy, Debug)]
pub struct Label<'a> {
    /// Part of the comparison.
    pub part: &'a str,
    /// What is done.
    pub step: &'a str,
    /// Who does it.
    pub tool: &'a str,
    /// Which time.
    pub round: usize,
}

impl Bench {
    /// Which programs take part.
    pub fn tools(&self) -> Tools {
        if self.quick || self.few { Tools::Few } else { Tools::All }
    }

    /// Runs commands, prints and keeps what they cost. `written` is synced at the end.
    pub fn measure(
        &mut self,
        label: Label<'_>,
        commands: Vec<Command>,
        written: Option<&Path>,
    ) -> Result<&mut Sample> {
        let Label { part, step, tool, round } = label;
        let texts: Vec<String> = commands.iter().map(|command| self.readable(command)).collect();
        let key = format!("{part}: {step}: {tool}");
        self.results.commands.entry(key).or_insert_with(|| {
            texts.iter().for_each(|text| say(&format!("  $ {text}")));
            texts
        });
        let Measured { cost, output } = measure(commands, written)?;
        let counts = counts(&output);
        let (mib, shown) = (cost.peak >> 20, format!("{step}, {tool}"));
        say(&format!(
            "{part} {round}: {shown:<60} {:>8.2} s {:>8.2} s synced {:>8.2} CPU-s {mib:>5} MiB",
            cost.seconds, cost.synced, cost.cpu
        ));
        let (part, step, tool) = (part.to_owned(), step.to_owned(), tool.to_owned());
        self.results.samples.push(Sample { part, step, tool, round, cost, stored: None, counts });
        self.results.samples.last_mut().ok_or_else(|| Error::new("no sample"))
    }

    /// Runs commands that are not measured.
    pub fn run(&self, commands: Vec<Command>) -> Result<()> {
        measure(commands, None).map(drop)
    }

    /// A command without this machine's folders.
    fn readable(&self, command: &Command) -> String {
        let mut text = shown(command);
        let own = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
        let cache = underlay_tests::cache::directory().ok();
        for (folder, name) in [(Some(self.work.clone()), "$WORK"), (own, "$TARGET"), (cache, "$CACHE")] {
            if let Some(folder) = folder {
                text = text.replace(&folder.display().to_string(), name);
            }
        }
        text
    }

    /// Keeps a fact about the machine or the data.
    pub fn fact(&mut self, name: &str, value: impl ToString) {
        say(&format!("{name}: {}", value.to_string()));
        self.results.facts.insert(name.to_owned(), value.to_string());
    }
}

/// The numbers of a JSON answer.
fn counts(output: &str) -> BTreeMap<String, u64> {
    let answer = output.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let Some(serde_json::Value::Object(fields)) = answer else { return BTreeMap::new() };
    fields.into_iter().filter_map(|(name, value)| Some((name, value.as_u64()?))).collect()
}

/// Tells whoever waits how far it is.
#[expect(clippy::print_stdout, reason = "a program that reports to a terminal")]
pub fn say(line: &str) {
    println!("{line}");
}
