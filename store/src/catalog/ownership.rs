//! What a catalog knows of the claim that it works under, and of itself: whether it is the one that others rely on.

use rusqlite::{OptionalExtension, params};

use super::{Catalog, expect, from_sql, sessions, to_sql};
use crate::error::Result;
use crate::id::{CatalogId, OwnerId};

impl Catalog {
    /// Makes this catalog act for an owner that the host remembers: its file was lost, the host was not.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn set_owner(&mut self, owner: OwnerId) -> Result<()> {
        self.write("set the owner", |transaction| {
            transaction.execute("UPDATE meta SET owner = ?1", [owner.as_bytes()])?;
            Ok(())
        })?;
        self.owner = owner;
        Ok(())
    }

    /// Who this catalog is in ownership claims. Random, made once with the file.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// The claim of ours, by its generation, after which this catalog has read all that others had stored; 0 if none.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn caught_up(&self) -> Result<u64> {
        self.read("look up the claim", |transaction| {
            Ok(from_sql(transaction.query_row("SELECT caught_up FROM meta", (), |row| row.get(0))?))
        })
    }

    /// Notes that all is read that others had stored before our claim of `generation`. Sessions from before it are shut out, the first
    /// time: others may have deleted what they were promised.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn catch_up(&self, generation: u64) -> Result<()> {
        self.write("catch up with a claim", |transaction| {
            let noted = transaction.execute(
                "UPDATE meta SET caught_up = ?1, records = 0 WHERE caught_up < ?1",
                [to_sql(generation)],
            )?;
            if noted > 0 {
                sessions::fence_open(transaction)?;
                // Nor is it known what hangs below nodes any more. The next collection finds out.
                transaction.execute("UPDATE packs SET proven = 0", ())?;
            }
            Ok(())
        })
    }

    /// Which catalog this is. Another one, which stood in its place before, may still be in use by somebody: a claim that was made with
    /// that one is not this one's.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn instance(&self) -> Result<CatalogId> {
        self.read("look up which catalog it is", |transaction| {
            let id: Vec<u8> = transaction.query_row("SELECT instance FROM meta", (), |row| row.get(0))?;
            expect(CatalogId::from_slice(&id), "catalog id")
        })
    }

    /// The claim this catalog has caught up with, and how many deletions it has recorded in the bucket under that, or was about to.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn records(&self) -> Result<(u64, u32)> {
        self.read("look up the records", |transaction| {
            let found = |row: &rusqlite::Row<'_>| Ok((from_sql(row.get(0)?), row.get(1)?));
            Ok(transaction.query_row("SELECT caught_up, records FROM meta", (), found)?)
        })
    }

    /// Makes another catalog of an old copy, if [`Catalog::records`] still says that it is one: what was done under that claim is not known.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn set_outdated(&self, (generation, records): (u64, u32)) -> Result<()> {
        self.write("note that the catalog is old", |transaction| {
            transaction.execute(
                "UPDATE meta SET instance = randomblob(16), caught_up = 0 WHERE caught_up = ?1 AND records = ?2 AND caught_up > 0",
                params![to_sql(generation), records],
            )?;
            Ok(())
        })
    }

    /// Notes that the record of that number is about to be written under our claim of `generation`.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn begin_record(&self, generation: u64, number: u32) -> Result<()> {
        self.write("note a record", |transaction| {
            transaction.execute(
                "UPDATE meta SET records = max(records, ?2) WHERE caught_up = ?1",
                params![to_sql(generation), number + 1],
            )?;
            Ok(())
        })
    }

    /// The closing for our claim of `generation`: `document`, unless another process of this host came first.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn agree_on_closing(&self, generation: u64, document: &[u8]) -> Result<Vec<u8>> {
        self.write("agree on a closing", |transaction| {
            let agreed = transaction
                .query_row(
                    "SELECT closing FROM meta WHERE closed = ?1 AND closing IS NOT NULL",
                    [to_sql(generation)],
                    |row| row.get(0),
                )
                .optional()?;
            if let Some(agreed) = agreed {
                return Ok(agreed);
            }
            transaction.execute(
                "UPDATE meta SET closed = ?1, closing = ?2",
                params![to_sql(generation), document],
            )?;
            Ok(document.to_vec())
        })
    }
}
