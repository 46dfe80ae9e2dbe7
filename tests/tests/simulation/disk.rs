//! Disks of a few tiny chunks, and the keys that everything is sealed with.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use underlay_store::cut::{BLOCK, REGION, REGION_BLOCKS};
use underlay_store::id::{ChunkId, NodeId, RepositoryId, Root};
use underlay_store::key::{DataKey, RestoreKey, SealedKey};
use underlay_store::pack::{ChunkDecoder, ChunkEncoder, Frame};
use underlay_store::tree::{Editor, Node, NodeSource, Run};

use crate::ledger::Id;
use crate::random::Random;

pub const REPOSITORY: RepositoryId = RepositoryId::new([0x51; 16]);

/// A data key, sealed to the public key of [`keys`] for [`REPOSITORY`]: sealing draws on the operating system's randomness, and
/// so cannot be repeated.
const SEALED: &str = "fceaaf57b9f538ec657f5b93764ce58bceb684d3702f3c2a26bdcb9afd1800c492b4281ea9dd3600f71998ac4df4ad1526befbd18a29ef742f29ffa3707c35a7337926caded321219756c92c0f0f17c82e0f075f414b4ca967a49bd17256e78f";

pub struct Keys {
    pub restore: RestoreKey,
    pub data: DataKey,
    pub sealed: SealedKey,
}

/// The same for every run of every process.
pub fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let restore = RestoreKey::new(&[1; 32], &[2; 32]);
        let sealed = SealedKey::new(hex::decode(SEALED).unwrap().try_into().unwrap());
        let data = restore.open_data_key(&REPOSITORY, &sealed).unwrap();
        Keys { restore, data, sealed }
    })
}

/// A disk: for each region that holds something its runs, as blocks and the word that fills them (0: zeros).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub size: u64,
    pub regions: BTreeMap<u64, Vec<(usize, u64)>>,
}

impl Disk {
    pub fn new(random: &mut Random, common: u64) -> Self {
        let regions = match random.below(10) {
            0 => 65 + random.below(80),
            1..4 => 1,
            _ => 1 + random.below(6),
        };
        let mut disk = Self { size: regions * REGION as u64, regions: BTreeMap::new() };
        for _ in 0..=random.below(5) {
            disk.write(random, common);
        }
        disk
    }

    /// Overwrites one region, in part or whole. `common`: so many different words most of the content is made of.
    pub fn write(&mut self, random: &mut Random, common: u64) {
        let region = random.below(self.size / REGION as u64);
        let mut runs = self.regions.remove(&region).unwrap_or_default();
        if random.chance(100) {
            return;
        }
        // Few different words: machines share content, and old content comes back.
        let mut word = || match random.below(4) {
            0 => random.next() | 1,
            _ => 1 + random.below(common),
        };
        let fresh = |word: u64| (1 + (word % 2) as usize, word);
        match runs.len() {
            0 => runs.extend([fresh(word()), (3, 0), fresh(word())]),
            length => {
                let run = fresh(word());
                runs[(word() % length as u64) as usize] = run;
            }
        }
        self.regions.insert(region, normal(runs));
        if random.chance(60) {
            self.size += REGION as u64;
        }
    }

    /// The regions in which the two differ.
    pub fn changed(&self, base: &Self) -> Vec<u64> {
        let mut all: Vec<u64> = self.regions.keys().chain(base.regions.keys()).copied().collect();
        all.sort_unstable();
        all.dedup();
        all.retain(|region| self.regions.get(region) != base.regions.get(region));
        all
    }
}

/// No zeros at the end, no two runs of zeros in a row, as leaves have it.
fn normal(runs: Vec<(usize, u64)>) -> Vec<(usize, u64)> {
    let mut result: Vec<(usize, u64)> = Vec::new();
    for (blocks, word) in runs {
        match result.last_mut() {
            Some((last, 0)) if word == 0 => *last += blocks,
            _ => result.push((blocks, word)),
        }
    }
    result.pop_if(|run| run.1 == 0);
    assert!(result.iter().map(|run| run.0).sum::<usize>() <= REGION_BLOCKS);
    result
}

