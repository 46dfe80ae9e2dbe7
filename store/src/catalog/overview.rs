//! What people want to know of a repository at a glance, and what a policy without keys may rely on.

use rusqlite::{Row, Rows, params};

use super::record::SessionState;
use super::{Catalog, Outcome, expect, from_sql};
use crate::error::Result;
use crate::id::SnapshotId;

/// A backup under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSession {
    /// The machine.
    pub vm: String,
    /// The time of the snapshot to be, in milliseconds since 1970.
    pub opened_ms: i64,
    /// When its writer was heard of last, in milliseconds since 1970.
    pub heard_ms: i64,
    /// Bytes of the packs it stored.
    pub stored_bytes: u64,
}

/// What there is of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineOverview {
    /// Its name.
    pub vm: String,
    /// Its snapshots.
    pub snapshots: u64,
    /// The time of the newest, in milliseconds since 1970.
    pub newest_ms: i64,
}

/// How long ago packs were read, and who is writing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overview {
    /// Backups under way, oldest first.
    pub sessions: Vec<OpenSession>,
    /// Machines that have snapshots, by name.
    pub machines: Vec<MachineOverview>,
    /// Packs that were not read whole since they were stored.
    pub never_read: u64,
    /// Since when the pack that waits longest was not read: when that was done last, or when the session opened that stored it. In
    /// milliseconds since 1970; `None` if there is no pack of which that is known.
    pub unread_since_ms: Option<i64>,
}

/// What is known of a snapshot without its document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its machine.
    pub vm: String,
    /// Its time, in milliseconds since 1970.
    pub time_ms: i64,
}

fn head(row: &Row<'_>) -> Outcome<SnapshotHead> {
    let id = row.get_ref(0)?.as_blob().unwrap_or_default();
    let snapshot = expect(SnapshotId::from_slice(id), "snapshot id")?;
    Ok(SnapshotHead { snapshot, vm: row.get(1)?, time_ms: row.get(2)? })
}

fn documents(mut rows: Rows<'_>) -> Outcome<Vec<(SnapshotId, Vec<u8>)>> {
    let mut documents = Vec::new();
    while let Some(row) = rows.next()? {
        let id = row.get_ref(0)?.as_blob().unwrap_or_default();
        documents.push((expect(SnapshotId::from_slice(id), "snapshot id")?, row.get(1)?));
    }
    Ok(documents)
}

impl Catalog {
    /// All snapshots, oldest first.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn snapshot_heads(&self) -> Result<Vec<SnapshotHead>> {
        self.read("list the snapshots", |transaction| {
            let mut find =
                transaction.prepare_cached("SELECT id, vm, time FROM snapshots ORDER BY time, id")?;
            let mut rows = find.query(())?;
            let mut heads = Vec::new();
            while let Some(row) = rows.next()? {
                heads.push(head(row)?);
            }
            Ok(heads)
        })
    }

    /// Documents of a machine's newest snapshots, at most so many, newest first.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn newest_of(&self, vm: &str, most: u32) -> Result<Vec<(SnapshotId, Vec<u8>)>> {
        self.read("read a machine's newest snapshots", |transaction| {
            let mut find = transaction.prepare_cached(
                "SELECT id, document FROM snapshots WHERE vm = ?1 ORDER BY time DESC, id LIMIT ?2",
            )?;
            documents(find.query(params![vm, most])?)
        })
    }

    /// The document of each machine's newest snapshot.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn newest_of_each(&self) -> Result<Vec<(SnapshotId, Vec<u8>)>> {
        self.read("read the newest snapshots", |transaction| {
            let mut find = transaction.prepare_cached(
                "SELECT n.id, n.document FROM (SELECT snapshot, max(time) FROM snapshots GROUP BY vm) newest
                 JOIN snapshots n ON n.snapshot = newest.snapshot ORDER BY n.vm",
            )?;
            documents(find.query(())?)
        })
    }

    /// Sizes of the disks of all snapshots together, in bytes: what they would take if each were a copy.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn disk_bytes(&self) -> Result<u64> {
        self.read("add up the disks", |transaction| {
            let sum: Option<i64> = transaction.query_row(
                "SELECT sum(json_extract(text, '$.body.statistics.disk_bytes'))
                 FROM (SELECT CAST(document AS TEXT) AS text FROM snapshots) WHERE json_valid(text)",
                (),
                |row| row.get(0),
            )?;
            Ok(from_sql(sum.unwrap_or(0)))
        })
    }

    /// What is under way, and what was not read for long.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn overview(&self) -> Result<Overview> {
        self.read("look over everything", |transaction| {
            let mut find = transaction.prepare_cached(
                "SELECT s.vm, s.opened_at, s.last_seen,
                    (SELECT ifnull(sum(p.size), 0) FROM writers w JOIN packs p ON p.pack = w.pack WHERE w.session = s.session)
                 FROM sessions s WHERE s.state IN (?1, ?2) ORDER BY s.opened_at",
            )?;
            let open = params![SessionState::Open.code(), SessionState::Committing.code()];
            let sessions = find.query_map(open, |row| {
                let (vm, opened_ms, heard_ms) = (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok(OpenSession { vm, opened_ms, heard_ms, stored_bytes: from_sql(row.get(3)?) })
            })?;
            let sessions = sessions.collect::<rusqlite::Result<_>>()?;
            let mut find = transaction
                .prepare_cached("SELECT vm, count(*), max(time) FROM snapshots GROUP BY vm ORDER BY vm")?;
            let machines = find.query_map((), |row| {
                let (vm, snapshots, newest_ms) = (row.get(0)?, from_sql(row.get(1)?), row.get(2)?);
                Ok(MachineOverview { vm, snapshots, newest_ms })
            })?;
            let machines = machines.collect::<rusqlite::Result<_>>()?;
            let (never, unread_since_ms): (i64, Option<i64>) = transaction.query_row(
                "SELECT ifnull(sum(p.checked = 0), 0), min(CASE WHEN p.checked > 0 THEN p.checked ELSE s.opened_at END)
                 FROM packs p LEFT JOIN sessions s ON s.session = p.session WHERE p.state < 2",
                (),
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            Ok(Overview { sessions, machines, never_read: from_sql(never), unread_since_ms })
        })
    }

    /// Snapshots that sessions of this catalog ended with, oldest first. What was taken in from the bucket is not among them, and
    /// neither are two that both claim to be what one session made.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn committed_snapshots(&self) -> Result<Vec<SnapshotHead>> {
        self.read("list the snapshots committed here", |transaction| {
            // No two sessions have the same time: it names the session.
            let mut find = transaction.prepare_cached(
                "SELECT n.id, n.vm, n.time
                 FROM (SELECT id, vm, time, count(*) OVER (PARTITION BY time) AS claims FROM snapshots) n
                 JOIN sessions s ON s.opened_at = n.time AND s.vm = n.vm AND s.state = ?1
                 WHERE n.claims = 1 ORDER BY n.time",
            )?;
            let mut rows = find.query([SessionState::Committed.code()])?;
            let mut committed = Vec::new();
            while let Some(row) = rows.next()? {
                committed.push(head(row)?);
            }
            Ok(committed)
        })
    }
}
