//! Reading what a restore would read, without a disk to give it to.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use underlay_store::authority::Withdrawal;
use underlay_store::id::{ChunkId, NodeId, Root};

use super::affected::affected;
use super::damage::Damage;
use super::execute::{Environment, RestoreOptions, RestoreStatistics};
use super::fetch::Engine;
use super::{RestoreError, VerifyOutput};

/// What has been looked at, so that disks which share content are not read twice. The first 8 bytes of an id stand for it:
/// among 300 million ids, the chance that one is left out is 1 in 400.
#[derive(Debug)]
pub(super) struct Seen {
    nodes: Mutex<HashSet<u64>>,
    chunks: Mutex<HashSet<u64>>,
    /// Chosen anew each time, so that a share of the chunks is another one each time.
    salt: u32,
    /// Of 2^32 chunks, how many are wanted.
    wanted: u64,
}

impl Seen {
    fn new(percent: f64) -> Self {
        let salt = u32::from_le_bytes(underlay_store::key::random_bytes());
        let wanted = (percent.clamp(0.0, 100.0) / 100.0 * (1u64 << 32) as f64) as u64;
        Self { nodes: Mutex::default(), chunks: Mutex::default(), salt, wanted }
    }

    /// Whether this is the node's first time.
    pub(super) fn visits(&self, id: &NodeId) -> bool {
        let start = id.as_bytes().first_chunk().copied().unwrap_or_default();
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(u64::from_le_bytes(start))
    }

    /// Whether this is the chunk's first time and it belongs to the share.
    pub(super) fn wants(&self, id: &ChunkId) -> bool {
        let start = u64::from_le_bytes(id.as_bytes().first_chunk().copied().unwrap_or_default());
        u64::from(start as u32 ^ self.salt) < self.wanted
            && self.chunks.lock().unwrap_or_else(PoisonError::into_inner).insert(start)
    }
}

/// What a verification found.
#[derive(Debug)]
pub struct VerifyReport {
    /// What was read. Its chunks are distinct, across all disks.
    pub statistics: RestoreStatistics,
    /// Damage, with the root of the disk it was met on first.
    pub damage: Vec<(Root, RestoreError)>,
    /// Every disk that the damage touches, not only the first it was met on. In the order given.
    pub affected: Vec<Root>,
    /// What is not to be relied on any more: for [`underlay_store::authority::Authority::withdraw`].
    pub withdrawal: Withdrawal,
}

/// Reads, decrypts and verifies what these disks consist of, each node and chunk once. `percent` of the chunks are read,
/// another random selection each time; all nodes are. Blocks, as [`super::restore`] does.
///
/// Memory: 16 bytes or so for each chunk read and each node.
///
/// # Errors
/// Damage is a finding and not an error; a repository that cannot be read, and cancelling, are errors.
pub fn verify(
    environment: &Environment<'_>,
    roots: &[Root],
    percent: f64,
    options: &RestoreOptions,
) -> Result<VerifyReport, RestoreError> {
    environment.progress.phase("read data", None);
    let seen = Seen::new(percent);
    let mut report = VerifyReport {
        statistics: RestoreStatistics::default(),
        damage: Vec::new(),
        affected: Vec::new(),
        withdrawal: Withdrawal::default(),
    };
    for &root in roots {
        let engine = Engine::new(environment, options, Damage::collect());
        engine.run(root, &VerifyOutput::new(root.size), Some(&seen))?;
        let (statistics, found) = engine.finish();
        report.statistics += statistics;
        report.damage.extend(found.errors.into_iter().map(|error| (root, error)));
        report.withdrawal.chunks.extend(found.copies);
        report.withdrawal.nodes.extend(found.nodes);
    }
    if !report.damage.is_empty() {
        let bad = (report.damage.iter())
            .filter_map(|(_, error)| match error {
                RestoreError::Data { chunk, .. } => Some(*chunk),
                _ => None,
            })
            .collect();
        report.affected = environment.runtime.block_on(affected(environment, roots, &bad))?;
        report.withdrawal.roots.clone_from(&report.affected);
    }
    Ok(report)
}
