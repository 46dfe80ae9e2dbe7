//! A raw disk into a pipe.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::{DiskOutput, Finished, RestoreError, check_bounds};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Passes a disk on as a stream of exactly its size. Data must come in ascending order; what is left out becomes zeros.
#[derive(Debug)]
pub struct StreamOutput<W> {
    name: PathBuf,
    size: u64,
    state: Mutex<State<W>>,
}

#[derive(Debug)]
struct State<W> {
    writer: W,
    position: u64,
    written: u64,
}

impl<W: Write + Send> StreamOutput<W> {
    /// Writes a disk of `size` bytes to `writer`; `name` stands for it in errors.
    pub fn new(writer: W, name: impl Into<PathBuf>, size: u64) -> Self {
        Self { name: name.into(), size, state: Mutex::new(State { writer, position: 0, written: 0 }) }
    }
}

impl<W: Write> State<W> {
    /// Writes zeros up to `end`.
    fn fill(&mut self, end: u64) -> io::Result<()> {
        while self.position < end {
            let length = (end - self.position).min(ZEROS.len() as u64);
            self.writer.write_all(&ZEROS[..length as usize])?;
            self.position += length;
        }
        Ok(())
    }
}

impl<W: Write + Send> DiskOutput for StreamOutput<W> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), RestoreError> {
        check_bounds(&self.name, self.size, offset, data.len() as u64)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < state.position {
            let (path, position) = (self.name.clone(), state.position);
            return Err(RestoreError::OutOfOrder { path, offset, position });
        }
        state
            .fill(offset)
            .and_then(|()| state.writer.write_all(data))
            .map_err(RestoreError::file("write to", &self.name))?;
        state.position += data.len() as u64;
        state.written += data.len() as u64;
        Ok(())
    }

    fn ascending(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>) -> Result<Finished, RestoreError> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state
            .fill(self.size)
            .and_then(|()| state.writer.flush())
            .map_err(RestoreError::file("write to", &self.name))?;
        Ok(Finished { size: self.size, written: state.written })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Disk;
    use super::*;

    #[test]
    fn gaps_become_zeros() {
        for (seed, size) in [(1, 0), (2, 4097), (3, (1 << 20) + 1)] {
            let disk = Disk::random(seed, size);
            let mut bytes = Vec::new();
            let output = StreamOutput::new(&mut bytes, "pipe", size);
            for &(offset, length) in &disk.sorted_pieces() {
                output.write_at(offset, disk.piece(offset, length)).unwrap();
            }
            Box::new(output).finish().unwrap();
            assert!(bytes == disk.bytes, "seed {seed}");
        }
    }

    #[test]
    fn what_comes_late_is_refused() {
        let output = StreamOutput::new(io::sink(), "pipe", 100);
        output.write_at(50, b"x").unwrap();
        let refused = output.write_at(50, b"y").unwrap_err();
        assert!(matches!(refused, RestoreError::OutOfOrder { offset: 50, position: 51, .. }), "{refused}");
        assert!(matches!(output.write_at(99, b"yz"), Err(RestoreError::OutOfBounds { .. })));
    }
}
