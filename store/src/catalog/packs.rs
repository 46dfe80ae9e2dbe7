//! Packs and sums over them.

use rusqlite::{OptionalExtension, Transaction, params};

use super::lookup::{code, kind_of, table};
use super::record::{PackRecord, PackState, PackSummary, Totals};
use super::sessions::{heard_of, open_row};
use super::{Catalog, Outcome, expect, from_sql, to_sql};
use crate::error::{Error, Result};
use crate::id::{PackName, SessionId};
use crate::pack::{Entry, PackId, PackKind};

impl Catalog {
    /// Records a pack that the session has stored durably. Repeating it is safe. The session counts as
    /// its writer, also if another process found it in the bucket before.
    ///
    /// # Errors
    /// [`Error::Session`] unless the session is open; [`Error::Invalid`] if a pack of this name is of another kind, on its
    /// way out, or was removed.
    pub fn add_pack(&self, session: SessionId, pack: &PackRecord) -> Result<()> {
        self.write("add a pack", |transaction| {
            let writer = open_row(transaction, session)?;
            let known: Option<(i64, u8, i64)> = transaction
                .prepare_cached("SELECT pack, kind, state FROM packs WHERE name = ?1")?
                .query_row([pack.name.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            let row = match known {
                None => {
                    is_not_buried(transaction, &pack.name)?;
                    let added = insert_pack(transaction, pack, Some(writer))?;
                    insert_entries(transaction, &[(added, pack)])?;
                    added
                }
                Some((row, kind, 0)) if kind == code(pack.kind) => {
                    complete(transaction, row, pack)?;
                    row
                }
                Some(_) => {
                    let rule = "a pack of this name is of another kind, or is being removed".to_owned();
                    return Err(Error::Invalid { what: "pack", value: pack.name.to_string(), rule }.into());
                }
            };
            forget_expected(transaction, &pack.name)?;
            transaction
                .prepare_cached("INSERT OR IGNORE INTO writers (session, pack) VALUES (?1, ?2)")?
                .execute([writer, row])?;
            Ok(())
        })
    }

    /// Notes that the session is about to store a pack of this name, and was heard of at `now_ms`.
    ///
    /// # Errors
    /// [`Error::Session`] unless the session is open; [`Error::Invalid`] if a pack of this name was removed.
    pub fn expect_pack(&self, session: SessionId, pack: &PackId, now_ms: i64) -> Result<()> {
        self.write("expect a pack", |transaction| {
            let row = open_row(transaction, session)?;
            is_not_buried(transaction, &pack.name)?;
            transaction
                .prepare_cached(
                    "INSERT OR IGNORE INTO expected_packs (name, kind, session) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![pack.name.as_bytes(), code(pack.kind), row])?;
            heard_of(transaction, row, now_ms)
        })
    }

    /// Packs that somebody was about to store and that nobody added since. They may or may not be in the bucket.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn expected_packs(&self) -> Result<Vec<PackId>> {
        self.read("list expected packs", |transaction| {
            let mut find =
                transaction.prepare_cached("SELECT name, kind FROM expected_packs ORDER BY name")?;
            let mut rows = find.query(())?;
            let mut packs = Vec::new();
            while let Some(row) = rows.next()? {
                let (name, kind): (Vec<u8>, u8) = (row.get(0)?, row.get(1)?);
                packs.push(PackId::new(kind_of(kind), expect(PackName::from_slice(&name), "pack name")?));
            }
            Ok(packs)
        })
    }

    /// Records a pack found in the bucket, unless it is known. What it refers to counts as unproven.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn import_pack(&self, pack: &PackRecord) -> Result<()> {
        self.import_packs(std::slice::from_ref(pack))
    }

    /// Records many packs as [`Catalog::import_pack`] does, all or none. Their ids are sorted together: in a large catalog a
    /// few hundred packs at once go many times faster than one by one.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn import_packs(&self, packs: &[PackRecord]) -> Result<()> {
        self.write("import packs", |transaction| import(transaction, packs))
    }

