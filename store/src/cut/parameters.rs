//! How a repository cuts disks into chunks; part of its descriptor.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where chunks may end. The same for every disk of a repository, for ever: other parameters, other chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutParameters {
    /// Bytes a chunk has before a block's hash may end it; a multiple of 4096.
    pub minimum: u32,
    /// Bytes that end a chunk in any case; a multiple of 4096, at most 2 MiB.
    pub maximum: u32,
    /// Low bits of a block's hash that must be zero to end a chunk; at most 16.
    pub mask_bits: u8,
}

impl Default for CutParameters {
    fn default() -> Self {
        Self { minimum: 16_384, maximum: 98_304, mask_bits: 2 }
    }
}

impl CutParameters {
    /// Checks the rules above.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the rule that is broken.
    pub fn validate(&self) -> Result<()> {
        let invalid = |what, value: u64, rule: &str| {
            Err(Error::Invalid { what, value: value.to_string(), rule: rule.into() })
        };
        if self.minimum == 0 || !self.minimum.is_multiple_of(4096) {
            return invalid("minimum chunk size", self.minimum.into(), "a positive multiple of 4096 bytes");
        }
        if !self.maximum.is_multiple_of(4096) || self.maximum > 2 << 20 {
            return invalid(
                "maximum chunk size",
                self.maximum.into(),
                "a multiple of 4096 bytes, at most 2 MiB",
            );
        }
        if self.maximum < self.minimum {
            return invalid("maximum chunk size", self.maximum.into(), "not less than the minimum");
        }
        if self.mask_bits > 16 {
            return invalid("number of mask bits", self.mask_bits.into(), "at most 16");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let cut =
            |minimum, maximum, mask_bits| CutParameters { minimum, maximum, mask_bits }.validate().is_ok();
        assert!(CutParameters::default().validate().is_ok());
        assert!(cut(4096, 4096, 0));
        assert!(cut(2 << 20, 2 << 20, 16));
        assert!(!cut(0, 4096, 2));
        assert!(!cut(4095, 8192, 2));
        assert!(!cut(4096, 8191, 2));
        assert!(!cut(8192, 4096, 2));
        assert!(!cut(4096, (2 << 20) + 4096, 2));
        assert!(!cut(4096, 8192, 17));
    }
}
