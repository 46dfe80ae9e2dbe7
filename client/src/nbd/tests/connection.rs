use proptest::prelude::*;

use super::*;
use crate::nbd::connection::{Connection, Cut};
use crate::nbd::status::Descriptor;

const CUT: Cut = Cut { piece: 16, depth: 2 };

fn open(answers: Vec<u8>, structured: bool) -> (Connection<Script>, Script) {
    let script = Script::new(answers);
    (Connection::new(script.stream(), &agreed(1 << 40, structured)), script)
}

/// Reads 16 bytes at offset 32 as one request.
fn read(answers: Vec<u8>) -> Result<[u8; 16], String> {
    let mut buf = [0xee; 16];
    match open(answers, true).0.read(32, &mut buf, CUT) {
        Ok(()) => Ok(buf),
        Err(trouble) => Err(told(trouble.fault)),
    }
}

fn status(answers: Vec<u8>) -> Result<Vec<Vec<Descriptor>>, String> {
    open(answers, true).0.status(4096, 8192).map_err(told)
}

#[test]
fn data_and_holes_land_where_they_belong() {
    let answers = [
        chunk(false, 1, 1, &data(40, b"bbbb")),
        chunk(false, 2, 1, &hole(36, 4)),
        chunk(false, 1, 1, &data(32, b"aaaa")),
        chunk(true, 1, 1, &data(44, b"cccc")),
    ];
    assert_eq!(read(answers.concat()).unwrap(), *b"aaaa\0\0\0\0bbbbcccc");
}

#[test]
fn replies_may_come_in_any_order_and_interleave() {
    let (mut connection, script) = open(
        [
            chunk(false, 1, 2, &data(16, b"22222222")),
            chunk(true, 1, 1, &data(8, b"11111111")),
            chunk(false, 1, 3, &data(32, b"33")),
            chunk(true, 1, 2, &data(24, b"22222222")),
            chunk(true, 0, 3, &[]),
        ]
        .concat(),
        true,
    );
    let mut buf = [0; 26];
    connection.read(8, &mut buf, CUT).unwrap();
    assert_eq!(&buf, b"11111111222222222222222233");
    assert_eq!((connection.traffic.reads, connection.traffic.data_bytes), (3, 26));
    drop(connection);
    let sent = script.sent.borrow();
    assert_eq!(sent.len(), 4 * 28);
    // Magic, the flag against fragments, command 0, cookie 2, offset 16, length 16; and leave is taken at the end.
    assert_eq!(sent[28..56], *b"\x25\x60\x95\x13\0\x04\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x10\0\0\0\x10");
    assert_eq!(sent[84..92], *b"\x25\x60\x95\x13\0\0\0\x02");
}

#[test]
fn simple_replies_are_read_where_agreed_on() {
    let answers = [simple(0, 1), b"0123456789abcdef".to_vec(), simple(5, 2)].concat();
    let (mut connection, _) = open(answers, false);
    let mut buf = [0; 16];
    connection.read(0, &mut buf, CUT).unwrap();
    assert_eq!(&buf, b"0123456789abcdef");
    assert!(told(connection.read(0, &mut buf, CUT).unwrap_err().fault).contains("EIO"));
    let chunked = chunk(true, 2, 1, &hole(0, 16));
    assert!(told(open(chunked, false).0.read(0, &mut buf, CUT).unwrap_err().fault).contains("a chunk where"));
}

