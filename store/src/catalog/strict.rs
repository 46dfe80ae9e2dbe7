//! Strict repositories: writers do not trust each other. What somebody stored is offered to others only once a holder of the keys has
//! verified the pack it lies in.
//!
//! Strictness belongs to the catalog, so that every process that opens it keeps the rule.

use std::sync::atomic::Ordering;

use rusqlite::{Transaction, params};

use super::lookup::{RETIRED, kind_of, locations};
use super::packs::import;
use super::record::{Location, Origin, PackRecord};
use super::sessions::open_row;
use super::{Catalog, Outcome, expect, from_sql};
use crate::error::Result;
use crate::id::{NodeId, PackName, SessionId, WriterId};
use crate::pack::PackId;

/// Whether the session `?2` may rely on what lies in the pack `p` of a strict repository.
pub(super) const TRUSTED: &str = "(p.verified OR p.writer = (SELECT writer FROM sessions WHERE session = ?2)
    OR EXISTS (SELECT 1 FROM writers WHERE session = ?2 AND pack = p.pack))";

/// A pack that nobody with keys has verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unverified {
    /// The pack.
    pub pack: PackId,
    /// Bytes of the object.
    pub size: u64,
}

impl Catalog {
    /// Whether writers do not trust each other.
    pub fn is_strict(&self) -> bool {
        self.strict.load(Ordering::Acquire)
    }

    /// From here on writers trust each other, or do not.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn set_strict(&self, strict: bool) -> Result<()> {
        if self.is_strict() != strict {
            self.write("note whether writers trust each other", |transaction| {
                transaction.execute("UPDATE meta SET strict = ?1", [strict])?;
                Ok(())
            })?;
            self.strict.store(strict, Ordering::Release);
        }
        Ok(())
    }

    /// Packs in use that nobody with keys has verified, the oldest first. Those of which something is known to be damaged never will be.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn unverified_packs(&self) -> Result<Vec<Unverified>> {
        self.read("list packs that nobody verified", |transaction| {
            let mut find = transaction.prepare_cached(
                "SELECT kind, name, size FROM packs p WHERE state = 0 AND NOT verified
                 AND NOT EXISTS (SELECT 1 FROM retired r WHERE r.pack = p.pack) ORDER BY pack",
            )?;
            let mut rows = find.query(())?;
            let mut packs = Vec::new();
            while let Some(row) = rows.next()? {
                let name = PackName::from_slice(row.get_ref(1)?.as_blob().unwrap_or_default());
                let pack = PackId::new(kind_of(row.get(0)?), expect(name, "pack name")?);
                packs.push(Unverified { pack, size: from_sql(row.get(2)?) });
            }
            Ok(packs)
        })
    }

    /// Notes that a holder of the keys found everything in these packs to be what its id says. Those of which something is damaged, and
    /// unknown ones, are passed over. How many were not verified before.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn mark_verified(&self, packs: &[PackName]) -> Result<u64> {
        self.write("note which packs are verified", |transaction| {
            let mut mark = transaction.prepare_cached(
                "UPDATE packs SET verified = 1 WHERE name = ?1 AND NOT verified AND state < 2
                 AND NOT EXISTS (SELECT 1 FROM retired r WHERE r.pack = packs.pack)",
            )?;
            let mut marked = 0;
            for pack in packs {
                marked += mark.execute([pack.as_bytes()])?;
            }
            Ok(marked as u64)
        })
    }

    /// Every place of each node that the session may rely on, the best first.
    ///
    /// # Errors
    /// [`Error::Session`](crate::Error::Session) unless the session is open.
    pub fn trusted_nodes(&self, session: SessionId, ids: &[NodeId]) -> Result<Vec<Vec<Location>>> {
        self.read("look up locations", |transaction| {
            let row = open_row(transaction, session)?;
            let mut find = transaction.prepare_cached(&format!(
                "SELECT p.name, c.offset, c.payload_length, c.plain_length, c.codec,
                        p.state * 2 + (c.condemned IS NOT NULL), {RETIRED}
                 FROM nodes c CROSS JOIN packs p ON p.pack = c.pack WHERE c.id = ?1 AND {TRUSTED}"
            ))?;
            ids.iter().map(|id| locations(&mut find, params![id.as_bytes(), row])).collect()
        })
    }

    /// One place of each node for everybody who may rely on another one: a verified one alone, or one of each writer, and all of which
    /// it is not known who stored them.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn node_copies(&self, ids: &[NodeId]) -> Result<Vec<Vec<Location>>> {
        self.read("look up locations", |transaction| {
            let mut find = transaction.prepare_cached(&format!(
                "SELECT p.name, c.offset, c.payload_length, c.plain_length, c.codec,
                        p.state * 2 + (c.condemned IS NOT NULL), {RETIRED}
                 FROM nodes c CROSS JOIN packs p ON p.pack = c.pack WHERE c.id = ?1"
            ))?;
            let mut origins =
                transaction.prepare_cached("SELECT verified, writer FROM packs WHERE name = ?1")?;
            let mut all = Vec::with_capacity(ids.len());
            for id in ids {
                let mut copies: Vec<(Origin, Location)> = Vec::new();
                for place in locations(&mut find, params![id.as_bytes()])? {
                    let origin =
                        origins.query_row([place.pack.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
                    copies.push((origin_of(origin)?, place));
                }
                all.push(kept(copies));
            }
            Ok(all)
        })
    }

    /// Records a copy that a collection made of what was stored by `origin`.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn import_copy(&self, pack: &PackRecord, origin: Origin) -> Result<()> {
        self.write("import a copy", |transaction| {
            import(transaction, std::slice::from_ref(pack))?;
            let writer = match &origin {
                Origin::Writer(writer) => Some(writer.as_bytes().to_vec()),
                Origin::Verified | Origin::Unknown => None,
            };
            transaction.execute(
                "UPDATE packs SET writer = ?2, verified = ?3 WHERE name = ?1 AND session IS NULL",
                params![pack.name.as_bytes(), writer, origin == Origin::Verified],
            )?;
            Ok(())
        })
    }
}

