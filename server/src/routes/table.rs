//! The one table of what can be asked of a repository, and of whom it is taken.

use std::fmt;

use axum::http::Method;
use axum::response::Response;
use futures::future::BoxFuture;

use super::answer::Refusal;
use super::call::Call;
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
    /// Any of these scopes will do.
    pub needs: &'static [Scope],
    /// Which machines the token must be for.
    pub machines: Machines,
    /// The longest body, in bytes; 0: none is read.
    pub limit: u64,
    pub(super) run: fn(Call) -> BoxFuture<'static, Result<Response, Refusal>>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

const ANY: &[Scope] = &Scope::ALL;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// A full batch of ids with its head.
const IDS: u64 = 2 * MIB;
const PACK: u64 = underlay_store::pack::MAXIMUM_LENGTH as u64;
const DOCUMENT: u64 = underlay_store::document::MAXIMUM_LENGTH as u64;

macro_rules! route {
    ($method:ident $path:literal, $needs:expr, $machines:ident, $limit:expr, $run:path) => {
        Route {
            method: Method::$method,
            path: $path,
            needs: $needs,
            machines: Machines::$machines,
            limit: $limit,
            run: |call| Box::pin($run(call)),
        }
    };
}

/// Every route of a repository. `docs/server.md` says what they mean.
pub static ROUTES: &[Route] = &[
    route!(PUT "", &[Admin], All, 64 * MIB, keys::make_repository),
    route!(GET "/descriptor", ANY, Any, 0, read::descriptor),
    route!(GET "/keys", ANY, Any, 0, keys::list),
    route!(PUT "/keys/{slot}", &[Admin], All, 64 * KIB, keys::put),
    route!(DELETE "/keys/{slot}", &[Admin], All, 0, keys::delete),
    route!(PUT "/sessions/{handle}", &[Backup], Own, 4 * KIB, sessions::open),
    route!(DELETE "/sessions/{handle}", &[Backup], Any, 0, sessions::abandon),
    route!(POST "/sessions/{handle}/chunks", &[Backup], Any, IDS, sessions::have_chunks),
    route!(POST "/sessions/{handle}/nodes", &[Backup], Any, IDS, sessions::have_nodes),
    route!(POST "/sessions/{handle}/roots", &[Backup], Any, MIB, sessions::pin_roots),
    route!(PUT "/sessions/{handle}/packs/{kind}/{name}", &[Backup], Any, PACK, sessions::put_pack),
    route!(POST "/sessions/{handle}/packs/{kind}/{name}/upload", &[Backup], Any, 0, direct::upload),
    route!(POST "/sessions/{handle}/packs/{kind}/{name}/stored", &[Backup], Any, 0, direct::stored),
    route!(POST "/sessions/{handle}/commit", &[Backup], Any, DOCUMENT, sessions::commit),
    route!(GET "/snapshots", ANY, Own, 0, snapshots::list),
    route!(DELETE "/snapshots/{snapshot}", &[Maintain], Own, 0, snapshots::forget),
    route!(GET "/protected", ANY, Own, 0, snapshots::protected),
    route!(PUT "/protected/{snapshot}", &[Maintain], Own, 0, snapshots::protect),
    route!(DELETE "/protected/{snapshot}", &[Maintain], Own, 0, snapshots::unprotect),
    route!(GET "/damaged", ANY, Own, 0, snapshots::marked),
    route!(POST "/damaged", &[Maintain], All, 16 * MIB, snapshots::withdraw),
    route!(POST "/nodes/read", &[Backup, Restore], Any, IDS, read::nodes),
    route!(GET "/nodes/{node}/copies", &[Backup, Restore], Any, 0, verify::copies),
    route!(POST "/chunks/locate", &[Restore], Any, IDS, read::locate),
    route!(GET "/packs/{name}", &[Restore], Any, 0, read::pack),
    route!(GET "/packs/data/{name}/location", &[Restore], Any, 0, direct::location),
    route!(GET "/packs/{kind}/{name}", &[Restore], Any, 0, verify::whole),
    route!(GET "/unverified", &[Maintain], All, 0, verify::unverified),
    route!(POST "/verified", &[Maintain], All, MIB, verify::vouch),
    route!(GET "/totals", ANY, All, 0, read::totals),
    route!(GET "/jobs", &[Maintain], All, 0, jobs::list),
    route!(PUT "/jobs/{job}", &[Maintain], All, 16 * MIB, jobs::start),
    route!(GET "/jobs/{job}", &[Maintain], All, 0, jobs::status),
    route!(DELETE "/jobs/{job}", &[Maintain], All, 0, jobs::stop),
];
