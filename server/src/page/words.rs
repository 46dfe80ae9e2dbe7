//! Times and names as a page says them.

use underlay_store::snapshot::Timestamp;

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn format(ms: i64, pattern: &str) -> String {
    let time = Timestamp::from_milliseconds(ms).map(|time| time.as_jiff().strftime(pattern).to_string());
    time.unwrap_or_else(|_| "?".to_owned())
}

/// `2026-11-27 18:05`, in UTC.
pub(super) fn moment(ms: i64) -> String {
    format(ms, "%Y-%m-%d %H:%M")
}

/// `2026-11-27`, in UTC.
pub(super) fn day(ms: i64) -> String {
    format(ms, "%Y-%m-%d")
}

/// A length of time in its largest unit, or two of them where one says little: `45 s`, `3 h`, `1 d 4 h`.
pub(super) fn span(ms: i64) -> String {
    // To the nearest hour, if hours are what is told.
    let hours = (ms + HOUR / 2) / HOUR * HOUR;
    match if ms < 2 * HOUR { ms.max(0) } else { hours } {
        ms if ms < MINUTE => format!("{} s", ms / SECOND),
        ms if ms < 2 * HOUR => format!("{} min", ms / MINUTE),
        ms if ms < DAY => format!("{} h", ms / HOUR),
        ms if ms < 3 * DAY && ms % DAY >= HOUR => format!("{} d {} h", ms / DAY, ms % DAY / HOUR),
        ms => format!("{} d", ms / DAY),
    }
}

/// How long ago a time is, or how far ahead.
pub(super) fn ago(ms: i64, now_ms: i64) -> String {
    match now_ms - ms {
        passed if passed.abs() < 10 * SECOND => "now".to_owned(),
        passed if passed > 0 => format!("{} ago", span(passed)),
        ahead => format!("in {}", span(-ahead)),
    }
}

/// A value in a query.
pub(super) fn in_query(value: &str) -> String {
    form_urlencoded::byte_serialize(value.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_short() {
        for (ms, told) in [
            (-5, "0 s"),
            (45 * SECOND, "45 s"),
            (119 * MINUTE, "119 min"),
            (2 * HOUR, "2 h"),
            (23 * HOUR + 40 * MINUTE, "1 d"),
            (DAY + 4 * HOUR, "1 d 4 h"),
            (2 * DAY, "2 d"),
            (40 * DAY + HOUR, "40 d"),
        ] {
            assert_eq!(span(ms), told);
        }
        assert_eq!((ago(0, DAY), ago(DAY, 0), ago(3, 0)), ("1 d ago".into(), "in 1 d".into(), "now".into()));
        assert_eq!(moment(1_795_453_509_120), "2026-11-23 17:05");
        assert_eq!(in_query("a b/ü&<"), "a+b%2F%C3%BC%26%3C");
    }
}
