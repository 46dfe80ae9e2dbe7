//! Printing that outlives its reader: `underlay list | head -1` and a full disk are no reasons to panic.

use std::fmt::Arguments;
use std::io::{Error, ErrorKind, Write};
use std::sync::OnceLock;

static FAILED: OnceLock<Error> = OnceLock::new();

/// Text on stdout. Whether it got there is told by [`failure`].
pub(super) fn result(text: Arguments<'_>) {
    let mut to = std::io::stdout().lock();
    to.write_fmt(text).and_then(|()| to.flush()).unwrap_or_else(|error| {
        let _ = FAILED.set(error);
    });
}

/// A line on stderr. If it does not get there, nobody can be told.
pub(super) fn message(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Why stdout is not whole, unless its reader had enough.
pub(super) fn failure() -> Option<&'static Error> {
    FAILED.get().filter(|error| error.kind() != ErrorKind::BrokenPipe)
}
