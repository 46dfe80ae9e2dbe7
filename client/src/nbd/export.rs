//! An open export: its size, its bytes, what its contexts say.

use std::io::BufReader;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::Traffic;
use super::connection::{Connection, Cut, Trouble};
use super::error::{Fault, NbdError, Peer};
use super::extents::Extents;
use super::handshake::{Context, negotiate};
use super::status::Descriptor;

const CONNECT: &str = "connect";
const READ: &str = "read";
const ASK: &str = "ask for the status";

/// Bytes of one request of a long read, if the server allows as many. Small enough that a read of 1 MiB keeps
/// several requests in flight, which a disk answers at once.
const PIECE: u32 = 256 << 10;
/// Requests of a long read that wait at one time. QEMU works on up to 16.
const DEPTH: usize = 8;
/// No patience at all means "for ever" to a socket.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(1);

/// One disk that a server on a unix socket exports, open for reading.
///
/// Works from many threads at once, one request of theirs after the other; a long read keeps several requests in
/// flight by itself. Dropping it takes leave of the server.
#[derive(Debug)]
pub struct Export {
    peer: Peer,
    size: u64,
    minimum: u32,
    cut: Cut,
    contexts: Vec<Context>,
    connection: Mutex<Connection<UnixStream>>,
}

impl Export {
    /// Connects to `socket` and opens `export` with all of `contexts`, such as [`super::ALLOCATION`] and
    /// [`super::dirty_bitmap`]. The empty name is a server's default export.
    ///
    /// `patience` is how long to wait for the server to take or send something, each time, from now to the end.
    ///
    /// # Errors
    /// No server there, no such export, a context that the server does not grant (with what it has), a server that
    /// is silent, ends early or does not keep to the protocol.
    pub fn connect(
        socket: &Path,
        export: &str,
        contexts: &[&str],
        patience: Duration,
    ) -> Result<Self, NbdError> {
        let patience = patience.max(SHORTEST_PATIENCE);
        let peer = Peer::new(socket, export, patience);
        let stream = connect_within(socket, patience).map_err(|fault| peer.error(CONNECT, None, fault))?;
        let mut stream = BufReader::new(stream);
        let agreed = negotiate(&mut stream, &peer, contexts)?;
        Ok(Self {
            peer,
            size: agreed.size,
            minimum: agreed.minimum,
            cut: Cut { piece: agreed.maximum.min(PIECE) as usize, depth: DEPTH },
            connection: Mutex::new(Connection::new(stream, &agreed)),
            contexts: agreed.contexts,
        })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` with the bytes at `offset`. Any alignment and any length; long reads are cut into requests.
    ///
    /// Zeros come over the socket like data: ask [`Export::extents`] for what need not be read.
    ///
    /// # Errors
    /// A range past the end, what the server reports, and whatever is wrong with its answer. What `buf` holds then
    /// is not known.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NbdError> {
        self.check_range(offset, buf.len() as u64)?;
        self.read_blocks(offset, buf)
            .map_err(|trouble| self.peer.error(READ, Some(trouble.offset), trouble.fault))
    }

    /// The whole disk as runs in which none of `contexts` changes: ascending, adjacent, merged, with as few
    /// requests as possible. After an error the iterator ends.
    ///
    /// # Errors
    /// A context that was not named to [`Export::connect`]. The items fail as [`Export::read_at`] does.
    pub fn extents<const N: usize>(&self, contexts: [&str; N]) -> Result<Extents<'_, N>, NbdError> {
        self.extents_within(contexts, 0..self.size)
    }

    /// [`Export::extents`] of a part of the disk, in bytes. Runs are cut at the ends of `range`.
    ///
    /// # Errors
    /// As [`Export::extents`]; also a range past the end.
    pub fn extents_within<const N: usize>(
        &self,
        contexts: [&str; N],
        range: Range<u64>,
    ) -> Result<Extents<'_, N>, NbdError> {
        const { assert!(N > 0, "the status of no context is no question") };
        self.check_range(range.start, range.end.saturating_sub(range.start))?;
        let mut indexes = [0; N];
        for (index, wanted) in indexes.iter_mut().zip(contexts) {
            *index = self.contexts.iter().position(|context| context.name == wanted).ok_or_else(|| {
                NbdError::ContextNotOpened {
                    socket: self.peer.socket.clone(),
                    export: self.peer.export.clone(),
                    context: wanted.to_owned(),
                }
            })?;
        }
        Ok(Extents::new(self, indexes, range))
    }

    /// What has been asked and received since the export was opened.
    pub fn traffic(&self) -> Traffic {
        self.connection().traffic
    }

    /// The smallest request in bytes. A power of two.
    pub(super) fn minimum(&self) -> u64 {
        u64::from(self.minimum)
    }

    pub(super) fn status(&self, offset: u64, length: u32) -> Result<Vec<Vec<Descriptor>>, NbdError> {
        self.connection().status(offset, length).map_err(|fault| self.status_error(offset, fault))
    }

    pub(super) fn status_error(&self, offset: u64, fault: Fault) -> NbdError {
        self.peer.error(ASK, Some(offset), fault)
    }

    /// A connection that a panic left in the middle of something says so itself.
    fn connection(&self) -> MutexGuard<'_, Connection<UnixStream>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let (socket, export) = (self.peer.socket.clone(), self.peer.export.clone());
        Err(NbdError::OutOfRange { socket, export, offset, length, size: self.size })
    }

    /// Reads what is not a whole block at either end into a block of its own.
    fn read_blocks(&self, offset: u64, buf: &mut [u8]) -> Result<(), Trouble> {
        let block = self.minimum as usize;
        let into = (offset % self.minimum()) as usize;
        let head = if into == 0 { 0 } else { (block - into).min(buf.len()) };
        let (head, rest) = buf.split_at_mut(head);
        self.read_part(offset - into as u64, into, head)?;
        let offset = offset + head.len() as u64;
        let (whole, tail) = rest.split_at_mut(rest.len() - rest.len() % block);
        if !whole.is_empty() {
            self.connection().read(offset, whole, self.cut)?;
        }
        self.read_part(offset + whole.len() as u64, 0, tail)
    }

    /// Fills `part` with what the block at `offset` holds from `into` on.
    fn read_part(&self, offset: u64, into: usize, part: &mut [u8]) -> Result<(), Trouble> {
        if part.is_empty() {
            return Ok(());
        }
        let mut block = vec![0; self.minimum as usize];
        self.connection().read(offset, &mut block, self.cut)?;
        part.copy_from_slice(&block[into..into + part.len()]);
        Ok(())
    }
}

/// A connection whose reads and writes give up after `patience`.
///
/// The system's own call has no time limit, and waits for as long as a server leaves its queue full. Its thread
/// ends when the call does.
fn connect_within(socket: &Path, patience: Duration) -> Result<UnixStream, Fault> {
    let (sender, receiver) = mpsc::channel();
    let path = socket.to_owned();
    thread::Builder::new()
        .name("nbd-connect".into())
        .spawn(move || sender.send(UnixStream::connect(path)))?;
    let stream = match receiver.recv_timeout(patience) {
        Ok(connected) => connected?,
        Err(RecvTimeoutError::Timeout) => return Err(Fault::Silent),
        Err(RecvTimeoutError::Disconnected) => return Err(Fault::Ended),
    };
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}
