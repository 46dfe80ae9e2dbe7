//! SHA-256 of what is too long to hold.

use std::io::{self, Write};

use aws_lc_rs::digest::{Context, SHA256};

/// Takes bytes and gives their SHA-256: what `sha256sum` says of a file with them.
#[derive(Clone)]
pub struct Sha256(Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Sha256 {
    /// In lower-case hexadecimal.
    pub fn finish(self) -> String {
        hex::encode(self.0.finish())
    }
}

impl Write for Sha256 {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sha256")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sha_256() {
        let mut digest = Sha256::default();
        digest.write_all(b"a").unwrap();
        digest.write_all(b"bc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.finish(), expected);
    }
}
