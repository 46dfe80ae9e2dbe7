//! A server whose catalog knows millions of chunks: look-ups a second through one connection, and uploads beside those of an embedded
//! repository.
//!
//!     cargo run --release -p underlay-benches --bin server-at-scale -- [CHUNKS [UPLOADED_MIB]]
//!
//! The server runs in this process and is talked to over TLS on loopback. Half of the ids that are asked for are stored. Chunks are real
//! frames with 32 random bytes each, for a look-up reads no data; uploads are packs of 32 MiB, two at a time, as a backup has them.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use underlay_store::authority::Authority;
use underlay_store::backend::{Backend, Options};
use underlay_store::id::{ChunkId, RepositoryId, SessionId};
use underlay_store::key::{BackupKey, random_bytes};
use underlay_store::pack::{Codec, Frame, PackKind, PackWriter};
use underlay_store::repository::{Access, Repository};
use underlay_tests::server::{Served, new_descriptor};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A pack of so many chunks with so many random bytes each, and their ids.
fn pack(id: RepositoryId, key: &BackupKey, chunks: usize, bytes: usize) -> Outcome<(Bytes, Vec<ChunkId>)> {
    let (data_key, sealed) = key.seal_data_key(&id)?;
    let mut writer = PackWriter::data(id, vec![sealed])?;
    let mut ids = Vec::with_capacity(chunks);
    for _ in 0..chunks {
        let chunk = ChunkId::new(random_bytes());
        let payload = random_bytes::<32>().repeat(bytes / 32);
        let (codec, nonce) = (Codec::Zstd, random_bytes());
        writer.add(&Frame {
            key: data_key.id(),
            codec,
            plain_length: 28 << 10,
            id: chunk,
            nonce,
            payload,
        })?;
        ids.push(chunk);
    }
    Ok((writer.finish().ok_or("an empty pack")?.bytes, ids))
}

/// Batches of so many ids, every second one of them stored, from all over the catalog; each in order, as a client asks.
fn batches(stored: &[ChunkId], size: usize) -> Vec<Vec<ChunkId>> {
    let asked = stored.iter().step_by(16);
    let asked: Vec<ChunkId> = asked.flat_map(|id| [*id, ChunkId::new(random_bytes())]).collect();
    let many = asked.len().div_ceil(size);
    let mut batches: Vec<Vec<ChunkId>> =
        (0..many).map(|at| asked.iter().skip(at).step_by(many).take(size).copied().collect()).collect();
    batches.iter_mut().for_each(|batch| batch.sort_unstable());
    batches
}

/// Asks for the batches, one after another; ids a second.
async fn looked_up(authority: &dyn Authority, session: SessionId, batches: &[Vec<ChunkId>]) -> Outcome<f64> {
    let (mut asked, mut known, start) = (0, 0, Instant::now());
    for batch in batches {
        let have = authority.have_chunks(session, batch).await?;
        known += have.iter().filter(|have| **have).count();
        asked += batch.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    match known.abs_diff(asked / 2) < asked / 10 {
        true => Ok(asked as f64 / seconds),
        false => Err(format!("{known} of {asked} are said to be stored; half of them are").into()),
    }
}

/// Uploads the packs, two at a time; MiB a second.
async fn uploaded(authority: Arc<dyn Authority>, session: SessionId, packs: &[Bytes]) -> Outcome<f64> {
    let start = Instant::now();
    stream::iter(packs)
        .map(|pack| authority.put_pack(session, PackKind::Data, pack.clone()))
        .buffered(2)
        .try_collect::<Vec<_>>()
        .await?;
    let bytes: usize = packs.iter().map(Bytes::len).sum();
    Ok(bytes as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64())
}

async fn lookups(served: &Served, chunks: usize) -> Outcome<()> {
    const IN_PACK: usize = 200_000;
    let authority = served.for_all();
    let id = served.descriptor.repository;
    let filler = authority.open_session("filler").await?;
    let (mut stored, start) = (Vec::with_capacity(chunks), Instant::now());
    while stored.len() < chunks {
        let (bytes, ids) = pack(id, served.key.backup(), IN_PACK.min(chunks - stored.len()), 32)?;
        authority.put_pack(filler.session, PackKind::Data, bytes).await?;
        stored.extend(ids);
    }
    println!("{} chunks in the catalog after {:.0} s", stored.len(), start.elapsed().as_secs_f64());
    for size in [1024, 8192, 65_535] {
        let batches = batches(&stored, size);
        // What a session was promised it is not promised again: another one each time.
        let session = authority.open_session("asker").await?.session;
        let rate = looked_up(&*authority, session, &batches).await?;
        println!("look-ups in batches of {size}: {rate:.0} ids/s");
        authority.abandon(session).await?;
    }
    Ok(())
}

async fn uploads(served: &Served, mib: usize) -> Outcome<()> {
    const PACK: usize = 32 << 20;
    let folder = tempfile::tempdir()?;
    let (key, descriptor, text) = new_descriptor();
    let location = folder.path().join("repository");
    let location = location.to_str().ok_or("a path that is not UTF-8")?;
    let backend = Backend::open(location, Options { create: true })?;
    Repository::init(&backend, text, Vec::new()).await?;
    let embedded: Arc<dyn Authority> =
        Arc::new(Repository::open(backend, &folder.path().join("state"), Access::Write).await?);
    let served_authority: Arc<dyn Authority> = served.for_all();
    let mut ratios = Vec::new();
    for round in 0..4 {
        let mut rates = Vec::new();
        for (authority, id, key) in [
            (&embedded, descriptor.repository, key.backup()),
            (&served_authority, served.descriptor.repository, served.key.backup()),
        ] {
            let packs = (0..mib / 32).map(|_| Ok(pack(id, key, PACK / (28 << 10), 27 << 10)?.0));
            let packs: Vec<Bytes> = packs.collect::<Outcome<_>>()?;
            let session = authority.open_session("uploader").await?.session;
            rates.push(uploaded(Arc::clone(authority), session, &packs).await?);
            authority.abandon(session).await?;
        }
        println!("uploads: {:.0} MiB/s embedded, {:.0} MiB/s through the server", rates[0], rates[1]);
        // The first warms everything up.
        ratios.extend((round > 0).then(|| rates[1] / rates[0]));
    }
    ratios.sort_by(f64::total_cmp);
    println!("through the server: {:.2} of embedded, median", ratios[ratios.len() / 2]);
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let chunks = arguments.next().unwrap_or(Ok(4_000_000))?;
    let mib = arguments.next().unwrap_or(Ok(512))?;
    let served = Served::start("").await;
    lookups(&served, chunks).await?;
    uploads(&served, mib).await
}
