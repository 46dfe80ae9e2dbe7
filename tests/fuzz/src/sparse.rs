//! Files of mostly zeros, written down briefly: a disk image of 400 KiB becomes an input of some hundred bytes, and a
//! mutation mostly hits something that means something.
//!
//! An input holds up to three files. A file is its length (4 bytes, little-endian) and pieces: offset (4), then 2 bytes
//! whose low 15 bits are a length; if the top bit is set, one byte follows, which is repeated 16 times that length, else
//! the bytes themselves. A piece of length 0, or the input's end, ends the file. Any bytes mean something.

/// Files in one input.
pub const FILES: usize = 3;
/// No file is longer, in bytes.
pub const LONGEST: u32 = 4 << 20;

const REPEATED: u16 = 1 << 15;
/// A run of equal bytes this long is worth a piece of its own.
const WORTH: usize = 64;

/// The files that an input stands for.
pub fn unpack(mut input: &[u8]) -> [Vec<u8>; FILES] {
    [(); FILES].map(|()| unpack_one(&mut input))
}

fn unpack_one(input: &mut &[u8]) -> Vec<u8> {
    let length = take(input).map_or(0, u32::from_le_bytes) % (LONGEST + 1);
    let mut file = vec![0; length as usize];
    while let Some(offset) = take(input).map(u32::from_le_bytes) {
        let word = take(input).map_or(0, u16::from_le_bytes);
        let length = usize::from(word & !REPEATED);
        if length == 0 {
            break;
        }
        let room = file.get_mut(offset as usize..).unwrap_or_default();
        if word & REPEATED == 0 {
            let (piece, rest) = input.split_at(length.min(input.len()));
            *input = rest;
            room.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
        } else {
            let [value] = take(input).unwrap_or_default();
            room.iter_mut().take(length * 16).for_each(|to| *to = value);
        }
    }
    file
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (field, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*field)
}

/// Writes files down. [`unpack`] gives them back, and empty ones for those that are missing.
///
/// # Panics
/// If there are more than [`FILES`], or one is longer than [`LONGEST`].
pub fn pack(files: &[Vec<u8>]) -> Vec<u8> {
    assert!(files.len() <= FILES, "{} files", files.len());
    let mut input = Vec::new();
    for file in files {
        let length = u32::try_from(file.len()).expect("a short file");
        assert!(length <= LONGEST, "{length} bytes");
        input.extend(length.to_le_bytes());
        let mut at = 0;
        while at < file.len() {
            let same = file[at..].iter().take_while(|byte| **byte == file[at]).count();
            if same >= WORTH {
                if file[at] != 0 {
                    repeat(&mut input, at, same / 16, file[at]);
                }
                at += same / 16 * 16;
            } else {
                let length = literal(&file[at..]);
                input.extend((at as u32).to_le_bytes());
                input.extend((length as u16).to_le_bytes());
                input.extend(&file[at..at + length]);
                at += length;
            }
        }
        input.extend([0; 6]);
    }
    input
}

fn repeat(input: &mut Vec<u8>, mut at: usize, mut times: usize, value: u8) {
    while times > 0 {
        let now = times.min(0x7fff);
        input.extend((at as u32).to_le_bytes());
        input.extend((now as u16 | REPEATED).to_le_bytes());
        input.push(value);
        at += now * 16;
        times -= now;
    }
}

/// How long it goes on without a long run of equal bytes; at least 1.
fn literal(bytes: &[u8]) -> usize {
    let mut run = 0;
    for (at, byte) in bytes.iter().enumerate().take(0x7fff) {
        run = if at > 0 && bytes[at - 1] == *byte { run + 1 } else { 1 };
        if run == WORTH && at + 1 > WORTH {
            return at + 1 - WORTH;
        }
    }
    bytes.len().min(0x7fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_survive() {
        let mut first = vec![0; 1 << 20];
        first[100..300].fill(7);
        first[4096..].iter_mut().step_by(100_000).for_each(|byte| *byte = 9);
        first[500_000..580_000].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
        let second = vec![3; 1000];
        let packed = pack(&[first.clone(), second.clone()]);
        assert!(packed.len() < 82_000, "{}", packed.len());
        assert_eq!(unpack(&packed), [first, second, Vec::new()]);
        assert_eq!(unpack(&[]), [const { Vec::<u8>::new() }; FILES]);
    }
}
