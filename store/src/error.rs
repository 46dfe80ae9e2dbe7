//! What can go wrong in a repository. Each error names the object; hints for the user are [`Error::hint`].

use std::path::PathBuf;

use crate::id::{SessionId, SnapshotId};
use crate::names;

/// The source below an error, as another library reported it.
pub type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Everything the store reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The place exists or can be reached, and holds no `underlay.json`.
    #[error("no repository at {location}")]
    NoRepository {
        /// The URL or path as the user gave it.
        location: String,
    },
    /// `init` found something already there.
    #[error("there is already a repository at {location}")]
    AlreadyExists {
        /// The URL or path as the user gave it.
        location: String,
    },
    /// A repository URL that means nothing.
    #[error("{location} is not a repository location: {reason}")]
    Location {
        /// The URL or path as the user gave it.
        location: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Stored bytes are not what was written.
    #[error("{object} is damaged: {what}")]
    Damaged {
        /// The object's name, or a chunk or node with its pack and offset.
        object: String,
        /// The check that failed.
        what: String,
    },
    /// Something the repository should hold is not there.
    #[error("{object} is missing")]
    Missing {
        /// The object's name, or a chunk or node id.
        object: String,
    },
    /// A format version from the future.
    #[error("{object} has format version {found}; this build reads version {known}")]
    Version {
        /// The object's name.
        object: String,
        /// Version found.
        found: u32,
        /// Version this build knows.
        known: u32,
    },
    /// The object store failed.
    #[error("cannot {action} {object}")]
    Backend {
        /// Verb: `read`, `write`, `list`, `delete`.
        action: &'static str,
        /// The object's name.
        object: String,
        /// The store's own report.
        #[source]
        source: Source,
    },
    /// The catalog database failed.
    #[error("catalog {path}: cannot {action}")]
    Catalog {
        /// The database file.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// SQLite's own report.
        #[source]
        source: Source,
    },
    /// Another process uses what must be used alone.
    #[error("{path} is in use by another underlay")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A local file could not be used.
    #[error("cannot {action} {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The operating system's report.
        #[source]
        source: std::io::Error,
    },
    /// No slot opens with this passphrase.
    #[error("the passphrase opens none of the {slots} key slots of this repository")]
    WrongPassphrase {
        /// Slots tried.
        slots: usize,
    },
    /// The key at hand is for another repository, or is not one at all.
    #[error("{object} cannot be used as a key: {reason}")]
    Key {
        /// The key file or slot.
        object: String,
        /// Why.
        reason: String,
    },
    /// Reading data needs the restore key; only the backup key is at hand.
    #[error("this needs the restore key; the key at hand is a backup key, which can write but not read data")]
    NeedsRestoreKey,
    /// Another owner works on this repository.
    #[error("the repository is owned by {host} (generation {generation})")]
    OwnedElsewhere {
        /// Host name in the claim.
        host: String,
        /// Generation of the claim.
        generation: u64,
    },
    /// A session that cannot be used any more.
    #[error("session {session} is {state}")]
    Session {
        /// The session.
        session: SessionId,
        /// `unknown`, `committed`, `abandoned` or `fenced`.
        state: &'static str,
    },
    /// A commit whose references are not proven; nothing was committed.
    #[error("snapshot {snapshot} was not committed: {reason}")]
    Unproven {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Which reference failed.
        reason: String,
    },
    /// A name or value that breaks a rule of the format.
    #[error("{what} {value:?} is not valid: {rule}")]
    Invalid {
        /// Such as `VM name`.
        what: &'static str,
        /// The value.
        value: String,
        /// The rule it breaks.
        rule: String,
    },
    /// No snapshot answers to this name.
    #[error("no snapshot matches {wanted:?}")]
    NoSnapshot {
        /// As the user wrote it.
        wanted: String,
    },
    /// Several snapshots answer to this name.
    #[error("{wanted:?} matches {count} snapshots")]
    AmbiguousSnapshot {
        /// As the user wrote it.
        wanted: String,
        /// How many.
        count: usize,
    },
    /// The snapshot must not be dropped.
    #[error("snapshot {snapshot} is protected")]
    Protected {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Somebody else is doing what cannot be done twice at once.
    #[error("{what} of this repository is already under way")]
    Busy {
        /// What it is.
        what: &'static str,
    },
    /// A server gives no answer.
    #[error("{server} cannot be reached")]
    Unreachable {
        /// Its URL.
        server: String,
        /// What happened at the last attempt.
        #[source]
        source: Source,
    },
    /// A server does not know the token, or does not let it do this.
    #[error("{server} refuses: {what}")]
    Denied {
        /// Its URL.
        server: String,
        /// What it says.
        what: String,
    },
    /// Client and server do not understand each other.
    #[error("{server}: {what}")]
    Server {
        /// Its URL.
        server: String,
        /// What one of them says.
        what: String,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The verification of a freshly encoded chunk failed: this machine computes wrongly.
    #[error(
        "a chunk did not decode to what was encoded: bad memory or a faulty processor; nothing of it was stored"
    )]
    EncodeCheck,
}

