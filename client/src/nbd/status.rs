//! What a server says of a range's blocks: decoded, checked and joined. Pure.

use super::Extent;
use super::error::Fault;
use super::message::Fields;

/// Most descriptors that one chunk may have, eight times what QEMU sends: 8 MiB.
pub(super) const MOST_DESCRIPTORS: usize = 1 << 20;
/// Bytes before the descriptors.
pub(super) const NUMBER: usize = 4;
/// Bytes of one descriptor.
pub(super) const DESCRIPTOR: usize = 8;

/// One run as the server describes it; where it starts follows from those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub length: u32,
    pub flags: u32,
}

/// Whether a chunk of `length` bytes can be one of descriptors. Looked at before memory is taken for it.
pub(super) fn check_length(length: usize) -> Result<(), Fault> {
    let descriptors = length.saturating_sub(NUMBER) / DESCRIPTOR;
    if length % DESCRIPTOR != NUMBER || descriptors == 0 || descriptors > MOST_DESCRIPTORS {
        return Fault::malformed(format!("a status of {length} bytes"));
    }
    Ok(())
}

/// The number of the context, and its runs from `offset` on, when `length` bytes were asked for.
///
/// They may end early. Only the last may reach further than asked, and none past the end of the disk, `size`.
pub(super) fn decode(
    payload: &[u8],
    offset: u64,
    length: u32,
    size: u64,
) -> Result<(u32, Vec<Descriptor>), Fault> {
    check_length(payload.len())?;
    let mut fields = Fields(payload);
    let number = fields.u32()?;
    let mut runs = Vec::with_capacity(fields.0.len() / DESCRIPTOR);
    let mut position = offset;
    while !fields.0.is_empty() {
        let run = Descriptor { length: fields.u32()?, flags: fields.u32()? };
        if run.length == 0 {
            return Fault::malformed(format!("a status of no bytes at offset {position}"));
        }
        if position >= offset + u64::from(length) {
            return Fault::malformed(format!("a status from offset {position} on, which was not asked for"));
        }
        position += u64::from(run.length);
        if position > size {
            return Fault::malformed(format!("a status up to offset {position}, past the end at {size}"));
        }
        runs.push(run);
    }
    Ok((number, runs))
}

/// The runs in which all contexts stay the same, from `offset` to where the first context's answer ends. Merged.
pub(super) fn join<const N: usize>(offset: u64, contexts: [&[Descriptor]; N]) -> Vec<Extent<N>> {
    let mut joined = Vec::new();
    let mut rests = contexts.map(|runs| (runs, 0_u64));
    let mut position = offset;
    loop {
        let mut flags = [0; N];
        let mut length = u64::MAX;
        for (context, (runs, used)) in rests.iter().enumerate() {
            let Some(run) = runs.first() else { return joined };
            flags[context] = run.flags;
            length = length.min(u64::from(run.length) - used);
        }
        append(&mut joined, Extent { offset: position, length, flags });
        position += length;
        for (runs, used) in &mut rests {
            *used += length;
            if runs.first().is_some_and(|run| u64::from(run.length) == *used) {
                *runs = &runs[1..];
                *used = 0;
            }
        }
    }
}

fn append<const N: usize>(extents: &mut Vec<Extent<N>>, extent: Extent<N>) {
    match extents.last_mut() {
        Some(last) if last.flags == extent.flags && last.end() == extent.offset => {
            last.length += extent.length;
        }
        _ => extents.push(extent),
    }
}
