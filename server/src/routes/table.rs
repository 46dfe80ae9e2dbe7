//! The one table of what can be asked of a repository, and of whom it is taken.

use std::fmt;

use axum::http::Method;
use axum::response::Response;
use futures::future::BoxFuture;
use underlay_store::authority::{Marked, Withdrawal, Withdrawn};
use underlay_store::catalog::Totals;
use underlay_store::id::{PackName, Root, SnapshotId};
use underlay_store::key::slot::Slot;
use underlay_store::snapshot::{Descriptor, Snapshot};
use underlay_store::wire::{
    JobRequest, JobStatus, ListedPack, NewRepository, OpenSession, OpenedSession, SignedRequest, kind,
};

use super::answer::Refusal;
use super::call::Call;
use super::content::Content::{self, Binary, Json};
use super::content::{BITMAP, DOCUMENTS, IDS, NODES, PACK, PLACES, Query, Refused, document_of, of};
use super::{direct, jobs, keys, read, sessions, snapshots, verify};
use crate::tokens::Scope::{self, Admin, Backup, Maintain, Restore};

/// Which machines a token must be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machines {
    /// It does not matter.
    Any,
    /// All of them: the route is about the whole repository.
    All,
    /// The token's own: the handler shows and changes no others.
    Own,
}

/// One route.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path below the repository's; variable parts in braces.
    pub path: &'static str,
    /// The handler's name, with its room: `keys::put`.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Any of these scopes will do.
    pub needs: &'static [Scope],
    /// Which machines the token must be for.
    pub machines: Machines,
    /// What the query says.
    pub query: &'static [Query],
    /// What the body is.
    pub takes: Content,
    /// The longest body, in bytes; 0: none is read.
    pub limit: u64,
    /// What is answered with 200; [`Content::Nothing`]: 204.
    pub gives: Content,
    /// What else can be wrong than with every route.
    pub refuses: &'static [Refused],
    pub(super) run: fn(Call) -> BoxFuture<'static, Result<Response, Refusal>>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Route {
    const fn asks(mut self, query: &'static [Query]) -> Self {
        self.query = query;
        self
    }

    /// `limit` in bytes.
    const fn takes(mut self, content: Content, limit: u64) -> Self {
        self.takes = content;
        self.limit = limit;
        self
    }

    const fn gives(mut self, content: Content) -> Self {
        self.gives = content;
        self
    }

    const fn refuses(mut self, refused: &'static [Refused]) -> Self {
        self.refuses = refused;
        self
    }
}

const ANY: &[Scope] = &Scope::ALL;
const READS: &[Scope] = &[Backup, Restore];
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// A full batch of ids with its head.
const BATCH: u64 = 2 * MIB;
const LONGEST_PACK: u64 = underlay_store::pack::MAXIMUM_LENGTH as u64;
const LONGEST_DOCUMENT: u64 = underlay_store::document::MAXIMUM_LENGTH as u64;

/// The session is none, or has ended.
const SESSION: Refused = (409, "session");
/// What was sent is not sound, or of another version.
const SENT: [Refused; 2] = [(422, "damaged"), (422, "version")];
const NO_SNAPSHOT: Refused = (404, "no-snapshot");
/// Packs of the repository go through the server.
const NOT_DIRECT: Refused = (409, kind::NOT_DIRECT);

const RANGE: &[Query] = &[
    Query { name: "offset", required: true, meaning: "Where to begin, in bytes." },
    Query { name: "length", required: true, meaning: "How many bytes, at most 64 MiB." },
];
const SEEN: &[Query] =
    &[Query { name: "seen", required: false, meaning: "Answer once the version is later than this." }];

macro_rules! route {
    ($method:ident $path:literal, $needs:expr, $machines:ident, $run:path, $summary:literal) => {
        Route {
            method: Method::$method,
            path: $path,
            name: stringify!($run),
            summary: $summary,
            needs: $needs,
            machines: Machines::$machines,
            query: &[],
            takes: Content::Nothing,
            limit: 0,
            gives: Content::Nothing,
            refuses: &[],
            run: |call| Box::pin($run(call)),
        }
    };
}

