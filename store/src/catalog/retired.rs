//! What checks found: places that are not to be relied on, roots that lost something, when each pack was read.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Transaction, params};

use super::lookup::{kind_of, table};
use super::packs::agrees;
use super::record::{PackRecord, Retired};
use super::{Catalog, Outcome, expect, failed, from_sql};
use crate::error::Result;
use crate::id::{ChunkId, NodeId, PackName, Root};
use crate::pack::{PackId, PackKind};

impl Catalog {
    /// Takes these places out of use: backups are not offered them, readers try them last. Nothing is deleted, and unknown packs are
    /// passed over. How many were in use.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn retire(&self, places: &[Retired]) -> Result<u64> {
        self.write("take damaged places out of use", |transaction| {
            let mut add = transaction.prepare_cached(
                "INSERT INTO retired (pack, id, wrong) SELECT pack, ?2, ?3 FROM packs WHERE name = ?1
                 ON CONFLICT (pack, id) DO UPDATE SET wrong = max(wrong, excluded.wrong) WHERE excluded.wrong > wrong",
            )?;
            let mut changed = 0;
            for place in places {
                changed += match place {
                    Retired::Pack(pack) => add.execute(params![pack.as_bytes(), &[][..], false])?,
                    Retired::Place { pack, id, wrong } => add.execute(params![pack.as_bytes(), id, wrong])?,
                };
            }
            Ok(changed as u64)
        })
    }

    /// By pack, what was found wrong in it although the pack is what was stored; in ascending order.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn stored_wrong(&self) -> Result<BTreeMap<PackName, Vec<ChunkId>>> {
        self.read("list what was stored wrong", |transaction| {
            let mut find = transaction.prepare_cached(
                "SELECT p.name, r.id FROM retired r JOIN packs p ON p.pack = r.pack
                 WHERE r.wrong = 1 ORDER BY p.name, r.id",
            )?;
            let mut rows = find.query(())?;
            let mut wrong: BTreeMap<PackName, Vec<ChunkId>> = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let (name, id): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let name = expect(PackName::from_slice(&name), "pack name")?;
                wrong.entry(name).or_default().push(expect(ChunkId::from_slice(&id), "chunk id")?);
            }
            Ok(wrong)
        })
    }

    /// Notes that these packs were read at `now_ms` and are what their names say. Whatever was taken out of use because they
    /// were not is in use again. How many packs that concerns.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn packs_are_sound(&self, packs: &[PackName], now_ms: i64) -> Result<u64> {
        self.write("note which packs are sound", |transaction| {
            let mut note =
                transaction.prepare_cached("UPDATE packs SET checked = max(checked, ?2) WHERE name = ?1")?;
            let mut lift = transaction.prepare_cached(
                "DELETE FROM retired WHERE pack = (SELECT pack FROM packs WHERE name = ?1) AND wrong = 0",
            )?;
            let mut lifted = 0;
            for pack in packs {
                note.execute(params![pack.as_bytes(), now_ms])?;
                lifted += u64::from(lift.execute([pack.as_bytes()])? > 0);
            }
            Ok(lifted)
        })
    }

    /// Notes that these packs were read at `now_ms`, whatever came of it.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn packs_were_read(&self, packs: &[PackName], now_ms: i64) -> Result<()> {
        self.write("note which packs were read", |transaction| {
            let mut note =
                transaction.prepare_cached("UPDATE packs SET checked = max(checked, ?2) WHERE name = ?1")?;
            for pack in packs {
                note.execute(params![pack.as_bytes(), now_ms])?;
            }
            Ok(())
        })
    }

    /// Packs of which something is out of use, by name.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn suspected_packs(&self) -> Result<Vec<PackId>> {
        self.read("list suspected packs", |transaction| {
            let mut find = transaction.prepare_cached(
                "SELECT name, kind FROM packs WHERE pack IN (SELECT pack FROM retired) ORDER BY name",
            )?;
            let mut rows = find.query(())?;
            let mut packs = Vec::new();
            while let Some(row) = rows.next()? {
                let (name, kind): (Vec<u8>, u8) = (row.get(0)?, row.get(1)?);
                packs.push(PackId::new(kind_of(kind), expect(PackName::from_slice(&name), "pack name")?));
            }
            Ok(packs)
        })
    }

    /// Remembers roots below which something is lost. With `only`, those are all: any other is whole again.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn set_affected_roots(&self, roots: &[Root], only: bool) -> Result<()> {
        self.write("remember affected disks", |transaction| {
            if only {
                transaction.execute("DELETE FROM affected", ())?;
            }
            let mut add = transaction.prepare_cached("INSERT OR IGNORE INTO affected (node) VALUES (?1)")?;
            for node in roots.iter().filter_map(|root| root.node) {
                add.execute([node.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Whether the catalog says of this pack what the pack says of itself.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn agrees_with(&self, pack: &PackRecord) -> Result<bool> {
        self.read("compare a pack", |transaction| agrees(transaction, pack))
    }

    /// Of the places in packs that the database at `other` knows too: how many it describes otherwise, or does not know.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog) if it cannot be read.
    pub fn places_unlike(&self, other: &Path) -> Result<u64> {
        let connection = self.lock();
        let compare = || -> Outcome<i64> {
            connection.execute("ATTACH ?1 AS other", [other.to_string_lossy()])?;
            let mut differing = 0;
            for kind in [PackKind::Data, PackKind::Nodes] {
                let table = table(kind);
                differing += connection.query_row(
                    &format!(
                        "SELECT count(*) FROM main.{table} c JOIN main.packs p ON p.pack = c.pack
                         JOIN other.packs q ON q.name = p.name
                         LEFT JOIN other.{table} o ON o.id = c.id AND o.pack = q.pack
                         WHERE o.offset IS NOT c.offset OR o.payload_length IS NOT c.payload_length
                            OR o.plain_length IS NOT c.plain_length OR o.codec IS NOT c.codec"
                    ),
                    (),
                    |row| row.get::<_, i64>(0),
                )?;
            }
            Ok(differing)
        };
        let outcome = compare();
        // It may not have been attached.
        let _ = connection.execute("DETACH other", ());
        outcome.map(from_sql).map_err(|failure| failed(other, "compare the database", failure))
    }

    /// What is wrong with the database itself, in SQLite's words; nothing if it is sound.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog) if it is too damaged to tell.
    pub fn faults(&self) -> Result<Vec<String>> {
        self.read("check the database", |transaction| {
            let mut check = transaction.prepare("PRAGMA quick_check(20)")?;
            let said = check.query_map((), |row| row.get::<_, String>(0))?;
            let said = said.collect::<rusqlite::Result<Vec<String>>>()?;
            Ok(said.into_iter().filter(|line| line != "ok").collect())
        })
    }
}

/// Whether something below this root is lost.
pub(super) fn is_affected_root(transaction: &Transaction<'_>, node: &NodeId) -> Outcome<bool> {
    let mut find = transaction.prepare_cached("SELECT 1 FROM affected WHERE node = ?1")?;
    Ok(find.exists([node.as_bytes()])?)
}
