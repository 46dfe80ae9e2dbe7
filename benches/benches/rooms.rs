//! How fast each room of the store is by itself, on one processor.
//!
//!     cargo bench -p underlay-benches --bench rooms [-- FILTER]
//!
//! The data is this program's own file: machine code, which compresses as guests' programs do.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up is to end")]

use std::convert::Infallible;
use std::hint::black_box;
use std::ops::Range;
use std::slice::from_ref;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use underlay_store::catalog::{Catalog, Location, PackRecord};
use underlay_store::cut::{BLOCK, CutParameters, Cutter, REGION, RegionContent, is_zero, recut};
use underlay_store::id::{ChunkId, NodeId, PackName, RepositoryId, Root, SessionId};
use underlay_store::key::{DataKey, RestoreKey, SealedKey, random_bytes};
use underlay_store::pack::{
    ChunkDecoder, ChunkEncoder, Codec, Entry, Frame, PackKind, PackWriter, parse, parse_frame,
};
use underlay_store::restore::{Wanted, plan_reads};
use underlay_store::tree::{Editor, Node, NodeSource, Run};

/// A chunk of the average length.
const CHUNK: usize = 28 << 10;
/// Chunks of 16 MiB of disk: what a backup looks up at once.
const LOOKED_UP: usize = 600;

struct Keys {
    repository: RepositoryId,
    key: RestoreKey,
    data: DataKey,
    sealed: SealedKey,
}

impl Keys {
    fn new() -> Self {
        let (repository, key) = (RepositoryId::random(), RestoreKey::generate());
        let (data, sealed) = key.backup().seal_data_key(&repository).unwrap();
        Self { repository, key, data, sealed }
    }

    fn encoder(&self) -> ChunkEncoder {
        ChunkEncoder::new(self.key.backup(), self.repository, 3).unwrap()
    }

    fn cutter(&self) -> Cutter {
        Cutter::new(&CutParameters::default(), self.key.backup().cut_secret())
    }
}

/// Real machine code, without its zeros.
fn content(length: usize) -> Vec<u8> {
    let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let blocks = own.chunks_exact(BLOCK).filter(|block| !is_zero(block)).flatten().copied();
    let content: Vec<u8> = blocks.take(length).collect();
    assert_eq!(content.len(), length, "this program is too small");
    content
}

/// A region in memory.
struct Loaded<'a>(&'a [u8]);

impl RegionContent for Loaded<'_> {
    type Error = Infallible;
    fn blocks(&self) -> usize {
        self.0.len() / BLOCK
    }
    fn load(&mut self, _: Range<usize>) -> Result<(), Infallible> {
        Ok(())
    }
    fn block(&self, index: usize) -> &[u8] {
        &self.0[index * BLOCK..][..BLOCK]
    }
}

fn cutting(c: &mut Criterion) {
    let (region, cutter) = (content(REGION), Keys::new().cutter());
    let mut group = c.benchmark_group("cut");
    group.throughput(Throughput::Bytes(REGION as u64));
    group.bench_function("a region", |b| b.iter(|| cutter.cut(black_box(&region))));
    group.bench_function("apply to nothing", |b| {
        b.iter(|| {
            recut(&cutter, &[], from_ref(&(0..REGION / BLOCK)), &mut Loaded(black_box(&region))).unwrap()
        });
    });
    let zeros = vec![0; REGION];
    group.bench_function("a region of zeros", |b| b.iter(|| cutter.cut(black_box(&zeros))));
    group.finish();
    let runs: Vec<Run> = (0..64).map(|at| Run::Chunk(8, ChunkId::new([at; 32]))).collect();
    c.bench_function("cut/apply one cluster of 64 KiB", |b| {
        b.iter(|| recut(&cutter, &runs, from_ref(&(256..272)), &mut Loaded(black_box(&region))).unwrap());
    });
}

