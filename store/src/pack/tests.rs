use proptest::prelude::*;

use super::layout::{FOOTER_LENGTH, HEADER_FIXED};
use super::*;
use crate::id::{ChunkId, DataKeyId, RepositoryId};
use crate::key::{DataKey, RestoreKey, SealedKey};
use crate::{Error, Result};

const REPOSITORY: RepositoryId = RepositoryId::new([3; 16]);

fn key() -> RestoreKey {
    RestoreKey::new(&[1; 32], &[2; 32])
}

/// A data pack, its key, and the chunks in it.
fn data_pack() -> (FinishedPack, DataKey, Vec<Vec<u8>>) {
    let key = key();
    let (data_key, sealed) = key.backup().seal_data_key(&REPOSITORY).unwrap();
    let chunks = vec![b"abc".to_vec(), vec![b'x'; 300], (0..41_u8).map(|n| n.wrapping_mul(37)).collect()];
    let mut encoder = ChunkEncoder::new(key.backup(), REPOSITORY, DEFAULT_LEVEL).unwrap();
    let mut writer = PackWriter::data(REPOSITORY, vec![sealed]).unwrap();
    for chunk in &chunks {
        writer.add(&encoder.encode(&data_key, key.backup().chunk_id(chunk), chunk).unwrap()).unwrap();
    }
    let length = writer.len();
    let pack = writer.finish().unwrap();
    assert_eq!(pack.bytes.len(), length);
    (pack, data_key, chunks)
}

fn node_pack() -> FinishedPack {
    let mut writer = PackWriter::nodes(REPOSITORY);
    for node in [b"first node".as_slice(), b"2"] {
        writer.add_node(key().backup().node_id(node), node).unwrap();
    }
    writer.finish().unwrap()
}

/// All that a restore checks, by ranges, as a reader would that fetches no more than it needs.
fn read_by_ranges(pack: &PackId, bytes: &[u8], chunks: &[Vec<u8>]) -> Result<()> {
    let damaged = || Error::damaged(pack.to_string(), "ranges");
    let mut end = FOOTER_LENGTH;
    let entries = loop {
        let tail = bytes.get(bytes.len().saturating_sub(end)..).ok_or_else(damaged)?;
        match parse_trailer(pack, bytes.len() as u64, tail)? {
            Parsed::Whole((_, entries)) => break entries,
            Parsed::Needs(more) => end = more,
        }
    };
    let mut start = HEADER_FIXED;
    let header = loop {
        match parse_header(pack, bytes.get(..start).ok_or_else(damaged)?)? {
            Parsed::Whole(header) => break header,
            Parsed::Needs(more) => start = more,
        }
    };
    if header.repository != REPOSITORY || entries.len() != chunks.len() {
        return Err(damaged());
    }
    let mut decoder = ChunkDecoder::new(key().backup().clone(), REPOSITORY)?;
    let mut out = Vec::new();
    for (entry, chunk) in entries.iter().zip(chunks) {
        let start = entry.offset as usize;
        let frame = bytes.get(start..start + entry.frame_length() as usize).ok_or_else(damaged)?;
        let frame = parse_frame(pack, frame, entry)?;
        let data_key = key().open_data_key(&REPOSITORY, header.key_of(pack, &frame)?)?;
        let id = key().backup().chunk_id(chunk);
        decoder.decode(pack, &data_key, &frame, &id, u32::try_from(chunk.len()).unwrap(), &mut out)?;
        assert_eq!(out, *chunk, "decoded to something else, unnoticed");
    }
    Ok(())
}

