-- The catalog, version 5. Derived from the bucket, except for sessions and what they hold.
-- Ids are blobs. Rows name packs, sessions and snapshots by small integers.

CREATE TABLE meta (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    repository  BLOB NOT NULL,
    owner       BLOB NOT NULL,
    epoch       INTEGER NOT NULL,   -- advanced by gc
    clock       INTEGER NOT NULL,   -- last time assigned, milliseconds since 1970
    caught_up   INTEGER NOT NULL DEFAULT 0, -- generation of our claim after which all was read that others had stored
    instance    BLOB,               -- tells this catalog from all others, those that stood in its place before it too
    records     INTEGER NOT NULL DEFAULT 0, -- deletions recorded under caught_up, or about to be
    closed      INTEGER NOT NULL DEFAULT 0, -- generation of our claim that the closing is for
    closing     BLOB,               -- that closing, as every process of this host writes it
    strict      INTEGER NOT NULL DEFAULT 0 -- 1: writers do not trust each other
);

CREATE TABLE packs (
    pack        INTEGER PRIMARY KEY,
    name        BLOB NOT NULL UNIQUE,
    kind        INTEGER NOT NULL,   -- 1 data, 2 nodes
    size        INTEGER NOT NULL,
    entries     INTEGER NOT NULL,
    plain_bytes INTEGER NOT NULL,
    session     INTEGER,            -- the first that stored it; null: found in the bucket
    proven      INTEGER NOT NULL,   -- a commit has proven what its nodes refer to
    state       INTEGER NOT NULL DEFAULT 0, -- 0 live, 1 condemned, 2 deleting
    condemned   INTEGER,            -- epoch in which it left state 0
    checked     INTEGER NOT NULL DEFAULT 0, -- when it was last read whole, milliseconds since 1970; 0: never
    writer      BLOB,               -- who stored it; null: not known
    verified    INTEGER NOT NULL DEFAULT 0 -- 1: a holder of the keys found everything in it to be what its id says
);

-- Who stored a pack: while that session is open, no collection touches it.
CREATE TABLE writers (
    session INTEGER NOT NULL,
    pack    INTEGER NOT NULL,
    PRIMARY KEY (session, pack)
) WITHOUT ROWID;

-- Packs about to be stored: one whose writer was killed before it could add it is found again by its name.
CREATE TABLE expected_packs (
    name    BLOB PRIMARY KEY,
    kind    INTEGER NOT NULL,
    session INTEGER                 -- null: a collection
) WITHOUT ROWID;

-- Packs that are deleted, or may be at any moment: a listing that still shows them is not believed.
CREATE TABLE tombstones (
    name BLOB PRIMARY KEY
) WITHOUT ROWID;

-- One id may lie in several packs. A row is offered to backups only if it is not condemned and its pack is live.
CREATE TABLE chunks (
    id             BLOB NOT NULL,
    pack           INTEGER NOT NULL,
    offset         INTEGER NOT NULL,
    payload_length INTEGER NOT NULL,
    plain_length   INTEGER NOT NULL,
    codec          INTEGER NOT NULL,
    condemned      INTEGER,         -- epoch
    PRIMARY KEY (id, pack)
) WITHOUT ROWID;

CREATE TABLE nodes (
    id             BLOB NOT NULL,
    pack           INTEGER NOT NULL,
    offset         INTEGER NOT NULL,
    payload_length INTEGER NOT NULL,
    plain_length   INTEGER NOT NULL,
    codec          INTEGER NOT NULL,
    condemned      INTEGER,
    PRIMARY KEY (id, pack)
) WITHOUT ROWID;

CREATE TABLE sessions (
    session   INTEGER PRIMARY KEY,
    id        BLOB NOT NULL UNIQUE,
    vm        TEXT NOT NULL,
    opened_at INTEGER NOT NULL,     -- assigned from the clock
    epoch     INTEGER NOT NULL,     -- in which it opened
    state     INTEGER NOT NULL,     -- 0 open, 1 committed, 2 abandoned, 3 fenced, 4 committing
    last_seen INTEGER NOT NULL,
    writer    BLOB,                 -- null: this host
    strict    INTEGER NOT NULL DEFAULT 0 -- 1: proven to rely on nothing but the writer's own and what is verified
);

-- What an open session was promised.
CREATE TABLE pins (
    session INTEGER NOT NULL,
    kind    INTEGER NOT NULL,       -- 1 chunk, 2 node
    id      BLOB NOT NULL,
    PRIMARY KEY (session, kind, id)
) WITHOUT ROWID;

-- The empty blob as a node stands for a disk of zeros.
CREATE TABLE session_roots (
    session INTEGER NOT NULL,
    size    INTEGER NOT NULL,
    node    BLOB NOT NULL,
    PRIMARY KEY (session, size, node)
) WITHOUT ROWID;

CREATE TABLE snapshots (
    snapshot INTEGER PRIMARY KEY,
    id       BLOB NOT NULL UNIQUE,
    vm       TEXT NOT NULL,
    time     INTEGER NOT NULL,
    document BLOB NOT NULL,
    writer   BLOB                   -- whose strict session it was; null: another's, or an ordinary one
);

CREATE TABLE roots (
    node     BLOB NOT NULL,
    size     INTEGER NOT NULL,
    snapshot INTEGER NOT NULL,
    PRIMARY KEY (node, size, snapshot)
) WITHOUT ROWID;

-- Snapshots that were dropped: their objects are not adopted again while they still exist.
CREATE TABLE forgotten (
    id   BLOB PRIMARY KEY,
    gone INTEGER NOT NULL           -- 1: the object is known to be deleted
) WITHOUT ROWID;

-- What a check found damaged or missing: not offered to backups any more, and read last. The empty id stands for all of a pack.
CREATE TABLE retired (
    pack  INTEGER NOT NULL,
    id    BLOB NOT NULL,
    wrong INTEGER NOT NULL,         -- 1: the pack is what was stored, and this in it is wrong all the same
    PRIMARY KEY (pack, id)
) WITHOUT ROWID;

-- Numbers of packs are used again.
CREATE TRIGGER a_pack_that_goes_is_retired_no_more AFTER DELETE ON packs BEGIN
    DELETE FROM retired WHERE pack = old.pack;
END;

-- Roots below which something is lost: not live for memos, so that the layer is read again and stored anew.
CREATE TABLE affected (
    node BLOB PRIMARY KEY
) WITHOUT ROWID;
