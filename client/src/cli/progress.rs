//! Progress bars on stderr.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use underlay_store::progress::Progress;

use super::text::warn;

/// One bar, restarted by each phase; none if stderr is no terminal.
#[derive(Debug)]
pub(super) struct Bars {
    shown: bool,
    bar: Mutex<ProgressBar>,
}

impl Bars {
    pub fn new(wanted: bool) -> Self {
        Self { shown: wanted && std::io::stderr().is_terminal(), bar: Mutex::new(ProgressBar::hidden()) }
    }

    /// Clears the line.
    pub fn finish(&self) {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner).finish_and_clear();
    }
}

/// Most phases advance by bytes; these by objects.
fn is_counted(name: &str, total: Option<u64>) -> bool {
    name == "snapshots" || (name == "packs" && total.is_none())
}

fn style(name: &str, total: Option<u64>) -> ProgressStyle {
    let template = match (is_counted(name, total), total) {
        (false, Some(_)) => {
            "{msg:10} {wide_bar} {bytes:>10} of {total_bytes} {binary_bytes_per_sec:>12}, {eta} left"
        }
        (false, None) => "{msg:10} {spinner} {bytes:>10} {binary_bytes_per_sec:>12}",
        (true, Some(_)) => "{msg:10} {wide_bar} {pos:>10} of {len}, {eta} left",
        (true, None) => "{msg:10} {spinner} {pos:>10}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bars {
    fn phase(&self, name: &'static str, total: Option<u64>) {
        if !self.shown {
            return;
        }
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        bar.finish_and_clear();
        *bar =
            ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_style(style(name, total));
        bar.set_message(name);
    }

    fn advance(&self, amount: u64) {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner).inc(amount);
    }

    fn notice(&self, text: &str) {
        self.bar
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .suspend(|| warn(format_args!("note: {text}")));
    }
}