fn chunks(c: &mut Criterion) {
    let (plain, keys) = (content(CHUNK), Keys::new());
    let id = keys.key.backup().chunk_id(&plain);
    let mut group = c.benchmark_group("chunk of 28 KiB");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    group.bench_function("hash", |b| b.iter(|| keys.key.backup().chunk_id(black_box(&plain))));
    group.bench_function("seal", |b| {
        b.iter_batched_ref(
            || [&plain[..], &[0; 16]].concat()[..CHUNK].to_vec(),
            |buffer| keys.data.seal(b"bound to this", buffer),
            BatchSize::SmallInput,
        );
    });
    let mut unchecked = keys.encoder().without_verification();
    group.bench_function("compress and seal", |b| {
        b.iter(|| unchecked.encode(&keys.data, id, black_box(&plain)).unwrap());
    });
    let mut encoder = keys.encoder();
    group.bench_function("compress, seal and check", |b| {
        b.iter(|| encoder.encode(&keys.data, id, black_box(&plain)).unwrap());
    });
    let mut pack = PackWriter::data(keys.repository, vec![keys.sealed]).unwrap();
    pack.add(&encoder.encode(&keys.data, id, &plain).unwrap()).unwrap();
    let pack = pack.finish().unwrap();
    let bytes = &pack.bytes[pack.entries[0].offset as usize..];
    let frame = parse_frame(&pack.id, bytes, &pack.entries[0]).unwrap();
    let mut decoder = ChunkDecoder::new(keys.key.backup().clone(), keys.repository).unwrap();
    let mut out = Vec::new();
    group.bench_function("open, decompress and check", |b| {
        b.iter(|| decoder.decode(&pack.id, &keys.data, &frame, &id, CHUNK as u32, &mut out).unwrap());
    });
    group.finish();
}

