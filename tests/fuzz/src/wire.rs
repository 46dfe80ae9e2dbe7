//! Messages between a client and a server, as either would find them on the line.

use std::fmt::Debug;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use underlay_store::Error;
use underlay_store::authority::{RepairOptions, RepairReport, StoredDocument, Withdrawal, Withdrawn};
use underlay_store::catalog::Location;
use underlay_store::check::{CheckOptions, CheckReport};
use underlay_store::gc::GcReport;
use underlay_store::id::{ChunkId, NodeId, PackName, Root, SessionId, SlotId, SnapshotId};
use underlay_store::pack::Codec;
use underlay_store::wire::{
    GcRequest, JobRequest, JobState, JobStatus, MAXIMUM_IDS, NewRepository, NewSlot, OpenSession,
    OpenedSession, Phase, Problem, WireId, decode_bitmap, decode_documents, decode_ids, decode_nodes,
    decode_places, encode_bitmap, encode_documents, encode_ids, encode_nodes, encode_places,
};

use crate::{Seed, allocations};

/// Who sent a problem, and what the user called the repository.
const SERVER: &str = "https://server:7443";
const LOCATION: &str = "https://server:7443/vms";

/// What reading a message may hold at once. A chunk in no pack takes 2 bytes on the wire and 24 in memory.
fn limit(bytes: &[u8]) -> usize {
    (64 << 10) + 32 * bytes.len()
}

/// A binary message, read as each of them, as answer to so many ids as it says and to others.
///
/// # Panics
/// If something is accepted that is not the one encoding of its content.
pub fn binary(bytes: &[u8]) {
    ids::<ChunkId>(bytes);
    ids::<NodeId>(bytes);
    let said = bytes.get(8..).and_then(|rest| rest.first_chunk()).map_or(0, |at| u32::from_le_bytes(*at));
    for expected in [0, 1, 7, said as usize] {
        let shared = Bytes::copy_from_slice(bytes);
        let exact = |encoding: Vec<u8>| assert_eq!(encoding, bytes, "not the encoding of what it says");
        if let Some(answers) = read(bytes, || decode_bitmap(bytes, expected)) {
            assert_eq!(answers.len(), expected);
            exact(encode_bitmap(&answers));
        }
        if let Some(nodes) = read(bytes, || decode_nodes(&shared, expected)) {
            assert!(nodes.len() <= expected && (expected == 0 || !nodes.is_empty()));
            exact(encode_nodes(&nodes));
        }
        if let Some(places) = read(bytes, || decode_places(bytes, expected)) {
            assert_eq!(places.len(), expected);
            exact(encode_places(&places));
        }
        if let Some(documents) = read(bytes, || decode_documents(&shared)) {
            exact(encode_documents(&documents));
        }
    }
}

