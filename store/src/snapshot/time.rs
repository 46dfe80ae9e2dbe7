//! Points in time as documents write them.

use std::fmt;

use jiff::fmt::temporal::DateTimePrinter;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, Result};

const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));

/// A point in time, to the millisecond. Displays, and reads, as RFC 3339 in UTC: `2026-11-23T17:05:09.120Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// This machine's clock, now.
    pub fn now() -> Self {
        Self::truncated(jiff::Timestamp::now())
    }

    /// Drops what is below a millisecond.
    pub fn truncated(time: jiff::Timestamp) -> Self {
        // Out of range only within a millisecond of the year 10000's end or the year -10000's begin.
        Self(jiff::Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time))
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside the years 0 to 9999.
    pub fn from_milliseconds(milliseconds: i64) -> Result<Self> {
        let time = jiff::Timestamp::from_millisecond(milliseconds).ok().map(Self);
        time.filter(|time| time.to_string().len() == 24).ok_or_else(|| Error::Invalid {
            what: "time",
            value: milliseconds.to_string(),
            rule: "milliseconds in the years 0 to 9999".into(),
        })
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub fn as_milliseconds(self) -> i64 {
        self.0.as_millisecond()
    }

    /// For arithmetic and time zones.
    pub fn as_jiff(self) -> jiff::Timestamp {
        self.0
    }

    /// Reads exactly what [`Display`](fmt::Display) writes; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let time = Self::truncated(text.parse().ok()?);
        (text.len() == 24 && time.to_string() == text).then_some(time)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&PRINTER.timestamp_to_string(&self.0))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format!("expected a UTC time to the millisecond, found {text:?}"))
        })
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A point in time, to the millisecond, in UTC.",
            "type": "string",
            "format": "date-time",
            "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$",
            "examples": ["2026-11-23T17:05:09.120Z"],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exact_text() {
        let time = Timestamp::from_milliseconds(1_795_453_509_120).unwrap();
        assert_eq!(time.to_string(), "2026-11-23T17:05:09.120Z");
        assert_eq!(Timestamp::from_milliseconds(0).unwrap().to_string(), "1970-01-01T00:00:00.000Z");
        for text in [
            "2026-11-23T17:05:09Z",
            "2026-11-23T17:05:09.12Z",
            "2026-11-23T17:05:09.1200Z",
            "2026-11-23T17:05:09.120+00:00",
            "2026-11-23 17:05:09.120Z",
            "",
        ] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(a in -62_000_000_000_000_i64..253_000_000_000_000, b in 0_i64..253_000_000_000_000) {
            let (a, b) = (Timestamp::from_milliseconds(a).unwrap(), Timestamp::from_milliseconds(b).unwrap());
            prop_assert_eq!(Timestamp::parse(&a.to_string()), Some(a));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }
    }
}
