//! Packs that are decided to go: until they are gone, and after.

use std::collections::HashSet;

use super::lookup::{kind_of, table};
use super::{Catalog, expect, from_sql, to_sql};
use crate::error::Result;
use crate::id::PackName;
use crate::pack::{PackId, PackKind};

impl Catalog {
    /// Packs that are decided to go and not known to be gone, with their bytes.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn doomed(&self) -> Result<Vec<(PackId, u64)>> {
        self.read("list packs to delete", |transaction| {
            let mut find = transaction.prepare_cached(
                "SELECT kind, name, size FROM packs WHERE state = 2 ORDER BY kind DESC, name",
            )?;
            let mut rows = find.query(())?;
            let mut packs = Vec::new();
            while let Some(row) = rows.next()? {
                let name: Vec<u8> = row.get(1)?;
                let name = expect(PackName::from_slice(&name), "pack name")?;
                packs.push((PackId::new(kind_of(row.get(0)?), name), from_sql(row.get(2)?)));
            }
            Ok(packs)
        })
    }

    /// Drops what is known of doomed packs whose objects are gone. Others can work in between.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn drop_doomed(&self) -> Result<()> {
        for kind in [PackKind::Data, PackKind::Nodes] {
            for first in 0..=u8::MAX {
                let (from, to) = ([first], [first.saturating_add(1)]);
                let below = if first == u8::MAX { "" } else { "AND id < ?2" };
                let sql = format!(
                    "DELETE FROM {} WHERE id >= ?1 {below} AND pack IN (SELECT pack FROM packs WHERE state = 2)",
                    table(kind)
                );
                self.write("drop what deleted packs held", |transaction| {
                    let mut drop = transaction.prepare_cached(&sql)?;
                    match first {
                        u8::MAX => drop.execute([&from[..]])?,
                        _ => drop.execute([&from[..], &to[..]])?,
                    };
                    Ok(())
                })?;
            }
        }
        self.write("drop deleted packs", |transaction| {
            transaction
                .execute("DELETE FROM writers WHERE pack IN (SELECT pack FROM packs WHERE state = 2)", ())?;
            transaction.execute("DELETE FROM packs WHERE state = 2", ())?;
            Ok(())
        })
    }

    /// Takes every pack into use again that was decided to go and is not among `buried`: another owner has relied on it since. With
    /// `owned`, the generation of our claim, only if no process of this host has caught up with that yet; until one has, nothing
    /// is decided here ([`Catalog::settle`]).
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn exhume_all_but(&self, buried: &[PackName], owned: u64) -> Result<()> {
        let buried: HashSet<&PackName> = buried.iter().collect();
        self.write("take packs into use again", |transaction| {
            if owned > 0 {
                let to_catch_up = transaction
                    .execute("UPDATE meta SET caught_up = 0 WHERE caught_up < ?1", [to_sql(owned)])?;
                if to_catch_up == 0 {
                    return Ok(());
                }
                // Dropped by halves here, and seen alive by another owner: it is alive.
                transaction.execute("DELETE FROM forgotten WHERE gone = 0", ())?;
            }
            let names: Vec<Vec<u8>> = transaction
                .prepare_cached("SELECT name FROM tombstones UNION SELECT name FROM packs WHERE state = 2")?
                .query_map((), |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for name in names {
                let pack = expect(PackName::from_slice(&name), "pack name")?;
                if !buried.contains(&pack) {
                    // What it holds was not recorded if it was met when it was to go: it is read again.
                    for sql in [
                        "DELETE FROM tombstones WHERE name = ?1",
                        "DELETE FROM packs WHERE name = ?1 AND state = 2 AND entries = 0",
                        "UPDATE packs SET state = 0, condemned = NULL WHERE name = ?1",
                    ] {
                        transaction.prepare_cached(sql)?.execute([&name])?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Notes that somebody has decided to delete these packs: they are not offered, nor imported any more.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn bury(&self, packs: &[PackName]) -> Result<()> {
        self.write("bury packs", |transaction| {
            let mut note =
                transaction.prepare_cached("INSERT OR IGNORE INTO tombstones (name) VALUES (?1)")?;
            let mut doom = transaction.prepare_cached("UPDATE packs SET state = 2 WHERE name = ?1")?;
            for name in packs {
                note.execute([name.as_bytes()])?;
                doom.execute([name.as_bytes()])?;
            }
            Ok(())
        })
    }
}
