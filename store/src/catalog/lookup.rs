//! Questions about chunks and nodes, and the promises that answers make.

use rusqlite::{CachedStatement, OptionalExtension, Params, Transaction, params};

use super::record::Location;
use super::sessions::{heard_of, open_row};
use super::strict::TRUSTED;
use super::{Catalog, Outcome, expect};
use crate::error::Result;
use crate::id::{ChunkId, NodeId, PackName, SessionId};
use crate::pack::{Codec, PackKind};
use crate::sabotage::{Rule, broken};

/// The table of a kind's locations.
pub(super) const fn table(kind: PackKind) -> &'static str {
    match kind {
        PackKind::Data => "chunks",
        PackKind::Nodes => "nodes",
    }
}

/// Reads [`code`] back.
pub(super) const fn kind_of(code: u8) -> PackKind {
    match code {
        1 => PackKind::Data,
        _ => PackKind::Nodes,
    }
}

/// A kind as a column: as in a pack's header.
pub(super) const fn code(kind: PackKind) -> u8 {
    match kind {
        PackKind::Data => 1,
        PackKind::Nodes => 2,
    }
}

impl Catalog {
    /// Which chunks are stored and may be referred to. Those are pinned for the session in the same transaction: they stay
    /// until it ends. The session was heard of at `now_ms`.
    ///
    /// # Errors
    /// [`Error::Session`](crate::Error::Session) unless the session is open.
    pub fn have_chunks(&self, session: SessionId, ids: &[ChunkId], now_ms: i64) -> Result<Vec<bool>> {
        self.have(session, PackKind::Data, ids, ChunkId::as_bytes, now_ms)
    }

    /// Which nodes are stored, with all that hangs below them or by this very session. Pins as [`Catalog::have_chunks`] does.
    ///
    /// # Errors
    /// [`Error::Session`](crate::Error::Session) unless the session is open.
    pub fn have_nodes(&self, session: SessionId, ids: &[NodeId], now_ms: i64) -> Result<Vec<bool>> {
        self.have(session, PackKind::Nodes, ids, NodeId::as_bytes, now_ms)
    }

    fn have<I>(
        &self,
        session: SessionId,
        kind: PackKind,
        ids: &[I],
        bytes: Bytes<I>,
        now_ms: i64,
    ) -> Result<Vec<bool>> {
        let strict = self.is_strict();
        // Whoever lost promises by loss of power cannot commit what relied on them: the proof asks for each.
        self.write_lightly("look up what is stored", |transaction| {
            let row = open_row(transaction, session)?;
            heard_of(transaction, row, now_ms)?;
            let trust = match kind {
                PackKind::Data => "",
                PackKind::Nodes => {
                    "AND (p.proven OR EXISTS (SELECT 1 FROM writers WHERE session = ?2 AND pack = p.pack))"
                }
            };
            let offered =
                if broken(Rule::OfferOnlyLive) { "1" } else { "c.condemned IS NULL AND p.state = 0" };
            let origin = if strict { format!("AND {TRUSTED}") } else { String::new() };
            let mut find = transaction.prepare_cached(&format!(
                "SELECT ?2 FROM {} c CROSS JOIN packs p ON p.pack = c.pack
                 WHERE c.id = ?1 AND {offered} AND NOT {RETIRED} {trust} {origin} LIMIT 1",
                table(kind)
            ))?;
            let mut pin = transaction
                .prepare_cached("INSERT OR IGNORE INTO pins (session, kind, id) VALUES (?1, ?2, ?3)")?;
            in_order(ids, bytes, |id| {
                let found = find.exists(params![id, row])?;
                if found {
                    pin.execute(params![row, code(kind), id])?;
                }
                Ok(found)
            })
        })
    }

    /// Every place where each chunk lies, the best first. Empty does not prove absence: the catalog can lag the bucket.
    /// Never delete on it.
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn locate_chunks(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        self.locate(PackKind::Data, ids, ChunkId::as_bytes)
    }

    /// Every place where each node lies. As [`Catalog::locate_chunks`].
    ///
    /// # Errors
    /// [`Error::Catalog`](crate::Error::Catalog).
    pub fn locate_nodes(&self, ids: &[NodeId]) -> Result<Vec<Vec<Location>>> {
        self.locate(PackKind::Nodes, ids, NodeId::as_bytes)
    }

    fn locate<I>(&self, kind: PackKind, ids: &[I], bytes: Bytes<I>) -> Result<Vec<Vec<Location>>> {
        self.read("look up locations", |transaction| {
            // The rank is sorted here: almost always there is one row, and a sorter in SQL costs more than the look-up.
            let mut find = transaction.prepare_cached(&format!(
                "SELECT p.name, c.offset, c.payload_length, c.plain_length, c.codec,
                        p.state * 4 + (c.condemned IS NOT NULL) * 2 + NOT p.verified, {RETIRED}
                 FROM {} c CROSS JOIN packs p ON p.pack = c.pack WHERE c.id = ?1",
                table(kind)
            ))?;
            in_order(ids, bytes, |id| locations(&mut find, [id]))
        })
    }

    /// Which nodes lie in packs that this session wrote.
    ///
    /// # Errors
    /// [`Error::Session`](crate::Error::Session) unless the session is open.
    pub fn is_own_node(&self, session: SessionId, ids: &[NodeId]) -> Result<Vec<bool>> {
        self.test(session, OWN_NODE, ids, NodeId::as_bytes)
    }

    /// Which nodes this session has pinned.
    ///
    /// # Errors
    /// [`Error::Session`](crate::Error::Session) unless the session is open.
    pub fn is_pinned_node(&self, session: SessionId, ids: &[NodeId]) -> Result<Vec<bool>> {
        self.test(session, &self.pinned_node(), ids, NodeId::as_bytes)
    }

