//! The catalog: a SQLite database that says where things are. The only room that names `rusqlite`.
//!
//! Packs, chunks, nodes and snapshots are derived from the bucket and can be read again from it; sessions and their pins are
//! not, so every change is synced before it is answered. Several processes may work on one file. Nothing in the interface
//! is SQL.
//!
//! Every method is one transaction and blocks the thread: call it from a blocking task. Ids may come in any order and are
//! looked up sorted, which is several times faster. A failing database is [`Error::Catalog`] everywhere.

mod collection;
mod doomed;
mod lookup;
mod overview;
mod ownership;
mod packs;
mod record;
mod retired;
mod schema;
mod sessions;
mod snapshots;
mod strict;
mod survey;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

pub use self::collection::{Exclusive, Held, Settled};
pub use self::overview::{MachineOverview, OpenSession, Overview, SnapshotHead};
pub use self::record::{
    Location, Origin, PackRecord, PackState, PackSummary, Retired, SessionState, SnapshotRecord, Totals,
};
pub use self::strict::Unverified;
pub use self::survey::{Marked, PackUse, Survey};
use crate::error::{Error, Result};
use crate::id::{OwnerId, RepositoryId};

/// A moment in a transaction that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// All is done but for the commit. A failure here undoes it.
    BeforeCommit,
    /// It is committed. A failure here hides that from the caller.
    AfterCommit,
}

/// Told of every moment and of what the transaction does: for tests that crash there.
pub type Hook = Arc<dyn Fn(Moment, &'static str) -> Result<()> + Send + Sync>;

/// An open catalog.
pub struct Catalog {
    path: PathBuf,
    owner: OwnerId,
    connection: Arc<Mutex<Connection>>,
    hook: Option<Hook>,
    /// Whether somebody in this process collects.
    collecting: Arc<AtomicBool>,
    /// Writers do not trust each other.
    strict: Arc<AtomicBool>,
}

/// Stands for the path of a catalog that is not in a file.
const MEMORY: &str = ":memory:";

impl Catalog {
    /// Opens the catalog at `path`, creating it (and its directory, mode 0700) if there is none.
    ///
    /// # Errors
    /// [`Error::Version`] if a newer build made it; [`Error::Catalog`] if it belongs to another repository or is damaged;
    /// [`Error::File`] if its directory cannot be created.
    pub fn open(path: &Path, repository: RepositoryId) -> Result<Self> {
        schema::create_directory(path)?;
        let connection = Connection::open(path).map_err(|e| failed(path, "open the database", e.into()))?;
        Self::start(path, connection, repository)
    }

    /// A catalog that nobody else sees and that ends with this value.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn in_memory(repository: RepositoryId) -> Result<Self> {
        let path = Path::new(MEMORY);
        let connection =
            Connection::open_in_memory().map_err(|e| failed(path, "open the database", e.into()))?;
        Self::start(path, connection, repository)
    }

    fn start(path: &Path, mut connection: Connection, repository: RepositoryId) -> Result<Self> {
        let (owner, strict) = schema::prepare(path, &mut connection, repository)
            .map_err(|e| failed(path, "prepare the database", e))?;
        let connection = Arc::new(Mutex::new(connection));
        Ok(Self {
            path: path.to_owned(),
            owner,
            connection,
            hook: None,
            collecting: Arc::default(),
            strict: Arc::new(AtomicBool::new(strict)),
        })
    }

    /// The same catalog as another process sees it, whose transactions `hook` is told of.
    #[must_use]
    pub fn with_hook(&self, hook: Hook) -> Self {
        Self {
            path: self.path.clone(),
            owner: self.owner,
            connection: Arc::clone(&self.connection),
            hook: Some(hook),
            collecting: Arc::clone(&self.collecting),
            strict: Arc::clone(&self.strict),
        }
    }

    /// Runs `work` in a transaction that excludes other writers from its start.
    fn write<T>(&self, action: &'static str, work: impl FnOnce(&Transaction<'_>) -> Outcome<T>) -> Result<T> {
        self.run(Kind::Durable, action, work)
    }

    /// As [`Catalog::write`], but loss of power may undo it, with all that came after it. Everybody sees it at once, and a durable
    /// transaction makes those before it durable, too: for what means nothing unless something durable follows.
    fn write_lightly<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Outcome<T>,
    ) -> Result<T> {
        self.run(Kind::Light, action, work)
    }

    /// Runs `work` on one unchanging view; writers go on.
    fn read<T>(&self, action: &'static str, work: impl FnOnce(&Transaction<'_>) -> Outcome<T>) -> Result<T> {
        self.run(Kind::Read, action, work)
    }

    fn run<T>(
        &self,
        kind: Kind,
        action: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Outcome<T>,
    ) -> Result<T> {
        let mut connection = self.lock();
        let outcome = (|| {
            let changes = !matches!(kind, Kind::Read);
            if changes {
                let durability = if matches!(kind, Kind::Durable) { "full" } else { "normal" };
                connection.pragma_update(None, "synchronous", durability)?;
            }
            let behavior =
                if changes { TransactionBehavior::Immediate } else { TransactionBehavior::Deferred };
            let transaction = connection.transaction_with_behavior(behavior)?;
            let value = work(&transaction)?;
            let hook = self.hook.as_ref().filter(|_| changes);
            hook.map_or(Ok(()), |hook| hook(Moment::BeforeCommit, action))?;
            transaction.commit()?;
            hook.map_or(Ok(()), |hook| hook(Moment::AfterCommit, action))?;
            Ok(value)
        })();
        outcome.map_err(|failure| failed(&self.path, action, failure))
    }

    /// A panic rolled its transaction back, so a poisoned connection is sound.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Catalog({})", self.path.display())
    }
}

/// What a transaction does, and what its end promises.
#[derive(Clone, Copy)]
enum Kind {
    Read,
    /// Changes that survive loss of power.
    Durable,
    /// Changes that survive the death of this process.
    Light,
}

/// Why a transaction ended early: the database, or a rule of the store.
enum Failure {
    Database(rusqlite::Error),
    Rule(Error),
    /// The database holds what no version of this program writes.
    Content(String),
}

type Outcome<T> = std::result::Result<T, Failure>;

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Rule(error)
    }
}

fn failed(path: &Path, action: &'static str, failure: Failure) -> Error {
    let source = match failure {
        Failure::Database(error) => error.into(),
        Failure::Content(what) => what.into(),
        Failure::Rule(error) => return error,
    };
    Error::Catalog { path: path.to_owned(), action, source }
}

/// Whether an error says that the database itself is damaged, as opposed to one that cannot be reached or written.
pub fn is_damaged(error: &Error) -> bool {
    let Error::Catalog { source, .. } = error else { return false };
    match source.downcast_ref::<rusqlite::Error>() {
        Some(rusqlite::Error::SqliteFailure(failure, _)) => {
            matches!(failure.code, ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
        }
        // Tables that are not as they should be.
        Some(_) => true,
        None => source.downcast_ref::<std::io::Error>().is_none(),
    }
}

/// A column that must be there and make sense.
fn expect<T>(value: Option<T>, what: &'static str) -> Outcome<T> {
    value.ok_or_else(|| Failure::Content(format!("the database holds a {what} that means nothing")))
}

/// SQLite's integers are signed; sizes keep all their bits.
fn to_sql(value: u64) -> i64 {
    value.cast_signed()
}

fn from_sql(value: i64) -> u64 {
    value.cast_unsigned()
}