fn packs(c: &mut Criterion) {
    let keys = Keys::new();
    let payload = content(10 << 10);
    let frames: Vec<Frame> = (0..3000)
        .map(|_| Frame {
            key: keys.data.id(),
            codec: Codec::Zstd,
            plain_length: CHUNK as u32,
            id: ChunkId::new(random_bytes()),
            nonce: random_bytes(),
            payload: payload.clone(),
        })
        .collect();
    let build = |buffer: Vec<u8>| {
        let mut pack = PackWriter::data_in(buffer, keys.repository, vec![keys.sealed]).unwrap();
        frames.iter().for_each(|frame| pack.add(frame).unwrap());
        pack
    };
    let finished = build(Vec::new()).finish().unwrap();
    let mut group = c.benchmark_group("pack of 30 MiB");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(finished.bytes.len() as u64));
    group.bench_function("write, fresh memory", |b| b.iter(|| build(Vec::new()).finish_unnamed().unwrap()));
    group.bench_function("write, memory used before", |b| {
        b.iter_batched(
            || vec![1; 40 << 20],
            |buffer| build(buffer).finish_unnamed().unwrap(),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("write and name", |b| b.iter(|| build(Vec::new()).finish().unwrap()));
    group.bench_function("parse", |b| b.iter(|| parse(&finished.id, black_box(&finished.bytes)).unwrap()));
    group.finish();
}

fn record(ids: &[ChunkId]) -> PackRecord {
    let entry = |(at, id): (usize, &ChunkId)| Entry {
        id: *id.as_bytes(),
        offset: 200 + at as u32 * 10_000,
        payload_length: 9_000,
        plain_length: CHUNK as u32,
        codec: Codec::Zstd,
    };
    let entries = ids.iter().enumerate().map(entry).collect();
    PackRecord { name: PackName::new(random_bytes()), kind: PackKind::Data, size: 32 << 20, entries }
}

fn catalog(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(&folder.path().join("catalog"), RepositoryId::random()).unwrap();
    let known: Vec<ChunkId> = (0..300_000).map(|_| ChunkId::new(random_bytes())).collect();
    catalog.import_packs(&known.chunks(3000).map(record).collect::<Vec<_>>()).unwrap();
    let session = SessionId::random();
    catalog.open_session(session, "vm", 1).unwrap();
    let sorted = |mut ids: Vec<ChunkId>| {
        ids.sort_unstable();
        ids
    };
    let hits = sorted(known[5000..5000 + LOOKED_UP].to_vec());
    let mut group = c.benchmark_group("catalog of 300,000 chunks");
    group.throughput(Throughput::Elements(LOOKED_UP as u64));
    group.bench_function("look up 600, all there", |b| {
        b.iter(|| catalog.have_chunks(session, &hits, 2).unwrap());
    });
    let misses = || sorted((0..LOOKED_UP).map(|_| ChunkId::new(random_bytes())).collect());
    group.bench_function("look up 600, none there", |b| {
        b.iter_batched(misses, |ids| catalog.have_chunks(session, &ids, 2).unwrap(), BatchSize::SmallInput);
    });
    let many = sorted(known[..8192].to_vec());
    group.throughput(Throughput::Elements(many.len() as u64));
    group.bench_function("locate 8192", |b| b.iter(|| catalog.locate_chunks(&many).unwrap()));
    group.throughput(Throughput::Elements(3000));
    group.sample_size(20);
    let pack = || record(&(0..3000).map(|_| ChunkId::new(random_bytes())).collect::<Vec<_>>());
    group.bench_function("add a pack of 3000", |b| {
        b.iter_batched(pack, |pack| catalog.add_pack(session, &pack).unwrap(), BatchSize::PerIteration);
    });
    group.finish();
}

/// A tree that is made from nothing asks for no node.
struct NoNodes;

impl NodeSource for NoNodes {
    type Error = String;
    fn node(&mut self, id: &NodeId) -> Result<Node, String> {
        Err(format!("{id} was asked for"))
    }
}

fn trees(c: &mut Criterion) {
    let key = RestoreKey::generate();
    let runs: Vec<Run> = (0..73).map(|_| Run::Chunk(7, ChunkId::new(random_bytes()))).collect();
    let leaf = Node::leaf(runs).unwrap();
    let encoded = leaf.encode();
    let mut group = c.benchmark_group("tree");
    group.bench_function("encode and name a leaf", |b| {
        b.iter(|| key.backup().node_id(&black_box(&leaf).encode()));
    });
    group.bench_function("decode a leaf", |b| b.iter(|| Node::decode(black_box(&encoded)).unwrap()));
    let leaves: Vec<NodeId> = (0..5120).map(|_| NodeId::new(random_bytes())).collect();
    group.throughput(Throughput::Elements(leaves.len() as u64));
    group.bench_function("build over 10 GiB", |b| {
        b.iter(|| {
            let mut sink = |node: &Node| key.backup().node_id(&node.encode());
            let lost = |id: &NodeId| id.to_string();
            let empty = Root { size: 0, node: None };
            let mut editor = Editor::new(empty, 10 << 30, &mut NoNodes, &mut sink, lost).unwrap();
            for (at, leaf) in leaves.iter().enumerate() {
                editor.set(at as u64, Some(*leaf), &mut NoNodes, &mut sink, lost).unwrap();
            }
            editor.finish(&mut sink)
        });
    });
    group.finish();
}

fn plans(c: &mut Criterion) {
    let packs: Vec<PackName> = (0..16).map(|_| PackName::new(random_bytes())).collect();
    let wanted: Vec<Wanted> = (0..40_000)
        .map(|at| {
            let (pack, offset) = (packs[at % packs.len()], (at / packs.len()) as u32 * 10_060);
            let (payload_length, plain_length) = (10_000, CHUNK as u32);
            let location =
                Location { pack, offset, payload_length, plain_length, codec: Codec::Zstd, retired: false };
            Wanted { id: ChunkId::new(random_bytes()), location }
        })
        .collect();
    let mut group = c.benchmark_group("plan");
    group.throughput(Throughput::Elements(wanted.len() as u64));
    group.bench_function("reads of 40,000 chunks", |b| {
        b.iter(|| plan_reads(black_box(&wanted).iter().copied(), 256 << 10, 8 << 20));
    });
    group.finish();
}

criterion_group!(rooms, cutting, chunks, packs, catalog, trees, plans);
criterion_main!(rooms);