/// Every route of a repository. `docs/server.md` says what they mean.
pub static ROUTES: &[Route] = &[
    route!(PUT "", &[Admin], All, keys::make_repository, "Make the repository")
        .takes(Json(of::<NewRepository>), 64 * MIB)
        .refuses(&[(409, "already-exists"), SENT[0], SENT[1], (422, "key")]),
    route!(GET "/descriptor", ANY, Any, read::descriptor, "What the repository is")
        .gives(Json(document_of::<Descriptor>)),
    route!(GET "/keys", ANY, Any, keys::list, "The passphrase slots").gives(Binary(&DOCUMENTS)),
    route!(PUT "/keys/{slot}", &[Admin], All, keys::put, "Store a passphrase slot")
        .takes(Json(document_of::<Slot>), 64 * KIB)
        .refuses(&[(409, "already-exists"), SENT[0], SENT[1], (422, "key")]),
    route!(DELETE "/keys/{slot}", &[Admin], All, keys::delete, "Remove a passphrase slot"),
    route!(PUT "/sessions/{handle}", &[Backup], Own, sessions::open, "Open a session; the same again for the same handle")
        .takes(Json(of::<OpenSession>), 4 * KIB)
        .gives(Json(of::<OpenedSession>))
        .refuses(&[SESSION, (422, "invalid")]),
    route!(DELETE "/sessions/{handle}", &[Backup], Any, sessions::abandon, "Give a session up").refuses(&[SESSION]),
    route!(POST "/sessions/{handle}/chunks", &[Backup], Any, sessions::have_chunks, "Which chunks are stored; those are pinned")
        .takes(Binary(&IDS), BATCH)
        .gives(Binary(&BITMAP))
        .refuses(&[SESSION]),
    route!(POST "/sessions/{handle}/nodes", &[Backup], Any, sessions::have_nodes, "Which nodes are stored with all below; those are pinned")
        .takes(Binary(&IDS), BATCH)
        .gives(Binary(&BITMAP))
        .refuses(&[SESSION]),
    route!(POST "/sessions/{handle}/roots", &[Backup], Any, sessions::pin_roots, "Which trees hang from snapshots; those are pinned")
        .takes(Json(of::<Vec<Root>>), MIB)
        .gives(Json(of::<Vec<bool>>))
        .refuses(&[SESSION]),
    route!(PUT "/sessions/{handle}/packs/{kind}/{name}", &[Backup], Any, sessions::put_pack, "Store a pack; durable when answered")
        .takes(Binary(&PACK), LONGEST_PACK)
        .refuses(&[SESSION, SENT[0], SENT[1]]),
    route!(POST "/sessions/{handle}/packs/{kind}/{name}/upload", &[Backup], Any, direct::upload, "A request that stores a pack in the bucket")
        .gives(Json(of::<SignedRequest>))
        .refuses(&[SESSION, NOT_DIRECT, (422, "invalid")]),
    route!(POST "/sessions/{handle}/packs/{kind}/{name}/stored", &[Backup], Any, direct::stored, "A pack was stored in the bucket, and counts from here on")
        .refuses(&[SESSION, NOT_DIRECT, (422, "missing"), SENT[0], SENT[1], (422, "invalid")]),
    route!(POST "/sessions/{handle}/commit", &[Backup], Any, sessions::commit, "Commit a snapshot; durable when answered")
        .takes(Json(document_of::<Snapshot>), LONGEST_DOCUMENT)
        .refuses(&[SESSION, SENT[0], SENT[1], (422, "unproven"), (422, "invalid")]),
    route!(GET "/snapshots", ANY, Own, snapshots::list, "The snapshots").gives(Binary(&DOCUMENTS)),
    route!(DELETE "/snapshots/{snapshot}", &[Maintain], Own, snapshots::forget, "Drop a snapshot")
        .refuses(&[NO_SNAPSHOT, (409, "protected")]),
    route!(GET "/protected", ANY, Own, snapshots::protected, "Snapshots that must not be dropped")
        .gives(Json(of::<Vec<SnapshotId>>)),
    route!(PUT "/protected/{snapshot}", &[Maintain], Own, snapshots::protect, "Protect a snapshot")
        .refuses(&[NO_SNAPSHOT]),
    route!(DELETE "/protected/{snapshot}", &[Maintain], Own, snapshots::unprotect, "Protect a snapshot no more")
        .refuses(&[NO_SNAPSHOT]),
    route!(GET "/damaged", ANY, Own, snapshots::marked, "Snapshots that lost data").gives(Json(of::<Vec<Marked>>)),
    route!(POST "/damaged", &[Maintain], All, snapshots::withdraw, "Take out of use what a holder of keys found damaged")
        .takes(Json(of::<Withdrawal>), 16 * MIB)
        .gives(Json(of::<Withdrawn>)),
    route!(POST "/nodes/read", READS, Any, read::nodes, "Read nodes: as many from the first on as fit, at least one")
        .takes(Binary(&IDS), BATCH)
        .gives(Binary(&NODES)),
    route!(GET "/nodes/{node}/copies", READS, Any, verify::copies, "All different contents that are stored as a node")
        .gives(Binary(&NODES)),
    route!(POST "/chunks/locate", &[Restore], Any, read::locate, "Where chunks are")
        .takes(Binary(&IDS), BATCH)
        .gives(Binary(&PLACES)),
    route!(GET "/packs/{name}", &[Restore], Any, read::pack, "Bytes of a data pack").asks(RANGE).gives(Binary(&PACK))
        .refuses(&[SENT[0]]),
    route!(GET "/packs/data/{name}/location", &[Restore], Any, direct::location, "A request that reads a data pack in the bucket")
        .gives(Json(of::<SignedRequest>))
        .refuses(&[NOT_DIRECT]),
    route!(GET "/packs/{kind}/{name}", &[Restore], Any, verify::whole, "A whole pack").gives(Binary(&PACK)),
    route!(GET "/unverified", &[Maintain], All, verify::unverified, "Packs that no holder of keys has verified")
        .gives(Json(of::<Vec<ListedPack>>)),
    route!(POST "/verified", &[Maintain], All, verify::vouch, "Vouch for packs; how many were not known as verified")
        .takes(Json(of::<Vec<PackName>>), MIB)
        .gives(Json(of::<u64>)),
    route!(GET "/totals", ANY, All, read::totals, "How much is stored").gives(Json(of::<Totals>)),
    route!(GET "/jobs", &[Maintain], All, jobs::list, "What is planned, what runs, what ran")
        .gives(Json(of::<jobs::Listed>)),
    route!(PUT "/jobs/{job}", &[Maintain], All, jobs::start, "Start a collection, a check or a repair")
        .takes(Json(of::<JobRequest>), 16 * MIB)
        .refuses(&[(409, "busy")]),
    route!(GET "/jobs/{job}", &[Maintain], All, jobs::status, "How a job stands, once there is news")
        .asks(SEEN)
        .gives(Json(of::<JobStatus>))
        .refuses(&[(404, kind::NO_JOB)]),
    route!(DELETE "/jobs/{job}", &[Maintain], All, jobs::stop, "Stop a job"),
];
