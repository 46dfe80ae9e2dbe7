//! What can go wrong with an export: which socket, which export, what was being done, and what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why an export cannot be opened, asked or read. Every variant names the socket and the export.
///
/// `Display` states the fact once and never repeats its `source`; [`NbdError::hint`] says what the user can do.
/// `action` is what could not be done, `offset` where, in bytes of the disk. Names and messages that came from the
/// server are shown escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// The operating system refused to connect, send or receive.
    #[error("{}: export {export:?}: cannot {action}{}", socket.display(), at(*offset))]
    Io { socket: PathBuf, export: String, action: &'static str, offset: Option<u64>, source: io::Error },

    /// The server said nothing, or took nothing, for as long as the caller was ready to wait.
    #[error("{}: export {export:?}: cannot {action}{}: no answer within {} s", socket.display(), at(*offset), patience.as_secs_f64())]
    Silent { socket: PathBuf, export: String, action: &'static str, offset: Option<u64>, patience: Duration },

    /// The server closed the connection in the middle.
    #[error("{}: export {export:?}: cannot {action}{}: the server ended the connection", socket.display(), at(*offset))]
    Ended { socket: PathBuf, export: String, action: &'static str, offset: Option<u64> },

    /// The server has no export of this name. `available` is what it has, as far as it tells.
    #[error("{}: there is no export {export:?}; the server has {}", socket.display(), list(available))]
    NoSuchExport { socket: PathBuf, export: String, available: Vec<String> },

    /// The server does not grant a context that the caller needs. `available` is what it has for this export.
    #[error("{}: export {export:?} has no context {context:?}; the server has {}", socket.display(), list(available))]
    NoSuchContext { socket: PathBuf, export: String, context: String, available: Vec<String> },

    /// The server understood and said no, before anything could be read.
    #[error("{}: export {export:?}: cannot {action}: {reason}", socket.display())]
    Refused { socket: PathBuf, export: String, action: &'static str, reason: String },

    /// What the server sent breaks the protocol, or is more than was asked for. The connection is given up.
    #[error("{}: export {export:?}: cannot {action}{}: the answer is malformed: {problem}", socket.display(), at(*offset))]
    Malformed { socket: PathBuf, export: String, action: &'static str, offset: Option<u64>, problem: String },

    /// The server answered a request with an error, in the protocol's numbers. The connection can still be used.
    #[error("{}: export {export:?}: cannot {action}{}: the server reports {}{}", socket.display(), at(*offset), number_name(*error), said(message))]
    Failed {
        socket: PathBuf,
        export: String,
        action: &'static str,
        offset: Option<u64>,
        error: u32,
        message: String,
    },

    /// The caller asked for bytes past the end. Nothing was sent.
    #[error("{}: export {export:?}: {length} bytes at offset {offset} are not within its {size} bytes", socket.display())]
    OutOfRange { socket: PathBuf, export: String, offset: u64, length: u64, size: u64 },

    /// The caller asks about a context that it did not name when it connected. Nothing was sent.
    #[error("{}: export {export:?}: was opened without the context {context:?}", socket.display())]
    ContextNotOpened { socket: PathBuf, export: String, context: String },

    /// An earlier request left the connection unusable, and was reported then.
    #[error("{}: export {export:?}: cannot {action}{}: the connection was given up after an earlier error", socket.display(), at(*offset))]
    GivenUp { socket: PathBuf, export: String, action: &'static str, offset: Option<u64> },
}

impl NbdError {
    /// What the user can do next, if there is something. One sentence, not part of the error's text.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { socket, source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Some(format!(
                    "no server listens at {:?}; is the machine running, and its backup job with it?",
                    socket.display().to_string()
                )),
                io::ErrorKind::PermissionDenied => {
                    Some("run this as root, or as a user that may open the socket".into())
                }
                _ => None,
            },
            Self::Silent { .. } => Some(
                "another client may hold the only connection that the server accepts; see whether the machine is paused or \
                 its disk hangs, and try again"
                    .into(),
            ),
            Self::Ended { .. } | Self::GivenUp { .. } => Some(
                "see whether the machine still runs, and whether somebody ended its backup job, as Nova does when it makes an \
                 image of it, and start the backup again"
                    .into(),
            ),
            Self::NoSuchExport { .. } => Some("name one of the exports that the server has".into()),
            Self::NoSuchContext { context, .. } => Some(if context.starts_with(super::DIRTY_BITMAP_PREFIX) {
                "the bitmap is gone, or is not exported: back up the whole disk once, which makes a new one".into()
            } else {
                "the server cannot tell which parts hold data: read the whole export".into()
            }),
            Self::Refused { .. } | Self::Malformed { .. } => {
                Some("see the log of the server; underlay expects QEMU's, without TLS".into())
            }
            Self::Failed { .. } => {
                Some("see the log of the machine: the disk below it may be failing, or its job has ended".into())
            }
            Self::OutOfRange { .. } | Self::ContextNotOpened { .. } => None,
        }
    }
}

