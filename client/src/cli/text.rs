//! Sizes and tables for people.

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
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) {
    let titles: Vec<&str> = heading.iter().map(|title| title.trim_start_matches('>')).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells =
            cells.zip(heading).zip(&widths).map(|((cell, title), &width)| match title.starts_with('>') {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(&mut titles.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
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
