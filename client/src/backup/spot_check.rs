//! Re-reading a few chunks that a memo says have not changed.

use underlay_store::cut::{BLOCK, REGION};
use underlay_store::id::Root;
use underlay_store::tree::{Cursor, Node, Run, regions};

use super::nodes::{NodeStore, misplaced};
use super::source::DiskContent;
use super::{BackupError, Context, DiskSource};

/// Compares random chunks of the memoised tree `below` with what the layers under `index` hold now.
pub(super) fn spot_check(
    context: &Context<'_>,
    source: &DiskSource,
    index: usize,
    below: Root,
    nodes: &NodeStore<'_>,
) -> Result<(), BackupError> {
    // Of a live disk, what was not written since; of layers, what lies below the one that was read.
    let layer = match &source.content {
        DiskContent::Live(_) => 0,
        DiskContent::Layers(_) if index == 0 => return Ok(()),
        DiskContent::Layers(_) => index - 1,
    };
    for _ in 0..context.options.spot_checks {
        let region = random_below(regions(below.size));
        let mut cursor = Cursor::new(below);
        let mut from = nodes;
        // Past the last leaf, start over: most of a disk may be empty.
        let found = match cursor.next_leaf(region, &mut from, misplaced)? {
            None => Cursor::new(below).next_leaf(0, &mut from, misplaced)?,
            found => found,
        };
        let Some((region, leaf)) = found else { return Ok(()) };
        let Some(Node::Leaf(runs)) = nodes.read(&[leaf])?.into_iter().next() else {
            return Err(misplaced(&leaf).into());
        };
        let mut at = region * REGION as u64;
        let chunks: Vec<_> = runs
            .iter()
            .filter_map(|run| {
                let offset = at;
                at += (run.blocks() * BLOCK) as u64;
                match run {
                    Run::Chunk(_, id) => Some((offset, at.min(below.size), *id)),
                    Run::Zero(_) => None,
                }
            })
            .collect();
        let Some((offset, end, id)) = chunks.get(random_below(chunks.len() as u64) as usize) else {
            continue;
        };
        let ends_early = source.content.size(layer) < *end;
        if let DiskContent::Live(live) = &source.content
            && (ends_early || live.is_dirty(*offset, end - offset)?)
        {
            continue;
        }
        let mut bytes = vec![0; (end - offset) as usize];
        source.content.read_at(layer, *offset, &mut bytes)?;
        if context.key.chunk_id(&bytes) != *id {
            return Err(BackupError::MemoContradicted { disk: source.name.clone(), offset: *offset });
        }
    }
    Ok(())
}

/// Uniform enough for sampling; 0 if `end` is 0.
fn random_below(end: u64) -> u64 {
    u64::from_le_bytes(underlay_store::key::random_bytes()).checked_rem(end).unwrap_or(0)
}
