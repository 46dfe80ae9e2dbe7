//! Packs of both kinds, and the chunks in them.
//!
//! What a pack must look like is drawn here a second time, from `docs/format.md`. An input is read as it is, with checksums that
//! belong to it, and with a trailer that belongs to its frames.

use std::cell::RefCell;

use underlay_store::id::{ChunkId, PackName};
use underlay_store::key::DataKey;
use underlay_store::pack::{
    self, ChunkDecoder, ChunkEncoder, Codec, Entry, FrameRef, Header, PackId, PackKind, PackWriter, Parsed,
    VERSION, parse_frame, parse_header, parse_trailer, walk_frames,
};
use underlay_store::tree::{Node, Run};

use crate::documents::{REPOSITORY, key};
use crate::{Seed, allocations, assert_names};

/// A header without its keys and checksum, in bytes.
const FIXED: usize = 48;
const SEALED_KEY: usize = 96;
const HASH: usize = 32;
const FRAME: usize = 60;
const ENTRY: usize = 48;
const FOOTER: usize = 64;
/// No chunk is longer, in bytes.
const LONGEST_CHUNK: usize = 2 << 20;

/// A data pack.
///
/// # Panics
/// If something is accepted that is not exactly what the format draws.
pub fn data(bytes: &[u8]) {
    versions(PackKind::Data, bytes).iter().for_each(|bytes| read(PackKind::Data, bytes));
}

/// A node pack.
///
/// # Panics
/// If something is accepted that is not exactly what the format draws.
pub fn nodes(bytes: &[u8]) {
    versions(PackKind::Nodes, bytes).iter().for_each(|bytes| read(PackKind::Nodes, bytes));
}

fn read(kind: PackKind, bytes: &[u8]) {
    let id = PackId::new(kind, PackName::new([0xab; 32]));
    let object = id.to_string();
    let limit = (4 << 10) + 4 * bytes.len();
    let parsed = allocations::within(limit, || pack::parse(&id, bytes));
    let header = header_by_steps(&id, bytes);
    let trailer = trailer_by_steps(&id, bytes);
    match parsed {
        Err(error) => assert_names(&object, &error),
        Ok(index) => {
            let frames: Vec<_> = index.entries.iter().map(|entry| frame_of(&id, bytes, entry)).collect();
            assert!(draw(&index.header, &frames) == bytes, "a pack is accepted, and drawn another way");
            assert_eq!(header.as_ref(), Some(&index.header));
            assert_eq!(trailer.as_ref(), Some(&index.entries));
            let start = u32::try_from(index.header.length()).expect("a short header");
            let walk = walk_frames(&id, start, bytes);
            // What follows the last frame may look like another one.
            assert!(walk.frames.starts_with(&frames), "the walk finds other frames than the trailer");
            frames.iter().for_each(|frame| decode(&id, &index.header, frame));
        }
    }
    for start in [0, 1, FIXED + HASH, FIXED + SEALED_KEY + HASH, bytes.len() / 2, bytes.len() + 9] {
        let start = start as u32;
        let walk = allocations::within(limit, || walk_frames(&id, start, bytes));
        assert!(!walk.reason.is_empty());
        let taken: usize = walk.frames.iter().map(|frame| FRAME + frame.payload.len()).sum();
        assert_eq!(start as usize + taken, walk.end as usize);
        assert!(walk.frames.is_empty() || walk.end as usize <= bytes.len(), "frames outside the pack");
    }
}

fn frame_of<'a>(id: &PackId, bytes: &'a [u8], entry: &Entry) -> FrameRef<'a> {
    let start = entry.offset as usize;
    let frame = &bytes[start..start + entry.frame_length() as usize];
    let read = parse_frame(id, frame, entry).expect("a pack that is accepted has sound frames");
    let longer = &bytes[start..=start + frame.len()];
    assert!(parse_frame(id, longer, entry).is_err() && parse_frame(id, &frame[1..], entry).is_err());
    read
}