#[test]
fn whole_packs_parse() {
    let (pack, data_key, chunks) = data_pack();
    verify_name(&pack.id, &pack.bytes).unwrap();
    let index = parse(&pack.id, &pack.bytes).unwrap();
    assert_eq!(index.entries, pack.entries);
    assert_eq!((index.header.kind, index.header.repository), (PackKind::Data, REPOSITORY));
    assert_eq!(index.header.sealed_keys[0].id(), data_key.id());
    let codecs: Vec<Codec> = index.entries.iter().map(|entry| entry.codec).collect();
    assert_eq!(codecs, [Codec::None, Codec::Zstd, Codec::None]);
    read_by_ranges(&pack.id, &pack.bytes, &chunks).unwrap();

    let pack = node_pack();
    verify_name(&pack.id, &pack.bytes).unwrap();
    let index = parse(&pack.id, &pack.bytes).unwrap();
    assert_eq!(index.entries, pack.entries);
    assert_eq!(index.entries[0].node_id(), key().backup().node_id(b"first node"));
    let other = PackId::new(PackKind::Data, pack.name());
    assert!(parse(&other, &pack.bytes).is_err(), "a node pack below packs/");
}

/// Every byte of this pack, computed by hand from the format page.
#[test]
fn golden_node_pack() {
    let mut writer = PackWriter::nodes(REPOSITORY);
    let id = crate::id::NodeId::new([0xaa; 32]);
    writer.add_node(id, b"node").unwrap();
    let pack = writer.finish().unwrap();

    let mut expected = b"UNDLPACK\x01\x00\x02\x00\x00\x00\x00\x00".to_vec();
    expected.extend([3; 16]);
    // The salt.
    expected.extend(&pack.bytes[32..48]);
    expected.extend(blake3::hash(&expected).as_bytes());
    expected.extend(b"ulf1\x00\x00\xff\xff\x04\x00\x00\x00\x04\x00\x00\x00");
    expected.extend([0xaa; 32]);
    expected.extend(&blake3::hash(b"node").as_bytes()[..12]);
    expected.extend(b"node");
    let trailer = expected.len();
    expected.extend([0xaa; 32]);
    expected.extend(b"\x50\x00\x00\x00\x04\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00");
    expected.extend(b"\x01\x00\x00\x00\x50\x00\x00\x00\x90\x00\x00\x00\x00\x00\x00\x00");
    let hash = blake3::hash(&expected[trailer..]);
    expected.extend(hash.as_bytes());
    expected.extend(b"\x01\x00\x00\x00\x00\x00\x00\x00UNDLTAIL");
    assert_eq!(hex::encode(&pack.bytes), hex::encode(&expected));
    assert_eq!(pack.bytes.len(), 256);
}

#[test]
fn no_name_comes_back() {
    let (first, second) = (node_pack(), node_pack());
    assert_eq!(first.entries, second.entries);
    assert_ne!(
        first.name(),
        second.name(),
        "a pack that is deleted could be stored again while it is being deleted"
    );
}

