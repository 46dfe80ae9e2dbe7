//! What a collection asks of the catalog: what is held, and the steps on the way out.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Transaction, params};

use super::lookup::{RETIRED, code, kind_of, table};
use super::record::Origin;
use super::strict::origin_of;
use super::survey::{Marked, Survey};
use super::{Catalog, Outcome, expect, from_sql};
use crate::error::{Error, Result};
use crate::id::{ChunkId, NodeId, PackName};
use crate::pack::{PackId, PackKind};
use crate::sabotage::{Rule, broken};

/// A session that is open or about to commit may still refer to what it was promised.
const OPEN: &str = "state IN (0, 4)";
/// Packs that such a session wrote.
const HELD: &str =
    "SELECT w.pack FROM writers w JOIN sessions s ON s.session = w.session WHERE s.state IN (0, 4)";

/// Those packs must not be collected.
pub(super) fn packs_of_open_sessions() -> &'static str {
    if broken(Rule::KeepSessionPacks) { "SELECT 0 WHERE 0" } else { HELD }
}

/// Something that must not be collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// A node, with all that hangs below it.
    Tree(NodeId),
    /// A chunk.
    Chunk(ChunkId),
}

/// What became of condemned packs.
#[derive(Debug)]
pub enum Settled {
    /// Something is held that was not when it was last looked: mark it and try again.
    Changed,
    /// The repository was claimed anew, and what others did before that claim is being read.
    Outdated,
    /// Decided. From here on these packs may be gone at any moment; the others are in use again.
    Decided {
        /// How many condemned packs something has come to need.
        resurrected: u64,
    },
}

/// Nobody else collects while this value lives, in any process.
#[derive(Debug)]
pub struct Exclusive {
    flag: Arc<AtomicBool>,
    _file: Option<File>,
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.flag.store(false, Ordering::Release);
    }
}

impl Catalog {
    /// Keeps other collections out.
    ///
    /// # Errors
    /// [`Error::Busy`] if one is under way; [`Error::File`] if the lock cannot be made.
    pub fn exclusive(&self) -> Result<Exclusive> {
        let busy = || Error::Busy { what: "a collection" };
        if self.collecting.swap(true, Ordering::AcqRel) {
            return Err(busy());
        }
        let mut exclusive = Exclusive { flag: Arc::clone(&self.collecting), _file: None };
        if self.path.as_os_str() != super::MEMORY {
            let path = self.path.with_extension("gc.lock");
            let failed = |source| Error::File { path: path.clone(), action: "lock", source };
            let file = File::create(&path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => exclusive._file = Some(file),
                Err(TryLockError::WouldBlock) => return Err(busy()),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        Ok(exclusive)
    }

    /// Shuts out sessions that were last heard of before `before_ms`. Returns how many.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn fence_idle(&self, before_ms: i64) -> Result<u64> {
        self.write("fence idle sessions", |transaction| {
            let idle: Vec<i64> = transaction
                .prepare_cached(&format!("SELECT session FROM sessions WHERE {OPEN} AND last_seen < ?1"))?
                .query_map([before_ms], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for session in &idle {
                super::sessions::close(transaction, *session, super::SessionState::Fenced)?;
            }
            Ok(idle.len() as u64)
        })
    }

    /// Tells `each` of everything that snapshots and open sessions hold, at one moment.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn held(&self, mut each: impl FnMut(Held)) -> Result<()> {
        self.read("list what is held", |transaction| held(transaction, &mut each))
    }

    /// Sessions that are open or about to commit.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn open_sessions(&self) -> Result<u64> {
        self.read("count the open sessions", |transaction| {
            let count = format!("SELECT count(*) FROM sessions WHERE {OPEN}");
            Ok(from_sql(transaction.query_row(&count, (), |row| row.get(0))?))
        })
    }

