use proptest::prelude::*;

use super::*;
use crate::nbd::NbdError;
use crate::nbd::handshake::negotiate;

const ALLOCATION: &str = crate::nbd::ALLOCATION;

fn context(number: u32, name: &str) -> Vec<u8> {
    [&number.to_be_bytes()[..], name.as_bytes()].concat()
}

fn size(size: u64) -> Vec<u8> {
    [&0_u16.to_be_bytes()[..], &size.to_be_bytes(), &0x81_u16.to_be_bytes()].concat()
}

fn block_sizes(minimum: u32, maximum: u32) -> Vec<u8> {
    let words = [minimum, 4096, maximum].map(u32::to_be_bytes).concat();
    [&3_u16.to_be_bytes()[..], &words].concat()
}

/// A sound server's answers, in the order in which the client asks.
fn sound() -> Vec<Vec<u8>> {
    vec![
        greeting(3),
        option_reply(8, 1, &[]),
        option_reply(10, 4, &context(5, "qemu:dirty-bitmap:b")),
        option_reply(10, 4, &context(1, ALLOCATION)),
        option_reply(10, 1, &[]),
        option_reply(7, 3, &size(1 << 30)),
        option_reply(7, 3, &block_sizes(512, 1 << 25)),
        option_reply(7, 1, &[]),
    ]
}

fn run(answers: Vec<u8>, contexts: &[&str]) -> (Result<Agreed, NbdError>, Script) {
    let script = Script::new(answers);
    (negotiate(&mut script.stream(), &peer(), contexts), script)
}

/// What the client says of a sound server one of whose answers is another.
fn refusal(index: usize, answer: Vec<u8>) -> String {
    let mut answers = sound();
    answers[index] = answer;
    run(answers.concat(), &[ALLOCATION, "qemu:dirty-bitmap:b"]).0.unwrap_err().to_string()
}

#[test]
fn a_sound_server_is_understood() {
    let (agreed, script) = run(sound().concat(), &[ALLOCATION, "qemu:dirty-bitmap:b"]);
    let agreed = agreed.unwrap();
    assert_eq!(
        (agreed.size, agreed.minimum, agreed.maximum, agreed.structured),
        (1 << 30, 512, 1 << 25, true)
    );
    assert!(agreed.unfragmented);
    // In the order of the question, not of the answer.
    assert_eq!(agreed.contexts.iter().map(|context| context.number).collect::<Vec<_>>(), [1, 5]);
    let sent = script.sent.borrow();
    assert_eq!(sent[..4], 3_u32.to_be_bytes());
    assert_eq!(sent[4..20], *b"IHAVEOPT\0\0\0\x08\0\0\0\0");
    let query = message::encode_option(10, &message::meta_query("vda", &[ALLOCATION, "qemu:dirty-bitmap:b"]));
    assert_eq!(sent[20..20 + query.len()], query);
    assert_eq!(sent[20 + query.len()..], *b"IHAVEOPT\0\0\0\x07\0\0\0\x0b\0\0\0\x03vda\0\x01\0\x03");
}

#[test]
fn a_server_without_chunks_is_read_but_has_no_contexts() {
    let mut answers = sound();
    answers[1] = option_reply(8, (1 << 31) + 1, b"what?");
    answers.drain(2..5);
    let (agreed, _) = run(answers.concat(), &[]);
    let agreed = agreed.unwrap();
    assert!(!agreed.structured && !agreed.unfragmented);
    let (refused, _) = run(answers.concat(), &[ALLOCATION]);
    assert!(matches!(refused, Err(NbdError::NoSuchContext { available, .. }) if available.is_empty()));
}

#[test]
fn a_read_keeps_within_the_limits_of_the_server() {
    let maximum = |answer: Option<Vec<u8>>| {
        let mut answers = sound();
        answers.drain(2..5);
        answers.splice(3..4, answer);
        run(answers.concat(), &[]).0.unwrap().maximum
    };
    assert_eq!(maximum(None), 32 << 20);
    assert_eq!(maximum(Some(option_reply(7, 3, &block_sizes(4096, u32::MAX)))), 32 << 20);
    assert_eq!(maximum(Some(option_reply(7, 3, &block_sizes(4096, 70_000)))), 69_632);
}

