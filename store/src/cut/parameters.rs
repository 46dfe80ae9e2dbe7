//! The cutter's parameters, fixed for a repository by its descriptor.

use serde::{Deserialize, Serialize};

use super::{BLOCK, REGION};
use crate::{Error, Result};

/// Where chunks may end. Sizes in bytes, multiples of [`BLOCK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CutParameters {
    /// No chunk ends by content before this many bytes.
    pub minimum: u32,
    /// Every chunk ends at this many bytes.
    pub maximum: u32,
    /// One block in 2^`mask_bits` ends a chunk that has reached the minimum.
    pub mask_bits: u8,
}

impl Default for CutParameters {
    fn default() -> Self {
        Self { minimum: 16 << 10, maximum: 96 << 10, mask_bits: 2 }
    }
}

impl CutParameters {
    /// Checks the rules of the format.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the rule that is broken.
    pub fn validate(&self) -> Result<()> {
        let aligned =
            |size: u32| size > 0 && (size as usize).is_multiple_of(BLOCK) && size as usize <= REGION;
        if aligned(self.minimum)
            && aligned(self.maximum)
            && self.minimum <= self.maximum
            && self.mask_bits <= 16
        {
            return Ok(());
        }
        Err(Error::Invalid {
            what: "chunk size",
            value: format!("{}..{} bytes, {} mask bits", self.minimum, self.maximum, self.mask_bits),
            rule: "sizes are multiples of 4096 up to 2 MiB, the minimum at most the maximum, mask bits at most 16".into(),
        })
    }
}
