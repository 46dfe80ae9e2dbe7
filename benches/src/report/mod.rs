//! Results as Markdown and as a drawing.

mod plot;
mod tables;
mod targets;

pub use plot::svg;
pub use tables::markdown;

/// Seconds with three digits that mean something.
fn seconds_text(seconds: f64) -> String {
    match seconds {
        small if small < 0.995 => format!("{small:.2} s"),
        middle if middle < 99.5 => format!("{middle:.1} s"),
        large => format!("{large:.0} s"),
    }
}

/// Bytes in MB, as disks are sold.
fn megabytes(bytes: f64) -> String {
    format!("{:.0} MB", bytes / 1e6)
}

/// Bytes in MiB, as memory is.
fn mebibytes(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

/// A ratio.
fn times(ratio: f64) -> String {
    if ratio < 9.95 { format!("{ratio:.2}x") } else { format!("{ratio:.0}x") }
}
