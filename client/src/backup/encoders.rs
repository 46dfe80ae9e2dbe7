//! Encoders, reused from batch to batch: each holds tables of a megabyte.

use std::sync::{Mutex, PoisonError};

use underlay_store::Error;
use underlay_store::id::ChunkId;
use underlay_store::key::DataKey;
use underlay_store::pack::{ChunkEncoder, Frame};

use super::Context;

/// Those that nobody uses at the moment.
#[derive(Default)]
pub(super) struct Encoders(Mutex<Vec<ChunkEncoder>>);

/// An encoder for as long as a thread needs it.
pub(super) struct Borrowed<'a> {
    home: &'a Encoders,
    /// There until it goes home.
    encoder: Option<ChunkEncoder>,
}

impl Encoders {
    /// An encoder for this backup that compresses with this level.
    pub fn borrow(&self, context: &Context<'_>, level: i32) -> Result<Borrowed<'_>, Error> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let encoder = match kept {
            Some(mut encoder) => {
                encoder.set_level(level)?;
                encoder
            }
            None => {
                let options = context.options;
                let repository = context.descriptor.repository;
                let encoder = ChunkEncoder::new(context.key, repository, level)?;
                if options.verify_encoding { encoder } else { encoder.without_verification() }
            }
        };
        Ok(Borrowed { home: self, encoder: Some(encoder) })
    }
}

impl Borrowed<'_> {
    pub fn encode(&mut self, key: &DataKey, id: ChunkId, plain: &[u8]) -> Result<Frame, Error> {
        match &mut self.encoder {
            Some(encoder) => encoder.encode(key, id, plain),
            None => Err(Error::EncodeCheck),
        }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).extend(self.encoder.take());
    }
}