    /// Which of these ids have a place in a pack that is in use and not among `leaving`. In a strict repository one that
    /// serves whoever relies on what `origin` stored.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn has_other_home(
        &self,
        kind: PackKind,
        ids: &[[u8; 32]],
        leaving: &HashSet<PackName>,
        origin: Origin,
    ) -> Result<Vec<bool>> {
        let strict = self.is_strict();
        let serves =
            |other| !strict || other == Origin::Verified || (other == origin && origin != Origin::Unknown);
        self.read("look for other places", |transaction| {
            let fits = |name: &PackName, _, other| serves(other) && !leaving.contains(name);
            ids.iter().map(|id| homes(transaction, kind, id, fits)).collect()
        })
    }

    /// Condemns packs: they are not offered to backups any more, and stay readable. So do the dead nodes of other packs. Packs that
    /// were condemned before and are not among `leaving` are in use again.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn condemn(&self, survey: &Survey, leaving: &[PackName]) -> Result<()> {
        self.write("condemn packs", |transaction| {
            let epoch: i64 =
                transaction.query_row("UPDATE meta SET epoch = epoch + 1 RETURNING epoch", (), |row| row.get(0))?;
            transaction.execute("UPDATE packs SET state = 0, condemned = NULL WHERE state = 1", ())?;
            let mut condemn = transaction.prepare_cached(&format!(
                "UPDATE packs SET state = 1, condemned = ?2 WHERE name = ?1 AND state = 0 AND pack NOT IN ({})",
                packs_of_open_sessions()
            ))?;
            for name in leaving {
                condemn.execute(params![name.as_bytes(), epoch])?;
            }
            let mut hide =
                transaction.prepare_cached("UPDATE nodes SET condemned = ?3 WHERE id = ?1 AND pack = ?2")?;
            let dead = if broken(Rule::HideDeadNodes) { &[][..] } else { &survey.dead_nodes };
            for (id, pack) in dead {
                hide.execute(params![id.as_bytes(), pack, epoch])?;
            }
            show_nodes(transaction, &survey.revived_nodes)
        })
    }

    /// Decides about the condemned packs, if nothing is held that `marks` does not know, and if this catalog has caught up with the claim of
    /// `generation` and no later one.
    ///
    /// `late` are chunks and nodes that were marked after the survey: packs that only they need are in use again.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn settle(
        &self,
        generation: u64,
        survey: &Survey,
        marks: &dyn Marked,
        late: (&[ChunkId], &[NodeId]),
    ) -> Result<Settled> {
        let strict = self.is_strict();
        self.write("decide about condemned packs", |transaction| {
            let caught_up: i64 = transaction.query_row("SELECT caught_up FROM meta", (), |row| row.get(0))?;
            if from_sql(caught_up) != generation {
                return Ok(Settled::Outdated);
            }
            let mut changed = false;
            held(transaction, &mut |held| {
                let known = match &held {
                    Held::Tree(node) => marks.has_node(node),
                    Held::Chunk(chunk) => marks.has_chunk(chunk),
                };
                changed |= !known;
            })?;
            if changed && !broken(Rule::MarkAgain) {
                return Ok(Settled::Changed);
            }
            let mut resurrected = 0;
            for chunk in late.0 {
                resurrected +=
                    resurrect(transaction, PackKind::Data, chunk.as_bytes(), survey.last_row, strict)?;
            }
            for node in late.1 {
                resurrected +=
                    resurrect(transaction, PackKind::Nodes, node.as_bytes(), survey.last_row, strict)?;
            }
            show_nodes(transaction, late.1)?;
            // What was stored since the survey, or held by a session then, and belongs to nobody may refer to what goes now: it is offered again when a
            // collection has walked it.
            transaction.execute(
                &format!("UPDATE packs SET proven = 0 WHERE kind = 2 AND pack > ?1 AND pack NOT IN ({HELD})"),
                [survey.last_row],
            )?;
            let mut doubt = transaction.prepare_cached(&format!(
                "UPDATE packs SET proven = 0 WHERE pack = ?1 AND pack NOT IN ({HELD})"
            ))?;
            for row in &survey.held_rows {
                doubt.execute([row])?;
            }
            transaction.execute(
                "INSERT OR IGNORE INTO tombstones (name) SELECT name FROM packs WHERE state = 1",
                (),
            )?;
            transaction.execute("UPDATE packs SET state = 2 WHERE state = 1", ())?;
            Ok(Settled::Decided { resurrected })
        })
    }
}

