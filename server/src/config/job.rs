//! What the server does by itself: `[[repository.job]]`.

use std::fmt;

use jiff::Span;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use underlay_store::gc::DEFAULT_MAX_UNUSED;
use underlay_store::snapshot::retention::Policy;

use super::is_repository_name;
use crate::schedule::Schedule;

/// A kind of job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// Drop what a policy does not keep.
    Forget,
    /// Collect space.
    Gc,
    /// Compare catalog, bucket and trees.
    Check,
    /// Read packs.
    Scrub,
    /// Mark what lost data. Only asked for, never planned.
    Repair,
}

impl JobKind {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forget => "forget",
            Self::Gc => "gc",
            Self::Check => "check",
            Self::Scrub => "scrub",
            Self::Repair => "repair",
        }
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a scheduled forget keeps.
#[derive(Clone, Debug)]
pub struct Forget {
    /// The policy; `within` is always there.
    pub policy: Policy,
    /// The same `within`, by itself.
    pub within: Span,
    /// Patterns of the machines it is for.
    pub machines: Vec<String>,
}

/// A job that the server does by itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Written")]
pub struct JobConfig {
    /// What to call it: no two of a repository have the same.
    pub name: String,
    /// What to do.
    pub kind: JobKind,
    /// When.
    pub schedule: Schedule,
    /// For [`JobKind::Forget`] only.
    pub forget: Option<Forget>,
    /// For [`JobKind::Gc`]: the share of the kept bytes that may stay unused.
    pub max_unused: f64,
    /// For [`JobKind::Scrub`]: bytes to read at a time.
    pub budget: Option<u64>,
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kind: JobKind,
    name: Option<String>,
    every: Option<String>,
    at: Option<String>,
    on: Option<Vec<String>>,
    keep_last: Option<u32>,
    keep_hourly: Option<u32>,
    keep_daily: Option<u32>,
    keep_weekly: Option<u32>,
    keep_monthly: Option<u32>,
    keep_yearly: Option<u32>,
    keep_within: Option<String>,
    vm: Option<Vec<String>>,
    max_unused: Option<f64>,
    budget: Option<Size>,
}

/// Bytes: a number, or a text such as `50GiB`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for JobConfig {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let kind = written.kind;
        if kind == JobKind::Repair {
            return Err("`kind` is forget, gc, check or scrub; `underlay repair` is for people".to_owned());
        }
        if let Some((key, of)) = written.strange() {
            return Err(format!("`{key}` belongs to a job of the kind {of}, and this is {kind}"));
        }
        let name = written.name.clone().unwrap_or_else(|| kind.to_string());
        if !is_repository_name(&name) {
            return Err(format!(
                "`name` {name:?}: 1 to 64 of a-z, 0-9, `-`, `_`, `.`, beginning with a letter or digit"
            ));
        }
        let max_unused = written.max_unused.unwrap_or(DEFAULT_MAX_UNUSED);
        if !(0.0..=1.0).contains(&max_unused) {
            return Err(format!("`max_unused` {max_unused}: a share from 0 to 1"));
        }
        let schedule =
            Schedule::parse(written.every.as_deref(), written.at.as_deref(), written.on.as_deref())?;
        let forget = if kind == JobKind::Forget { Some(written.forget()?) } else { None };
        let budget = written.budget.map(|size| size.bytes()).transpose()?;
        Ok(Self { name, kind, schedule, forget, max_unused, budget })
    }
}

impl Written {
    /// The first key that is not for this kind, and the kind that it is for.
    fn strange(&self) -> Option<(&'static str, JobKind)> {
        let keys = [
            ("keep_last", JobKind::Forget, self.keep_last.is_some()),
            ("keep_hourly", JobKind::Forget, self.keep_hourly.is_some()),
            ("keep_daily", JobKind::Forget, self.keep_daily.is_some()),
            ("keep_weekly", JobKind::Forget, self.keep_weekly.is_some()),
            ("keep_monthly", JobKind::Forget, self.keep_monthly.is_some()),
            ("keep_yearly", JobKind::Forget, self.keep_yearly.is_some()),
            ("keep_within", JobKind::Forget, self.keep_within.is_some()),
            ("vm", JobKind::Forget, self.vm.is_some()),
            ("max_unused", JobKind::Gc, self.max_unused.is_some()),
            ("budget", JobKind::Scrub, self.budget.is_some()),
        ];
        keys.into_iter().find(|(_, of, given)| *given && *of != self.kind).map(|(key, of, _)| (key, of))
    }

