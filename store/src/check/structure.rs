//! The keyless check.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Affected, CheckOptions, CheckReport};
use crate::Result;
use crate::backend::Backend;
use crate::catalog::{Catalog, PackState};
use crate::id::{ChunkId, NodeId, PackName, RepositoryId, Root};
use crate::names::{self, ObjectName};
use crate::pack::{self, PackKind};
use crate::progress::Progress;
use crate::repository::NodeReader;
use crate::snapshot::Snapshot;
use crate::tree::{Node, Run, root_level};

/// Nodes or chunks looked at together.
const BATCH: usize = 1024;

/// Compares the catalog with the bucket and walks every snapshot's trees down to the chunks' locations.
///
/// # Errors
/// Only what stops the check itself, such as a failed listing. Damage is in the report.
pub(crate) async fn structure(
    backend: &Backend,
    catalog: &Arc<Catalog>,
    nodes: &NodeReader,
    id: RepositoryId,
    options: &CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let mut bad_packs: HashSet<PackName> = HashSet::new();
    for kind in [PackKind::Data, PackKind::Nodes] {
        packs(backend, catalog, kind, options, progress, &mut report, &mut bad_packs).await?;
    }
    snapshots(backend, catalog, nodes, id, progress, &mut report, &bad_packs).await?;
    Ok(report)
}

async fn packs(
    backend: &Backend,
    catalog: &Arc<Catalog>,
    kind: PackKind,
    options: &CheckOptions,
    progress: &dyn Progress,
    report: &mut CheckReport,
    bad: &mut HashSet<PackName>,
) -> Result<()> {
    let listed: HashMap<PackName, u64> = (backend.list(kind.folder()).await?.into_iter())
        .filter_map(|(name, size)| Some((pack_name(&name)?, size)))
        .collect();
    let known = catalog.packs(kind)?;
    progress.phase("packs", options.scrub.then(|| known.iter().map(|pack| pack.size).sum()));
    let names: HashSet<PackName> = known.iter().map(|pack| pack.name).collect();
    let unknown = listed.keys().filter(|name| !names.contains(name)).count();
    if unknown > 0 {
        report.notices.push(format!(
            "{unknown} packs are in the bucket and not in the catalog: leftovers of interrupted backups"
        ));
    }
    for pack in known {
        // It may be gone at any moment, and nothing may rely on it.
        if pack.state == PackState::Deleting {
            bad.insert(pack.name);
            continue;
        }
        let name = names::pack(kind, &pack.name);
        report.packs += 1;
        report.pack_bytes += pack.size;
        let wrong = match listed.get(&pack.name) {
            None => Some("it is missing from the bucket".to_owned()),
            Some(size) if *size != pack.size => {
                Some(format!("it has {size} bytes, the catalog says {}", pack.size))
            }
            Some(_) if options.scrub => match backend.get(&name).await {
                Ok(bytes) if pack::name_of(&bytes) == pack.name => None,
                Ok(_) => Some("its SHA-256 is not its name".to_owned()),
                Err(error) if error.is_damage() => Some(error.to_string()),
                Err(error) => return Err(error),
            },
            Some(_) => None,
        };
        progress.advance(if options.scrub { pack.size } else { 1 });
        if let Some(what) = wrong {
            report.find(name, what);
            bad.insert(pack.name);
        }
    }
    Ok(())
}

async fn snapshots(
    backend: &Backend,
    catalog: &Arc<Catalog>,
    nodes: &NodeReader,
    repository: RepositoryId,
    progress: &dyn Progress,
    report: &mut CheckReport,
    bad: &HashSet<PackName>,
) -> Result<()> {
    let stored = catalog.snapshots()?;
    for (name, _) in backend.list(names::SNAPSHOTS).await? {
        let Some(ObjectName::Snapshot(id)) = ObjectName::parse(&name) else { continue };
        if stored.iter().any(|(known, _)| *known == id) {
            continue;
        }
        match Snapshot::peek(&id, &repository, &backend.get(&name).await?) {
            Ok(_) => report.notices.push(format!("{name} was never acknowledged, and is not listed")),
            Err(error) => report.find(name, error.to_string()),
        }
    }
    progress.phase("snapshots", Some(stored.len() as u64));
    let mut walk = Walk { catalog, nodes, bad, sound: HashSet::new(), chunks: 0 };
    for (id, cataloged) in stored {
        report.snapshots += 1;
        let name = names::snapshot(&id);
        match backend.get(&name).await {
            Ok(bytes) if bytes == cataloged => {}
            Ok(_) => report.find(name.clone(), "it is not what was committed"),
            Err(error) if error.is_damage() => report.find(name.clone(), error.to_string()),
            Err(error) => return Err(error),
        }
        let snapshot: Snapshot = match Snapshot::peek(&id, &repository, &cataloged) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                report.find(name, error.to_string());
                continue;
            }
        };
        for disk in &snapshot.disks {
            let mut sound = true;
            for root in disk.layers.iter().chain([&disk.root]) {
                let whole = walk.root(root, report).await?;
                sound &= whole || root != &disk.root;
            }
            if !sound {
                let disk = disk.name.clone();
                report.affected.push(Affected { snapshot: id, vm: snapshot.vm.clone(), disk });
            }
        }
        progress.advance(1);
    }
    report.nodes = walk.sound.len() as u64;
    report.chunks = walk.chunks;
    Ok(())
}

