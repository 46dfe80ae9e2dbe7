//! Sessions: they open with a time of their own, hold what they were promised, and end once.

use rusqlite::{OptionalExtension, Transaction, params};

use super::lookup::is_live_root;
use super::record::SessionState;
use super::retired::is_affected_root;
use super::strict::is_own_root;
use super::{Catalog, Outcome, expect, from_sql, to_sql};
use crate::error::{Error, Result};
use crate::id::{NodeId, Root, SessionId, WriterId};

impl Catalog {
    /// Opens a session for a VM. Returns the time of its snapshot to be, in milliseconds since 1970: `now_ms`, or later if that
    /// is what it takes to be after every time assigned or imported before. Asking again for an open session of the same VM
    /// returns the same time.
    ///
    /// # Errors
    /// [`Error::Session`] if the session is known and this is not such a repetition.
    pub fn open_session(&self, session: SessionId, vm: &str, now_ms: i64) -> Result<i64> {
        self.open_session_of(None, session, vm, now_ms)
    }

    /// As [`Catalog::open_session`], for a writer who is not this host.
    ///
    /// # Errors
    /// As [`Catalog::open_session`].
    pub fn open_session_of(
        &self,
        writer: Option<WriterId>,
        session: SessionId,
        vm: &str,
        now_ms: i64,
    ) -> Result<i64> {
        self.write("open a session", |transaction| {
            let known: Option<(i64, String, i64)> = transaction
                .prepare_cached("SELECT state, vm, opened_at FROM sessions WHERE id = ?1")?
                .query_row([session.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            if let Some((state, of, opened_at)) = known {
                let state = expect(SessionState::from_code(state), "session state")?;
                if state == SessionState::Open && of == vm {
                    return Ok(opened_at);
                }
                return Err(state.refuse(session).into());
            }
            let time: i64 = transaction.query_row(
                "UPDATE meta SET clock = max(?1, clock + 1) RETURNING clock",
                [now_ms],
                |row| row.get(0),
            )?;
            transaction.execute(
                "INSERT INTO sessions (id, vm, opened_at, epoch, state, last_seen, writer, strict)
                 SELECT ?1, ?2, ?3, epoch, ?4, ?5, ?6, ?7 FROM meta",
                params![
                    session.as_bytes(),
                    vm,
                    time,
                    SessionState::Open.code(),
                    now_ms,
                    writer.as_ref().map(|w| &w.as_bytes()[..]),
                    self.is_strict(),
                ],
            )?;
            Ok(time)
        })
    }

    /// The VM an open session was opened for, and the time it was given, in milliseconds since 1970.
    ///
    /// # Errors
    /// [`Error::Session`] unless the session is open.
    pub fn session_grant(&self, session: SessionId) -> Result<(String, i64)> {
        self.read("look up a session", |transaction| {
            let row = open_row(transaction, session)?;
            Ok(transaction.query_row(
                "SELECT vm, opened_at FROM sessions WHERE session = ?1",
                [row],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?)
        })
    }

    /// Where the session stands; `None` if there is no such session.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn session_state(&self, session: SessionId) -> Result<Option<SessionState>> {
        self.read(
            "look up a session",
            |transaction| Ok(row_of(transaction, session)?.map(|(_, state)| state)),
        )
    }

    /// From here on the session's snapshot may exist: it is proven, and about to be stored. Repeating it is safe.
    ///
    /// # Errors
    /// [`Error::Session`] unless the session is open or committing already.
    pub fn begin_commit(&self, session: SessionId) -> Result<()> {
        self.write("begin a commit", |transaction| {
            let (row, state) = known_row(transaction, session)?;
            if !matches!(state, SessionState::Open | SessionState::Committing) {
                return Err(state.refuse(session).into());
            }
            let state = SessionState::Committing.code();
            // What it was promised before the repository became a strict one counts for less.
            let strict = self.is_strict();
            transaction.execute(
                "UPDATE sessions SET state = ?2, strict = (strict AND ?3) WHERE session = ?1",
                params![row, state, strict],
            )?;
            Ok(())
        })
    }

    /// Gives a session up: it lets go of what it held. Its packs stay for gc. Nothing happens to one that was given up or
    /// fenced before.
    ///
    /// # Errors
    /// [`Error::Session`] if it is committed or unknown.
    pub fn abandon_session(&self, session: SessionId) -> Result<()> {
        self.end(session, SessionState::Abandoned)
    }

    /// Shuts a session out: it can never commit. Otherwise as [`Catalog::abandon_session`].
    ///
    /// # Errors
    /// [`Error::Session`] if it is committed or unknown.
    #[cfg(test)]
    pub fn fence_session(&self, session: SessionId) -> Result<()> {
        self.end(session, SessionState::Fenced)
    }

    fn end(&self, session: SessionId, state: SessionState) -> Result<()> {
        self.write("end a session", |transaction| match known_row(transaction, session)? {
            (row, SessionState::Open) => Ok(close(transaction, row, state)?),
            (_, SessionState::Abandoned | SessionState::Fenced) => Ok(()),
            (_, committed) => Err(committed.refuse(session).into()),
        })
    }

    /// Which roots hang from a live snapshot and lost nothing, as far as is known; a disk of zeros always does. Those are held for the session, with their whole
    /// trees, until it ends.
    ///
    /// # Errors
    /// [`Error::Session`] unless the session is open.
    pub fn pin_roots(&self, session: SessionId, roots: &[Root]) -> Result<Vec<bool>> {
        self.write("pin roots", |transaction| {
            let row = open_row(transaction, session)?;
            let mut pin = transaction.prepare_cached(
                "INSERT OR IGNORE INTO session_roots (session, size, node) VALUES (?1, ?2, ?3)",
            )?;
            let mut answers = Vec::with_capacity(roots.len());
            for root in roots {
                let size = to_sql(root.size);
                let live = match &root.node {
                    Some(node) => {
                        let live = match self.is_strict() {
                            true => is_own_root(transaction, row, node, size)?,
                            false => is_live_root(transaction, node, size)?,
                        };
                        live && !is_affected_root(transaction, node)?
                    }
                    None => true,
                };
                if live {
                    pin.execute(params![row, size, node_bytes(root)])?;
                }
                answers.push(live);
            }
            Ok(answers)
        })
    }

    /// The roots that the session holds, in ascending order of size.
    ///
    /// # Errors
    /// [`Error::Session`] unless the session is open.
    pub fn session_roots(&self, session: SessionId) -> Result<Vec<Root>> {
        self.read("look up a session's roots", |transaction| {
            let row = open_row(transaction, session)?;
            let mut find = transaction.prepare_cached(
                "SELECT size, node FROM session_roots WHERE session = ?1 ORDER BY size, node",
            )?;
            let mut rows = find.query([row])?;
            let mut roots = Vec::new();
            while let Some(row) = rows.next()? {
                let node: Vec<u8> = row.get(1)?;
                let node = match node.is_empty() {
                    true => None,
                    false => Some(expect(NodeId::from_slice(&node), "node id")?),
                };
                roots.push(Root { size: from_sql(row.get(0)?), node });
            }
            Ok(roots)
        })
    }
}

/// The root's node as a column; a disk of zeros has none.
pub(super) fn node_bytes(root: &Root) -> &[u8] {
    root.node.as_ref().map_or(&[], |node| node.as_bytes())
}

/// Sets the final state and drops what the session held.
pub(super) fn close(transaction: &Transaction<'_>, row: i64, state: SessionState) -> rusqlite::Result<()> {
    transaction.execute("UPDATE sessions SET state = ?2 WHERE session = ?1", params![row, state.code()])?;
    transaction.execute("DELETE FROM pins WHERE session = ?1", [row])?;
    transaction.execute("DELETE FROM writers WHERE session = ?1", [row])?;
    transaction.execute("DELETE FROM session_roots WHERE session = ?1", [row])?;
    Ok(())
}

/// Notes that the session's writer was heard of at `now_ms`. It never goes back.
pub(super) fn heard_of(transaction: &Transaction<'_>, row: i64, now_ms: i64) -> Outcome<()> {
    transaction
        .prepare_cached("UPDATE sessions SET last_seen = ?2 WHERE session = ?1 AND last_seen < ?2")?
        .execute(params![row, now_ms])?;
    Ok(())
}

/// Shuts out every session that is open.
pub(super) fn fence_open(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let open = SessionState::Open.code();
    let mut find = transaction.prepare_cached("SELECT session FROM sessions WHERE state = ?1")?;
    let rows: Vec<i64> = find.query_map([open], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    rows.into_iter().try_for_each(|row| close(transaction, row, SessionState::Fenced))
}

/// The row of a session that is open.
pub(super) fn open_row(transaction: &Transaction<'_>, session: SessionId) -> Outcome<i64> {
    match known_row(transaction, session)? {
        (row, SessionState::Open) => Ok(row),
        (_, state) => Err(state.refuse(session).into()),
    }
}

pub(super) fn known_row(transaction: &Transaction<'_>, session: SessionId) -> Outcome<(i64, SessionState)> {
    let found = row_of(transaction, session)?;
    found.ok_or_else(|| Error::Session { session, state: "unknown" }.into())
}

fn row_of(transaction: &Transaction<'_>, session: SessionId) -> Outcome<Option<(i64, SessionState)>> {
    let found: Option<(i64, i64)> = transaction
        .prepare_cached("SELECT session, state FROM sessions WHERE id = ?1")?
        .query_row([session.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((row, state)) = found else { return Ok(None) };
    Ok(Some((row, expect(SessionState::from_code(state), "session state")?)))
}