/// The chunk of a run.
pub fn plain(blocks: usize, word: u64) -> Vec<u8> {
    word.to_le_bytes().repeat(blocks * BLOCK / 8)
}

pub fn chunk_id(blocks: usize, word: u64) -> ChunkId {
    thread_local! {
        static KNOWN: RefCell<BTreeMap<(usize, u64), ChunkId>> = const { RefCell::new(BTreeMap::new()) };
    }
    KNOWN.with(|known| {
        *known
            .borrow_mut()
            .entry((blocks, word))
            .or_insert_with(|| keys().restore.backup().chunk_id(&plain(blocks, word)))
    })
}

/// The leaf of a region.
pub fn leaf(runs: &[(usize, u64)]) -> Option<Node> {
    Node::leaf(runs.iter().map(|&(blocks, word)| match word {
        0 => Run::Zero(blocks),
        _ => Run::Chunk(blocks, chunk_id(blocks, word)),
    }))
}

/// The root of a disk, and every node and chunk that it consists of.
pub fn contents(disk: &Disk) -> (Root, BTreeSet<Id>) {
    struct Nothing;
    impl NodeSource for Nothing {
        type Error = String;

        fn node(&mut self, id: &NodeId) -> Result<Node, String> {
            Err(format!("{id} is asked for"))
        }
    }
    let backup = keys().restore.backup();
    let mut nodes: BTreeMap<NodeId, Node> = BTreeMap::new();
    let mut sink = |node: &Node| {
        let id = backup.node_id(&node.encode());
        nodes.insert(id, node.clone());
        id
    };
    let unexpected = |id: &NodeId| format!("{id} has the wrong level");
    let empty = Root { size: 0, node: None };
    let mut editor = Editor::new(empty, disk.size, &mut Nothing, &mut sink, unexpected).unwrap();
    for (region, runs) in &disk.regions {
        let leaf = leaf(runs).map(|leaf| sink(&leaf));
        editor.set(*region, leaf, &mut Nothing, &mut sink, unexpected).unwrap();
    }
    let root = editor.finish(&mut sink);
    // Nodes on the way that the finished tree does not have are not of it.
    let (mut ids, mut open) = (BTreeSet::new(), Vec::from_iter(root.node));
    while let Some(id) = open.pop() {
        ids.insert(*id.as_bytes());
        match &nodes[&id] {
            Node::Inner { children, .. } => open.extend(children.iter().flatten()),
            Node::Leaf(runs) => ids.extend(runs.iter().filter_map(|run| match run {
                Run::Chunk(_, id) => Some(*id.as_bytes()),
                Run::Zero(_) => None,
            })),
        }
    }
    (root, ids)
}

/// `faulty`: bad memory changed it before it was encrypted.
pub fn encode(blocks: usize, word: u64, faulty: bool) -> Frame {
    thread_local! {
        static ENCODER: RefCell<Option<ChunkEncoder>> = const { RefCell::new(None) };
    }
    ENCODER.with(|encoder| {
        let mut encoder = encoder.borrow_mut();
        let encoder = encoder.get_or_insert_with(|| {
            ChunkEncoder::new(keys().restore.backup(), REPOSITORY, 1).unwrap().without_verification()
        });
        let content = plain(blocks, if faulty { !word } else { word });
        encoder.encode(&keys().data, chunk_id(blocks, word), &content).unwrap()
    })
}

pub fn with_decoder<T>(work: impl FnOnce(&mut ChunkDecoder) -> T) -> T {
    thread_local! {
        static DECODER: RefCell<Option<ChunkDecoder>> = const { RefCell::new(None) };
    }
    DECODER.with(|decoder| {
        let mut decoder = decoder.borrow_mut();
        work(
            decoder.get_or_insert_with(|| {
                ChunkDecoder::new(keys().restore.backup().clone(), REPOSITORY).unwrap()
            }),
        )
    })
}
