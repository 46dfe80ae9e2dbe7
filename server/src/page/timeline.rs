//! Snapshots on a line. Pure: where each mark stands, and what it says.

use super::words::{day, moment};
use crate::text::count;

/// Length of a line, in its own units.
pub(super) const LENGTH: i64 = 600;
const DAY: i64 = 24 * 3600 * 1000;

/// What is special about a snapshot. The later, the more so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Plain,
    Protected,
    Damaged,
}

impl Kind {
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Protected => "protected",
            Self::Damaged => "damaged",
        }
    }
}

/// One or more snapshots that stand too close together to tell them apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// From 0 to [`LENGTH`].
    pub(super) at: i64,
    pub(super) kind: Kind,
    pub(super) title: String,
}

/// A line from one time to another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Timeline {
    pub(super) marks: Vec<Mark>,
    /// Where weeks, counted from the right, begin.
    pub(super) ticks: Vec<i64>,
    /// The day on the left.
    pub(super) from: String,
    /// All in one sentence.
    pub(super) label: String,
    /// Snapshots that are older than the line.
    pub(super) older: usize,
}

/// The line of the last `days`. `snapshots` are in ascending order, in milliseconds since 1970.
pub(super) fn timeline(snapshots: &[(i64, Kind)], days: i64, now_ms: i64) -> Timeline {
    let span = days * DAY;
    let from = now_ms - span;
    let first = snapshots.partition_point(|(time, _)| *time < from);
    let mut marks: Vec<Mark> = Vec::new();
    let mut group: Vec<(i64, Kind)> = Vec::new();
    let place = |time: i64| ((time - from).clamp(0, span) * LENGTH / span / 4) * 4;
    for (at, snapshot) in snapshots[first..].iter().map(|snapshot| (place(snapshot.0), *snapshot)) {
        if group.first().is_some_and(|(time, _)| place(*time) != at) {
            marks.extend(mark(place(group[0].0), &group));
            group.clear();
        }
        group.push(snapshot);
    }
    marks.extend(group.first().map(|(time, _)| place(*time)).and_then(|at| mark(at, &group)));
    let shown = snapshots.len() - first;
    let damaged = snapshots[first..].iter().filter(|(_, kind)| *kind == Kind::Damaged).count();
    let damaged = if damaged > 0 { format!(", {damaged} damaged") } else { String::new() };
    let label = format!("{} in {}{damaged}", count(shown as u64, "snapshot"), count(days as u64, "day"));
    let ticks = (1..).map(|week| LENGTH - week * 7 * LENGTH / days).take_while(|at| *at > 0).collect();
    Timeline { marks, ticks, from: day(from), label, older: first }
}

fn mark(at: i64, group: &[(i64, Kind)]) -> Option<Mark> {
    let (&(first, _), &(last, _)) = (group.first()?, group.last()?);
    let kind = group.iter().map(|(_, kind)| *kind).max()?;
    let special = if kind == Kind::Plain { String::new() } else { format!(" ({})", kind.class()) };
    let title = match group.len() {
        1 => format!("{}{special}", moment(first)),
        many => format!("{many} snapshots, {} to {}{special}", moment(first), moment(last)),
    };
    Some(Mark { at, kind, title })
}

/// How many days a line must have to show all from `oldest_ms` on; at least a week.
pub(super) fn days_since(oldest_ms: i64, now_ms: i64) -> i64 {
    ((now_ms - oldest_ms) / DAY + 1).max(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_000_000_000;

    #[test]
    fn marks_stand_where_their_time_is_and_the_worst_is_seen() {
        let hours = |hours: i64| NOW - hours * DAY / 24;
        let snapshots = [
            (hours(31 * 24), Kind::Plain),
            (hours(15 * 24), Kind::Protected),
            (hours(2), Kind::Damaged),
            (hours(1), Kind::Plain),
            (NOW, Kind::Plain),
        ];
        let line = timeline(&snapshots, 30, NOW);
        let places: Vec<(i64, Kind)> = line.marks.iter().map(|mark| (mark.at, mark.kind)).collect();
        assert_eq!(places, [(300, Kind::Protected), (596, Kind::Damaged), (600, Kind::Plain)]);
        assert!(line.marks[1].title.starts_with("2 snapshots, "), "{}", line.marks[1].title);
        assert_eq!((line.older, line.label.as_str()), (1, "4 snapshots in 30 days, 1 damaged"));
        assert_eq!(line.ticks, [460, 320, 180, 40]);
    }

    #[test]
    fn nothing_is_a_line_too_and_many_are_few_marks() {
        assert_eq!(timeline(&[], 30, NOW).marks, []);
        let many: Vec<(i64, Kind)> = (0..100_000).rev().map(|n| (NOW - n * 60_000, Kind::Plain)).collect();
        let line = timeline(&many, 30, NOW);
        assert!(line.marks.len() <= 151, "{}", line.marks.len());
        assert_eq!(line.older + 43_201, 100_000);
    }
}
