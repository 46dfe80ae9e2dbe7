//! Which snapshots a policy lets go of. Pure.
//!
//! Times are those that the repository's authority assigned, and "now" is the newest of them: no client's clock takes part.

use std::cmp::Reverse;

use jiff::Span;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::Timestamp;
use crate::id::SnapshotId;
use crate::{Error, Result};

/// How many snapshots of one VM to keep. Without any rule, a policy keeps everything.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The newest so many.
    pub last: Option<u32>,
    /// The newest of each of the newest so many hours that have one; and so on.
    pub hourly: Option<u32>,
    /// Days.
    pub daily: Option<u32>,
    /// Weeks, from Monday to Sunday.
    pub weekly: Option<u32>,
    /// Months.
    pub monthly: Option<u32>,
    /// Years.
    pub yearly: Option<u32>,
    /// All that are at most so much older than the VM's newest.
    pub within: Option<Span>,
}

/// A snapshot of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its time, by the authority.
    pub time: Timestamp,
    /// Somebody protected it.
    pub protected: bool,
    /// Nothing is known against it: it verifies, and no check has found any of it damaged.
    pub good: bool,
}

/// Why a snapshot stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// Somebody protected it.
    Protected,
    /// It is the VM's newest good one, or its newest if none is good.
    Newest,
    /// Among the last.
    Last,
    /// Within the time.
    Within,
    /// The newest of its hour.
    Hourly,
    /// The newest of its day.
    Daily,
    /// The newest of its week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// The newest of its year.
    Yearly,
    /// No rule was given.
    Unlimited,
}

impl Policy {
    /// Whether it has any rule.
    pub fn is_empty(&self) -> bool {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        counts.iter().all(Option::is_none) && self.within.is_none()
    }
}

/// Why each of these snapshots of one VM stays, newest first; those without a reason go. Hours and days are those of `zone`.
///
/// Rules are met by good snapshots only. The newest good one always stays (the newest, if none is good), and so do protected ones.
///
/// # Errors
/// [`Error::Invalid`] if `within` reaches beyond the years that there are.
pub fn apply_policy(
    candidates: &[Candidate],
    policy: &Policy,
    zone: &TimeZone,
) -> Result<Vec<(Candidate, Vec<Reason>)>> {
    let mut decided: Vec<(Candidate, Vec<Reason>)> =
        candidates.iter().map(|candidate| (*candidate, Vec::new())).collect();
    decided.sort_by_key(|(candidate, _)| Reverse((candidate.time, candidate.snapshot)));
    let oldest_within = match (&policy.within, decided.first()) {
        (Some(within), Some((newest, _))) => Some(before(newest.time, within, zone)?),
        _ => None,
    };
    // What is left of a machine is better than nothing.
    let newest = decided.iter().position(|(candidate, _)| candidate.good).unwrap_or(0);
    if let Some((_, reasons)) = decided.get_mut(newest) {
        reasons.push(Reason::Newest);
    }
    for (candidate, reasons) in &mut decided {
        let rules = [
            (candidate.protected, Reason::Protected),
            (policy.is_empty(), Reason::Unlimited),
            (oldest_within.is_some_and(|oldest| candidate.time.as_jiff() >= oldest), Reason::Within),
        ];
        reasons.extend(rules.into_iter().filter_map(|(holds, reason)| holds.then_some(reason)));
    }
    for (limit, reason, period) in [
        (policy.last, Reason::Last, Period::Itself),
        (policy.hourly, Reason::Hourly, Period::Hour),
        (policy.daily, Reason::Daily, Period::Day),
        (policy.weekly, Reason::Weekly, Period::Week),
        (policy.monthly, Reason::Monthly, Period::Month),
        (policy.yearly, Reason::Yearly, Period::Year),
    ] {
        let (mut left, mut last) = (limit.unwrap_or(0), None);
        for (candidate, reasons) in decided.iter_mut().filter(|(candidate, _)| candidate.good) {
            let key = period.key(candidate, zone);
            if left > 0 && last.as_ref() != Some(&key) {
                reasons.push(reason);
                left -= 1;
                last = Some(key);
            }
        }
    }
    decided.iter_mut().for_each(|(_, reasons)| reasons.sort_unstable());
    Ok(decided)
}

fn before(newest: Timestamp, within: &Span, zone: &TimeZone) -> Result<jiff::Timestamp> {
    let oldest = newest.as_jiff().to_zoned_datetime(zone.clone()).checked_sub(*within);
    oldest.map(|oldest| oldest.timestamp()).map_err(|_| Error::Invalid {
        what: "time to keep",
        value: within.to_string(),
        rule: "not before the first year".into(),
    })
}

/// A stretch of time of which one snapshot is kept.
#[derive(Clone, Copy, Debug)]
enum Period {
    Itself,
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    /// Equal for snapshots of the same stretch, and for no others of one VM.
    fn key(self, candidate: &Candidate, zone: &TimeZone) -> String {
        let time = candidate.time.as_jiff().to_zoned_datetime(zone.clone());
        match self {
            Self::Itself => candidate.snapshot.to_string(),
            // With the offset: one hour of the night when clocks are set back comes twice.
            Self::Hour => format!("{} {} {}", time.date(), time.hour(), time.offset()),
            Self::Day => time.date().to_string(),
            Self::Week => {
                let week = time.date().iso_week_date();
                format!("{} {}", week.year(), week.week())
            }
            Self::Month => format!("{} {}", time.year(), time.month()),
            Self::Year => time.year().to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
