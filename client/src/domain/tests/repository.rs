//! The double as a repository: snapshots of whole disks, and memos by the real rules.

use std::path::PathBuf;

use underlay_store::id::{NodeId, RepositoryId, Root, SnapshotId};
use underlay_store::snapshot::Consistency;

use super::host::{Host, failed};
use super::images::{BLOCK, Content};
use super::world::{Interruption, World};
use crate::backup::{CapturedDisk, CapturedLayer, Outcome};
use crate::domain::{Capture, DomainError, Frozen};
use crate::state::Memo;

const REPOSITORY: RepositoryId = RepositoryId::new([7; 16]);

/// What was made of one disk.
struct Read {
    captured: CapturedDisk,
    memos: Vec<Memo>,
    content: Content,
}

impl World {
    /// The name of a content; equal only for equal ones.
    fn plant(&mut self, content: &Content) -> Root {
        let mut hasher = blake3::Hasher::new();
        for value in content {
            hasher.update(&value.to_le_bytes());
        }
        let empty = content.iter().all(|&value| value == 0);
        let node = (!empty).then(|| NodeId::new(*hasher.finalize().as_bytes()));
        let root = Root { size: content.len() as u64 * BLOCK, node };
        self.trees.insert(root, content.clone());
        root
    }

    /// Reads a disk: what memos vouch for, from the base up, is not read.
    fn read(&mut self, name: &str, chain: &[PathBuf]) -> Read {
        let mut read = Read {
            captured: CapturedDisk {
                name: name.to_owned(),
                root: Root { size: 0, node: None },
                layers: Vec::new(),
            },
            memos: Vec::new(),
            content: Content::new(),
        };
        let mut believing = true;
        for path in chain {
            let identity = self.images.get(path).identity();
            let below = read.captured.layers.last().map(|layer| layer.root);
            let memo = self.memos.get(&identity.inode).filter(|_| believing);
            let known = memo.filter(|memo| memo.identity == identity && memo.below == below);
            let root = match known.map(|memo| memo.root) {
                Some(root) => root,
                None => {
                    believing = false;
                    let content = self.images.get(path).over(&read.content);
                    let root = self.plant(&content);
                    read.memos.push(Memo { identity: identity.clone(), below, root });
                    root
                }
            };
            read.captured.root = root;
            read.content = self.trees[&root].clone();
            read.captured.layers.push(CapturedLayer { identity, root });
        }
        read
    }

    /// Reads what a running domain shows: all of it, or what was written since, over what the disk held before. It must be what
    /// the guest had written when the pull began.
    fn read_shown(&mut self, frozen: &Frozen<'_>) -> Result<Vec<CapturedDisk>, &'static str> {
        let pull = self.machine.process.as_ref().and_then(|process| process.pull.clone());
        let pull = pull.ok_or("nobody listens")?;
        let mut disks = Vec::new();
        for disk in &frozen.disks {
            let live = disk.live.as_ref().expect("all of its disks are shown");
            if live.socket != pull.request.socket {
                return Err("nobody listens");
            }
            let shown = &pull.disks[&disk.target];
            let mut content = shown.content.clone();
            if let Some(since) = &live.since {
                let dirty = shown.dirty.as_ref().expect("it is told what was written");
                let before = &self.trees[since];
                for block in (0..content.len()).filter(|block| !dirty.contains(&(*block as u64))) {
                    content[block] = before.get(block).copied().unwrap_or_default();
                }
            }
            assert_eq!(content, shown.content, "{}: not all that was written is in its bitmap", disk.target);
            if !self.forked {
                let truth = &self.history[&pull.sequence][&disk.target];
                assert_eq!(content, *truth, "{} is not what its guest wrote", disk.target);
            }
            let root = self.plant(&content);
            disks.push(CapturedDisk { name: disk.target.clone(), root, layers: Vec::new() });
        }
        Ok(disks)
    }

    /// A snapshot must be what the guest had written at the moment of the freeze.
    fn expect_exact(&self, frozen: &Frozen<'_>, read: &[Read]) {
        let offline = frozen.consistency == Consistency::Offline;
        for (disk, read) in frozen.disks.iter().zip(read) {
            let view = self.images.view(&self.images.chain(&disk.layer.path));
            assert_eq!(read.content, view, "{} is not what its layers hold", disk.target);
        }
        if self.forked {
            return;
        }
        let sequence = read[0].content[0];
        let truth = &self.history[&sequence];
        for (disk, read) in frozen.disks.iter().zip(read) {
            assert_eq!(read.content, truth[&disk.target], "{} is not what its guest wrote", disk.target);
        }
        let expected = if offline { self.sequence } else { self.frozen_at };
        // A guest that somebody started from the frozen layer wrote to it before it was read.
        let restarted = sequence > expected && self.machine.nova;
        assert!(sequence == expected || restarted, "the snapshot is of another moment");
    }
}

impl Capture for Host {
    fn repository(&self) -> RepositoryId {
        REPOSITORY
    }