#[test]
fn answers_that_lie_are_refused() {
    let whole = || data(32, &[1; 16]);
    let lies = [
        (simple(0, 1), "a simple reply where chunks were agreed on"),
        (chunk(true, 1, 2, &whole()), "a reply to request 2"),
        (simple(0, 0), "a reply to request 0"),
        ([0x11; 40].to_vec(), "a reply starts with 0x11111111"),
        (chunk(true, 1, 1, &data(32, &[1; 17])), "17 bytes for offset 32"),
        (chunk(true, 1, 1, &data(31, &[1; 16])), "16 bytes for offset 31"),
        (chunk(true, 1, 1, &data(33, &[1; 16])), "16 bytes for offset 33"),
        (chunk(true, 1, 1, &data(u64::MAX, &[1; 16])), "16 bytes for offset 18446744073709551615"),
        (chunk(true, 1, 1, &data(32, &[])), "0 bytes for offset 32"),
        (chunk(true, 1, 1, &[0; 7]), "data of 7 bytes"),
        (chunk_announcing(true, 1, 1, u32::MAX, &whole()), "4294967287 bytes for offset 32"),
        (chunk(true, 1, 1, &data(32, &[1; 15])), "the bytes at offset 47 are missing"),
        (chunk(true, 2, 1, &hole(33, 15)), "the bytes at offset 32 are missing"),
        (chunk(true, 0, 1, &[]), "the bytes at offset 32 are missing"),
        (chunk(false, 0, 1, &[]), "an empty chunk"),
        (chunk(true, 0, 1, &[0]), "an empty chunk"),
        (
            [chunk(false, 1, 1, &whole()), chunk(true, 2, 1, &hole(40, 1))].concat(),
            "8 to 9 of the answer came twice",
        ),
        (chunk(true, 2, 1, &hole(32, 17)), "17 bytes for offset 32"),
        (chunk(true, 2, 1, &hole(32, 0)), "0 bytes for offset 32"),
        (chunk(true, 2, 1, &[0; 11]), "a hole described in 11 bytes"),
        (chunk(true, 5, 1, &descriptors(7, &[(16, 0)])), "a chunk of kind 5 and 12 bytes"),
        (chunk(true, 77, 1, &[]), "a chunk of kind 77 and 0 bytes"),
        (chunk(true, 0x8001, 1, &error_payload(0, "", None)), "without an error"),
        (chunk(true, 0x8001, 1, &[0, 0, 0, 5, 0, 9]), "9 bytes announced where 0 follow"),
        (chunk(true, 0x8001, 1, &error_payload(5, "", Some(1))), "8 bytes more"),
        (chunk(true, 0x8002, 1, &error_payload(5, "", None)), "8 bytes announced where 0 follow"),
        (chunk_announcing(true, 0x8001, 1, 1 << 30, &[]), "a chunk of kind 32769 and 1073741824 bytes"),
        (chunk(false, 0x8001, 1, &error_payload(5, "", None)).repeat(65), "more than 64 errors"),
    ];
    for (answer, expect) in lies {
        let said = read(answer).unwrap_err();
        assert!(said.contains(expect), "{said:?} does not say {expect:?}");
    }
}

#[test]
fn an_error_of_the_disk_leaves_the_connection_in_step() {
    let (mut connection, script) = open(
        [
            chunk(false, 1, 1, &data(0, &[1; 16])),
            chunk(false, 0x8002, 1, &error_payload(5, "bad sector", Some(9))),
            chunk(true, 0, 1, &[]),
            chunk(true, 1, 2, &data(16, &[2; 16])),
            chunk(true, 0xbeef, 3, &error_payload(108, "and more than is known", Some(1))),
            chunk(true, 2, 4, &hole(0, 16)),
        ]
        .concat(),
        true,
    );
    let trouble = connection.read(0, &mut [0; 64], CUT).unwrap_err();
    assert_eq!(trouble.offset, 9);
    assert!(told(trouble.fault).ends_with("the server reports EIO, a failed read and says \"bad sector\""));
    // Two were in flight; the third was not asked for any more.
    assert_eq!(script.sent.borrow().len(), 2 * 28);
    assert!(told(connection.status(0, 512).unwrap_err()).contains("ESHUTDOWN"));
    connection.read(0, &mut [1; 16], CUT).unwrap();
}

#[test]
fn a_connection_out_of_step_is_not_used_again() {
    let (mut connection, script) =
        open([chunk(true, 1, 9, &[]), chunk(true, 2, 2, &hole(0, 16))].concat(), true);
    connection.read(0, &mut [0; 16], CUT).unwrap_err();
    for fault in
        [connection.read(0, &mut [0; 16], CUT).unwrap_err().fault, connection.status(0, 1).unwrap_err()]
    {
        assert!(told(fault).contains("given up after an earlier error"));
    }
    drop(connection);
    assert_eq!(script.sent.borrow().len(), 28);
}

#[test]
fn an_answer_that_ends_anywhere_is_an_error() {
    let whole =
        [chunk(false, 1, 1, &data(32, &[1; 8])), chunk(false, 2, 1, &hole(40, 8)), chunk(true, 0, 1, &[])]
            .concat();
    assert!(read(whole.clone()).is_ok());
    for length in 0..whole.len() {
        let said = read(whole[..length].to_vec()).unwrap_err();
        assert!(said.contains("the server ended the connection"), "{length} bytes: {said}");
    }
}

