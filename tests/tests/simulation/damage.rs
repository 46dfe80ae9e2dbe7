//! Actors that look for damage, tell of it, repair it, or lie about it.

use std::collections::BTreeSet;

use underlay_store::authority::{Authority, RepairOptions, Withdrawal};
use underlay_store::cut::BLOCK;
use underlay_store::error::Result;
use underlay_store::id::{ChunkId, NodeId, PackName, Root};
use underlay_store::names::{self, ObjectName};
use underlay_store::pack::PackKind;
use underlay_store::progress::Silent;
use underlay_store::repository::Repository;
use underlay_store::tree::{Node, Run};

use crate::client::{Process, Reader};
use crate::disk::keys;
use crate::random::Random;
use crate::world::World;

/// A collection or a repair is under way: nothing rots that it has just looked at.
pub struct Judging<'a>(&'a World);

impl<'a> Judging<'a> {
    pub fn begin(world: &'a World) -> Self {
        world.core().judging += 1;
        Self(world)
    }
}

impl Drop for Judging<'_> {
    fn drop(&mut self) {
        self.0.core().judging -= 1;
    }
}

pub async fn repair(process: &Process, repository: &Repository, random: &mut Random) {
    let Ok(documents) = repository.snapshots().await else { return };
    let verified = documents.iter().filter_map(|document| match ObjectName::parse(&document.name) {
        Some(ObjectName::Snapshot(id)) => {
            let core = process.world.core();
            core.model.snapshots.get(&id).is_some_and(|known| known.document == document.bytes).then_some(id)
        }
        _ => None,
    });
    let options = RepairOptions { dry_run: random.chance(150), verified: verified.collect() };
    let _judging = Judging::begin(&process.world);
    process.world.core().lives[process.number].repairs = true;
    let repaired = process.heed(repository.repair(&options, &Silent).await);
    process.world.core().lives[process.number].repairs = false;
    if repaired.is_ok_and(|report| report.catalog_is_damaged) {
        process.world.complain("a repair finds the catalog damaged");
    }
}

/// Reads snapshots with keys, and tells of what is not what it should be.
pub async fn verify(process: &Process, repository: &Repository, random: &mut Random) {
    let roots: BTreeSet<Root> = {
        let core = process.world.core();
        let owed = core.model.owed().filter(|_| random.chance(700));
        owed.flat_map(|(_, record)| record.disks.iter().map(|(root, _)| *root)).collect()
    };
    let (mut reader, mut damage) = (Reader::default(), Withdrawal::default());
    for root in roots {
        let before = (damage.chunks.len(), damage.nodes.len());
        if inspect(&mut reader, repository, root, &mut damage).await.is_err() {
            return;
        }
        if before != (damage.chunks.len(), damage.nodes.len()) {
            damage.roots.push(root);
        }
    }
    if damage.roots.is_empty() {
        return;
    }
    {
        let core = process.world.core();
        let ledger = &core.bucket.ledger;
        let copies =
            damage.chunks.iter().map(|(id, pack)| (*id.as_bytes(), names::pack(PackKind::Data, pack)));
        let sound: Vec<_> = copies.filter(|(id, pack)| ledger.is_right(id, pack)).collect();
        drop(core);
        for (id, pack) in sound {
            process.world.complain(format!("{} in {pack} is taken for damaged", hex::encode(id)));
        }
    }
    let before = newest_claim(&process.world);
    let withdrawn = process.heed(repository.withdraw(&damage).await);
    let ours = newest_claim(&process.world) == before;
    if withdrawn.is_ok_and(|answer| answer.recorded && !answer.catalog_differs) && ours {
        let mut core = process.world.core();
        // Who takes over finds what was recorded, if its listing shows it. A collection that has decided cannot know better any more.
        if core.weather.stale_list == 0 && !core.is_decided() {
            let told = damage.chunks.iter();
            let told = told.map(|(id, pack)| (names::pack(PackKind::Data, pack), *id.as_bytes()));
            core.bucket.ledger.told.extend(told);
        }
    }
}

fn newest_claim(world: &World) -> Option<String> {
    world.core().bucket.names("claims/").pop()
}

/// Looks at everything below `root`. Fails if the repository cannot be read.
async fn inspect(
    reader: &mut Reader,
    repository: &Repository,
    root: Root,
    damage: &mut Withdrawal,
) -> Result<()> {
    let mut open: Vec<NodeId> = root.node.into_iter().collect();
    while let Some(id) = open.pop() {
        if damage.nodes.contains(&id) {
            continue;
        }
        let node = match repository.read_nodes(&[id]).await {
            Ok(found) if keys().restore.backup().node_id(&found[0]) == id => Node::decode(&found[0]).ok(),
            Ok(_) => None,
            Err(error) if error.is_damage() => None,
            Err(error) => return Err(error),
        };
        match node {
            None => damage.nodes.push(id),
            Some(Node::Inner { children, .. }) => open.extend(children.iter().flatten()),
            Some(Node::Leaf(runs)) => {
                for run in runs {
                    if let Run::Chunk(blocks, id) = run {
                        reader.copies(repository, id, (blocks * BLOCK) as u32, &mut damage.chunks).await?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Tells of what is sound that it is damaged.
pub async fn lie(process: &Process, repository: &Repository, random: &mut Random) {
    let mut damage = Withdrawal::default();
    {
        let mut core = process.world.core();
        let mut told = Vec::new();
        let sound = core.bucket.ledger.sound();
        for _ in 0..=random.below(3) {
            if sound.is_empty() {
                break;
            }
            let (name, id) = sound[random.index(sound.len())];
            told.push(*id);
            match ObjectName::parse(name) {
                Some(ObjectName::Pack(PackKind::Data, pack)) => {
                    damage.chunks.push((ChunkId::new(*id), PackName::new(*pack.as_bytes())));
                }
                _ => damage.nodes.push(NodeId::new(*id)),
            }
        }
        let roots: Vec<Root> = (core.model.owed())
            .flat_map(|(_, record)| record.disks.iter().map(|(root, _)| *root).collect::<Vec<_>>())
            .collect();
        if !roots.is_empty() && random.chance(500) {
            damage.roots.push(*random.pick(&roots));
        }
        core.bucket.ledger.doubted.extend(told);
        core.bucket.ledger.troubled = true;
    }
    let _ = process.heed(repository.withdraw(&damage).await);
}