#[test]
fn every_bit_flip_is_found() {
    let (pack, _, chunks) = data_pack();
    for bit in 0..pack.bytes.len() * 8 {
        let mut bytes = pack.bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(verify_name(&pack.id, &bytes).is_err(), "bit {bit}");
        let _ = parse(&pack.id, &bytes);
        let ranged = read_by_ranges(&pack.id, &bytes, &chunks);
        let known = matches!(ranged, Err(Error::Damaged { .. } | Error::Version { .. }));
        assert!(known, "bit {bit}: {ranged:?}");
    }
    let pack = node_pack();
    for bit in 0..pack.bytes.len() * 8 {
        let mut bytes = pack.bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(verify_name(&pack.id, &bytes).is_err(), "bit {bit}");
        // Nothing in a node pack is unguarded, even without its name.
        assert!(parse(&pack.id, &bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn every_truncation_is_found() {
    let (pack, _, chunks) = data_pack();
    for length in 0..pack.bytes.len() {
        assert!(parse(&pack.id, &pack.bytes[..length]).is_err(), "{length}");
        assert!(parse(&pack.id, &pack.bytes[length + 1..]).is_err(), "{length}");
        assert!(read_by_ranges(&pack.id, &pack.bytes[..length], &chunks).is_err(), "{length}");
    }
}

#[test]
fn versions_are_named() {
    let (pack, ..) = data_pack();
    for at in [8, pack.bytes.len() - 16] {
        let mut bytes = pack.bytes.to_vec();
        bytes[at] = 9;
        let error = parse(&pack.id, &bytes).unwrap_err();
        assert!(matches!(error, Error::Version { found: 9, known: 1, .. }), "{error}");
    }
}

#[test]
fn damaged_trailers_are_walked_and_damaged_frames_skipped() {
    let (pack, data_key, chunks) = data_pack();
    let Parsed::Whole(header) = parse_header(&pack.id, &pack.bytes).unwrap() else { panic!() };
    let start = u32::try_from(header.length()).unwrap();
    let walk = walk_frames(&pack.id, start, &pack.bytes);
    assert_eq!(walk.frames.iter().map(FrameRef::entry).collect::<Vec<_>>(), pack.entries);
    assert_eq!(walk.reason, "no frame begins here");
    let mut decoder = ChunkDecoder::new(key().backup().clone(), REPOSITORY).unwrap();
    let mut out = Vec::new();
    for (frame, chunk) in walk.frames.iter().zip(&chunks) {
        let id = ChunkId::new(frame.id);
        decoder.decode(&pack.id, &data_key, frame, &id, frame.plain_length, &mut out).unwrap();
        assert_eq!(out, *chunk);
    }

    let second = pack.entries[1];
    let mut bytes = pack.bytes.to_vec();
    bytes[second.offset as usize] ^= 1;
    let walk = walk_frames(&pack.id, start, &bytes);
    assert_eq!((walk.frames.len(), walk.end), (1, second.offset));
    assert!(parse(&pack.id, &bytes).is_err());
    let third = pack.entries[2];
    parse_frame(&pack.id, &bytes[third.offset as usize..][..third.frame_length() as usize], &third).unwrap();
    assert_eq!(walk_frames(&pack.id, u32::MAX, &bytes).frames, []);
    assert_eq!(walk_frames(&pack.id, 60_000_000, &bytes).frames, []);
}

#[test]
fn frames_can_be_copied_without_keys() {
    let (pack, _, chunks) = data_pack();
    let index = parse(&pack.id, &pack.bytes).unwrap();
    let other = key().backup().seal_data_key(&REPOSITORY).unwrap().1;
    let mut writer = PackWriter::data(REPOSITORY, vec![other, index.header.sealed_keys[0]]).unwrap();
    for entry in &index.entries {
        let frame = &pack.bytes[entry.offset as usize..][..entry.frame_length() as usize];
        let frame = parse_frame(&pack.id, frame, entry).unwrap();
        writer.add(&Frame::copy_of(&frame, index.header.key_of(&pack.id, &frame).unwrap())).unwrap();
    }
    let copy = writer.finish().unwrap();
    read_by_ranges(&copy.id, &copy.bytes, &chunks).unwrap();
    parse(&copy.id, &copy.bytes).unwrap();
}

#[test]
fn decoder_refuses_another_chunk_length_repository_or_key() {
    let (pack, data_key, chunks) = data_pack();
    let entry = pack.entries[1];
    let bytes = &pack.bytes[entry.offset as usize..][..entry.frame_length() as usize];
    let frame = parse_frame(&pack.id, bytes, &entry).unwrap();
    let mut out = Vec::new();
    let mut what = |repository, data_key: &DataKey, frame: &FrameRef<'_>, id: ChunkId, length| {
        let mut decoder = ChunkDecoder::new(key().backup().clone(), repository).unwrap();
        match decoder.decode(&pack.id, data_key, frame, &id, length, &mut out) {
            Ok(()) => String::new(),
            Err(Error::Damaged { what, object }) => {
                assert!(out.is_empty());
                assert!(object.contains(&format!("offset {} bytes", entry.offset)), "{object}");
                what
            }
            Err(other) => panic!("{other}"),
        }
    };
    let id = entry.chunk_id();
    let other_key = key().backup().seal_data_key(&REPOSITORY).unwrap().0;
    assert_eq!(what(REPOSITORY, &data_key, &frame, id, 300), "");
    assert!(
        what(REPOSITORY, &data_key, &frame, key().backup().chunk_id(&chunks[0]), 300)
            .contains("another chunk")
    );
    assert!(what(REPOSITORY, &data_key, &frame, id, 301).contains("another length"));
    assert!(what(RepositoryId::new([9; 16]), &data_key, &frame, id, 300).contains("decrypt"));
    assert!(what(REPOSITORY, &other_key, &frame, id, 300).contains("decrypt"));
    let zstd_as_none = FrameRef { codec: Codec::None, ..frame };
    assert!(what(REPOSITORY, &data_key, &zstd_as_none, id, 300).contains("decrypt"));

    // A writer that lies about content: encrypted properly under an id that is not the plaintext's.
    let wrong = ChunkId::new([9; 32]);
    let mut encoder = ChunkEncoder::new(key().backup(), REPOSITORY, DEFAULT_LEVEL).unwrap();
    assert!(matches!(encoder.encode(&data_key, wrong, &chunks[1]), Err(Error::EncodeCheck)));
    let lie = encoder.without_verification().encode(&data_key, wrong, &chunks[1]).unwrap();
    let lie = FrameRef { offset: entry.offset, ..lie.as_frame_ref() };
    assert!(what(REPOSITORY, &data_key, &lie, wrong, 300).contains("another id"));
}

#[test]
fn a_decompression_bomb_is_bounded() {
    let key = key();
    let (data_key, _) = key.backup().seal_data_key(&REPOSITORY).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 50 << 20], 3).unwrap();
    for plain_length in [8192_u32, MAXIMUM_PLAIN_LENGTH] {
        let id = ChunkId::new([5; 32]);
        let mut aad = [REPOSITORY.as_bytes().as_slice(), id.as_bytes(), &[1]].concat();
        aad.extend(plain_length.to_le_bytes());
        let mut payload = bomb.clone();
        let nonce = data_key.seal(&aad, &mut payload);
        let frame = FrameRef {
            offset: 0,
            codec: Codec::Zstd,
            key_index: 0,
            plain_length,
            id: *id.as_bytes(),
            nonce,
            payload: &payload,
        };
        let mut decoder = ChunkDecoder::new(key.backup().clone(), REPOSITORY).unwrap();
        let mut out = Vec::new();
        let pack = PackId::new(PackKind::Data, crate::id::PackName::new([0; 32]));
        let error = decoder.decode(&pack, &data_key, &frame, &id, plain_length, &mut out).unwrap_err();
        assert!(error.to_string().contains("decompress"), "{error}");
    }
}

#[test]
fn the_writer_refuses_what_no_reader_takes() {
    let key = key();
    let (data_key, sealed) = key.backup().seal_data_key(&REPOSITORY).unwrap();
    let mut encoder = ChunkEncoder::new(key.backup(), REPOSITORY, DEFAULT_LEVEL).unwrap();
    assert!(encoder.encode(&data_key, key.backup().chunk_id(b""), b"").is_err());
    let long = vec![1; MAXIMUM_PLAIN_LENGTH as usize + 1];
    assert!(encoder.encode(&data_key, key.backup().chunk_id(&long), &long).is_err());
    let frame = encoder.encode(&data_key, key.backup().chunk_id(b"x"), b"x").unwrap();

    assert!(PackWriter::data(REPOSITORY, vec![]).is_err());
    assert!(PackWriter::data(REPOSITORY, vec![sealed; MAXIMUM_KEYS + 1]).is_err());
    assert!(PackWriter::new(PackKind::Nodes, REPOSITORY, vec![sealed]).is_err());
    let mut nodes = PackWriter::nodes(REPOSITORY);
    assert!(nodes.add(&frame).is_err());
    assert!(nodes.add_node(key.backup().node_id(b""), b"").is_err());
    assert!(nodes.is_empty() && nodes.finish().is_none());
    let mut data = PackWriter::data(REPOSITORY, vec![sealed]).unwrap();
    assert!(data.add_node(key.backup().node_id(b"x"), b"x").is_err());
    assert!(data.add(&Frame { key: DataKeyId::new([0; 16]), ..frame.clone() }).is_err());
    assert!(data.add(&Frame { plain_length: 2, ..frame.clone() }).is_err());
    data.add(&frame).unwrap();
    let pack = data.finish().unwrap();
    parse(&pack.id, &pack.bytes).unwrap();
}

#[test]
fn packs_fill_to_their_target_and_never_beyond_the_limit() {
    let node = vec![7; 1 << 20];
    let mut writer = PackWriter::nodes(REPOSITORY).with_target(3 << 20);
    while !writer.is_full() {
        writer.add_node(key().backup().node_id(b"x"), &node).unwrap();
    }
    assert_eq!(writer.entries().len(), 3);
    while writer.add_node(key().backup().node_id(b"x"), &node).is_ok() {}
    assert_eq!(writer.entries().len(), 63);
    let pack = writer.finish().unwrap();
    assert!(pack.bytes.len() <= MAXIMUM_LENGTH as usize);
    parse(&pack.id, &pack.bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn chunks_round_trip(chunks in prop::collection::vec(prop::collection::vec(0..4_u8, 1..5000), 1..6), level in 1..6) {
        let key = key();
        let keys = [(); 2].map(|()| key.backup().seal_data_key(&REPOSITORY).unwrap());
        let sealed: Vec<SealedKey> = keys.iter().map(|(_, sealed)| *sealed).collect();
        let mut encoder = ChunkEncoder::new(key.backup(), REPOSITORY, level).unwrap();
        let mut writer = PackWriter::data(REPOSITORY, sealed).unwrap();
        for (index, chunk) in chunks.iter().enumerate() {
            let frame = encoder.encode(&keys[index % 2].0, key.backup().chunk_id(chunk), chunk).unwrap();
            writer.add(&frame).unwrap();
        }
        let pack = writer.finish().unwrap();
        parse(&pack.id, &pack.bytes).unwrap();
        read_by_ranges(&pack.id, &pack.bytes, &chunks).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn rewritten_fields_never_panic(
        data in any::<bool>(),
        writes in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 4]>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let pack = if data { DATA.with(Clone::clone) } else { NODES.with(Clone::clone) };
        let mut bytes = pack.bytes.to_vec();
        for (at, value) in writes {
            let at = at.index(bytes.len() / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&value);
        }
        // As an attacker would who can compute checksums.
        let fixed = bytes.len();
        let header = if data { 160 } else { 64 };
        let hash = blake3::hash(&bytes[..header - 32]);
        bytes[header - 32..header].copy_from_slice(hash.as_bytes());
        let first = pack.entries.last().map(|last| (last.offset + last.frame_length()) as usize).unwrap();
        let hash = blake3::hash(&bytes[first..fixed - 48]);
        bytes[fixed - 48..fixed - 16].copy_from_slice(hash.as_bytes());
        let _ = parse(&pack.id, &bytes);
        let cut = cut.index(bytes.len());
        for part in [&bytes[..cut], &bytes[cut..]] {
            let _ = parse(&pack.id, part);
            let _ = parse_header(&pack.id, part);
            let _ = parse_trailer(&pack.id, fixed as u64, part);
            let _ = walk_frames(&pack.id, 0, part);
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for kind in [PackKind::Data, PackKind::Nodes] {
            let pack = PackId::new(kind, crate::id::PackName::new([0; 32]));
            prop_assert!(parse(&pack, &bytes).is_err());
            let _ = parse_header(&pack, &bytes);
            let _ = parse_footer(&pack, &bytes);
            let _ = walk_frames(&pack, 0, &bytes);
        }
    }
}

thread_local! {
    static DATA: FinishedPack = data_pack().0;
    static NODES: FinishedPack = node_pack();
}
