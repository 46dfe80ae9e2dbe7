//! Encodings of tree nodes, as many as fit into one answer.

use bytes::Bytes;

use super::Wrong;
use super::head::{Reader, begin};
use crate::pack::MAXIMUM_PLAIN_LENGTH;

const NODES: [u8; 4] = *b"ULnd";

/// Writes the first of the nodes that were asked for.
pub fn encode_nodes(nodes: &[Bytes]) -> Vec<u8> {
    let length = nodes.iter().map(|node| 4 + node.len()).sum();
    let mut out = begin(NODES, 0, nodes.len(), length);
    for node in nodes {
        out.extend_from_slice(&u32::try_from(node.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(node);
    }
    out
}

/// Reads nodes: at least one, and at most as many as were asked for. They share the message's memory.
///
/// # Errors
/// What is wrong with it.
pub fn decode_nodes(bytes: &Bytes, asked: usize) -> Result<Vec<Bytes>, Wrong> {
    let (mut reader, count) = Reader::open("nodes", NODES, bytes)?;
    if count > asked || (count == 0 && asked > 0) {
        return Err(format!("{count} nodes came; {asked} were asked for"));
    }
    reader.expect_at_least(count, 4)?;
    let mut nodes = Vec::with_capacity(count);
    for _ in 0..count {
        let length = u32::from_le_bytes(reader.take()?);
        if length > MAXIMUM_PLAIN_LENGTH {
            return Err(format!("a node of {length} bytes; none is longer than {MAXIMUM_PLAIN_LENGTH}"));
        }
        nodes.push(bytes.slice_ref(reader.slice(length as usize)?));
    }
    reader.finish()?;
    Ok(nodes)
}