/// Reads the header as somebody does who asks for no more than needed: the same comes out.
fn header_by_steps(id: &PackId, bytes: &[u8]) -> Option<Header> {
    let whole = parse_header(id, bytes).inspect_err(|error| assert_names(&id.to_string(), error)).ok();
    let mut have = 0;
    loop {
        match parse_header(id, &bytes[..have]) {
            Ok(Parsed::Needs(needed)) => {
                assert!(needed > have, "{needed} bytes are asked for, {have} are there");
                if needed > bytes.len() {
                    assert_eq!(whole, Some(Parsed::Needs(needed)));
                    return None;
                }
                have = needed;
            }
            Ok(Parsed::Whole(header)) => {
                assert_eq!(whole, Some(Parsed::Whole(header.clone())));
                return Some(header);
            }
            Err(_) => {
                assert_eq!(whole, None);
                return None;
            }
        }
    }
}

/// Reads the trailer likewise.
fn trailer_by_steps(id: &PackId, bytes: &[u8]) -> Option<Vec<Entry>> {
    let length = bytes.len() as u64;
    let whole = parse_trailer(id, length, bytes).inspect_err(|error| assert_names(&id.to_string(), error));
    let whole = whole.ok();
    let mut have = 0;
    loop {
        match parse_trailer(id, length, &bytes[bytes.len() - have..]) {
            Ok(Parsed::Needs(needed)) => {
                assert!(needed > have, "{needed} bytes are asked for, {have} are there");
                have = needed.min(bytes.len());
            }
            Ok(found) => {
                assert_eq!(whole.as_ref(), Some(&found));
                let Parsed::Whole((_, entries)) = found else { return None };
                return Some(entries);
            }
            Err(_) => {
                assert_eq!(whole, None);
                return None;
            }
        }
    }
}

/// A chunk comes out only if it is the one that its id says.
fn decode(id: &PackId, header: &Header, frame: &FrameRef<'_>) {
    if id.kind == PackKind::Nodes {
        return;
    }
    let sealed = header.key_of(id, frame).expect("a pack that is accepted has its frames' keys");
    let Ok(data_key) = key().open_data_key(&REPOSITORY, sealed) else { return };
    let mut decoder =
        ChunkDecoder::new(key().backup().clone(), header.repository).expect("memory for a decoder");
    let (chunk, mut out) = (ChunkId::new(frame.id), Vec::new());
    match decoder.decode(id, &data_key, frame, &chunk, frame.plain_length, &mut out) {
        Ok(()) => {
            assert_eq!((out.len(), key().backup().chunk_id(&out)), (frame.plain_length as usize, chunk))
        }
        Err(error) => {
            assert!(out.is_empty());
            assert_names(&id.to_string(), &error);
        }
    }
}

/// A pack as the format draws it.
fn draw(header: &Header, frames: &[FrameRef<'_>]) -> Vec<u8> {
    let mut bytes = b"UNDLPACK".to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([if header.kind == PackKind::Data { 1 } else { 2 }, 0]);
    bytes.extend((header.sealed_keys.len() as u32).to_le_bytes());
    bytes.extend(header.repository.as_bytes());
    bytes.extend(header.salt);
    header.sealed_keys.iter().for_each(|key| bytes.extend(key.as_bytes()));
    bytes.extend(blake3::hash(&bytes).as_bytes());
    for frame in frames {
        bytes.extend(b"ulf1");
        bytes.extend([frame.codec.as_byte(), 0]);
        bytes.extend(frame.key_index.to_le_bytes());
        bytes.extend(frame.plain_length.to_le_bytes());
        bytes.extend((frame.payload.len() as u32).to_le_bytes());
        bytes.extend(frame.id);
        bytes.extend(frame.nonce);
        bytes.extend(frame.payload);
    }
    with_trailer(bytes, header.length())
}

/// A header and frames, with the trailer that belongs to them.
fn with_trailer(mut bytes: Vec<u8>, header_length: usize) -> Vec<u8> {
    let first_entry = bytes.len();
    let (mut at, mut entries) = (header_length, 0_u32);
    while let Some(frame) = bytes[..first_entry].get(at..at + FRAME) {
        let frame = frame.to_vec();
        bytes.extend(&frame[16..48]);
        bytes.extend((at as u32).to_le_bytes());
        bytes.extend(&frame[12..16]);
        bytes.extend(&frame[8..12]);
        bytes.extend([frame[4], 0, 0, 0]);
        at = at.saturating_add(FRAME + le(&frame, 12));
        entries += 1;
    }
    for field in [entries, header_length as u32, first_entry as u32, 0] {
        bytes.extend(field.to_le_bytes());
    }
    let hash = blake3::hash(&bytes[first_entry..]);
    bytes.extend(hash.as_bytes());
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 6]);
    bytes.extend(b"UNDLTAIL");
    bytes
}