    fn forget(&self) -> Result<Forget, String> {
        let Some(text) = &self.keep_within else {
            return Err("`keep_within` is missing, such as \"30d\": the server cannot tell a forged snapshot from a good \
                        one, and this is how long there is to notice (docs/security.md)"
                .to_owned());
        };
        let within: Option<Span> = text.parse().ok().filter(Span::is_positive);
        let within =
            within.ok_or_else(|| format!("`keep_within` {text:?}: a length of time such as \"30d\""))?;
        let policy = Policy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: Some(within),
        };
        let machines = self.vm.clone().unwrap_or_else(|| vec!["*".to_owned()]);
        Ok(Forget { policy, within, machines })
    }
}

impl Size {
    fn bytes(self) -> Result<u64, String> {
        let text = match self {
            Self::Number(bytes) => return Ok(bytes),
            Self::Text(text) => text,
        };
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
        let parsed = units.into_iter().find_map(|(unit, shift)| {
            let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
            number.checked_mul(1 << shift)
        });
        parsed.ok_or_else(|| format!("`budget` {text:?}: a number of bytes, or such as \"50GiB\""))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(job: &str) -> Result<Config, String> {
        Config::parse(&format!(
            "listen = \"127.0.0.1:1\"\nstate = \"/s\"\n\n[[repository]]\nname = \"vms\"\nlocation = \"/r\"\n\n\
             [[repository.job]]\n{job}"
        ))
    }

    #[test]
    fn each_kind_has_its_options() {
        let config = parse(
            "kind = \"forget\"\nat = \"03:00\"\nkeep_within = \"30d\"\nkeep_daily = 14\nvm = [\"web*\"]\n\n\
             [[repository.job]]\nkind = \"scrub\"\nevery = \"1d\"\nbudget = \"50GiB\"\n\n\
             [[repository.job]]\nkind = \"scrub\"\nname = \"whole\"\nevery = \"90d\"\n\n\
             [[repository.job]]\nkind = \"gc\"\nat = \"04:30\"\non = [\"sun\"]\nmax_unused = 0.1\n",
        )
        .unwrap();
        let jobs = &config.repositories[0].jobs;
        let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["forget", "scrub", "whole", "gc"]);
        let forget = jobs[0].forget.as_ref().unwrap();
        assert_eq!((forget.policy.daily, forget.policy.last), (Some(14), None));
        assert_eq!(forget.machines, ["web*"]);
        assert_eq!((jobs[1].budget, jobs[2].budget), (Some(50 << 30), None));
        assert!((jobs[3].max_unused - 0.1).abs() < 1e-9 && jobs[3].schedule.to_string() == "sun at 04:30");
    }

    #[test]
    fn mistakes_are_named_with_line_and_key() {
        for (job, line, key) in [
            ("kind = \"prune\"\nevery = \"1d\"", "line 9", "prune"),
            ("kind = \"gc\"\nevery = \"1d\"\nkeep_last = 1", "line 8", "`keep_last`"),
            ("kind = \"gc\"", "line 8", "`every"),
            ("kind = \"gc\"\nat = \"3 am\"", "line 8", "`at`"),
            ("kind = \"gc\"\nevery = \"1d\"\nmax_unused = 7", "line 8", "`max_unused`"),
            ("kind = \"gc\"\nevery = \"1d\"\nmaxunused = 7", "line 11", "maxunused"),
            ("kind = \"scrub\"\nevery = \"1d\"\nbudget = \"lots\"", "line 8", "`budget`"),
            ("kind = \"forget\"\nevery = \"1d\"\nkeep_last = 3", "line 8", "`keep_within` is missing"),
            ("kind = \"forget\"\nevery = \"1d\"\nkeep_within = \"-3d\"", "line 8", "`keep_within`"),
            ("kind = \"check\"\nname = \"\"\nevery = \"1d\"", "line 8", "`name`"),
            ("kind = \"repair\"\nevery = \"1d\"", "line 8", "`kind`"),
        ] {
            let error = parse(job).unwrap_err();
            assert!(error.contains(line) && error.contains(key), "{job}: {error}");
        }
        let twice = parse("kind = \"gc\"\nevery = \"1d\"\n[[repository.job]]\nkind = \"gc\"\nevery = \"2d\"");
        assert!(twice.unwrap_err().contains("`name`"));
    }
}