struct Walk<'a> {
    catalog: &'a Arc<Catalog>,
    nodes: &'a NodeReader,
    bad: &'a HashSet<PackName>,
    /// Nodes already walked and found whole.
    sound: HashSet<NodeId>,
    chunks: u64,
}

impl Walk<'_> {
    /// Whether everything below `root` can be found.
    async fn root(&mut self, root: &Root, report: &mut CheckReport) -> Result<bool> {
        let Some(id) = root.node else { return Ok(true) };
        let before = report.findings.len();
        let mut visited = Vec::new();
        let mut open = vec![(id, root_level(root.size))];
        while !open.is_empty() {
            let mut batch = open.split_off(open.len().saturating_sub(BATCH));
            batch.retain(|(id, _)| !self.sound.contains(id));
            let found = self.read(&batch, report).await?;
            let mut chunks = Vec::new();
            for ((id, level), node) in batch.into_iter().zip(found) {
                match node {
                    None => {}
                    Some(node) if node.level() != level => {
                        report.find(
                            format!("node {id}"),
                            format!("level {} in a place of level {level}", node.level()),
                        );
                    }
                    Some(Node::Inner { children, .. }) => {
                        visited.push(id);
                        open.extend(children.iter().flatten().map(|child| (*child, level - 1)));
                    }
                    Some(Node::Leaf(runs)) => {
                        visited.push(id);
                        chunks.extend(runs.iter().filter_map(|run| match run {
                            Run::Chunk(_, id) => Some(*id),
                            Run::Zero(_) => None,
                        }));
                    }
                }
            }
            self.look_up(chunks, report)?;
        }
        let whole = report.findings.len() == before;
        if whole {
            self.sound.extend(visited);
        }
        Ok(whole)
    }

    async fn read(&self, batch: &[(NodeId, u8)], report: &mut CheckReport) -> Result<Vec<Option<Node>>> {
        let ids: Vec<NodeId> = batch.iter().map(|(id, _)| *id).collect();
        if let Ok(encodings) = self.nodes.read(&ids).await {
            return Ok((encodings.iter().zip(&ids)).map(|(bytes, id)| decode(id, bytes, report)).collect());
        }
        let mut nodes = Vec::new();
        for id in ids {
            nodes.push(match self.nodes.read(&[id]).await {
                Ok(bytes) => bytes.first().and_then(|bytes| decode(&id, bytes, report)),
                Err(error) if error.is_damage() => {
                    report.find(format!("node {id}"), error.to_string());
                    None
                }
                Err(error) => return Err(error),
            });
        }
        Ok(nodes)
    }

    fn look_up(&mut self, mut chunks: Vec<ChunkId>, report: &mut CheckReport) -> Result<()> {
        chunks.sort_unstable();
        chunks.dedup();
        self.chunks += chunks.len() as u64;
        for (id, places) in chunks.iter().zip(self.catalog.locate_chunks(&chunks)?) {
            if places.iter().all(|place| self.bad.contains(&place.pack)) {
                let what = if places.is_empty() {
                    "it is in no pack"
                } else {
                    "every pack that holds it is damaged"
                };
                report.find(format!("chunk {id}"), what);
            }
        }
        Ok(())
    }
}

fn pack_name(object: &str) -> Option<PackName> {
    match ObjectName::parse(object)? {
        ObjectName::Pack(_, name) => Some(name),
        _ => None,
    }
}

fn decode(id: &NodeId, bytes: &[u8], report: &mut CheckReport) -> Option<Node> {
    Node::decode(bytes).map_err(|what| report.find(format!("node {id}"), what)).ok()
}