#[test]
fn servers_that_lie_are_refused() {
    let broken = [
        (0, b"NBDMAGIXIHAVEOPT\0\x03".to_vec(), "does not start as an NBD server"),
        (0, b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\x03".to_vec(), "old style"),
        (0, greeting(2), "fixed new style"),
        (1, option_reply(9, 1, &[]), "option 8 was answered as 9"),
        (1, option_reply(8, 3, &[]), "an answer where none fits"),
        (1, option_reply(8, 1, b"x"), "a confirmation with a payload"),
        (1, [0; 20].to_vec(), "wrong magic"),
        (2, option_reply(10, 4, &context(5, "x:y")), "granted twice or unasked"),
        (2, option_reply(10, 4, &context(1, "qemu:dirty-bitmap:b")), "granted twice or unasked"),
        (2, option_reply(10, 4, b"abc"), "4 bytes announced where 3 follow"),
        (2, option_reply(10, 4, &context(5, &"y".repeat(5000))), "a name of 5000 bytes"),
        (2, option_reply(10, 3, &[]), "kind 3 where a context belongs"),
        (2, option_reply(10, 4, &[0; 20_000]), "answered with 20020 bytes"),
        (2, option_reply(10, (1 << 31) + 5, b"TLS, \x1b[0m"), r#"the server wants TLS: "TLS, \u{1b}[0m""#),
        (5, option_reply(7, 4, &size(1)), "kind 4 where information belongs"),
        (5, option_reply(7, 3, &size(1 << 63)), "a disk of 9223372036854775808 bytes"),
        (5, option_reply(7, 3, &size(513)), "a disk of 513 bytes in blocks of 512"),
        (5, option_reply(7, 3, &[size(512), vec![0]].concat()), "1 bytes more"),
        (5, option_reply(7, 3, &[0]), "2 bytes announced where 1 follow"),
        (5, option_reply(7, 3, &9_u16.to_be_bytes()), "the size of the disk is missing"),
        (6, option_reply(7, 3, &block_sizes(0, 512)), "requests of 0 to 512 bytes"),
        (6, option_reply(7, 3, &block_sizes(3, 512)), "requests of 3 to 512 bytes"),
        (6, option_reply(7, 3, &block_sizes(1 << 17, 1 << 20)), "requests of 131072 to"),
        (6, option_reply(7, 3, &block_sizes(4096, 512)), "requests of 4096 to 512 bytes"),
    ];
    for (index, answer, expect) in broken {
        let said = refusal(index, answer);
        assert!(said.contains(expect), "{said:?} does not say {expect:?}");
        assert!(said.starts_with("/run/vm.sock: export \"vda\""), "{said}");
    }
}

#[test]
fn endless_answers_are_not_listened_to() {
    let mut answers = sound()[..2].concat();
    answers.extend(option_reply(10, 1, &[]));
    for number in 0..10_000 {
        answers.extend(option_reply(9, 4, &context(number, &"n".repeat(1000))));
    }
    let (refused, script) = run(answers, &[ALLOCATION]);
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("option 9 was answered with"), "{said}");
    assert!(script.largest.get() <= 16 << 10, "{} bytes", script.largest.get());
}

#[test]
fn a_missing_context_is_told_with_what_there_is() {
    let mut answers = sound()[..2].concat();
    answers.extend(option_reply(10, 4, &context(1, ALLOCATION)));
    answers.extend(option_reply(10, 1, &[]));
    answers.extend(option_reply(9, 4, &context(0, ALLOCATION)));
    answers.extend(option_reply(9, 4, &context(0, "qemu:dirty-bitmap:c")));
    answers.extend(option_reply(9, 1, &[]));
    let error = run(answers, &[ALLOCATION, "qemu:dirty-bitmap:b"]).0.unwrap_err();
    assert_eq!(
        error.to_string(),
        "/run/vm.sock: export \"vda\" has no context \"qemu:dirty-bitmap:b\"; the server has \"base:allocation\", \
         \"qemu:dirty-bitmap:c\""
    );
    assert!(error.hint().unwrap().contains("back up the whole disk"));
}

#[test]
fn a_missing_export_is_told_with_what_there_is() {
    let mut answers = sound()[..2].concat();
    answers.extend(option_reply(7, (1 << 31) + 6, b"not present"));
    let mut alone = answers.clone();
    answers.extend(option_reply(3, 2, b"\0\0\0\x03vdb and what it is"));
    answers.extend(option_reply(3, 1, &[]));
    let said = run(answers, &[]).0.unwrap_err().to_string();
    assert_eq!(said, "/run/vm.sock: there is no export \"vda\"; the server has \"vdb\"");
    // A server that does not tell, or tells nonsense, lacks the export all the same.
    alone.extend(option_reply(3, 2, b"\xff\0\0\x03vdb"));
    let said = run(alone, &[]).0.unwrap_err().to_string();
    assert_eq!(said, "/run/vm.sock: there is no export \"vda\"; the server has none");
}

#[test]
fn a_server_that_ends_anywhere_is_an_error() {
    let whole = sound().concat();
    for length in 0..whole.len() {
        let (outcome, _) = run(whole[..length].to_vec(), &[ALLOCATION, "qemu:dirty-bitmap:b"]);
        assert!(matches!(outcome, Err(NbdError::Ended { .. })), "{length} bytes: {outcome:?}");
    }
}

fn any_reply() -> impl Strategy<Value = Vec<u8>> {
    let option = prop::sample::select(vec![3_u32, 7, 8, 9, 10]);
    let kind = prop_oneof![0..6_u32, (1..12_u32).prop_map(|error| (1 << 31) + error), any::<u32>()];
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    (option, kind, payload, prop::option::weighted(0.2, any::<u32>())).prop_map(
        |(option, kind, payload, lie)| {
            let mut reply = option_reply(option, kind, &payload);
            if let Some(length) = lie {
                reply[16..20].copy_from_slice(&length.to_be_bytes());
            }
            reply
        },
    )
}

proptest! {
    #[test]
    fn no_handshake_panics_or_takes_much_memory(
        kept in 0..8_usize,
        replies in prop::collection::vec(any_reply(), 0..6),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let answers = [sound()[..kept].concat(), replies.concat(), noise].concat();
        let (_, script) = run(answers, &[ALLOCATION, "qemu:dirty-bitmap:b"]);
        prop_assert!(script.largest.get() <= 16 << 10);
    }
}
