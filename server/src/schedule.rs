//! When something is to be done again. Takes times and returns times: it looks at no clock.

use std::fmt;

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo, ToSpan};
use underlay_store::snapshot::Timestamp;

/// The shortest `every`.
const SHORTEST: SignedDuration = SignedDuration::from_secs(60);
const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// How often, or when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// So long after it began last.
    Every(SignedDuration),
    /// At this time of the day, on these days; on every day if none is named.
    At(Time, Vec<Weekday>),
}

impl Schedule {
    /// Reads `every`, or `at` and `on`, of a configuration.
    ///
    /// # Errors
    /// What is wrong, naming the key.
    pub fn parse(every: Option<&str>, at: Option<&str>, on: Option<&[String]>) -> Result<Self, String> {
        match (every, at, on) {
            (Some(every), None, None) => Self::parse_every(every),
            (None, Some(at), on) => {
                let time = Time::strptime("%H:%M", at)
                    .map_err(|_| format!("`at` {at:?}: a time of the day such as \"03:00\""))?;
                Ok(Self::At(
                    time,
                    on.unwrap_or_default().iter().map(|day| parse_day(day)).collect::<Result<_, _>>()?,
                ))
            }
            (Some(_), None, Some(_)) => Err("`on` goes with `at`, not with `every`".to_owned()),
            (Some(_), Some(_), _) => Err("either `every` or `at`, not both".to_owned()),
            (None, None, _) => Err("`every = \"6h\"` or `at = \"03:00\"` is missing".to_owned()),
        }
    }

    fn parse_every(every: &str) -> Result<Self, String> {
        let wrong =
            || format!("`every` {every:?}: a length of time of at least a minute, such as \"6h\" or \"7d\"");
        let span: Span = every.parse().map_err(|_| wrong())?;
        let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
        // What no calendar holds is no time either.
        match (SHORTEST..SignedDuration::from_hours(24 * 3660)).contains(&length) {
            true => Ok(Self::Every(length)),
            false => Err(wrong()),
        }
    }

    /// The first time after `after`.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Timestamp {
        let next = match self {
            Self::Every(length) => after.as_jiff().checked_add(*length).ok(),
            Self::At(time, days) => {
                let today = after.as_jiff().to_zoned_datetime(zone.clone()).date();
                // The day before, too: where clocks jump over midnight, yesterday's time may still be to come.
                (-1..=8).find_map(|ahead| {
                    let date = today.checked_add(i64::from(ahead).days()).ok()?;
                    if !days.is_empty() && !days.contains(&date.weekday()) {
                        return None;
                    }
                    let met = date.to_datetime(*time).to_zoned_datetime(zone.clone()).ok()?.timestamp();
                    (met > after.as_jiff()).then_some(met)
                })
            }
        };
        // Only at the end of all calendars is there none.
        next.map_or(after, Timestamp::truncated)
    }
}

fn parse_day(text: &str) -> Result<Weekday, String> {
    let known = DAYS.into_iter().find(|(name, _)| *name == text).map(|(_, day)| day);
    known.ok_or_else(|| format!("`on` {text:?}: days are mon, tue, wed, thu, fri, sat, sun"))
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(length) => {
                let minutes = length.as_mins();
                match (minutes % (24 * 60), minutes % 60) {
                    (0, _) if minutes == 24 * 60 => write!(f, "every day"),
                    (0, _) => write!(f, "every {} days", minutes / (24 * 60)),
                    (_, 0) if minutes == 60 => write!(f, "every hour"),
                    (_, 0) => write!(f, "every {} hours", minutes / 60),
                    _ => write!(f, "every {minutes} minutes"),
                }
            }
            Self::At(time, days) => {
                let names: Vec<&str> =
                    DAYS.into_iter().filter(|(_, day)| days.contains(day)).map(|(name, _)| name).collect();
                let days = if names.is_empty() { "daily".to_owned() } else { names.join(", ") };
                write!(f, "{days} at {:02}:{:02}", time.hour(), time.minute())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &Schedule, after: &str, zone: &TimeZone) -> String {
        schedule.next(Timestamp::truncated(after.parse().unwrap()), zone).as_jiff().to_string()
    }

    fn at(at: &str, on: &[&str]) -> Schedule {
        let on: Vec<String> = on.iter().map(|day| (*day).to_owned()).collect();
        Schedule::parse(None, Some(at), Some(&on)).unwrap()
    }

    /// Clocks go ahead at 02:00 on the last Sunday of March and back at 03:00 on that of October.
    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    #[test]
    fn times_of_the_day_and_days_of_the_week() {
        let (three, utc) = (at("03:00", &[]), TimeZone::UTC);
        assert_eq!(next(&three, "2026-11-23T02:59:59Z", &utc), "2026-11-23T03:00:00Z");
        assert_eq!(next(&three, "2026-11-23T03:00:00Z", &utc), "2026-11-24T03:00:00Z");
        let some = at("23:30", &["mon", "sun"]);
        assert_eq!(next(&some, "2026-11-23T23:30:00Z", &utc), "2026-11-29T23:30:00Z");
        assert_eq!(next(&some, "2026-11-29T23:30:00Z", &utc), "2026-11-30T23:30:00Z");
        assert_eq!(next(&three, "2026-11-23T12:00:00Z", &berlin()), "2026-11-24T02:00:00Z");
    }

    #[test]
    fn a_night_when_clocks_change_has_each_time_once() {
        let half_past = at("02:30", &[]);
        // 02:30 does not exist on the 28th.
        assert_eq!(next(&half_past, "2027-03-27T12:00:00Z", &berlin()), "2027-03-28T01:30:00Z");
        assert_eq!(next(&half_past, "2027-03-28T01:30:00Z", &berlin()), "2027-03-29T00:30:00Z");
        // It comes twice on the 31st of October.
        assert_eq!(next(&half_past, "2027-10-30T12:00:00Z", &berlin()), "2027-10-31T00:30:00Z");
        assert_eq!(next(&half_past, "2027-10-31T00:30:00Z", &berlin()), "2027-11-01T01:30:00Z");
    }

    #[test]
    fn spans_and_how_they_are_told() {
        let every = |text| Schedule::parse(Some(text), None, None);
        assert_eq!(
            next(&every("90m").unwrap(), "2026-11-23T23:00:00Z", &TimeZone::UTC),
            "2026-11-24T00:30:00Z"
        );
        for (text, told) in [
            ("1d", "every day"),
            ("7d", "every 7 days"),
            ("6h", "every 6 hours"),
            ("60m", "every hour"),
            ("90m", "every 90 minutes"),
        ] {
            assert_eq!(every(text).unwrap().to_string(), told);
        }
        assert_eq!(at("03:05", &[]).to_string(), "daily at 03:05");
        assert_eq!(at("03:05", &["sun", "mon"]).to_string(), "mon, sun at 03:05");
        for wrong in ["", "6", "-6h", "10s", "soon", "99999y"] {
            assert!(every(wrong).unwrap_err().contains("`every`"), "{wrong}");
        }
    }

    #[test]
    fn mistakes_name_the_key() {
        let monday = ["monday".to_owned()];
        assert!(Schedule::parse(None, Some("25:00"), None).unwrap_err().contains("`at`"));
        assert!(Schedule::parse(None, Some("03:00"), Some(&monday)).unwrap_err().contains("`on`"));
        assert!(Schedule::parse(Some("1d"), None, Some(&[])).unwrap_err().contains("`on`"));
        assert!(Schedule::parse(Some("1d"), Some("03:00"), None).unwrap_err().contains("both"));
        assert!(Schedule::parse(None, None, None).unwrap_err().contains("missing"));
    }
}