/// The input; the same with its checksums put right; its frames, as far as there are whole ones, with a trailer of their own.
fn versions(kind: PackKind, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut versions = vec![bytes.to_vec()];
    if bytes.len() < FIXED + HASH + FOOTER {
        return versions;
    }
    let keys = le(bytes, 12).min(4);
    let header_length = FIXED + keys * SEALED_KEY + HASH;
    let mut mended = bytes.to_vec();
    let Some(table_end) = header_length.checked_sub(HASH).filter(|_| header_length <= bytes.len()) else {
        return versions;
    };
    let hash = blake3::hash(&mended[..table_end]);
    mended[table_end..header_length].copy_from_slice(hash.as_bytes());
    let end = mend_frames(kind, &mut mended, header_length);
    let redrawn = with_trailer(mended[..end].to_vec(), header_length);
    let tail = mended.len() - FOOTER;
    if let Some(start) = le(&mended, tail).checked_mul(ENTRY).and_then(|length| tail.checked_sub(length)) {
        let hash = blake3::hash(&mended[start..tail + 16]);
        mended[tail + 16..tail + 48].copy_from_slice(hash.as_bytes());
        versions.push(mended);
    }
    versions.push(redrawn);
    versions
}

/// Gives nodes the checksums that belong to them; where the last whole frame ends.
fn mend_frames(kind: PackKind, bytes: &mut [u8], mut at: usize) -> usize {
    while let Some(frame) = bytes.get(at..at + FRAME).filter(|frame| frame.starts_with(b"ulf1")) {
        let payload = at + FRAME..(at + FRAME).saturating_add(le(frame, 12));
        let Some(hash) = bytes.get(payload.clone()).map(blake3::hash) else { break };
        if kind == PackKind::Nodes {
            bytes[at + 48..at + FRAME].copy_from_slice(&hash.as_bytes()[..12]);
        }
        at = payload.end;
    }
    at
}