    /// Declares that all that the nodes of these packs refer to is stored: backups may then refer to the nodes. Unknown packs
    /// are passed over.
    ///
    /// Only who has walked them may say so. A node pack found in the bucket can stem from a session that never committed.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn mark_proven(&self, packs: &[PackName]) -> Result<()> {
        self.write("mark packs as proven", |transaction| {
            let mut mark = transaction.prepare_cached("UPDATE packs SET proven = 1 WHERE name = ?1")?;
            for pack in packs {
                mark.execute([pack.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Whether the pack is known and not on its way out.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn is_in_use(&self, pack: &PackName) -> Result<bool> {
        self.read("look up a pack", |transaction| {
            let mut find = transaction.prepare_cached("SELECT 1 FROM packs WHERE name = ?1 AND state < 2")?;
            Ok(find.exists([pack.as_bytes()])?)
        })
    }

    /// Bytes of a pack, in whatever state; `None` if it is not known.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn pack_size(&self, pack: &PackName) -> Result<Option<u64>> {
        self.read("look up a pack", |transaction| {
            let mut find = transaction.prepare_cached("SELECT size FROM packs WHERE name = ?1")?;
            Ok(find.query_row([pack.as_bytes()], |row| row.get(0)).optional()?.map(from_sql))
        })
    }

    /// All packs of a kind, in whatever state, by name.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn packs(&self, kind: PackKind) -> Result<Vec<PackSummary>> {
        self.read("list the packs", |transaction| {
            let mut find = transaction.prepare_cached(
                "SELECT p.name, p.size, p.entries, p.plain_bytes, s.id, p.proven, p.state, p.checked,
                    EXISTS (SELECT 1 FROM retired r WHERE r.pack = p.pack AND r.id = x'')
                 FROM packs p LEFT JOIN sessions s ON s.session = p.session WHERE p.kind = ?1 ORDER BY p.name",
            )?;
            let mut rows = find.query([code(kind)])?;
            let mut packs = Vec::new();
            while let Some(row) = rows.next()? {
                let name: Vec<u8> = row.get(0)?;
                let session: Option<Vec<u8>> = row.get(4)?;
                let session = match session {
                    Some(id) => Some(expect(SessionId::from_slice(&id), "session id")?),
                    None => None,
                };
                packs.push(PackSummary {
                    name: expect(PackName::from_slice(&name), "pack name")?,
                    kind,
                    size: from_sql(row.get(1)?),
                    entries: from_sql(row.get(2)?),
                    plain_bytes: from_sql(row.get(3)?),
                    session,
                    proven: row.get(5)?,
                    state: expect(PackState::from_code(row.get(6)?), "pack state")?,
                    checked: row.get(7)?,
                    retired: row.get(8)?,
                });
            }
            Ok(packs)
        })
    }

    /// Sums over everything, in whatever state.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn totals(&self) -> Result<Totals> {
        self.read("add everything up", |transaction| {
            let mut totals = Totals::default();
            for kind in [PackKind::Data, PackKind::Nodes] {
                let (packs, bytes, entries, plain): (i64, i64, i64, i64) = transaction.query_row(
                    "SELECT count(*), ifnull(sum(size), 0), ifnull(sum(entries), 0), ifnull(sum(plain_bytes), 0)
                     FROM packs WHERE kind = ?1",
                    [code(kind)],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
                )?;
                totals.packs += from_sql(packs);
                totals.pack_bytes += from_sql(bytes);
                match kind {
                    PackKind::Data => (totals.chunks, totals.plain_bytes) = (from_sql(entries), from_sql(plain)),
                    PackKind::Nodes => totals.nodes = from_sql(entries),
                }
            }
            let snapshots = transaction.query_row("SELECT count(*) FROM snapshots", (), |row| row.get(0))?;
            totals.snapshots = from_sql(snapshots);
            Ok(totals)
        })
    }
}

/// Records packs found in the bucket, unless they are known.
pub(super) fn import(transaction: &Transaction<'_>, packs: &[PackRecord]) -> Outcome<()> {
    let mut known = transaction.prepare_cached("SELECT 1 FROM packs WHERE name = ?1")?;
    let mut buried = transaction.prepare_cached("SELECT 1 FROM tombstones WHERE name = ?1")?;
    let mut rows = Vec::new();
    for pack in packs {
        if known.exists([pack.name.as_bytes()])? {
        } else if buried.exists([pack.name.as_bytes()])? {
            // Its deletion was decided and not finished: whoever collects next does that.
            let remains = PackRecord { entries: Vec::new(), ..pack.clone() };
            let row = insert_pack(transaction, &remains, None)?;
            transaction.execute("UPDATE packs SET state = 2 WHERE pack = ?1", [row])?;
        } else {
            let row = insert_pack(transaction, pack, None)?;
            hold_for_writer(transaction, row, &pack.name)?;
            rows.push((row, pack));
        }
        forget_expected(transaction, &pack.name)?;
    }
    insert_entries(transaction, &rows)
}

/// The session that announced a pack and is still open is about to add it.
fn hold_for_writer(transaction: &Transaction<'_>, row: i64, name: &PackName) -> Outcome<()> {
    transaction
        .prepare_cached(
            "INSERT INTO writers (session, pack) SELECT e.session, ?1 FROM expected_packs e
             JOIN sessions s ON s.session = e.session WHERE e.name = ?2 AND s.state IN (0, 4)",
        )?
        .execute(params![row, name.as_bytes()])?;
    transaction
        .prepare_cached(
            "UPDATE packs SET writer = (SELECT s.writer FROM expected_packs e JOIN sessions s ON s.session = e.session
                                        WHERE e.name = ?2) WHERE pack = ?1",
        )?
        .execute(params![row, name.as_bytes()])?;
    Ok(())
}

/// Names do not come back: the deletion of a pack is recorded for every owner to come. An honest writer never makes a pack twice.
fn is_not_buried(transaction: &Transaction<'_>, name: &PackName) -> Outcome<()> {
    let mut buried = transaction.prepare_cached("SELECT 1 FROM tombstones WHERE name = ?1")?;
    if !buried.exists([name.as_bytes()])? {
        return Ok(());
    }
    let rule =
        "a pack of this name was removed, and names do not come back: start the backup again".to_owned();
    Err(Error::Invalid { what: "pack", value: name.to_string(), rule }.into())
}

fn forget_expected(transaction: &Transaction<'_>, name: &PackName) -> Outcome<()> {
    transaction.prepare_cached("DELETE FROM expected_packs WHERE name = ?1")?.execute([name.as_bytes()])?;
    Ok(())
}

/// What the pack holds, by id. Of two with the same id the first counts.
fn distinct(pack: &PackRecord) -> Vec<&Entry> {
    let mut entries: Vec<&Entry> = pack.entries.iter().collect();
    entries.sort_by_key(|entry| entry.id);
    entries.dedup_by_key(|entry| entry.id);
    entries
}

/// How many ids the pack holds, and how many bytes they are of.
fn holds(pack: &PackRecord) -> (i64, i64) {
    let entries = distinct(pack);
    let plain: u64 = entries.iter().map(|entry| u64::from(entry.plain_length)).sum();
    (to_sql(entries.len() as u64), to_sql(plain))
}

/// Whether the pack is known just as it is.
pub(super) fn agrees(transaction: &Transaction<'_>, pack: &PackRecord) -> Outcome<bool> {
    let row: Option<i64> = transaction
        .prepare_cached(
            "SELECT pack FROM packs WHERE name = ?1 AND kind = ?2 AND size = ?3 AND entries = ?4",
        )?
        .query_row(params![pack.name.as_bytes(), code(pack.kind), to_sql(pack.size), holds(pack).0], |row| {
            row.get(0)
        })
        .optional()?;
    let Some(row) = row else { return Ok(false) };
    let mut find = transaction.prepare_cached(&format!(
        "SELECT offset, payload_length, plain_length, codec FROM {} WHERE id = ?1 AND pack = ?2",
        table(pack.kind)
    ))?;
    for entry in distinct(pack) {
        let found: Option<(u32, u32, u32, u8)> = find
            .query_row(params![entry.id, row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()?;
        let said = (entry.offset, entry.payload_length, entry.plain_length, entry.codec.as_byte());
        if found != Some(said) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is known of a pack may be what was left of it when somebody found it damaged, or what a damaged index said, before its writer
/// stored it once more. Now it is what the writer says. Reads through the whole table if so.
fn complete(transaction: &Transaction<'_>, row: i64, pack: &PackRecord) -> Outcome<()> {
    if agrees(transaction, pack)? {
        return Ok(());
    }
    let (entries, plain) = holds(pack);
    transaction
        .prepare_cached("UPDATE packs SET size = ?2, entries = ?3, plain_bytes = ?4 WHERE pack = ?1")?
        .execute(params![row, to_sql(pack.size), entries, plain])?;
    transaction.execute(&format!("DELETE FROM {} WHERE pack = ?1", table(pack.kind)), [row])?;
    insert_entries(transaction, &[(row, pack)])
}

/// The row of the pack, still without its entries.
fn insert_pack(transaction: &Transaction<'_>, pack: &PackRecord, session: Option<i64>) -> Outcome<i64> {
    let (entries, plain) = holds(pack);
    transaction
        .prepare_cached(
            "INSERT INTO packs (name, kind, size, entries, plain_bytes, session, proven, writer)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, (SELECT writer FROM sessions WHERE session = ?6))",
        )?
        .execute(params![
            pack.name.as_bytes(),
            code(pack.kind),
            to_sql(pack.size),
            entries,
            plain,
            session
        ])?;
    Ok(transaction.last_insert_rowid())
}

fn insert_entries(transaction: &Transaction<'_>, packs: &[(i64, &PackRecord)]) -> Outcome<()> {
    for kind in [PackKind::Data, PackKind::Nodes] {
        let of_kind = packs.iter().filter(|(_, pack)| pack.kind == kind);
        let mut entries: Vec<(&Entry, i64)> =
            of_kind.flat_map(|(row, pack)| pack.entries.iter().map(|entry| (entry, *row))).collect();
        // Stable: of two with the same id and pack the first stays.
        entries.sort_by_key(|(entry, row)| (entry.id, *row));
        entries.dedup_by_key(|(entry, row)| (entry.id, *row));
        let mut add = transaction.prepare_cached(&format!(
            "INSERT INTO {} (id, pack, offset, payload_length, plain_length, codec)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            table(kind)
        ))?;
        for (entry, row) in entries {
            let Entry { id, offset, payload_length, plain_length, codec } = entry;
            add.execute(params![id, row, offset, payload_length, plain_length, codec.as_byte()])?;
        }
    }
    Ok(())
}
