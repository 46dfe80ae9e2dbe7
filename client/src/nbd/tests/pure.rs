use proptest::prelude::*;

use super::*;
use crate::nbd::Extent;
use crate::nbd::filled::Filled;
use crate::nbd::status::{self, Descriptor};

fn run(length: u32, flags: u32) -> Descriptor {
    Descriptor { length, flags }
}

#[test]
fn only_the_last_run_reaches_further_than_asked() {
    let decode = |runs: &[(u32, u32)]| status::decode(&descriptors(7, runs), 1000, 100, 1200).map_err(told);
    assert_eq!(decode(&[(60, 1), (140, 0)]).unwrap(), (7, vec![run(60, 1), run(140, 0)]));
    assert!(decode(&[(100, 1), (1, 0)]).unwrap_err().contains("from offset 1100 on"));
    assert!(decode(&[(60, 1), (141, 0)]).unwrap_err().contains("up to offset 1201, past the end at 1200"));
    assert!(decode(&[(u32::MAX, 1)]).unwrap_err().contains("past the end"));
}

#[test]
fn contexts_are_joined_as_far_as_all_are_known() {
    let extent = |offset, length, flags| Extent { offset, length, flags };
    let allocation = [run(10, 0), run(10, 0), run(10, 3)];
    let dirty = [run(5, 1), run(20, 0)];
    assert_eq!(
        status::join(100, [&allocation, &dirty]),
        [extent(100, 5, [0, 1]), extent(105, 15, [0, 0]), extent(120, 5, [3, 0])]
    );
    assert_eq!(
        status::join(7, [&allocation]),
        [Extent { offset: 7, length: 20, flags: [0] }, Extent { offset: 27, length: 10, flags: [3] }]
    );
}

#[test]
fn scattered_answers_take_no_memory() {
    let mut filled = Filled::default();
    let refused =
        (0..10_000).find_map(|part| filled.add(2 * part, 2 * part + 1).err().map(|fault| (part, fault)));
    let (part, fault) = refused.unwrap();
    assert_eq!(part, 4096);
    assert!(told(fault).contains("scattered"));
}

#[test]
fn errors_say_what_to_do_next() {
    let missing = peer().error("connect", None, io::Error::from(io::ErrorKind::NotFound).into());
    assert_eq!(missing.to_string(), "/run/vm.sock: export \"vda\": cannot connect");
    assert!(missing.hint().unwrap().contains("no server listens at \"/run/vm.sock\""));
    let silent = peer().error("read", Some(9), io::Error::from(io::ErrorKind::WouldBlock).into());
    assert!(silent.to_string().ends_with("cannot read at offset 9: no answer within 5 s"), "{silent}");
    let ended = peer().error("read", Some(9), io::Error::from(io::ErrorKind::BrokenPipe).into());
    assert!(
        ended.to_string().ends_with("cannot read at offset 9: the server ended the connection"),
        "{ended}"
    );
}

proptest! {
    /// Against a plain table of which bytes have come.
    #[test]
    fn what_has_arrived_is_known(parts in prop::collection::vec((0..40_usize, 1..9_usize), 0..30)) {
        let mut filled = Filled::default();
        let mut table = [false; 48];
        for (start, length) in parts {
            let part = &mut table[start..start + length];
            prop_assert_eq!(filled.add(start, start + length).is_err(), part.contains(&true));
            if !part.contains(&true) {
                part.fill(true);
            }
        }
        prop_assert_eq!(filled.first_gap(48), table.iter().position(|come| !come));
    }

    /// Against a plain table of every byte's flags.
    #[test]
    fn joining_changes_no_flag(
        one in prop::collection::vec((1..6_u32, 0..2_u32), 0..12),
        two in prop::collection::vec((1..6_u32, 0..2_u32), 0..12),
    ) {
        let runs = |from: &[(u32, u32)]| from.iter().map(|&(l, f)| run(l, f)).collect::<Vec<_>>();
        let bytes = |from: &[(u32, u32)]| -> Vec<u32> {
            from.iter().flat_map(|&(length, flags)| vec![flags; length as usize]).collect()
        };
        let expected: Vec<_> = bytes(&one).into_iter().zip(bytes(&two)).map(|(a, b)| [a, b]).collect();
        let joined = status::join(50, [&runs(&one), &runs(&two)]);
        let found: Vec<_> =
            joined.iter().flat_map(|extent| vec![extent.flags; extent.length as usize]).collect();
        prop_assert_eq!(found, expected);
        prop_assert!(joined.windows(2).all(|pair| pair[0].end() == pair[1].offset && pair[0].flags != pair[1].flags));
        prop_assert!(joined.first().is_none_or(|first| first.offset == 50));
    }

    #[test]
    fn no_message_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = message::meta_context(&bytes);
        let _ = message::listed_export(&bytes);
        let _ = message::Information::decode(&bytes);
        let _ = message::error_chunk(0x8002, &bytes);
        let _ = status::decode(&bytes, 0, 100, 1000);
        if let Some(header) = bytes.first_chunk() {
            let _ = message::client_flags(header);
        }
        if let Some(header) = bytes.first_chunk() {
            let _ = message::OptionReply::decode(header);
        }
        if let Some(header) = bytes.first_chunk() {
            let _ = message::Reply::decode(header);
        }
    }
}
