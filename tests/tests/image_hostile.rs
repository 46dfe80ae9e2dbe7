//! Images that lie or are damaged: refused, naming file and field.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its own functions too")]

use std::fs;

use underlay_tests::images::{Workshop, open_qcow2 as open, read_all, refusal, workshop};

fn be64(w: &Workshop, image: &str, offset: u64) -> u64 {
    let bytes = fs::read(w.dir.join(image)).unwrap();
    u64::from_be_bytes(bytes[offset as usize..][..8].try_into().unwrap())
}

struct Field {
    what: &'static str,
    offset: u64,
    bytes: Vec<u8>,
    expect: &'static str,
}

fn field(what: &'static str, offset: u64, bytes: impl AsRef<[u8]>, expect: &'static str) -> Field {
    Field { what, offset, bytes: bytes.as_ref().to_vec(), expect }
}

fn bad_fields() -> Vec<Field> {
    let word = |value: u32| value.to_be_bytes();
    let long = |value: u64| value.to_be_bytes();
    vec![
        field("magic", 0, b"QFI\x00", "magic"),
        field("version 1", 4, word(1), "version is 1"),
        field("version 4", 4, word(4), "version is 4"),
        field(
            "backing name outside",
            8,
            [long(1 << 20).as_slice(), &word(9)].concat(),
            "backing_file_offset",
        ),
        field(
            "backing name huge",
            8,
            [long(512).as_slice(), &word(1024)].concat(),
            "backing_file_size is 1024",
        ),
        field("backing name wraps", 8, [long(u64::MAX).as_slice(), &word(9)].concat(), "backing_file_offset"),
        field("small clusters", 20, word(8), "cluster_bits is 8"),
        field("large clusters", 20, word(22), "cluster_bits is 22"),
        field("absurd clusters", 20, word(u32::MAX), "cluster_bits is 4294967295"),
        field("size 2^63", 24, long(1 << 63), "size"),
        field("size 2^64-1", 24, long(u64::MAX), "size"),
        field("size over L1", 24, long(1 << 40), "l1_size"),
        field("AES", 32, word(1), "AES encryption"),
        field("LUKS", 32, word(2), "LUKS encryption"),
        field("unknown encryption", 32, word(77), "crypt_method is 77"),
        field("no L1", 36, word(0), "l1_size is 0"),
        field("L1 over 32 MiB", 36, word((4 << 20) + 1), "larger than 32 MiB"),
        field("huge L1", 36, word(u32::MAX), "larger than 32 MiB"),
        field("L1 longer than the file", 36, word(4 << 20), "l1_table_offset"),
        field("L1 unaligned", 40, long(0x30008), "l1_table_offset is 196616: not aligned"),
        field("L1 at 0", 40, long(0), "l1_table_offset is 0: points to the header"),
        field("L1 beyond", 40, long(1 << 30), "l1_table_offset is 1073741824: beyond"),
        field("L1 wraps", 40, long(u64::MAX << 16), "l1_table_offset"),
        field("refcounts beyond", 48, long(1 << 30), "refcount_table_offset"),
        field("snapshots beyond", 60, [word(1).as_slice(), &long(1 << 30)].concat(), "snapshots_offset"),
        field("corrupt bit", 72, long(2), "marked this image as corrupt"),
        field("data file without name", 72, long(4), "data file name"),
        field("zstd bit, zlib type", 72, long(8), "compression_type is 0"),
        field("unknown bit 5", 72, long(1 << 5), "incompatible feature bit 5"),
        field("unknown bit 63", 72, long(1 << 63), "incompatible feature bit 63"),
        field("refcount order", 96, word(7), "refcount_order is 7"),
        field("header short", 100, word(96), "header_length is 96"),
        field("header odd", 100, word(106), "header_length is 106"),
        field("header huge", 100, word(0xffff_fff8), "header_length"),
        field("compression type 1 unflagged", 104, [1], "compression_type is 1"),
        field("compression type 9", 104, [9], "compression type 9"),
        field("extension too long", 112, [word(0x1234_5678), word(u32::MAX)].concat(), "extension length"),
    ]
}

#[test]
fn bad_header_fields_are_refused_by_name() {
    let (_dir, w) = workshop();
    w.img("create -f qcow2 good.qcow2 1M").unwrap();
    w.io("good.qcow2", &["write -P 5 0 300k"]).unwrap();
    let good = fs::read(w.dir.join("good.qcow2")).unwrap();
    let bad = w.dir.join("bad.qcow2");
    for Field { what, offset, bytes, expect } in bad_fields() {
        fs::write(&bad, &good).unwrap();
        w.patch("bad.qcow2", offset, &bytes).unwrap();
        let said = refusal(&bad);
        assert!(said.contains(expect) && said.contains("bad.qcow2"), "{what}: {said}");
    }
    // The feature-name table gives unknown bits a name; it is shown escaped.
    fs::write(&bad, &good).unwrap();
    let table = good.windows(4).position(|bytes| bytes == 0x6803_f857_u32.to_be_bytes()).unwrap() as u64;
    w.patch("bad.qcow2", table + 8, b"\0\x07evil\x1b[2J feature\0").unwrap();
    w.patch("bad.qcow2", 72, &(1_u64 << 7).to_be_bytes()).unwrap();
    let said = refusal(&bad);
    assert!(said.contains(r"bit 7, which the image calls") && !said.contains('\x1b'), "{said}");
}

