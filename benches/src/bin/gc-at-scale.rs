//! A collection in a repository of a million chunks and a thousand snapshots, half of it dead: time, memory, requests.
//!
//!     cargo run --release -p underlay-benches --bin gc-at-scale -- [SNAPSHOTS [CHUNKS_EACH]]
//!
//! Chunks are real frames with 512 random bytes each, for a collection reads no data but what it copies. Ten machines; each snapshot
//! rewrites one half of its disk, in turn. The older half of the snapshots is dropped.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use underlay_store::authority::Authority;
use underlay_store::backend::{Backend, Options, Recording};
use underlay_store::cut::CutParameters;
use underlay_store::gc::{GcOptions, GcReport};
use underlay_store::id::{ChunkId, NodeId, RepositoryId, Root, SnapshotId};
use underlay_store::key::{RestoreKey, random_bytes};
use underlay_store::pack::{Codec, Frame, PackKind, PackWriter};
use underlay_store::progress::Silent;
use underlay_store::repository::{Access, Repository};
use underlay_store::snapshot::{Consistency, Descriptor, Disk, Snapshot, Statistics, Timestamp};
use underlay_store::tree::{FAN_OUT, Node, Run};

const MACHINES: usize = 10;
/// Chunks of a leaf, and the blocks of each.
const IN_LEAF: usize = 32;
const BLOCKS: usize = 16;

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Bench {
    repository: Repository,
    recording: Arc<Recording>,
    id: RepositoryId,
    key: RestoreKey,
    leaves: usize,
}

/// One machine's disk: the ids of its leaves.
struct Machine {
    name: String,
    leaves: [Option<NodeId>; FAN_OUT],
    root: Option<Root>,
}

impl Bench {
    async fn new(folder: &std::path::Path, chunks_each: usize) -> Outcome<Self> {
        let key = RestoreKey::generate();
        let id = RepositoryId::random();
        let descriptor = Descriptor {
            repository: id,
            created: Timestamp::now(),
            public_key: key.backup().public_key(),
            cut: CutParameters::default(),
        };
        let location = folder.join("repository");
        let location = location.to_str().ok_or("a path that is not UTF-8")?;
        let (backend, recording) = Backend::open(location, Options { create: true })?.with_recording();
        Repository::init(&backend, descriptor.seal(key.backup())?.into(), Vec::new()).await?;
        let repository = Repository::open(backend, &folder.join("state"), Access::Write).await?;
        Ok(Self { repository, recording, id, key, leaves: chunks_each.div_ceil(IN_LEAF) })
    }

    /// Rewrites one half of the machine's leaves and commits.
    async fn back_up(&self, machine: &mut Machine, round: usize) -> Outcome<SnapshotId> {
        let grant = self.repository.open_session(&machine.name).await?;
        if let Some(root) = machine.root {
            self.repository.pin_roots(grant.session, &[root]).await?;
        }
        let (key, sealed) = self.key.backup().seal_data_key(&self.id)?;
        let mut data = PackWriter::data(self.id, vec![sealed])?;
        let mut nodes = PackWriter::nodes(self.id);
        let half = (round % 2) * self.leaves;
        for leaf in half..half + self.leaves {
            let ids: Vec<ChunkId> = (0..IN_LEAF).map(|_| ChunkId::new(random_bytes())).collect();
            for id in &ids {
                let payload = [random_bytes::<256>(), random_bytes()].concat();
                let plain_length = (BLOCKS * 4096) as u32;
                let (codec, nonce) = (Codec::Zstd, random_bytes());
                data.add(&Frame { key: key.id(), codec, plain_length, id: *id, nonce, payload })?;
            }
            let runs = ids.into_iter().map(|id| Run::Chunk(BLOCKS, id));
            let node = Node::leaf(runs).ok_or("an empty leaf")?.encode();
            let id = self.key.backup().node_id(&node);
            nodes.add_node(id, &node)?;
            machine.leaves[leaf] = Some(id);
        }
        let inner = Node::inner(1, Box::new(machine.leaves)).ok_or("an empty node")?.encode();
        let node = self.key.backup().node_id(&inner);
        nodes.add_node(node, &inner)?;
        for (kind, pack) in [(PackKind::Data, data), (PackKind::Nodes, nodes)] {
            let pack = pack.finish().ok_or("an empty pack")?;
            self.repository.put_pack(grant.session, kind, pack.bytes).await?;
        }
        let root = Root { size: 64 << 21, node: Some(node) };
        machine.root = Some(root);
        let snapshot = Snapshot {
            snapshot: SnapshotId::random(),
            repository: self.id,
            session: grant.session,
            vm: machine.name.clone(),
            time: grant.time,
            consistency: Consistency::Offline,
            disks: vec![Disk { name: "vda".into(), root, layers: Vec::new() }],
            statistics: Statistics::default(),
            client: "bench".into(),
            private: None,
        };
        self.repository.commit(grant.session, Bytes::from(snapshot.seal(self.key.backup())?)).await?;
        Ok(snapshot.snapshot)
    }

    async fn collect(&self, what: &str, options: &GcOptions) -> Outcome<GcReport> {
        // The peak of memory is counted from here.
        fs::write("/proc/self/clear_refs", "5")?;
        self.recording.take();
        let start = Instant::now();
        let report = self.repository.gc(options, &Silent).await?;
        let seconds = start.elapsed().as_secs_f64();
        let status = fs::read_to_string("/proc/self/status")?;
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned();
        println!("{what}: {seconds:.2} s, {peak}");
        println!("  requests: {:?}", self.recording.total());
        println!("  {report:?}");
        Ok(report)
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let snapshots = arguments.next().unwrap_or(Ok(1000))?;
    let chunks_each = arguments.next().unwrap_or(Ok(1000))?;
    let folder = tempfile::tempdir()?;
    let bench = Bench::new(folder.path(), chunks_each).await?;
    if bench.leaves * 2 > FAN_OUT {
        return Err("too many chunks for one snapshot".into());
    }
    let mut machines: Vec<Machine> = (0..MACHINES)
        .map(|name| Machine { name: format!("vm{name}"), leaves: [None; FAN_OUT], root: None })
        .collect();
    let (mut made, start) = (Vec::new(), Instant::now());
    for at in 0..snapshots {
        made.push(bench.back_up(&mut machines[at % MACHINES], at / MACHINES).await?);
    }
    let totals = bench.repository.totals().await?;
    println!("{totals:?} in {:.1} s", start.elapsed().as_secs_f64());
    bench.collect("nothing dead", &GcOptions::default()).await?;
    for snapshot in &made[..snapshots / 2] {
        bench.repository.forget(*snapshot).await?;
    }
    bench.collect("half dead, dry run", &GcOptions { dry_run: true, ..GcOptions::default() }).await?;
    bench.collect("half dead", &GcOptions::default()).await?;
    for snapshot in &made[snapshots / 2..snapshots - MACHINES] {
        bench.repository.forget(*snapshot).await?;
    }
    bench
        .collect("almost all dead, no byte unused", &GcOptions { max_unused: 0.0, ..GcOptions::default() })
        .await?;
    Ok(())
}