    fn capture(&self, frozen: &Frozen<'_>) -> Result<Outcome, DomainError> {
        let fault = self.begin()?;
        if frozen.disks.iter().any(|disk| disk.live.is_some()) {
            return self.capture_shown(frozen, fault);
        }
        let (read, writers) = {
            let mut world = self.world();
            let mut read = Vec::new();
            let mut writers = false;
            for disk in &frozen.disks {
                let chain: Vec<_> = world.images.chain(&disk.layer.path).into_iter().rev().collect();
                let live = world.machine.process.iter().flat_map(|process| &process.disks);
                writers |= live.into_iter().any(|disk| {
                    let copied = disk.job.as_ref().map(|job| &job.base);
                    chain.iter().any(|layer| *layer == disk.chain[0] || Some(layer) == copied)
                });
                read.push(world.read(&disk.target, &chain));
            }
            (read, writers)
        };
        if writers {
            // Somebody restarted it from there: layers are found to change while they are read.
            return Err(failed("the image changed while it was read").into());
        }
        self.world().expect_exact(frozen, &read);
        self.world().snapshots += 1;
        self.moment();
        let total: usize = read.iter().map(|read| read.captured.layers.len()).sum();
        let layers_read: usize = read.iter().map(|read| read.memos.len()).sum();
        let mut disks = Vec::new();
        for read in read {
            for memo in read.memos {
                self.world().memos.insert(memo.identity.inode, memo);
                self.moment();
            }
            disks.push(read.captured);
        }
        self.end(fault)?;
        Ok(outcome(frozen, disks, total - layers_read, layers_read))
    }
}

impl Host {
    /// What a running domain shows is read; its disks count as layers that were known if only what was written is.
    fn capture_shown(
        &self,
        frozen: &Frozen<'_>,
        fault: Option<Interruption>,
    ) -> Result<Outcome, DomainError> {
        let disks = self.world().read_shown(frozen).map_err(failed)?;
        self.moment();
        // The guest may have ended, and the pull with it.
        self.world().read_shown(frozen).map_err(failed)?;
        self.world().snapshots += 1;
        self.moment();
        self.end(fault)?;
        let known =
            frozen.disks.iter().filter(|disk| disk.live.iter().any(|live| live.since.is_some())).count();
        Ok(outcome(frozen, disks, known, frozen.disks.len() - known))
    }
}

fn outcome(
    frozen: &Frozen<'_>,
    disks: Vec<CapturedDisk>,
    layers_known: usize,
    layers_read: usize,
) -> Outcome {
    Outcome {
        snapshot: SnapshotId::random(),
        vm: frozen.domain.name.clone(),
        time: String::new(),
        disk_bytes: 0,
        bytes_read: 0,
        bytes_new: 0,
        bytes_uploaded: 0,
        layers_known,
        layers_read,
        seconds: 0.0,
        disks,
    }
}
