//! Opening: settings, creation, version.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};

use super::{Failure, Outcome, expect};
use crate::error::{Error, Result};
use crate::id::{OwnerId, RepositoryId};

const VERSION: u32 = 5;
/// From version 1: nothing but a new table.
const FROM_VERSION_1: &str =
    "CREATE TABLE forgotten (id BLOB PRIMARY KEY, gone INTEGER NOT NULL) WITHOUT ROWID";
/// From version 2: when packs were read last, who expects packs, which are deleted; which claim this catalog has caught up with; what
/// is damaged.
const FROM_VERSION_2: &str = "ALTER TABLE packs ADD COLUMN checked INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE expected_packs ADD COLUMN session INTEGER;
    ALTER TABLE meta ADD COLUMN caught_up INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE tombstones (name BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE retired (pack INTEGER NOT NULL, id BLOB NOT NULL, wrong INTEGER NOT NULL, PRIMARY KEY (pack, id))
        WITHOUT ROWID;
    CREATE TRIGGER a_pack_that_goes_is_retired_no_more AFTER DELETE ON packs BEGIN
        DELETE FROM retired WHERE pack = old.pack;
    END;
    CREATE TABLE affected (node BLOB PRIMARY KEY) WITHOUT ROWID";
/// From version 3: what tells an old copy of this catalog, or a new one, from the one that others rely on; what all processes of this
/// host say of earlier owners.
const FROM_VERSION_3: &str = "ALTER TABLE meta ADD COLUMN born INTEGER;
    ALTER TABLE meta ADD COLUMN records INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE meta ADD COLUMN closed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE meta ADD COLUMN closing BLOB";
/// From version 4: what tells this catalog from all others replaces the generation that it was made in; who stored what, and what
/// holders of keys have verified.
const FROM_VERSION_4: &str = "ALTER TABLE meta DROP COLUMN born;
    ALTER TABLE meta ADD COLUMN instance BLOB;
    UPDATE meta SET instance = randomblob(16);
    ALTER TABLE meta ADD COLUMN strict INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE packs ADD COLUMN writer BLOB;
    ALTER TABLE packs ADD COLUMN verified INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sessions ADD COLUMN writer BLOB;
    ALTER TABLE sessions ADD COLUMN strict INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE snapshots ADD COLUMN writer BLOB";
/// Marks the file as ours: "unly".
const APPLICATION: u32 = 0x756e_6c79;
/// How long a transaction waits for those of other processes.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn create_directory(path: &Path) -> Result<()> {
    let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else { return Ok(()) };
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(|source| Error::File {
        path: parent.to_owned(),
        action: "create",
        source,
    })
}