#[test]
fn bad_table_entries_are_damage() {
    let (_dir, w) = workshop();
    w.img("create -f qcow2 -o cluster_size=512 good.qcow2 256k").unwrap();
    w.io("good.qcow2", &["write -P 5 0 100k"]).unwrap();
    let (l1, size) = (be64(&w, "good.qcow2", 40), fs::metadata(w.dir.join("good.qcow2")).unwrap().len());
    let l2 = be64(&w, "good.qcow2", l1) & !(1 << 63);
    let second = be64(&w, "good.qcow2", l1 + 8);
    let copied = 1_u64 << 63;
    let cases = [
        (l1, l2 | 0x10, "reserved bits"),
        (l1, l2 | 1 << 60, "reserved bits"),
        (l1, size.next_multiple_of(512), "lies beyond the end of the file"),
        (l1, 0x00ff_ffff_ffff_fe00, "lies beyond the end of the file"),
        (l1, second, "two L1 entries use the same L2 table"),
        (l1, l1, "overlaps the L1 table"),
        (l2, copied | 0x2a, "reserved bits"),
        (l2, copied | 1 << 57, "reserved bits"),
        (l2, copied, "points to the header"),
        (l2, copied | size.next_multiple_of(512), "lies beyond the end of"),
        (l2, 0x00ff_ffff_ffff_fe00, "lies beyond the end of"),
        (l2, 1 << 62 | size, "a compressed cluster at file offset"),
        (l2, 1 << 62, "a compressed cluster at file offset 0"),
        (l2, 1 << 62 | 0x0fff_ffff_ffff_ffff, "impossible offset"),
        (l2, 1 << 62 | l2, "the compressed cluster at file offset"),
        (l2, copied | 1 << 62 | l2, "reserved bits"),
    ];
    let good = fs::read(w.dir.join("good.qcow2")).unwrap();
    for (offset, entry, expect) in cases {
        fs::write(w.dir.join("bad.qcow2"), &good).unwrap();
        w.patch("bad.qcow2", offset, &entry.to_be_bytes()).unwrap();
        let said = refusal(&w.dir.join("bad.qcow2"));
        assert!(said.contains(expect) && said.contains("damaged at guest offset"), "{entry:#x}: {said}");
        let read = open(&w.dir.join("bad.qcow2")).and_then(|chain| chain.read_at(0, 0, &mut [0; 4096]));
        assert!(read.is_err(), "{entry:#x} was read");
    }
}

#[test]
fn bad_entries_of_special_formats_are_damage() {
    let (_dir, w) = workshop();
    let check = |options: &str, entry: Option<u64>, bitmap: Option<u64>, expect: &str| {
        w.img(&format!("create -f qcow2 -o {options} bad.qcow2 1M")).unwrap();
        w.io("bad.qcow2", &["write -P 5 0 128k"]).unwrap();
        let l2 = be64(&w, "bad.qcow2", be64(&w, "bad.qcow2", 40)) & !(1 << 63);
        let old = be64(&w, "bad.qcow2", l2);
        w.patch("bad.qcow2", l2, &entry.unwrap_or(old).to_be_bytes()).unwrap();
        if let Some(bitmap) = bitmap {
            w.patch("bad.qcow2", l2 + 8, &bitmap.to_be_bytes()).unwrap();
        }
        let said = refusal(&w.dir.join("bad.qcow2"));
        assert!(said.contains(expect), "{options}: {said}");
    };
    check("compat=0.10", Some(1), None, "zero flag");
    check("extended_l2=on", Some(1), None, "zero flag");
    check("extended_l2=on", None, Some(u64::MAX), "contradicts itself");
    check("extended_l2=on", Some(0), Some(1), "contradicts itself");
    check("extended_l2=on", Some(1 << 62 | 0x50000), Some(1), "subcluster bitmap");
    check("data_file=one", Some(1 << 63 | 65536), None, "must be the guest offset");
    check("data_file=two", Some(1 << 62 | 65536), None, "compressed cluster in an image with an external");
}

