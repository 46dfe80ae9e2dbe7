//! Changes an input without knowing what it means: what a run without coverage can do.

use underlay_tests::images::Random;

/// Inputs grow no longer, in bytes.
const LONGEST: usize = 64 << 10;

/// Numbers at which counts and lengths go wrong.
const EDGES: [u64; 14] = [0, 1, 2, 7, 8, 63, 64, 127, 255, 256, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff];

/// One to six changes to `input`; `other` is another input of the same target, to take from.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(6) {
        change(input, other, random);
    }
    input.truncate(LONGEST);
}

fn change(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let length = input.len() as u64;
    if length == 0 {
        input.extend_from_slice(other);
        return;
    }
    let at = random.below(length) as usize;
    match random.below(12) {
        0 | 1 => input[at] ^= 1 << random.below(8),
        2 => input[at] = random.word() as u8,
        3 => input[at] = input[at].wrapping_add(if random.below(2) == 0 { 1 } else { 255 }),
        4 => number(input, at, random),
        5 => drop(input.drain(at..piece(at, input.len(), random))),
        6 => input.truncate(at),
        7 => {
            let copy = input[at..piece(at, input.len(), random)].to_vec();
            let to = random.below(length + 1) as usize;
            input.splice(to..to, copy);
        }
        8 => {
            let range = at..piece(at, input.len(), random);
            let to = random.below(length - range.len() as u64 + 1) as usize;
            input.copy_within(range, to);
        }
        9 => {
            let value = [0, 0xff, b' ', b'0', b'"'][random.below(5) as usize];
            let end = piece(at, input.len(), random);
            input[at..end].fill(value);
        }
        10 if !other.is_empty() => {
            let from = random.below(other.len() as u64) as usize;
            let copy = &other[from..piece(from, other.len(), random)];
            let end = if random.below(2) == 0 { at } else { (at + copy.len()).min(input.len()) };
            input.splice(at..end, copy.iter().copied());
        }
        _ => {
            let (upper, lower) = (input[at].to_ascii_uppercase(), input[at].to_ascii_lowercase());
            input[at] = if input[at] == lower { upper } else { lower };
        }
    }
}

/// The end of a piece from `at`: mostly a short one.
fn piece(at: usize, end: usize, random: &mut Random) -> usize {
    let longest = [1, 4, 8, 32, 96, 1024, 65536][random.below(7) as usize];
    at + 1 + random.below(longest.min(end - at) as u64) as usize
}

/// A number of 1, 2, 4 or 8 bytes in either order, mostly one at which something ends.
fn number(input: &mut [u8], at: usize, random: &mut Random) {
    let width = 1 << random.below(4);
    let at = at.min(input.len().saturating_sub(width));
    let room = &mut input[at..];
    let width = width.min(room.len());
    let room = &mut room[..width];
    let mut bytes = [0; 8];
    let big = random.below(2) == 0;
    for (to, from) in bytes.iter_mut().zip(room.iter()) {
        *to = *from;
    }
    let old = if big { u64::from_be_bytes(bytes) >> (64 - 8 * width) } else { u64::from_le_bytes(bytes) };
    let new = match random.below(5) {
        0 => old.wrapping_add(1 + random.below(16)),
        1 => old.wrapping_sub(1 + random.below(16)),
        2 => 1 << random.below(64),
        3 => random.word() >> random.below(64),
        _ => EDGES[random.below(EDGES.len() as u64) as usize],
    };
    let bytes = if big { (new << (64 - 8 * width)).to_be_bytes() } else { new.to_le_bytes() };
    room.copy_from_slice(&bytes[..width]);
}