/// Settings, then the tables if the file is new. Returns the owner, and whether the repository is strict.
pub(super) fn prepare(
    path: &Path,
    connection: &mut Connection,
    repository: RepositoryId,
) -> Outcome<(OwnerId, bool)> {
    connection.busy_timeout(PATIENCE)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Before the first page is written; no effect on an existing file.
    connection.pragma_update(None, "page_size", 8192)?;
    refuse_foreign(path, connection)?;
    patiently(|| connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())))?;
    // A commit that was answered survives loss of power.
    connection.pragma_update(None, "synchronous", "full")?;
    // In pages. The ids of a pack touch a page each: a longer log writes each page to the database less often.
    connection.pragma_update(None, "wal_autocheckpoint", 8192)?;
    connection.pragma_update(None, "cache_size", -(64 << 10))?;
    connection.pragma_update(None, "temp_store", "memory")?;

    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    let changes = [(1, FROM_VERSION_1), (2, FROM_VERSION_2), (3, FROM_VERSION_3), (4, FROM_VERSION_4)];
    for (version, change) in changes {
        if (1..=version).contains(&found) {
            transaction.execute_batch(change)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
    }
    if found == 0 {
        transaction.execute_batch(include_str!("schema.sql"))?;
        transaction.execute(
            "INSERT INTO meta (one, repository, owner, epoch, clock, instance) VALUES (1, ?1, ?2, 0, 0, randomblob(16))",
            params![repository.as_bytes(), OwnerId::random().as_bytes()],
        )?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    let (found, owner, strict): (Vec<u8>, Vec<u8>, bool) =
        transaction.query_row("SELECT repository, owner, strict FROM meta", (), |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    transaction.commit()?;
    let found = expect(RepositoryId::from_slice(&found), "repository id")?;
    if found != repository {
        return Err(Failure::Content(format!("it belongs to repository {found}, not {repository}")));
    }
    Ok((expect(OwnerId::from_slice(&owner), "owner id")?, strict))
}

fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Newer catalogs and databases of other programs are left exactly as they are.
fn refuse_foreign(path: &Path, connection: &Connection) -> Outcome<()> {
    // First of all: where another process is making the catalog, all of this appears at once.
    let tables = connection.query_row("SELECT 1 FROM sqlite_schema LIMIT 1", (), |_| Ok(())).optional()?;
    let application: u32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let found = version(connection)?;
    if tables.is_some() && application != APPLICATION {
        return Err(Failure::Content("it is a database of another program".to_owned()));
    }
    if found > VERSION {
        return Err(Error::Version { object: path.display().to_string(), found, known: VERSION }.into());
    }
    Ok(())
}

/// Switching to the write-ahead log does not wait for others by itself.
fn patiently(mut work: impl FnMut() -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    let start = Instant::now();
    loop {
        match work() {
            Err(rusqlite::Error::SqliteFailure(error, _))
                if error.code == ErrorCode::DatabaseBusy && start.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    fn repository() -> RepositoryId {
        RepositoryId::new([7; 16])
    }

    #[test]
    fn settings_hold() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&dir.path().join("deep/er/catalog.db"), repository()).unwrap();
        let connection = catalog.lock();
        let text = |name| connection.pragma_query_value(None, name, |row| row.get::<_, String>(0)).unwrap();
        let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(text("journal_mode"), "wal");
        assert_eq!(number("page_size"), 8192);
        assert_eq!(number("synchronous"), 2);
        assert_eq!(number("busy_timeout"), 60_000);
        assert_eq!(number("user_version"), 5);
    }

    #[test]
    fn the_owner_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let first = Catalog::open(&path, repository()).unwrap().owner();
        assert_eq!(Catalog::open(&path, repository()).unwrap().owner(), first);
        let other = Catalog::open(&dir.path().join("other.db"), repository()).unwrap().owner();
        assert_ne!(other, first);
    }

    #[test]
    fn a_newer_version_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        Catalog::open(&path, repository()).unwrap().lock().pragma_update(None, "user_version", 6).unwrap();
        let error = Catalog::open(&path, repository()).unwrap_err();
        assert!(matches!(error, Error::Version { found: 6, known: 5, .. }), "{error:?}");
    }

    #[test]
    fn an_older_catalog_is_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let fourth = "ALTER TABLE meta DROP COLUMN instance; ALTER TABLE meta ADD COLUMN born INTEGER;
            ALTER TABLE meta DROP COLUMN strict; ALTER TABLE packs DROP COLUMN writer;
            ALTER TABLE packs DROP COLUMN verified; ALTER TABLE sessions DROP COLUMN writer;
            ALTER TABLE sessions DROP COLUMN strict; ALTER TABLE snapshots DROP COLUMN writer;
            PRAGMA user_version = 4";
        let third = "ALTER TABLE meta DROP COLUMN born; ALTER TABLE meta DROP COLUMN records;
            ALTER TABLE meta DROP COLUMN closed; ALTER TABLE meta DROP COLUMN closing; PRAGMA user_version = 3";
        let second =
            "DROP TABLE affected; DROP TRIGGER a_pack_that_goes_is_retired_no_more; DROP TABLE retired;
            ALTER TABLE packs DROP COLUMN checked; ALTER TABLE expected_packs DROP COLUMN session;
            ALTER TABLE meta DROP COLUMN caught_up; DROP TABLE tombstones; PRAGMA user_version = 2";
        let first = "DROP TABLE forgotten; PRAGMA user_version = 1";
        let all = [fourth, third, second, first];
        for changes in (1..=all.len()).map(|count| &all[..count]) {
            let catalog = Catalog::open(&path, repository()).unwrap();
            changes.iter().for_each(|change| catalog.lock().execute_batch(change).unwrap());
            drop(catalog);
            let catalog = Catalog::open(&path, repository()).unwrap();
            assert_eq!(catalog.forgotten_objects().unwrap(), []);
            assert_eq!(catalog.packs(crate::pack::PackKind::Data).unwrap(), []);
            assert_eq!(version(&catalog.lock()).unwrap(), VERSION);
            assert_eq!(catalog.instance().unwrap(), catalog.instance().unwrap());
        }
    }

    #[test]
    fn strangers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        Catalog::open(&path, repository()).unwrap();
        let refused = |path: &Path, repository| match Catalog::open(path, repository) {
            Err(Error::Catalog { source, .. }) => source.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(refused(&path, RepositoryId::new([8; 16])).contains("belongs to repository 0707"));

        let text = dir.path().join("text");
        std::fs::write(
            &text,
            "not a database, but longer than a header of SQLite would be, by far".repeat(3),
        )
        .unwrap();
        assert!(refused(&text, repository()).contains("not a database"));

        let foreign = dir.path().join("foreign.db");
        Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        let before = std::fs::read(&foreign).unwrap();
        assert!(refused(&foreign, repository()).contains("another program"));
        assert_eq!(std::fs::read(&foreign).unwrap(), before);
    }

    #[test]
    fn many_may_create_it_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let owners: Vec<_> = std::thread::scope(|scope| {
            let open = || scope.spawn(|| Catalog::open(&path, repository()).unwrap().owner());
            let threads: Vec<_> = (0..8).map(|_| open()).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(owners.iter().all(|owner| *owner == owners[0]));
    }
}