#[test]
fn shared_clusters_cannot_multiply_data() {
    let (_dir, w) = workshop();
    w.img("create -f qcow2 bomb.qcow2 500M").unwrap();
    w.io("bomb.qcow2", &["write -P 5 0 64k"]).unwrap();
    let l2 = be64(&w, "bomb.qcow2", be64(&w, "bomb.qcow2", 40)) & !(1 << 63);
    let entry = be64(&w, "bomb.qcow2", l2).to_be_bytes();
    w.patch("bomb.qcow2", l2, &entry.repeat(8000)).unwrap();
    let chain = open(&w.dir.join("bomb.qcow2")).unwrap();
    let error = chain.extents(0).unwrap().find_map(Result::err).expect("the bomb was accepted");
    assert!(error.to_string().contains("some are shared"), "{error}");
}

#[test]
fn a_small_file_that_claims_four_million_tables_costs_little() {
    let (_dir, w) = workshop();
    w.img("create -f qcow2 big.qcow2 1M").unwrap();
    let entries = 4_u64 << 20;
    // 32 MiB of L1, every entry naming its own table in a hole of a sparse file.
    let tables = 64 << 20;
    let l1: Vec<u8> = (0..entries).flat_map(|index| (tables + (index << 16)).to_be_bytes()).collect();
    w.patch("big.qcow2", 1 << 20, &l1).unwrap();
    w.patch("big.qcow2", 24, &(entries << 29).to_be_bytes()).unwrap();
    w.patch("big.qcow2", 36, &(entries as u32).to_be_bytes()).unwrap();
    w.patch("big.qcow2", 40, &(1_u64 << 20).to_be_bytes()).unwrap();
    let file = fs::File::options().write(true).open(w.dir.join("big.qcow2")).unwrap();
    file.set_len(tables + (entries << 16)).unwrap();
    let started = std::time::Instant::now();
    let chain = open(&w.dir.join("big.qcow2")).unwrap();
    assert_eq!(chain.virtual_size(), 1 << 51);
    assert_eq!(chain.extents(0).unwrap().count(), 0);
    let spent = started.elapsed();
    assert!(spent < std::time::Duration::from_secs(30), "{spent:?}");
    let read = chain.counters().metadata_bytes;
    assert!(read < 200 << 20, "read {read} bytes of tables");
}

#[test]
fn a_truncated_file_is_an_error_or_complete() {
    let (_dir, w) = workshop();
    w.noise("base.raw", 300 << 10, 3).unwrap();
    w.img("create -f qcow2 -b base.raw -F raw plain.qcow2 300k").unwrap();
    w.io("plain.qcow2", &["write -P 5 10k 100k"]).unwrap();
    w.img("convert -O qcow2 -c -f raw base.raw zlib.qcow2").unwrap();
    w.img("convert -O qcow2 -c -o compression_type=zstd -f raw base.raw zstd.qcow2").unwrap();
    w.img("convert -O qcow2 -o extended_l2=on -f raw base.raw extended.qcow2").unwrap();
    w.img("convert -O qcow2 -o data_file=guest.data -f raw base.raw data.qcow2").unwrap();
    for (image, victim) in [
        ("plain", "plain.qcow2"),
        ("zlib", "zlib.qcow2"),
        ("zstd", "zstd.qcow2"),
        ("extended", "extended.qcow2"),
        ("data", "data.qcow2"),
        ("data", "guest.data"),
    ] {
        let path = w.dir.join(format!("{image}.qcow2"));
        let exact = read_all(&path).unwrap();
        let whole = fs::read(w.dir.join(victim)).unwrap();
        let mut complete = 0;
        let sizes = (0..whole.len()).rev().step_by(3001).chain([0, 4, 71, 72, 103, 104, 111, 112, 300]);
        for size in sizes {
            fs::write(w.dir.join(victim), &whole[..size]).unwrap();
            match read_all(&path) {
                Ok(disk) => complete += usize::from(disk == exact),
                Err(_) => continue,
            }
            assert!(complete > 0, "{victim} cut to {size} reads other data");
        }
        assert!(complete < 20, "{victim}: cutting it went unnoticed {complete} times");
        fs::write(w.dir.join(victim), &whole).unwrap();
    }
}

#[test]
fn a_decompressed_cluster_has_its_exact_size_and_content_or_fails() {
    let (_dir, w) = workshop();
    w.noise("base.raw", 64 << 10, 3).unwrap();
    for kind in ["zlib", "zstd"] {
        w.img(&format!("convert -O qcow2 -c -o compression_type={kind} -f raw base.raw c.qcow2")).unwrap();
        let l2 = be64(&w, "c.qcow2", be64(&w, "c.qcow2", 40)) & !(1 << 63);
        let entry = be64(&w, "c.qcow2", l2);
        assert!(entry >> 62 == 1);
        // Half as many sectors: the stream ends too early.
        let sectors = (entry & !(3 << 62)) >> 54;
        let short = entry & ((1 << 54) - 1) | 1 << 62 | (sectors / 2) << 54;
        w.patch("c.qcow2", l2, &short.to_be_bytes()).unwrap();
        let said = refusal(&w.dir.join("c.qcow2"));
        assert!(said.contains("the compressed cluster at file offset"), "{kind}: {said}");
    }
}
