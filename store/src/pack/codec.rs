//! Chunks to frames and back: compress, encrypt, verify.

use std::fmt;
use std::io;

use zstd::bulk::{Compressor, Decompressor};

use super::layout::{Codec, FrameRef};
use super::{Frame, MAXIMUM_PLAIN_LENGTH, PackId};
use crate::id::{ChunkId, RepositoryId};
use crate::key::{BackupKey, DataKey};
use crate::{Error, Result};

/// The compression level that `ChunkEncoder` is measured for.
pub const DEFAULT_LEVEL: i32 = 3;

/// What a chunk's ciphertext is bound to: repository, id, codec, plain length.
fn associated(repository: &RepositoryId, id: &[u8; 32], codec: Codec, plain_length: u32) -> [u8; 53] {
    let mut aad = [0; 53];
    aad[..16].copy_from_slice(repository.as_bytes());
    aad[16..48].copy_from_slice(id);
    aad[48] = codec.as_byte();
    aad[49..].copy_from_slice(&plain_length.to_le_bytes());
    aad
}

/// Encodes chunks. One a thread: it keeps its compressor and buffers.
pub struct ChunkEncoder {
    repository: RepositoryId,
    compressor: Compressor<'static>,
    level: i32,
    verifier: Option<ChunkDecoder>,
    checked: Vec<u8>,
}

impl fmt::Debug for ChunkEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkEncoder").field("repository", &self.repository).finish_non_exhaustive()
    }
}

impl ChunkEncoder {
    /// An encoder that verifies what it encodes.
    ///
    /// # Errors
    /// [`Error::Invalid`] if Zstandard cannot be set up with this level.
    pub fn new(backup: &BackupKey, repository: RepositoryId, level: i32) -> Result<Self> {
        let compressor = Compressor::new(level).map_err(|error| level_refused(level, &error))?;
        let verifier = Some(ChunkDecoder::new(backup.clone(), repository)?);
        Ok(Self { repository, compressor, level, verifier, checked: Vec::new() })
    }

    /// Leaves out the verification. Bad memory will then end up in the repository.
    #[must_use]
    pub fn without_verification(mut self) -> Self {
        self.verifier = None;
        self
    }

    /// Compresses with another level from now on.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn set_level(&mut self, level: i32) -> Result<()> {
        if level != self.level {
            self.compressor.set_compression_level(level).map_err(|error| level_refused(level, &error))?;
            self.level = level;
        }
        Ok(())
    }

    /// Compresses if that makes the chunk smaller, encrypts, then decrypts, decompresses and hashes again.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the chunk is empty or longer than 2 MiB, [`Error::EncodeCheck`] if it does not decode to a
    /// chunk of this id.
    pub fn encode(&mut self, key: &DataKey, id: ChunkId, plain: &[u8]) -> Result<Frame> {
        let plain_length = u32::try_from(plain.len())
            .ok()
            .filter(|length| (1..=MAXIMUM_PLAIN_LENGTH).contains(length))
            .ok_or_else(|| Error::Invalid {
                what: "chunk length",
                value: plain.len().to_string(),
                rule: "1 byte to 2 MiB".into(),
            })?;
        let (codec, mut payload) = self.compress(plain)?;
        let nonce = key.seal(&associated(&self.repository, id.as_bytes(), codec, plain_length), &mut payload);
        let frame = Frame { key: key.id(), codec, plain_length, id, nonce, payload };
        if let Some(verifier) = &mut self.verifier {
            self.checked.resize(plain.len(), 0);
            verifier.open(key, &frame.as_frame_ref(), &mut self.checked).map_err(|_| Error::EncodeCheck)?;
        }
        Ok(frame)
    }

    fn compress(&mut self, plain: &[u8]) -> Result<(Codec, Vec<u8>)> {
        // Room for the tag: nothing grows while it is encrypted.
        let mut payload = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()) + 16);
        let compressed = self.compressor.compress_to_buffer(plain, &mut payload);
        let length = compressed.map_err(|_| Error::EncodeCheck)?;
        if length < plain.len() {
            payload.shrink_to(length + 16);
            return Ok((Codec::Zstd, payload));
        }
        payload.clear();
        payload.extend_from_slice(plain);
        Ok((Codec::None, payload))
    }
}

fn level_refused(level: i32, error: &io::Error) -> Error {
    Error::Invalid { what: "compression level", value: level.to_string(), rule: error.to_string() }
}