impl Error {
    /// Shorthand for [`Error::Damaged`].
    pub fn damaged(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), what: what.into() }
    }

    /// Whether stored bytes are missing or not what was written, as opposed to a store that cannot be reached.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing { .. } | Self::Version { .. })
    }

    /// What the user can do next, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoRepository { .. } => "create one with `underlay init`, or check --repo and UNDERLAY_REPO",
            Self::AlreadyExists { .. } => "choose another place; an existing repository is never overwritten",
            Self::Version { .. } => "use a newer underlay",
            Self::WrongPassphrase { .. } => "try again, or give a key file with --key-file",
            Self::Key { .. } => {
                "give this repository's key; if that is what it is, `underlay repair descriptor` puts underlay.json back"
            }
            Self::NeedsRestoreKey => {
                "give the restore key with --key-file, or a passphrase that opens a slot holding it"
            }
            Self::OwnedElsewhere { .. } => {
                "work from that host, or take the repository over with --take-over if that host is gone for good"
            }
            Self::Damaged { object, .. } | Self::Missing { object } => damage_hint(object),
            Self::Catalog { .. } => {
                "is its disk full or read-only? if not, `underlay repair catalog` builds it anew from the repository"
            }
            Self::InUse { .. } => "try again when no other underlay works on this repository",
            Self::NoSnapshot { .. } => "`underlay list` shows them all",
            Self::Protected { .. } => "`underlay protect --off SNAPSHOT` lifts it",
            Self::AmbiguousSnapshot { .. } => "give more of its id or its time",
            Self::Session { state: "fenced", .. } => {
                "a collection shut this backup out because nothing was heard of it for longer than its --fence-after: back up again"
            }
            Self::Denied { .. } => {
                "check UNDERLAY_TOKEN or --token-file; `underlay-server token list` says what each token may do"
            }
            Self::Busy { .. } => "wait until it has ended",
            Self::EncodeCheck => "test this machine's memory before trusting it with another backup",
            _ => return None,
        })
    }
}

/// What to do about a damaged or missing object.
fn damage_hint(object: &str) -> &'static str {
    let folder = object.find('/').map_or(object, |at| &object[..=at]);
    match folder {
        names::DESCRIPTOR => {
            "`underlay repair descriptor` puts back the copy that a host keeps beside its catalog"
        }
        names::CLAIMS => {
            "whose the repository is cannot be told: if no other host writes to it, `underlay repair claim` makes it this host's"
        }
        names::KEYS => {
            "another passphrase or a key file opens the repository; `underlay key remove` removes this slot"
        }
        names::SNAPSHOTS => {
            "`underlay repair` puts it back if this host's catalog holds it; `underlay forget` drops it, given its whole id"
        }
        names::DELETIONS | names::CLOSINGS => {
            "what other owners were deleting cannot be told: if no other host writes to it, `underlay repair claim` makes this host the owner anew, who relies on all that is there"
        }
        names::RETIRED => {
            "its pack is not relied on; `underlay check --read-data` finds again what is wrong in it"
        }
        names::PROTECTED | names::DAMAGED => "it counts all the same; `underlay repair` writes it anew",
        _ => {
            "`underlay repair` finds out which snapshots are affected, and the next backups store again what disks still hold"
        }
    }
}

/// The store's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
