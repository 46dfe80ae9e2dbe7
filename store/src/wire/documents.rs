//! Documents, byte for byte: their checksums are over their texts.

use bytes::Bytes;

use super::Wrong;
use super::head::{Reader, begin};
use crate::authority::StoredDocument;
use crate::document::MAXIMUM_LENGTH;

const DOCUMENTS: [u8; 4] = *b"ULdc";
/// No object's name is longer, in bytes.
const LONGEST_NAME: usize = 1024;

/// Writes documents with their names.
pub fn encode_documents(documents: &[StoredDocument]) -> Vec<u8> {
    let length = documents.iter().map(|document| 6 + document.name.len() + document.bytes.len()).sum();
    let mut out = begin(DOCUMENTS, 0, documents.len(), length);
    for document in documents {
        out.extend_from_slice(&u16::try_from(document.name.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(document.name.as_bytes());
        out.extend_from_slice(&u32::try_from(document.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&document.bytes);
    }
    out
}

/// Reads documents. They share the message's memory.
///
/// # Errors
/// What is wrong with it.
pub fn decode_documents(bytes: &Bytes) -> Result<Vec<StoredDocument>, Wrong> {
    let (mut reader, count) = Reader::open("documents", DOCUMENTS, bytes)?;
    reader.expect_at_least(count, 6)?;
    let mut documents = Vec::with_capacity(count);
    for _ in 0..count {
        let length = usize::from(u16::from_le_bytes(reader.take()?));
        if length > LONGEST_NAME {
            return Err(format!("a name of {length} bytes; none is longer than {LONGEST_NAME}"));
        }
        let name = std::str::from_utf8(reader.slice(length)?).map_err(|_| "a name is no text")?.to_owned();
        let length = u32::from_le_bytes(reader.take()?) as usize;
        // What is longer is damaged, and said to be so by whoever opens it.
        if length > 2 * MAXIMUM_LENGTH {
            return Err(format!("a document of {length} bytes"));
        }
        documents.push(StoredDocument { name, bytes: bytes.slice_ref(reader.slice(length)?) });
    }
    reader.finish()?;
    Ok(documents)
}