    /// Which chunks this session may refer to: those it pinned and those in packs that it wrote.
    ///
    /// # Errors
    /// [`Error::Session`](crate::Error::Session) unless the session is open.
    pub fn known_chunks(&self, session: SessionId, ids: &[ChunkId]) -> Result<Vec<bool>> {
        self.test(session, &self.known_chunk(), ids, ChunkId::as_bytes)
    }

    fn pinned_node(&self) -> String {
        match self.is_strict() {
            true => format!("{PINNED_NODE} AND {}", stands_in("nodes")),
            false => PINNED_NODE.to_owned(),
        }
    }

    fn known_chunk(&self) -> String {
        match self.is_strict() {
            true => format!("{PINNED_CHUNK} AND {} UNION ALL {OWN_CHUNK}", stands_in("chunks")),
            false => format!("{PINNED_CHUNK} UNION ALL {OWN_CHUNK}"),
        }
    }

    fn test<I>(&self, session: SessionId, sql: &str, ids: &[I], bytes: Bytes<I>) -> Result<Vec<bool>> {
        self.read("look up what a session knows", |transaction| {
            let row = open_row(transaction, session)?;
            let mut find = transaction.prepare_cached(sql)?;
            in_order(ids, bytes, |id| Ok(find.exists(params![id, row])?))
        })
    }
}

/// Whether the place `c` was found damaged, by itself or with its whole pack.
pub(super) const RETIRED: &str =
    "EXISTS (SELECT 1 FROM retired r WHERE r.pack = c.pack AND r.id IN (x'', c.id))";
const OWN_NODE: &str = "SELECT 1 FROM nodes c CROSS JOIN packs p ON p.pack = c.pack
    JOIN writers w ON w.session = ?2 AND w.pack = p.pack WHERE c.id = ?1 AND p.state = 0";
const PINNED_NODE: &str = "SELECT 1 FROM pins WHERE session = ?2 AND kind = 2 AND id = ?1";
const PINNED_CHUNK: &str = "SELECT 1 FROM pins WHERE session = ?2 AND kind = 1 AND id = ?1";
const OWN_CHUNK: &str = "SELECT 1 FROM chunks c CROSS JOIN packs p ON p.pack = c.pack
    JOIN writers w ON w.session = ?2 AND w.pack = p.pack WHERE c.id = ?1 AND p.state = 0";

/// A promise counts only while what was promised is still to be relied on: the repository may have been an ordinary one.
fn stands_in(table: &str) -> String {
    format!(
        "EXISTS (SELECT 1 FROM {table} c CROSS JOIN packs p ON p.pack = c.pack
                 WHERE c.id = ?1 AND p.state < 2 AND {TRUSTED})"
    )
}

type Bytes<I> = fn(&I) -> &[u8; 32];

/// Asks for each id in ascending order, so that neighbours share pages, and answers in the order given.
fn in_order<I, T: Default>(
    ids: &[I],
    bytes: Bytes<I>,
    mut ask: impl FnMut(&[u8; 32]) -> Outcome<T>,
) -> Outcome<Vec<T>> {
    if ids.is_sorted_by_key(bytes) {
        return ids.iter().map(|id| ask(bytes(id))).collect();
    }
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_unstable_by_key(|at| bytes(&ids[*at]));
    let mut answers: Vec<T> = Vec::new();
    answers.resize_with(ids.len(), T::default);
    for at in order {
        answers[at] = ask(bytes(&ids[at]))?;
    }
    Ok(answers)
}

/// The places that a statement finds, the best first.
pub(super) fn locations(find: &mut CachedStatement<'_>, asked: impl Params) -> Outcome<Vec<Location>> {
    let mut rows = find.query(asked)?;
    let mut found: Vec<(i64, Location)> = Vec::new();
    while let Some(row) = rows.next()? {
        let name = PackName::from_slice(row.get_ref(0)?.as_blob().unwrap_or_default());
        let location = Location {
            pack: expect(name, "pack name")?,
            offset: row.get(1)?,
            payload_length: row.get(2)?,
            plain_length: row.get(3)?,
            codec: expect(Codec::from_byte(row.get(4)?), "codec")?,
            retired: row.get(6)?,
        };
        found.push((row.get(5)?, location));
    }
    found.sort_by_key(|(rank, location)| (location.retired, *rank));
    Ok(found.into_iter().map(|(_, location)| location).collect())
}

/// Whether this root hangs from a live snapshot.
pub(super) fn is_live_root(
    transaction: &Transaction<'_>,
    node: &NodeId,
    size: i64,
) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached("SELECT 1 FROM roots WHERE node = ?1 AND size = ?2 LIMIT 1")?
        .query_row(params![node.as_bytes(), size], |_| Ok(()))
        .optional()
        .map(|found| found.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RepositoryId;

    #[test]
    fn only_promises_do_without_a_sync() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&folder.path().join("catalog"), RepositoryId::random()).unwrap();
        let synchronous =
            || -> i64 { catalog.lock().pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap() };
        let session = SessionId::random();
        let (normal, full) = (1, 2);
        for _ in 0..2 {
            catalog.open_session(session, "vm", 1).unwrap();
            assert_eq!(synchronous(), full);
            catalog.have_chunks(session, &[ChunkId::new([1; 32])], 2).unwrap();
            assert_eq!(synchronous(), normal);
        }
        catalog.abandon_session(session).unwrap();
        assert_eq!(synchronous(), full);
    }
}
