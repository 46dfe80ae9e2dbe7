//! Snapshots, and the commit that makes one of a session.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Transaction, params};

use super::record::{SessionState, SnapshotRecord};
use super::sessions::{close, known_row, node_bytes};
use super::{Catalog, Outcome, expect, to_sql};
use crate::error::{Error, Result};
use crate::id::{NodeId, SessionId, SnapshotId};

impl Catalog {
    /// Ends a session with a snapshot: from here on its roots are live. All of it happens or nothing; repeating it is safe.
    ///
    /// `document` is the snapshot object, already durable; `roots` are those of its disks and layers. The caller has proven every
    /// reference on the way to the nodes in `proven`: packs of the session that hold only such nodes are promised to others.
    ///
    /// # Errors
    /// [`Error::Session`] unless the session is open or committing; [`Error::Invalid`] if there is another snapshot of this id.
    pub fn commit_session(
        &self,
        session: SessionId,
        record: &SnapshotRecord<'_>,
        proven: &[NodeId],
    ) -> Result<()> {
        self.write("commit a session", |transaction| {
            let (row, state) = known_row(transaction, session)?;
            let stored = stored_document(transaction, record.snapshot)?;
            if stored.as_ref().is_some_and(|document| document != record.document) {
                let rule = "a snapshot is written once".to_owned();
                let value = record.snapshot.to_string();
                return Err(Error::Invalid { what: "snapshot", value, rule }.into());
            }
            match state {
                SessionState::Open | SessionState::Committing => {}
                SessionState::Committed if stored.is_some() => return Ok(()),
                _ => return Err(state.refuse(session).into()),
            }
            if stored.is_none() {
                insert(transaction, record)?;
                // Whatever hangs from it is the writer's own, or verified.
                transaction.execute(
                    "UPDATE snapshots SET writer = (SELECT writer FROM sessions WHERE session = ?2 AND strict)
                     WHERE id = ?1",
                    params![record.snapshot.as_bytes(), row],
                )?;
            }
            prove_packs(transaction, row, proven)?;
            close(transaction, row, SessionState::Committed)?;
            Ok(())
        })
    }

    /// Records a snapshot found in the bucket, unless it is known. Times assigned later will be after its time.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn import_snapshot(&self, record: &SnapshotRecord<'_>) -> Result<()> {
        self.write("import a snapshot", |transaction| {
            let known = stored_document(transaction, record.snapshot)?.is_some();
            if !known && !is_forgotten(transaction, record.snapshot)? {
                insert(transaction, record)?;
            }
            Ok(())
        })
    }

    /// Drops a snapshot: its roots are not live any more, and it is never imported again. Its object is still there. Repeating it is
    /// safe.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn forget_snapshot(&self, snapshot: SnapshotId) -> Result<()> {
        self.write("forget a snapshot", |transaction| {
            transaction.execute(
                "INSERT OR IGNORE INTO forgotten (id, gone) VALUES (?1, 0)",
                [snapshot.as_bytes()],
            )?;
            Ok(remove(transaction, snapshot)?)
        })
    }

    /// Drops what is known of a snapshot whose object somebody else has deleted.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn drop_snapshot(&self, snapshot: SnapshotId) -> Result<()> {
        self.write("drop a snapshot", |transaction| Ok(remove(transaction, snapshot)?))
    }

    /// Notes that the object of a forgotten snapshot is deleted.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn forgotten_object_is_gone(&self, snapshot: SnapshotId) -> Result<()> {
        self.write("forget a snapshot", |transaction| {
            transaction.execute("UPDATE forgotten SET gone = 1 WHERE id = ?1", [snapshot.as_bytes()])?;
            Ok(())
        })
    }

    /// Forgotten snapshots whose objects are not known to be deleted.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn forgotten_objects(&self) -> Result<Vec<SnapshotId>> {
        self.read("list forgotten snapshots", |transaction| {
            let mut all =
                transaction.prepare_cached("SELECT id FROM forgotten WHERE gone = 0 ORDER BY id")?;
            let mut rows = all.query(())?;
            let mut forgotten = Vec::new();
            while let Some(row) = rows.next()? {
                let id: Vec<u8> = row.get(0)?;
                forgotten.push(expect(SnapshotId::from_slice(&id), "snapshot id")?);
            }
            Ok(forgotten)
        })
    }

    /// Whether the snapshot was forgotten.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn is_forgotten(&self, snapshot: SnapshotId) -> Result<bool> {
        self.read("look up a snapshot", |transaction| Ok(is_forgotten(transaction, snapshot)?))
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
        self.read("look up a snapshot", |transaction| Ok(stored_document(transaction, snapshot)?.is_some()))
    }
}

fn is_forgotten(transaction: &Transaction<'_>, snapshot: SnapshotId) -> rusqlite::Result<bool> {
    transaction.prepare_cached("SELECT 1 FROM forgotten WHERE id = ?1")?.exists([snapshot.as_bytes()])
}

fn remove(transaction: &Transaction<'_>, snapshot: SnapshotId) -> rusqlite::Result<()> {
    let id = snapshot.as_bytes();
    transaction
        .execute("DELETE FROM roots WHERE snapshot = (SELECT snapshot FROM snapshots WHERE id = ?1)", [id])?;
    transaction.execute("DELETE FROM snapshots WHERE id = ?1", [id])?;
    Ok(())
}

fn stored_document(transaction: &Transaction<'_>, snapshot: SnapshotId) -> rusqlite::Result<Option<Vec<u8>>> {
    transaction
        .prepare_cached("SELECT document FROM snapshots WHERE id = ?1")?
        .query_row([snapshot.as_bytes()], |row| row.get(0))
        .optional()
}

/// Marks those packs of the session whose nodes are all among `proven`.
fn prove_packs(transaction: &Transaction<'_>, session: i64, proven: &[NodeId]) -> Outcome<()> {
    let mut reached: HashMap<i64, u64> = HashMap::new();
    let mut find = transaction.prepare_cached(
        "SELECT n.pack FROM nodes n JOIN writers w ON w.session = ?2 AND w.pack = n.pack WHERE n.id = ?1",
    )?;
    for id in proven {
        let mut rows = find.query(params![id.as_bytes(), session])?;
        while let Some(row) = rows.next()? {
            *reached.entry(row.get(0)?).or_default() += 1;
        }
    }
    let mut mark =
        transaction.prepare_cached("UPDATE packs SET proven = 1 WHERE pack = ?1 AND entries = ?2")?;
    for (pack, nodes) in reached {
        mark.execute(params![pack, to_sql(nodes)])?;
    }
    Ok(())
}

fn insert(transaction: &Transaction<'_>, record: &SnapshotRecord<'_>) -> Outcome<()> {
    transaction.execute(
        "INSERT INTO snapshots (id, vm, time, document) VALUES (?1, ?2, ?3, ?4)",
        params![record.snapshot.as_bytes(), record.vm, record.time_ms, record.document],
    )?;
    let row = transaction.last_insert_rowid();
    let mut add = transaction
        .prepare_cached("INSERT OR IGNORE INTO roots (node, size, snapshot) VALUES (?1, ?2, ?3)")?;
    for root in record.roots {
        add.execute(params![node_bytes(root), to_sql(root.size), row])?;
    }
    transaction.execute("UPDATE meta SET clock = max(clock, ?1)", [record.time_ms])?;
    Ok(())
}