fn le(bytes: &[u8], at: usize) -> usize {
    bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

/// What a decoder works with, made once a thread.
struct Decoding {
    key: DataKey,
    decoder: ChunkDecoder,
    out: Vec<u8>,
}

/// What somebody with the backup key can make others decompress: codec (1 byte), plain length (4), and the payload before it
/// is encrypted.
///
/// # Panics
/// If more memory is used than a chunk may take, or anything but the chunk of that id comes out.
pub fn chunk(bytes: &[u8]) {
    thread_local! { static DECODING: RefCell<Option<Decoding>> = const { RefCell::new(None) } }
    let Some((head, payload)) = bytes.split_first_chunk::<5>() else { return };
    let codec = Codec::from_byte(head[0] & 1).expect("0 and 1 are codecs");
    let plain_length = le(head, 1) % (LONGEST_CHUNK + 1);
    // The id that the content has, if it has one.
    let plain = match codec {
        Codec::None => Some(payload.to_vec()),
        Codec::Zstd => zstd::bulk::decompress(payload, plain_length).ok(),
    };
    let backup = key().backup().clone();
    let id = backup.chunk_id(plain.as_deref().unwrap_or_default());
    DECODING.with_borrow_mut(|decoding| {
        let decoding = decoding.get_or_insert_with(|| Decoding {
            key: backup.seal_data_key(&REPOSITORY).expect("a public key").0,
            decoder: ChunkDecoder::new(backup, REPOSITORY).expect("memory for a decoder"),
            out: Vec::new(),
        });
        let aad = [
            REPOSITORY.as_bytes().as_slice(),
            id.as_bytes(),
            &[codec.as_byte()],
            &(plain_length as u32).to_le_bytes(),
        ];
        let mut sealed = payload.to_vec();
        let nonce = decoding.key.seal(&aad.concat(), &mut sealed);
        let frame = FrameRef {
            offset: 160,
            codec,
            key_index: 0,
            plain_length: plain_length as u32,
            id: *id.as_bytes(),
            nonce,
            payload: &sealed,
        };
        let pack = PackId::new(PackKind::Data, PackName::new([0xab; 32]));
        let Decoding { key, decoder, out } = decoding;
        let decoded = allocations::within(LONGEST_CHUNK + (1 << 20), || {
            decoder.decode(&pack, key, &frame, &id, plain_length as u32, out)
        });
        match (decoded, plain) {
            (Ok(()), plain) => assert!(plain.as_ref() == Some(out) && out.len() == plain_length),
            (Err(error), plain) => {
                assert!(out.is_empty() && plain.is_none_or(|plain| plain.len() != plain_length), "{error}");
                assert_names(&format!("chunk {id}"), &error);
            }
        }
    });
}

/// Chunks of several kinds of content.
fn contents() -> [Vec<u8>; 4] {
    let text: String = (0..700).map(|number| format!("{number} ")).collect();
    let mut noise = vec![0; 700];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    [text.into_bytes(), noise, vec![7; 4096], vec![1]]
}

/// Data packs with one key and with two.
pub fn data_seeds() -> Vec<Seed> {
    let backup = key().backup().clone();
    let mut encoder = ChunkEncoder::new(&backup, REPOSITORY, 3).expect("a level that there is");
    let keys = [(); 2].map(|()| backup.seal_data_key(&REPOSITORY).expect("a public key"));
    let mut seed = |name: &str, keys: &[_]| {
        let sealed = keys.iter().map(|(_, sealed)| *sealed).collect();
        let mut writer = PackWriter::data(REPOSITORY, sealed).expect("a few keys");
        for (plain, (data_key, _)) in contents().iter().zip(keys.iter().cycle()) {
            let frame = encoder.encode(data_key, backup.chunk_id(plain), plain).expect("a short chunk");
            writer.add(&frame).expect("room in the pack");
        }
        (name.to_owned(), writer.finish().expect("frames").bytes.to_vec())
    };
    vec![seed("one-key", &keys[..1]), seed("two-keys", &keys)]
}

/// Node packs with one node and with a few.
pub fn node_seeds() -> Vec<Seed> {
    let seed = |name: &str, count: u8| {
        let mut writer = PackWriter::nodes(REPOSITORY);
        for number in 0..count {
            let runs = [Run::Zero(3), Run::Chunk(usize::from(number) + 1, ChunkId::new([number; 32]))];
            let bytes = Node::leaf(runs).expect("a leaf with a chunk").encode();
            writer.add_node(key().backup().node_id(&bytes), &bytes).expect("room in the pack");
        }
        (name.to_owned(), writer.finish().expect("frames").bytes.to_vec())
    };
    vec![seed("one", 1), seed("five", 5)]
}

/// Chunks before they are encrypted.
pub fn chunk_seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (number, plain) in contents().into_iter().enumerate() {
        let head = |codec: u8| [&[codec][..], &(plain.len() as u32).to_le_bytes()].concat();
        seeds.push((format!("plain-{number}"), [head(0), plain.clone()].concat()));
        let compressed = zstd::bulk::compress(&plain, 3).expect("a level that there is");
        seeds.push((format!("zstd-{number}"), [head(1), compressed].concat()));
    }
    seeds
}
