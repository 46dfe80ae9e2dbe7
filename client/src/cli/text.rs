//! The result on stdout: lines, sizes and tables for people, documents for programs.

use std::fmt::Display;
use std::io::{Write, stderr, stdout};

use super::report::Failure;

/// Prints a line of the result.
pub(super) fn say(line: impl Display) -> Result<(), Failure> {
    let mut out = stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// Prints bytes as they are.
pub(super) fn say_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// Says something on stderr. Where that cannot be, nothing can be said of it either.
pub(super) fn warn(line: impl Display) {
    let _ = writeln!(stderr().lock(), "{line}");
}

/// `1 snapshot`, `2 snapshots`.
pub(super) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A size in binary units, three digits or so.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 10.0 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 100.0 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Prints rows under a heading; columns named with a leading `>` are aligned to the right.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let titles: Vec<String> = heading.iter().map(|title| title.trim_start_matches('>').to_owned()).collect();
    let lines = || std::iter::once(&titles).chain(rows);
    let width = |column: usize| lines().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    for row in lines() {
        let cells = row.iter().zip(heading).zip(&widths).map(|((cell, title), &width)| {
            match title.starts_with('>') {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            }
        });
        say(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_read_well() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (32 << 20, "32.0 MiB"),
            (300 << 30, "300 GiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(super::size(bytes), text);
        }
        assert_eq!(super::size(u64::MAX), "16.0 EiB");
    }
}
