//! Reading whole packs with keys: whether everything in them is what its id says.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::{StreamExt, stream};
use rayon::prelude::*;
use serde::Serialize;
use underlay_store::Error;
use underlay_store::authority::Withdrawal;
use underlay_store::catalog::Unverified;
use underlay_store::id::{ChunkId, NodeId, PackName};
use underlay_store::pack::{
    ChunkDecoder, Entry, PackId, PackIndex, PackKind, parse, parse_frame, verify_name,
};
use underlay_store::tree::Node;

use super::headers::Headers;
use super::{Environment, RestoreError};

/// Packs read ahead; each takes up to 64 MiB of memory.
const AHEAD: usize = 2;

/// What a verification of whole packs found.
#[derive(Debug, Default, Serialize)]
pub struct VouchReport {
    /// Packs that were read.
    pub packs: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Packs in which everything is what its id says.
    #[serde(skip)]
    pub sound: Vec<PackName>,
    /// What is not.
    #[serde(skip)]
    pub damage: Vec<Error>,
    /// The same for [`underlay_store::authority::Authority::withdraw`].
    #[serde(skip)]
    pub withdrawal: Withdrawal,
}

/// Reads, decrypts and verifies every chunk and node of these packs. Blocks.
///
/// # Errors
/// Damage is a finding and not an error; a repository that cannot be read, and cancelling, are errors.
pub fn vouch(environment: &Environment<'_>, packs: &[Unverified]) -> Result<VouchReport, RestoreError> {
    environment.progress.phase("verify", Some(packs.iter().map(|pack| pack.size).sum()));
    let mut report = VouchReport::default();
    let headers = Headers::default();
    let reads = packs.iter().map(|pack| async { (*pack, environment.authority.read_whole(pack.pack).await) });
    let mut reads = stream::iter(reads).buffered(AHEAD);
    while let Some((pack, read)) = environment.runtime.block_on(reads.next()) {
        if environment.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted.into());
        }
        match read {
            Ok(bytes) => verify_pack(environment, &headers, &pack.pack, &bytes, &mut report)?,
            // A collection has moved what was in it, or the check of the bucket says more.
            Err(Error::Missing { .. }) => {}
            Err(error) if error.is_damage() => report.damage.push(error),
            Err(error) => return Err(error.into()),
        }
        environment.progress.advance(pack.size);
    }
    Ok(report)
}

fn verify_pack(
    environment: &Environment<'_>,
    headers: &Headers,
    pack: &PackId,
    bytes: &Bytes,
    report: &mut VouchReport,
) -> Result<(), RestoreError> {
    report.packs += 1;
    report.bytes += bytes.len() as u64;
    let index = match verify_name(pack, bytes).and_then(|()| parse(pack, bytes)) {
        Ok(index) => index,
        Err(error) => {
            report.damage.push(error);
            return Ok(());
        }
    };
    let decoder = || ChunkDecoder::new(environment.key.backup().clone(), environment.repository);
    let bad: Vec<(Entry, Error)> = (index.entries.par_iter())
        .map_init(decoder, |decoder, entry| {
            let verified = match decoder {
                Ok(decoder) => verify(environment, headers, pack, &index, bytes, entry, decoder),
                Err(_) => Err(Error::Interrupted),
            };
            verified.err().map(|error| (*entry, error))
        })
        .flatten()
        .collect();
    if bad.is_empty() {
        report.sound.push(pack.name);
    }
    for (entry, error) in bad {
        if !error.is_damage() {
            return Err(error.into());
        }
        match pack.kind {
            PackKind::Data => report.withdrawal.chunks.push((ChunkId::new(entry.id), pack.name)),
            PackKind::Nodes => report.withdrawal.node_copies.push((NodeId::new(entry.id), pack.name)),
        }
        report.damage.push(error);
    }
    Ok(())
}

fn verify(
    environment: &Environment<'_>,
    headers: &Headers,
    pack: &PackId,
    index: &PackIndex,
    bytes: &Bytes,
    entry: &Entry,
    decoder: &mut ChunkDecoder,
) -> Result<(), Error> {
    let start = entry.offset as usize;
    let cut_off = || Error::damaged(pack.to_string(), "it is cut off");
    let frame = bytes.get(start..start + entry.frame_length() as usize).ok_or_else(cut_off)?;
    let frame = parse_frame(pack, frame, entry)?;
    match pack.kind {
        PackKind::Data => {
            let key = index.header.key_of(pack, &frame)?;
            let key = headers.open(environment.key, &environment.repository, key)?;
            let (id, mut plain) = (ChunkId::new(entry.id), Vec::new());
            decoder.decode(pack, &key, &frame, &id, entry.plain_length, &mut plain)
        }
        PackKind::Nodes => {
            let id = NodeId::new(entry.id);
            let damaged = |what: String| Error::damaged(format!("node {id} ({pack})"), what);
            if environment.key.backup().node_id(frame.payload) != id {
                return Err(damaged("its bytes have another id".into()));
            }
            Node::decode(frame.payload).map(drop).map_err(damaged)
        }
    }
}
