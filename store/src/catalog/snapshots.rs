//! Snapshots, and the commit that makes one of a session.

use rusqlite::{OptionalExtension, Transaction, params};

use super::record::SessionState;
use super::sessions::{close, node_bytes, open_row};
use super::{Catalog, Outcome, expect, to_sql};
use crate::error::{Error, Result};
use crate::id::{Root, SessionId, SnapshotId};

impl Catalog {
    /// Ends a session with a snapshot: from here on its roots are live and its packs proven. All of it happens or nothing.
    ///
    /// `document` is the snapshot object, already durable; `roots` are those of its disks and layers. The caller has proven every
    /// reference.
    ///
    /// # Errors
    /// [`Error::Session`] unless the session is open; [`Error::Invalid`] if there is such a snapshot already.
    pub fn commit_session(
        &self,
        session: SessionId,
        snapshot: SnapshotId,
        vm: &str,
        time_ms: i64,
        document: &[u8],
        roots: &[Root],
    ) -> Result<()> {
        self.write("commit a session", |transaction| {
            let row = open_row(transaction, session)?;
            if find(transaction, snapshot)?.is_some() {
                let rule = "a snapshot is written once".to_owned();
                return Err(Error::Invalid { what: "snapshot", value: snapshot.to_string(), rule }.into());
            }
            insert(transaction, snapshot, vm, time_ms, document, roots)?;
            transaction.execute(
                "UPDATE packs SET proven = 1 WHERE pack IN (SELECT pack FROM writers WHERE session = ?1)",
                [row],
            )?;
            close(transaction, row, SessionState::Committed)?;
            Ok(())
        })
    }

    /// Records a snapshot found in the bucket, unless it is known. Times assigned later will be after its time.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn import_snapshot(
        &self,
        snapshot: SnapshotId,
        vm: &str,
        time_ms: i64,
        document: &[u8],
        roots: &[Root],
    ) -> Result<()> {
        self.write("import a snapshot", |transaction| {
            if find(transaction, snapshot)?.is_none() {
                insert(transaction, snapshot, vm, time_ms, document, roots)?;
            }
            Ok(())
        })
    }

    /// All snapshots with their documents, oldest first.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn snapshots(&self) -> Result<Vec<(SnapshotId, Vec<u8>)>> {
        self.read("list the snapshots", |transaction| {
            let mut all =
                transaction.prepare_cached("SELECT id, document FROM snapshots ORDER BY time, id")?;
            let mut rows = all.query(())?;
            let mut snapshots = Vec::new();
            while let Some(row) = rows.next()? {
                let id: Vec<u8> = row.get(0)?;
                snapshots.push((expect(SnapshotId::from_slice(&id), "snapshot id")?, row.get(1)?));
            }
            Ok(snapshots)
        })
    }

    /// Whether the snapshot is known.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn has_snapshot(&self, snapshot: SnapshotId) -> Result<bool> {
        self.read("look up a snapshot", |transaction| Ok(find(transaction, snapshot)?.is_some()))
    }
}

fn find(transaction: &Transaction<'_>, snapshot: SnapshotId) -> rusqlite::Result<Option<i64>> {
    transaction
        .prepare_cached("SELECT snapshot FROM snapshots WHERE id = ?1")?
        .query_row([snapshot.as_bytes()], |row| row.get(0))
        .optional()
}

fn insert(
    transaction: &Transaction<'_>,
    snapshot: SnapshotId,
    vm: &str,
    time_ms: i64,
    document: &[u8],
    roots: &[Root],
) -> Outcome<()> {
    transaction.execute(
        "INSERT INTO snapshots (id, vm, time, document) VALUES (?1, ?2, ?3, ?4)",
        params![snapshot.as_bytes(), vm, time_ms, document],
    )?;
    let row = transaction.last_insert_rowid();
    let mut add = transaction
        .prepare_cached("INSERT OR IGNORE INTO roots (node, size, snapshot) VALUES (?1, ?2, ?3)")?;
    for root in roots {
        add.execute(params![node_bytes(root), to_sql(root.size), row])?;
    }
    transaction.execute("UPDATE meta SET clock = max(clock, ?1)", [time_ms])?;
    Ok(())
}
