//! Brings a growing file to the disk while more is written, so that little is left to wait for at its end.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes that gather before they are flushed. Kernels would wait for seconds, or for a tenth of all memory.
const STEP: u64 = 32 << 20;

/// Flushes in a thread of its own. The kernel tells of a failed write only once, to whoever flushes first: so the result of
/// [`Flusher::finish`] must be looked at, also if a later sync succeeds.
#[derive(Debug)]
pub(super) struct Flusher {
    waiting: AtomicU64,
    /// Both are there until it is finished.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Flusher {
    /// Starts the thread; it ends when this is finished or dropped.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (wake, woken) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("flush".into())
            .spawn(move || woken.iter().try_for_each(|()| file.sync_data()))?;
        Ok(Self { waiting: AtomicU64::new(0), wake: Some(wake), thread: Some(thread) })
    }

    /// Notes that this many bytes were written. Never waits for the disk.
    pub(super) fn wrote(&self, bytes: u64) {
        if self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes >= STEP
            && let Some(wake) = &self.wake
        {
            self.waiting.store(0, Ordering::Relaxed);
            // If a flush is under way and another one waits, that one takes this, too; a thread that failed is asked at the end.
            let _ = wake.try_send(());
        }
    }

    /// Ends the thread; what it found.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        drop(self.wake.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // Whoever drops it unfinished throws the file away.
        let _ = self.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn what_is_written_is_flushed() {
        let mut file = tempfile::tempfile().unwrap();
        let mut flusher = Flusher::new(&file).unwrap();
        for _ in 0..100 {
            file.write_all(&[7; 1000]).unwrap();
            flusher.wrote(STEP / 3);
        }
        flusher.finish().unwrap();
    }

    #[test]
    fn a_failed_flush_is_told_at_the_end() {
        // A pipe cannot be synced.
        let (_reader, writer) = io::pipe().unwrap();
        let mut flusher = Flusher::new(&File::from(OwnedFd::from(writer))).unwrap();
        flusher.wrote(STEP);
        assert_eq!(flusher.finish().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
