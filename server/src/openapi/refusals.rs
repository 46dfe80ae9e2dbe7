//! What is answered instead, and by which operations.

use underlay_store::wire::kind;

use crate::routes::{Content, Refused, Route};

/// Whatever is asked of a repository: it may be that the token does not do, that too much is asked at once, or that the repository cannot be
/// opened or read.
const ALWAYS: &[Refused] = &[
    (401, kind::UNAUTHORIZED),
    (403, kind::FORBIDDEN),
    (404, "no-repository"),
    (404, kind::NO_ROUTE),
    (404, "missing"),
    (409, "owned-elsewhere"),
    (429, kind::TOO_MANY),
    (500, "damaged"),
    (500, "version"),
    (500, "catalog"),
    (500, "file"),
    (500, kind::FAILED),
    (502, "backend"),
    (503, "in-use"),
    (503, kind::INTERRUPTED),
];
/// Where something is read of the path, the query or the body.
const READING: Refused = (400, kind::MALFORMED);
/// Where there is a body.
const BODY: &[Refused] = &[(408, kind::TOO_SLOW), (413, kind::TOO_LARGE)];

/// All that can be answered instead, in the order of their statuses.
pub(super) fn of(route: &Route) -> Vec<Refused> {
    let mut all = ALWAYS.to_vec();
    let has_body = !matches!(route.takes, Content::Nothing);
    if has_body {
        all.extend_from_slice(BODY);
    }
    if has_body || !route.query.is_empty() || route.path.contains('{') {
        all.push(READING);
    }
    all.extend_from_slice(route.refuses);
    all.sort_unstable();
    all.dedup();
    all
}
