//! The tree of one disk: of its layers from the base up, or of what a running machine shows of it.

use underlay_store::id::Root;
use underlay_store::snapshot::Disk;

use super::nodes::NodeStore;
use super::uploads::Uploads;
use super::{BackupError, CapturedDisk, CapturedLayer, Context, DiskContent, DiskSource, LiveDisk};
use super::{layer, spot_check};
use crate::image::Chain;
use crate::state::{Memo, Memos};

/// A disk whose tree is complete.
pub(super) struct Done {
    pub disk: Disk,
    pub captured: CapturedDisk,
    pub memos: Vec<Memo>,
    pub known: usize,
    /// What was known of it was wrong.
    was_contradicted: bool,
}

/// Makes the trees of all disks. Bitmaps of one moment are believed together or not at all: if one disk's turns out wrong, the others of
/// the running machine are read whole, too.
pub(super) fn disks(
    context: &Context<'_>,
    memos: &Memos,
    sources: &[DiskSource],
    nodes: &NodeStore<'_>,
    uploads: &mut Uploads<'_>,
) -> Result<Vec<Done>, BackupError> {
    let mut done = Vec::with_capacity(sources.len());
    for source in sources {
        done.push(disk(context, memos, source, nodes, uploads)?);
    }
    let is_live = |source: &DiskSource| matches!(source.content, DiskContent::Live(_));
    if sources.iter().zip(&done).any(|(source, done)| is_live(source) && done.was_contradicted) {
        let believed = sources.iter().zip(&mut done);
        for (source, done) in believed.filter(|(source, done)| is_live(source) && !done.was_contradicted) {
            *done = live(context, source, None, nodes, uploads)?;
        }
    }
    Ok(done)
}

/// Makes the tree of one disk, starting from the highest layer that a memo vouches for.
fn disk(
    context: &Context<'_>,
    memos: &Memos,
    source: &DiskSource,
    nodes: &NodeStore<'_>,
    uploads: &mut Uploads<'_>,
) -> Result<Done, BackupError> {
    let read = |known: &[Root], uploads: &mut Uploads<'_>| match &source.content {
        DiskContent::Layers(chain) => layers(context, source, chain, known, nodes, uploads),
        DiskContent::Live(_) => live(context, source, known.first().copied(), nodes, uploads),
    };
    let known = match &source.content {
        DiskContent::Layers(chain) => known_layers(context, memos, chain)?,
        DiskContent::Live(live) => known_before(context, &source.name, live)?,
    };
    match read(&known, uploads) {
        Err(BackupError::MemoContradicted { disk, offset }) => {
            context.progress.notice(&format!(
                "disk {disk}: unchanged data at byte {offset} is not what the last backup stored; reading all of it again"
            ));
            Ok(Done { was_contradicted: true, ..read(&[], uploads)? })
        }
        other => other,
    }
}

/// Makes the tree of a live disk from what it held before, or from nothing.
fn live(
    context: &Context<'_>,
    source: &DiskSource,
    before: Option<Root>,
    nodes: &NodeStore<'_>,
    uploads: &mut Uploads<'_>,
) -> Result<Done, BackupError> {
    let root = layer::apply(context, source, 0, before, nodes, uploads)?;
    if let Some(before) = before {
        spot_check::spot_check(context, source, 0, before, nodes)?;
    }
    let name = source.name.clone();
    let captured = CapturedDisk { name: name.clone(), root, layers: Vec::new() };
    let disk = Disk { name, root, layers: Vec::new() };
    Ok(Done { disk, captured, memos: Vec::new(), known: 0, was_contradicted: false })
}

/// What a live disk held before, if a snapshot still does.
fn known_before(context: &Context<'_>, name: &str, live: &LiveDisk) -> Result<Vec<Root>, BackupError> {
    let Some(root) = live.since().filter(|_| context.options.use_memos) else { return Ok(Vec::new()) };
    let pinned = context.wait(context.authority.pin_roots(context.grant.session, &[root]))?;
    if pinned.first() == Some(&true) {
        return Ok(vec![root]);
    }
    context
        .progress
        .notice(&format!("disk {name}: no snapshot holds any more what it held before; reading all of it"));
    Ok(Vec::new())
}

fn layers(
    context: &Context<'_>,
    source: &DiskSource,
    chain: &Chain,
    known: &[Root],
    nodes: &NodeStore<'_>,
    uploads: &mut Uploads<'_>,
) -> Result<Done, BackupError> {
    let mut roots = known.to_vec();
    let mut memos = Vec::new();
    for index in known.len()..chain.len() {
        let identity = chain.layer(index).identity()?;
        let below = roots.last().copied();
        let root = layer::apply(context, source, index, below, nodes, uploads)?;
        if let Some(below) = below.filter(|_| index == known.len()) {
            spot_check::spot_check(context, source, index, below, nodes)?;
        }
        memos.push(Memo { identity, below, root });
        roots.push(root);
    }
    let root = *roots.last().ok_or(BackupError::NoDisk)?;
    // The base alone is kept alive by itself: layers between base and top are superseded by what is committed into them.
    let layers = if roots.len() > 1 { vec![roots[0]] } else { Vec::new() };
    let captured = (0..chain.len())
        .zip(&roots)
        .map(|(index, root)| Ok(CapturedLayer { identity: chain.layer(index).identity()?, root: *root }));
    let captured = CapturedDisk {
        name: source.name.clone(),
        root,
        layers: captured.collect::<Result<_, BackupError>>()?,
    };
    Ok(Done {
        disk: Disk { name: source.name.clone(), root, layers },
        captured,
        memos,
        known: known.len(),
        was_contradicted: false,
    })
}

/// Roots of the layers, from the base up, that need not be read: memoised, and still part of a live snapshot.
fn known_layers(context: &Context<'_>, memos: &Memos, chain: &Chain) -> Result<Vec<Root>, BackupError> {
    let mut roots: Vec<Root> = Vec::new();
    let believed = if context.options.use_memos { chain.len() } else { 0 };
    for index in 0..believed {
        let identity = chain.layer(index).identity()?;
        match memos.get(&identity, roots.last())? {
            Some(root) => roots.push(root),
            None => break,
        }
    }
    let live = context.wait(context.authority.pin_roots(context.grant.session, &roots))?;
    // A snapshot names its base's root too, so the base itself must be live for anything above it to count.
    let keep = if live.first() == Some(&true) {
        live.iter().rposition(|&live| live).map_or(0, |at| at + 1)
    } else {
        0
    };
    roots.truncate(keep);
    Ok(roots)
}