fn held(transaction: &Transaction<'_>, each: &mut dyn FnMut(Held)) -> Outcome<()> {
    let open = if broken(Rule::MarkPins) { "0" } else { OPEN };
    let trees = format!(
        "SELECT node FROM roots UNION SELECT node FROM session_roots r JOIN sessions s ON s.session = r.session WHERE {open}
         UNION SELECT p.id FROM pins p JOIN sessions s ON s.session = p.session WHERE p.kind = 2 AND {open}"
    );
    let mut find = transaction.prepare_cached(&trees)?;
    let mut rows = find.query(())?;
    while let Some(row) = rows.next()? {
        let node = row.get_ref(0)?.as_blob().unwrap_or_default();
        // The empty one is a disk of zeros.
        if !node.is_empty() {
            each(Held::Tree(expect(NodeId::from_slice(node), "node id")?));
        }
    }
    let chunks = format!(
        "SELECT p.id FROM pins p JOIN sessions s ON s.session = p.session WHERE p.kind = 1 AND {open}"
    );
    let mut find = transaction.prepare_cached(&chunks)?;
    let mut rows = find.query(())?;
    while let Some(row) = rows.next()? {
        let chunk = row.get_ref(0)?.as_blob().unwrap_or_default();
        each(Held::Chunk(expect(ChunkId::from_slice(chunk), "chunk id")?));
    }
    Ok(())
}

/// Whether the id lies undamaged in a pack in use that `fits` by its name and row.
fn homes(
    transaction: &Transaction<'_>,
    kind: PackKind,
    id: &[u8; 32],
    fits: impl Fn(&PackName, i64, Origin) -> bool,
) -> Outcome<bool> {
    let mut find = transaction.prepare_cached(&format!(
        "SELECT p.name, p.pack, p.verified, p.writer FROM {} c CROSS JOIN packs p ON p.pack = c.pack
         WHERE c.id = ?1 AND p.state = 0 AND NOT {RETIRED}",
        table(kind)
    ))?;
    let mut rows = find.query([id])?;
    while let Some(row) = rows.next()? {
        let name = expect(PackName::from_slice(row.get_ref(0)?.as_blob().unwrap_or_default()), "pack name")?;
        if fits(&name, row.get(1)?, origin_of((row.get(2)?, row.get(3)?))?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes condemned packs that have this id into use again, unless it was stored since the survey: an older copy was not read, and may be
/// damaged. Returns how many.
fn resurrect(
    transaction: &Transaction<'_>,
    kind: PackKind,
    id: &[u8; 32],
    last_row: i64,
    strict: bool,
) -> Outcome<u64> {
    // Who stored it since may be none that others rely on.
    if !strict && homes(transaction, kind, id, |_, row, _| row > last_row)? {
        return Ok(0);
    }
    let mut revive = transaction.prepare_cached(&format!(
        "UPDATE packs SET state = 0, condemned = NULL
         WHERE state = 1 AND pack IN (SELECT pack FROM {} WHERE id = ?1)",
        table(kind)
    ))?;
    Ok(revive.execute([id])? as u64)
}

/// Offers nodes again.
fn show_nodes(transaction: &Transaction<'_>, nodes: &[NodeId]) -> Outcome<()> {
    let mut show = transaction.prepare_cached("UPDATE nodes SET condemned = NULL WHERE id = ?1")?;
    for id in nodes {
        show.execute([id.as_bytes()])?;
    }
    Ok(())
}

impl Catalog {
    /// Notes that a pack is about to be stored which copies living chunks or nodes out of others.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn expect_copy(&self, pack: &PackId) -> Result<()> {
        self.write("expect a copy", |transaction| {
            transaction
                .prepare_cached("INSERT OR IGNORE INTO expected_packs (name, kind) VALUES (?1, ?2)")?
                .execute(params![pack.name.as_bytes(), code(pack.kind)])?;
            Ok(())
        })
    }

    /// Packs that were announced by sessions that have ended, or by collections, and that nobody added since.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn left_expected(&self) -> Result<Vec<PackId>> {
        self.read("list packs that were expected", |transaction| {
            let mut find = transaction.prepare_cached(&format!(
                "SELECT kind, name FROM expected_packs e
                 WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session = e.session AND s.{OPEN})"
            ))?;
            let mut rows = find.query(())?;
            let mut packs = Vec::new();
            while let Some(row) = rows.next()? {
                let name = PackName::from_slice(row.get_ref(1)?.as_blob().unwrap_or_default());
                packs.push(PackId::new(kind_of(row.get(0)?), expect(name, "pack name")?));
            }
            Ok(packs)
        })
    }

    /// Does not expect these packs any more.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn forget_expected(&self, packs: &[PackId]) -> Result<()> {
        self.write("forget expected packs", |transaction| {
            let mut forget = transaction.prepare_cached("DELETE FROM expected_packs WHERE name = ?1")?;
            for pack in packs {
                forget.execute([pack.name.as_bytes()])?;
            }
            Ok(())
        })
    }
}