fn ids<I: WireId + Debug>(bytes: &[u8]) {
    if let Some(ids) = read(bytes, || decode_ids::<I>(bytes)) {
        assert!(ids.len() <= MAXIMUM_IDS && ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        assert_eq!(encode_ids(&ids), bytes, "not the encoding of what it says");
    }
}

/// Reads within the memory that it may take. What is refused is refused with a reason.
fn read<T>(bytes: &[u8], decode: impl FnOnce() -> Result<T, String>) -> Option<T> {
    match allocations::within(limit(bytes), decode) {
        Ok(found) => Some(found),
        Err(reason) => {
            assert!(!reason.is_empty());
            None
        }
    }
}

/// A message of text, read as each of them.
///
/// # Panics
/// If something does not mean the same once it is written and read again.
pub fn json(bytes: &[u8]) {
    same_again::<OpenSession>(bytes);
    same_again::<OpenedSession>(bytes);
    same_again::<NewRepository>(bytes);
    same_again::<Withdrawal>(bytes);
    same_again::<Withdrawn>(bytes);
    same_again::<JobRequest>(bytes);
    same_again::<JobStatus>(bytes);
    same_again::<Vec<Root>>(bytes);
    same_again::<Vec<SnapshotId>>(bytes);
    if let Some(problem) = same_again::<Problem>(bytes) {
        becomes_an_error(&problem);
    }
}

fn same_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let found: T = allocations::within(limit(bytes), || serde_json::from_slice(bytes)).ok()?;
    let written = serde_json::to_vec(&found).expect("a message can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(found, again);
    Some(found)
}

/// A problem is told as the error that it is about, or by its title.
fn becomes_an_error(problem: &Problem) {
    let error = problem.clone().into_error(SERVER, LOCATION);
    let text = error.to_string();
    match &error {
        Error::Server { .. } | Error::Denied { .. } => {
            assert!(text.contains(SERVER) && text.contains(&problem.title), "{text}");
        }
        known => {
            assert_eq!(Problem::of(known, true).kind(), problem.kind(), "{text}");
            let told = serde_json::to_string(&Problem::of(known, true).without_sources());
            assert!(!told.expect("a problem can be written").contains("\"sources\""));
        }
    }
}

/// One of each binary message, and those that hold nothing.
pub fn binary_seeds() -> Vec<Seed> {
    let chunks: Vec<ChunkId> = (1..6).map(|id| ChunkId::new([id; 32])).collect();
    let place = |pack, retired| Location {
        pack: PackName::new([pack; 32]),
        offset: 4096,
        payload_length: 9000,
        plain_length: 28 << 10,
        codec: if retired { Codec::None } else { Codec::Zstd },
        retired,
    };
    let document = |name: &str, text: &'static str| StoredDocument {
        name: name.to_owned(),
        bytes: Bytes::from_static(text.as_bytes()),
    };
    [
        ("chunks", encode_ids(&chunks)),
        ("nodes-asked", encode_ids(&[NodeId::new([3; 32]), NodeId::new([9; 32])])),
        ("no-ids", encode_ids::<ChunkId>(&[])),
        ("answers", encode_bitmap(&[true, false, true, true, false, false, true, true, false, true, true])),
        ("eight-answers", encode_bitmap(&[true; 8])),
        ("nodes", encode_nodes(&[Bytes::from_static(b"a node"), Bytes::from_static(b"another")])),
        ("places", encode_places(&[vec![place(1, false), place(2, true)], vec![], vec![place(3, false)]])),
        ("documents", encode_documents(&[document("snapshots/a.json", "{}"), document("keys/é", "")])),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .to_vec()
}

/// One of each message of text.
pub fn json_seeds() -> Vec<Seed> {
    let (session, snapshot) = (SessionId::new([7; 16]), SnapshotId::new([8; 16]));
    let root = Root { size: 5 << 30, node: Some(NodeId::new([1; 32])) };
    let withdrawal = Withdrawal {
        chunks: vec![(ChunkId::new([1; 32]), PackName::new([2; 32]))],
        nodes: vec![NodeId::new([3; 32])],
        node_copies: vec![(NodeId::new([4; 32]), PackName::new([2; 32]))],
        roots: vec![root],
    };
    let slot = NewSlot { slot: SlotId::new(*b"its slot"), document: "{}".into() };
    let status = |state| JobStatus {
        version: 9,
        phase: Some(Phase { name: "packs".into(), total: Some(12), done: 3, number: 2 }),
        notices: vec!["a notice".into()],
        state,
    };
    let repaired = RepairReport { put_back: vec![snapshot], ..RepairReport::default() };
    let collect = GcRequest { dry_run: true, max_unused: 0.1, lease_ms: 86_400_000 };
    let mut seeds = vec![
        seed("open-session", &OpenSession { vm: "web-01".into() }),
        seed("opened-session", &OpenedSession { session, time_ms: 1_795_453_509_120, direct: true }),
        seed("new-repository", &NewRepository { descriptor: "{}".into(), slots: vec![slot] }),
        seed("withdrawal", &withdrawal),
        seed("withdrawn", &Withdrawn { recorded: true, retired: 2, catalog_differs: false }),
        seed("roots", &[root, Root { size: 0, node: None }]),
        seed("snapshots", &[snapshot]),
        seed("job-gc", &JobRequest::Gc(collect)),
        seed("job-check", &JobRequest::Check(CheckOptions::default())),
        seed("job-repair", &JobRequest::Repair(RepairOptions { dry_run: true, verified: vec![snapshot] })),
        seed("status-running", &status(JobState::Running)),
        seed("status-collected", &status(JobState::Collected(GcReport::default()))),
        seed("status-checked", &status(JobState::Checked(CheckReport::default()))),
        seed("status-repaired", &status(JobState::Repaired(repaired))),
        seed("status-failed", &status(JobState::Failed(Problem::new(500, "failed", "it failed")))),
    ];
    let errors = [
        Error::NoRepository { location: LOCATION.into() },
        Error::damaged("packs/5f", "its trailer"),
        Error::Version { object: "underlay.json".into(), found: 9, known: 1 },
        Error::Backend { action: "read", object: "packs/5f".into(), source: "the line is dead".into() },
        Error::Catalog { path: "catalog.sqlite".into(), action: "commit", source: "disk full".into() },
        Error::OwnedElsewhere { host: "other".into(), generation: 4 },
        Error::Session { session, state: "fenced" },
        Error::Unproven { snapshot, reason: "a node".into() },
        Error::Invalid { what: "VM name", value: "a/b".into(), rule: "no `/`".into() },
        Error::AmbiguousSnapshot { wanted: "5f".into(), count: 2 },
        Error::Busy { what: "a collection" },
    ];
    let problems = errors.iter().map(|error| Problem::of(error, true));
    seeds.extend(problems.map(|problem| seed(&format!("problem-{}", problem.kind()), &problem)));
    seeds
}

fn seed(name: &str, message: &impl Serialize) -> Seed {
    (name.to_owned(), serde_json::to_vec(message).expect("a message can be written"))
}
