//! AES-256-GCM with random nonces: the only use of it in this crate.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Bytes a sealed text is longer than its plaintext.
pub const TAG_LENGTH: usize = 16;

/// An expanded AES-256-GCM key. The library wipes it when it is dropped.
pub struct Cipher(LessSafeKey);

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

impl Cipher {
    /// Expands a key.
    pub fn new(key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are an AES-256 key")))
    }

    /// Encrypts in place, appends the tag, and returns the fresh random nonce.
    pub fn seal(&self, aad: &[u8], buffer: &mut Vec<u8>) -> [u8; 12] {
        let nonce = super::random_bytes();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), buffer)
            .expect("a chunk is far below the cipher's limit");
        nonce
    }

    /// Decrypts into `out`, replacing what it held. False, and `out` empty, if anything was altered.
    pub fn open(&self, nonce: &[u8; 12], aad: &[u8], sealed: &[u8], out: &mut Vec<u8>) -> bool {
        // What it held is overwritten: only memory that it did not have is cleared first.
        out.resize(sealed.len().saturating_sub(TAG_LENGTH), 0);
        let opened = self.open_into(nonce, aad, sealed, out);
        if !opened {
            out.clear();
        }
        opened
    }

    /// Decrypts into `out`, which must have the plaintext's length. False, and nothing in `out` to be used, if it has another one or anything was
    /// altered.
    pub fn open_into(&self, nonce: &[u8; 12], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        let Some((ciphertext, tag)) = sealed.split_last_chunk::<TAG_LENGTH>() else {
            return false;
        };
        let nonce = Nonce::assume_unique_for_key(*nonce);
        out.len() == ciphertext.len()
            && self.0.open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, out).is_ok()
    }
}
