//! Committing and importing, in a line.

use super::*;

/// Commits as if the proof had reached every node there is.
pub(super) fn commit(
    catalog: &Catalog,
    of: SessionId,
    id: SnapshotId,
    time_ms: i64,
    document: &[u8],
    roots: &[Root],
) -> Result<()> {
    let proven: Vec<NodeId> = (0..=255).map(node).collect();
    catalog.commit_session(of, &SnapshotRecord { snapshot: id, vm: "vm", time_ms, document, roots }, &proven)
}

pub(super) fn import(
    catalog: &Catalog,
    id: SnapshotId,
    time_ms: i64,
    document: &[u8],
    roots: &[Root],
) -> Result<()> {
    catalog.import_snapshot(&SnapshotRecord { snapshot: id, vm: "vm", time_ms, document, roots })
}