/// Of the copies of one id, those that somebody may have to rely on. The best come first.
fn kept(copies: Vec<(Origin, Location)>) -> Vec<Location> {
    if let Some((_, verified)) =
        copies.iter().find(|(origin, place)| *origin == Origin::Verified && !place.retired)
    {
        return vec![*verified];
    }
    let mut seen = Vec::new();
    let mut kept = Vec::new();
    for (origin, place) in copies {
        if origin == Origin::Unknown || !seen.contains(&origin) {
            seen.push(origin);
            kept.push(place);
        }
    }
    kept
}

/// The origin of a pack, of its columns `verified` and `writer`.
pub(super) fn origin_of((verified, writer): (bool, Option<Vec<u8>>)) -> Outcome<Origin> {
    Ok(match (verified, writer) {
        (true, _) => Origin::Verified,
        (false, None) => Origin::Unknown,
        (false, Some(writer)) => Origin::Writer(expect(WriterId::from_slice(&writer), "writer id")?),
    })
}

/// Whether this root hangs from a snapshot that the session's writer made in a strict repository, and its node is there.
pub(super) fn is_own_root(
    transaction: &Transaction<'_>,
    session: i64,
    node: &NodeId,
    size: i64,
) -> Outcome<bool> {
    let mut find = transaction.prepare_cached(&format!(
        "SELECT 1 FROM roots r JOIN snapshots s ON s.snapshot = r.snapshot
         WHERE r.node = ?1 AND r.size = ?3 AND s.writer = (SELECT writer FROM sessions WHERE session = ?2)
         AND EXISTS (SELECT 1 FROM nodes c CROSS JOIN packs p ON p.pack = c.pack
                     WHERE c.id = ?1 AND NOT {RETIRED} AND {TRUSTED}) LIMIT 1"
    ))?;
    Ok(find.exists(params![node.as_bytes(), session, size])?)
}