#[test]
fn a_status_has_every_context_once() {
    let seven = || descriptors(7, &[(512, 3), (7680, 0)]);
    let eight = || descriptors(8, &[(4096, 1)]);
    let answers = status([chunk(false, 5, 1, &eight()), chunk(true, 5, 1, &seven())].concat()).unwrap();
    let run = |length, flags| Descriptor { length, flags };
    assert_eq!(answers, [vec![run(512, 3), run(7680, 0)], vec![run(4096, 1)]]);
    let lies = [
        (chunk(true, 5, 1, &seven()), "the status of a context is missing"),
        ([chunk(false, 5, 1, &seven()), chunk(true, 5, 1, &seven())].concat(), "context 7 came twice"),
        (chunk(true, 5, 1, &descriptors(9, &[(1, 0)])), "context 9 came twice or unasked"),
        (chunk(true, 5, 1, &descriptors(7, &[(1, 0), (0, 0)])), "a status of no bytes at offset 4097"),
        (chunk(true, 5, 1, &descriptors(7, &[(8192, 0), (1, 0)])), "from offset 12288 on, which was not"),
        (chunk(true, 5, 1, &descriptors(7, &[])), "a status of 4 bytes"),
        (chunk(true, 5, 1, &[0; 13]), "a status of 13 bytes"),
        (chunk_announcing(true, 5, 1, 0xffff_fffc, &[]), "a status of 4294967292 bytes"),
        (chunk(true, 1, 1, &data(4096, &[1])), "a chunk of kind 1"),
        (simple(0, 1), "a reply without a status"),
        (simple(22, 1), "EINVAL"),
        (chunk(true, 5, 3, &seven()), "a reply to request 3"),
    ];
    for (answer, expect) in lies {
        let said = status(answer).unwrap_err();
        assert!(said.contains(expect), "{said:?} does not say {expect:?}");
    }
}

#[derive(Debug, Clone)]
enum Kind {
    Data(u64, Vec<u8>),
    Hole(u64, u32),
    Status(u32, Vec<(u32, u32)>),
    Noise(u16, Vec<u8>),
}

fn any_chunk() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0..80_u64, any::<u64>()];
    let small = prop_oneof![0..20_u32, any::<u32>()];
    let kind = prop_oneof![
        (offset.clone(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(o, b)| Kind::Data(o, b)),
        (offset, small.clone()).prop_map(|(offset, length)| Kind::Hole(offset, length)),
        (6..9_u32, prop::collection::vec((small, 0..4_u32), 0..9)).prop_map(|(n, r)| Kind::Status(n, r)),
        (prop_oneof![0..6_u16, 0x8000..0x8004_u16], prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(kind, bytes)| Kind::Noise(kind, bytes)),
    ];
    (kind, any::<bool>(), 0..5_u64, prop::option::weighted(0.1, any::<u32>())).prop_map(
        |(kind, done, cookie, lie)| {
            let (kind, payload) = match kind {
                Kind::Data(offset, bytes) => (1, data(offset, &bytes)),
                Kind::Hole(offset, length) => (2, hole(offset, length)),
                Kind::Status(number, runs) => (5, descriptors(number, &runs)),
                Kind::Noise(kind, bytes) => (kind, bytes),
            };
            chunk_announcing(done, kind, cookie, lie.unwrap_or(payload.len() as u32), &payload)
        },
    )
}

proptest! {
    #[test]
    fn no_answer_panics_or_takes_much_memory(
        chunks in prop::collection::vec(any_chunk(), 0..8),
        noise in prop::collection::vec(any::<u8>(), 0..100),
        structured: bool,
    ) {
        let answers = [chunks.concat(), noise].concat();
        let (mut connection, script) = open(answers.clone(), structured);
        let _ = connection.read(0, &mut [0; 64], CUT);
        prop_assert!(script.largest.get() <= 8 << 10);
        let (mut connection, script) = open(answers, structured);
        if let Ok(contexts) = connection.status(0, 64) {
            prop_assert!(contexts.iter().flatten().all(|run| run.length > 0));
        }
        prop_assert!(script.largest.get() <= (8 << 20) + 4);
    }
}