/// Decodes chunks. One a thread: it keeps its decompressor and buffer.
pub struct ChunkDecoder {
    backup: BackupKey,
    repository: RepositoryId,
    decompressor: Decompressor<'static>,
    compressed: Vec<u8>,
}

impl fmt::Debug for ChunkDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkDecoder").field("repository", &self.repository).finish_non_exhaustive()
    }
}

impl ChunkDecoder {
    /// A decoder; `backup` recomputes ids.
    ///
    /// # Errors
    /// [`Error::Invalid`] if Zstandard cannot be set up (memory).
    pub fn new(backup: BackupKey, repository: RepositoryId) -> Result<Self> {
        let decompressor = Decompressor::new().map_err(|error: io::Error| Error::Invalid {
            what: "decompressor",
            value: "zstd".into(),
            rule: error.to_string(),
        })?;
        Ok(Self { backup, repository, decompressor, compressed: Vec::new() })
    }

    /// Decrypts and decompresses into `out`, replacing what it held, and always recomputes the id. `id` and
    /// `plain_length` (bytes) are what the tree promises; `pack` is named in errors.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the frame is not this chunk, or anything in it was altered; `out` is empty then.
    pub fn decode(
        &mut self,
        pack: &PackId,
        key: &DataKey,
        frame: &FrameRef<'_>,
        id: &ChunkId,
        plain_length: u32,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        // No chunk is longer, whatever a tree says.
        out.resize(plain_length.min(MAXIMUM_PLAIN_LENGTH) as usize, 0);
        let result = self.decode_into(pack, key, frame, id, out);
        if result.is_err() {
            out.clear();
        }
        result
    }

    /// As [`Self::decode`], into memory of exactly the length (bytes) that the tree promises.
    ///
    /// # Errors
    /// As there; what is in `out` is not to be used then.
    pub fn decode_into(
        &mut self,
        pack: &PackId,
        key: &DataKey,
        frame: &FrameRef<'_>,
        id: &ChunkId,
        out: &mut [u8],
    ) -> Result<()> {
        let result = if frame.id != *id.as_bytes() {
            Err("its frame holds another chunk")
        } else if frame.plain_length as usize != out.len() {
            Err("its frame holds a chunk of another length")
        } else {
            self.open(key, frame, out)
        };
        result.map_err(|what| {
            Error::damaged(format!("chunk {id} ({pack}, offset {} bytes)", frame.offset), what)
        })
    }

    /// Into memory of the frame's plain length.
    fn open(&mut self, key: &DataKey, frame: &FrameRef<'_>, out: &mut [u8]) -> Result<(), &'static str> {
        let aad = associated(&self.repository, &frame.id, frame.codec, frame.plain_length);
        match frame.codec {
            Codec::None => {
                if !key.open_into(&frame.nonce, &aad, frame.payload, out) {
                    return Err("it does not decrypt");
                }
            }
            Codec::Zstd => {
                if !key.open(&frame.nonce, &aad, frame.payload, &mut self.compressed) {
                    return Err("it does not decrypt");
                }
                let length = self
                    .decompressor
                    .decompress_to_buffer(&self.compressed, out)
                    .map_err(|_| "it does not decompress to its length")?;
                if length != out.len() {
                    return Err("its plaintext has another length");
                }
            }
        }
        if self.backup.chunk_id(out).as_bytes() != &frame.id {
            return Err("its plaintext has another id");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::RestoreKey;

    #[test]
    fn an_encoder_takes_another_level() {
        let (key, repository) = (RestoreKey::generate(), RepositoryId::new([7; 16]));
        let (data_key, _) = key.backup().seal_data_key(&repository).unwrap();
        let number = |at: u32| (at.wrapping_mul(2_654_435_761) >> 22).to_string();
        let plain = (0..2000).map(number).collect::<Vec<_>>().join(" ").into_bytes();
        let id = key.backup().chunk_id(&plain);
        let mut encoder = ChunkEncoder::new(key.backup(), repository, 1).unwrap();
        let mut lengths = Vec::new();
        for level in [1, 19, 1] {
            encoder.set_level(level).unwrap();
            // It verifies what it encodes.
            lengths.push(encoder.encode(&data_key, id, &plain).unwrap().payload.len());
        }
        assert!(lengths[1] < lengths[0], "{lengths:?}");
        assert_eq!(lengths[0], lengths[2]);
    }
}
