//! What this host remembers between backups. Losing memos costs reading, never correctness. The journal must not be lost while a
//! backup runs: it says which overlays to merge and which guest to thaw.

mod journal;
mod memo;

use std::path::PathBuf;

pub use journal::FileJournal;
pub use memo::{Memo, Memos};

/// Why state cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct StateError {
    /// What was attempted.
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The operating system's report.
    #[source]
    pub source: std::io::Error,
}

/// The folder for this user's state: `$UNDERLAY_STATE_DIR`, `/var/lib/underlay` for root, else by the XDG rules.
pub fn state_directory() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(directory) = variable("UNDERLAY_STATE_DIR") {
        return directory;
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/underlay");
    }
    let base = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    base.unwrap_or_else(|| PathBuf::from("/var/tmp")).join("underlay")
}
