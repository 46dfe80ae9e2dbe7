//! The worker threads: from bytes of packs to verified chunks in the output.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;
use underlay_store::Error;
use underlay_store::id::ChunkId;
use underlay_store::pack::{ChunkDecoder, Header, PackId, PackKind, parse_frame};
use underlay_store::restore::{PackRead, Wanted, frame_range};

use super::fetch::{Engine, Fetched};
use super::gather::Gathered;
use super::walk::Place;
use super::{DiskOutput, RestoreError};

/// Bytes of zeros handed to an output at once, so that it can be stopped between two.
const ZERO_STEP: u64 = 1 << 30;

/// Work that occupies a thread. Whoever sent it waits for the reply.
pub(super) enum Job {
    /// Decode what a read gave and hand it on.
    Decode {
        read: PackRead,
        bytes: Bytes,
        header: Arc<Header>,
        window: Arc<Fetched>,
        reply: Reply<Vec<Failure>>,
    },
    /// Tell the output where the window has zeros.
    Zeros { window: Arc<Fetched>, reply: Reply<()> },
    /// Write a window whose chunks were held back, in ascending order.
    WriteHeld { window: Arc<Fetched>, reply: Reply<()> },
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, RestoreError>>;

/// A chunk that one of its copies did not give.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) wanted: Wanted,
    pub(super) error: Arc<Error>,
    /// Other chunks were asked for in the same read, and it was the read that failed.
    pub(super) shared_read: bool,
}

/// Plaintext of chunks that wait for their turn.
pub(super) type Held = Mutex<HashMap<ChunkId, Vec<u8>>>;

/// What one worker thread keeps between jobs.
struct Worker<'e, 'a> {
    engine: &'e Engine<'a>,
    output: &'e dyn DiskOutput,
    decoder: ChunkDecoder,
    /// Empty between jobs.
    gathered: Gathered,
}

/// Works until the sender of `jobs` is gone.
pub(super) fn work(
    engine: &Engine<'_>,
    output: &dyn DiskOutput,
    decoder: ChunkDecoder,
    jobs: &Mutex<Receiver<Job>>,
) {
    let mut worker = Worker { engine, output, decoder, gathered: Gathered::default() };
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        // A reply that nobody waits for any more belongs to a restore that has failed.
        match job {
            Err(_) => return,
            Ok(Job::Decode { read, bytes, header, window, reply }) => {
                let outcome = worker.decode(&read, &bytes, &header, &window);
                // The reply allows another read: these bytes must be gone by then.
                drop(bytes);
                let _ = reply.send(outcome);
            }
            Ok(Job::Zeros { window, reply }) => {
                let _ = reply.send(worker.zeros(&window.window.zeros));
            }
            Ok(Job::WriteHeld { window, reply }) => {
                let _ = reply.send(worker.write_held(&window));
            }
        }
    }
}

impl Worker<'_, '_> {
    fn decode(
        &mut self,
        read: &PackRead,
        bytes: &[u8],
        header: &Header,
        window: &Fetched,
    ) -> Result<Vec<Failure>, RestoreError> {
        let mut failures = Vec::new();
        for wanted in &read.chunks {
            self.engine.check_cancelled()?;
            let places = window.window.places_of(&wanted.id);
            let Some(first) = places.first() else { continue };
            self.gathered.prepare(first.offset, first.length as usize, self.output)?;
            match self.decode_one(wanted, read, bytes, header, places) {
                Ok(()) => self.deliver(&wanted.id, places, window)?,
                Err(error) => {
                    failures.push(Failure { wanted: *wanted, error: Arc::new(error), shared_read: false });
                }
            }
        }
        self.gathered.write(self.output)?;
        Ok(failures)
    }

    /// Leaves the verified chunk in the room that was prepared for it.
    fn decode_one(
        &mut self,
        wanted: &Wanted,
        read: &PackRead,
        bytes: &[u8],
        header: &Header,
        places: &[Place],
    ) -> Result<(), Error> {
        let Wanted { id, location } = wanted;
        let pack = PackId::new(PackKind::Data, read.pack);
        let damaged = |what: &str| {
            Error::damaged(format!("chunk {id} ({pack}, offset {} bytes)", location.offset), what)
        };
        if places.windows(2).any(|pair| pair[0].length != pair[1].length) {
            return Err(damaged("the disk's tree gives it two lengths"));
        }
        let frame = frame_range(location);
        let frame = (frame.start - read.range.start) as usize..(frame.end - read.range.start) as usize;
        let frame = bytes.get(frame).ok_or_else(|| damaged("it is cut off"))?;
        let frame = parse_frame(&pack, frame, &location.entry(*id.as_bytes()))?;
        let key = self.engine.data_key(header.key_of(&pack, &frame)?)?;
        self.decoder.decode_into(&pack, &key, &frame, id, self.gathered.room())
    }

    /// Hands the chunk in the room on.
    fn deliver(&mut self, id: &ChunkId, places: &[Place], window: &Fetched) -> Result<(), RestoreError> {
        let plain = self.gathered.room();
        let bytes = places.len() as u64 * plain.len() as u64;
        self.engine.delivered(plain.len() as u64, bytes);
        match &window.held {
            Some(held) => {
                held.lock().unwrap_or_else(PoisonError::into_inner).insert(*id, plain.to_vec());
            }
            None => {
                // Where it is repeated it has other neighbours.
                for place in &places[1..] {
                    self.output.write_at(place.offset, plain)?;
                }
                self.gathered.take();
                self.engine.progress().advance(bytes);
            }
        }
        Ok(())
    }

    fn zeros(&self, zeros: &[Range<u64>]) -> Result<(), RestoreError> {
        for range in zeros {
            let mut at = range.start;
            while at < range.end {
                self.engine.check_cancelled()?;
                let length = (range.end - at).min(ZERO_STEP);
                self.output.zero_range(at, length)?;
                at += length;
            }
            self.engine.progress().advance(range.end - range.start);
        }
        Ok(())
    }

    fn write_held(&self, window: &Fetched) -> Result<(), RestoreError> {
        let Some(held) = &window.held else { return Ok(()) };
        let held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places = window.window.places.clone();
        places.sort_unstable_by_key(|place| place.offset);
        for place in places {
            self.engine.check_cancelled()?;
            // A chunk that was not delivered is lost, and the output is to have a hole there.
            let Some(plain) = held.get(&place.id) else { continue };
            debug_assert_eq!(plain.len(), place.length as usize);
            self.output.write_at(place.offset, plain)?;
            self.engine.progress().advance(u64::from(place.length));
        }
        self.zeros(&window.window.zeros)
    }
}
