//! What was measured: a flat list of samples, kept as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use underlay_tests::{Error, Result};

use crate::measure::{Cost, median};

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Part of the comparison, such as `speed`.
    pub part: String,
    /// What was done.
    pub step: String,
    /// Who did it.
    pub tool: String,
    /// Samples of one round were taken close together; only those are compared with each other.
    pub round: usize,
    /// What it cost.
    pub cost: Cost,
    /// Bytes of the repository after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<u64>,
    /// Counts that the program itself or a server reported.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, u64>,
}

/// All that is known of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Processor, kernel, memory, versions of programs; bytes of the data.
    pub facts: BTreeMap<String, String>,
    /// For each part, step and program the commands, as they were run.
    pub commands: BTreeMap<String, Vec<String>>,
    /// Every measurement.
    pub samples: Vec<Sample>,
}

/// A number of a sample.
pub type Number = fn(&Sample) -> f64;

/// Wall-clock seconds.
pub fn seconds(sample: &Sample) -> f64 {
    sample.cost.seconds
}

/// Wall-clock seconds until what was written is on the disk.
pub fn synced(sample: &Sample) -> f64 {
    sample.cost.synced
}

/// Processor seconds.
pub fn cpu(sample: &Sample) -> f64 {
    sample.cost.cpu
}

/// The largest resident set, in bytes.
pub fn peak(sample: &Sample) -> f64 {
    sample.cost.peak as f64
}

/// Bytes of the repository.
pub fn stored(sample: &Sample) -> f64 {
    sample.stored.unwrap_or_default() as f64
}

impl Results {
    /// Reads what earlier runs left; nothing if there is nothing.
    pub fn load(path: &Path) -> Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| Error::new(error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes everything.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::new(error.to_string()))?;
        Ok(std::fs::write(path, text + "\n")?)
    }

    /// Forgets the samples of a part, which is about to be measured again.
    pub fn forget(&mut self, part: &str) {
        self.samples.retain(|sample| sample.part != part);
        self.commands.retain(|key, _| !key.starts_with(&format!("{part}: ")));
    }

    /// The samples of one step of a part by one program, in the order of their rounds.
    pub fn of<'a>(&'a self, part: &'a str, step: &'a str, tool: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |s| (&*s.part, &*s.step, &*s.tool) == (part, step, tool))
    }

    /// Median of a number; `None` if it was never measured.
    pub fn middle(&self, part: &str, step: &str, tool: &str, number: Number) -> Option<f64> {
        let values: Vec<f64> = self.of(part, step, tool).map(number).collect();
        (!values.is_empty()).then(|| median(values))
    }

    /// Median, over the rounds, of `other`'s number by this program's: how many times more it took.
    pub fn ratio(&self, part: &str, step: &str, (other, tool): (&str, &str), number: Number) -> Option<f64> {
        self.ratio_of_steps(part, (step, other), (step, tool), number)
    }

    /// Median, over the rounds, of one step's number by another's. Each is a step and a program.
    pub fn ratio_of_steps(
        &self,
        part: &str,
        above: (&str, &str),
        below: (&str, &str),
        number: Number,
    ) -> Option<f64> {
        let of_round = |round| self.of(part, below.0, below.1).find(|sample| sample.round == round);
        let ratios = self.of(part, above.0, above.1).filter_map(|sample| {
            let below = number(of_round(sample.round)?);
            (below > 0.0).then(|| number(sample) / below)
        });
        let ratios: Vec<f64> = ratios.collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// The different values of a field among the samples of a part, in order of appearance.
    pub fn distinct(&self, part: &str, field: fn(&Sample) -> &str) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.part == part) {
            if !found.iter().any(|known| known == field(sample)) {
                found.push(field(sample).to_owned());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tool: &str, round: usize, seconds: f64) -> Sample {
        let cost = Cost { seconds, ..Cost::default() };
        let (part, step) = ("speed".into(), "first".into());
        Sample { part, step, tool: tool.into(), round, cost, stored: None, counts: BTreeMap::new() }
    }

    #[test]
    fn ratios_compare_within_rounds() {
        // The machine was ten times slower in round 1: that must not matter.
        let samples = vec![
            sample("a", 0, 1.0),
            sample("b", 0, 3.0),
            sample("a", 1, 10.0),
            sample("b", 1, 30.0),
            sample("a", 2, 1.0),
        ];
        let results = Results { samples, ..Results::default() };
        assert_eq!(results.ratio("speed", "first", ("b", "a"), seconds), Some(3.0));
        assert_eq!(results.middle("speed", "first", "a", seconds), Some(1.0));
        assert_eq!(results.ratio("speed", "second", ("b", "a"), seconds), None);
        assert_eq!(results.distinct("speed", |sample| &sample.tool), ["a", "b"]);
    }
}