/// What went wrong, before it is known where.
#[derive(Debug)]
pub(super) enum Fault {
    Io(io::Error),
    Silent,
    Ended,
    Malformed(String),
    Failed { error: u32, message: String },
    GivenUp,
}

impl Fault {
    pub(super) fn malformed<T>(problem: impl Into<String>) -> Result<T, Self> {
        Err(Self::Malformed(problem.into()))
    }

    /// Whether requests and replies may no longer match after this.
    pub(super) fn ends_the_connection(&self) -> bool {
        !matches!(self, Self::Failed { .. })
    }
}

impl From<io::Error> for Fault {
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Self::Ended
            }
            _ => Self::Io(source),
        }
    }
}

/// Whom a client talks to, and for how long it waits.
#[derive(Debug)]
pub(super) struct Peer {
    pub socket: PathBuf,
    pub export: String,
    pub patience: Duration,
}

impl Peer {
    pub(super) fn new(socket: &Path, export: &str, patience: Duration) -> Self {
        Self { socket: socket.to_owned(), export: export.to_owned(), patience }
    }

    /// The error that a fault is when it strikes here.
    pub(super) fn error(&self, action: &'static str, offset: Option<u64>, fault: Fault) -> NbdError {
        let (socket, export) = (self.socket.clone(), self.export.clone());
        match fault {
            Fault::Io(source) => NbdError::Io { socket, export, action, offset, source },
            Fault::Silent => NbdError::Silent { socket, export, action, offset, patience: self.patience },
            Fault::Ended => NbdError::Ended { socket, export, action, offset },
            Fault::Malformed(problem) => NbdError::Malformed { socket, export, action, offset, problem },
            Fault::Failed { error, message } => {
                NbdError::Failed { socket, export, action, offset, error, message }
            }
            Fault::GivenUp => NbdError::GivenUp { socket, export, action, offset },
        }
    }
}

fn at(offset: Option<u64>) -> String {
    offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default()
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" and says {message:?}") }
}

/// At most this many names are shown; a server can have thousands.
const SHOWN_NAMES: usize = 20;

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    let shown: Vec<_> = names.iter().take(SHOWN_NAMES).map(|name| format!("{name:?}")).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The protocol's own error numbers; they are Linux's, whatever system the server runs on.
fn number_name(error: u32) -> String {
    let name = match error {
        1 => "EPERM, not permitted",
        5 => "EIO, a failed read",
        12 => "ENOMEM, out of memory",
        22 => "EINVAL, an invalid request",
        28 => "ENOSPC, no space left",
        75 => "EOVERFLOW, too much at once",
        95 => "ENOTSUP, not supported",
        108 => "ESHUTDOWN, it is being shut down",
        _ => return format!("error {error}"),
    };
    name.into()
}
