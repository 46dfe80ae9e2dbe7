//! Requests and replies on an open export.

use std::io::{BufReader, Read, Write};

use super::Traffic;
use super::error::Fault;
use super::filled::Filled;
use super::handshake::Agreed;
use super::message::{
    self, CHUNK_REST, DATA_OFFSET, HOLE, LONGEST_ERROR, Reply, Request, SIMPLE_REPLY, chunk, command,
};
use super::status::{self, Descriptor};

/// Most errors that one reply may report. One would do; QEMU never sends more.
const MOST_ERRORS: usize = 64;

/// A fault and the offset of the request that it struck, in bytes of the disk.
#[derive(Debug)]
pub(super) struct Trouble {
    pub offset: u64,
    pub fault: Fault,
}

/// How a long read is cut into requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Bytes of a request. Requests end at its multiples.
    pub piece: usize,
    /// Most requests that wait for their replies at one time.
    pub depth: usize,
}

/// A negotiated connection. After a fault that may leave requests and replies out of step, nothing more is sent.
#[derive(Debug)]
pub(super) struct Connection<S: Read + Write> {
    stream: BufReader<S>,
    structured: bool,
    unfragmented: bool,
    size: u64,
    numbers: Vec<u32>,
    last_cookie: u64,
    given_up: bool,
    pub traffic: Traffic,
}

/// A read whose reply has not come in whole.
struct Flight<'buf> {
    cookie: u64,
    offset: u64,
    buf: &'buf mut [u8],
    filled: Filled,
    errors: Errors,
}

/// What one reply reports to have failed: the first of it.
#[derive(Default)]
struct Errors {
    count: usize,
    first: Option<(Fault, Option<u64>)>,
}

impl<S: Read + Write> Connection<S> {
    pub(super) fn new(stream: BufReader<S>, agreed: &Agreed) -> Self {
        Self {
            stream,
            structured: agreed.structured,
            unfragmented: agreed.unfragmented,
            size: agreed.size,
            numbers: agreed.contexts.iter().map(|context| context.number).collect(),
            last_cookie: 0,
            given_up: false,
            traffic: Traffic::default(),
        }
    }

    /// Fills `buf` with the bytes at `offset`. Both ends must be multiples of the smallest request.
    pub(super) fn read(&mut self, offset: u64, buf: &mut [u8], cut: Cut) -> Result<(), Trouble> {
        if self.given_up {
            return Err(Trouble { offset, fault: Fault::GivenUp });
        }
        let mut flights = Vec::with_capacity(cut.depth);
        let outcome = self.fly(offset, buf, cut, &mut flights);
        if let Err(trouble) = &outcome {
            self.given_up |= trouble.fault.ends_the_connection();
        }
        outcome
    }

    fn fly<'buf>(
        &mut self,
        offset: u64,
        buf: &'buf mut [u8],
        cut: Cut,
        flights: &mut Vec<Flight<'buf>>,
    ) -> Result<(), Trouble> {
        let (mut next, mut rest) = (offset, buf);
        let mut failed = None;
        loop {
            // After a failure nothing more is asked, but what was asked is waited for: the connection stays in step.
            while flights.len() < cut.depth && !rest.is_empty() && failed.is_none() {
                let length = (cut.piece - (next % cut.piece as u64) as usize).min(rest.len());
                let (piece, after) = rest.split_at_mut(length);
                let cookie = self
                    .send(command::READ, next, length as u32)
                    .map_err(|fault| Trouble { offset: next, fault })?;
                let (filled, errors) = (Filled::default(), Errors::default());
                flights.push(Flight { cookie, offset: next, buf: piece, filled, errors });
                (next, rest) = (next + length as u64, after);
            }
            let Some(oldest) = flights.first() else {
                return failed.map_or(Ok(()), Err);
            };
            let waiting = oldest.offset;
            let landed = self.receive(flights).map_err(|fault| Trouble { offset: waiting, fault })?;
            if let Some(Flight { offset, errors: Errors { first: Some((fault, at)), .. }, .. }) = landed {
                failed.get_or_insert(Trouble { offset: at.unwrap_or(offset), fault });
            }
        }
    }

    /// What every context says of `length` bytes from `offset` on, in the order in which contexts were asked for.
    ///
    /// Each answer has at least one run, and may end before or after `length` bytes.
    pub(super) fn status(&mut self, offset: u64, length: u32) -> Result<Vec<Vec<Descriptor>>, Fault> {
        if self.given_up {
            return Err(Fault::GivenUp);
        }
        let outcome = self.ask_status(offset, length);
        if let Err(fault) = &outcome {
            self.given_up |= fault.ends_the_connection();
        }
        outcome
    }

    fn ask_status(&mut self, offset: u64, length: u32) -> Result<Vec<Vec<Descriptor>>, Fault> {
        let cookie = self.send(command::BLOCK_STATUS, offset, length)?;
        let mut answers = vec![Vec::new(); self.numbers.len()];
        let mut errors = Errors::default();
        loop {
            let (done, kind) = match self.reply()? {
                Reply::Simple { cookie: found, .. } | Reply::Chunk { cookie: found, .. }
                    if found != cookie =>
                {
                    return unasked(found);
                }
                Reply::Simple { error: 0, .. } => {
                    return Fault::malformed("a reply without a status");
                }
                Reply::Simple { error, .. } => return Err(failed(error, String::new())),
                Reply::Chunk { done, kind, .. } => (done, kind),
            };
            let payload = self.chunk_length()?;
            match kind {
                chunk::BLOCK_STATUS => {
                    status::check_length(payload)?;
                    let payload = self.payload(payload)?;
                    let (number, runs) = status::decode(&payload, offset, length, self.size)?;
                    match self.numbers.iter().position(|known| *known == number) {
                        Some(index) if answers[index].is_empty() => answers[index] = runs,
                        _ => return Fault::malformed(format!("context {number} came twice or unasked")),
                    }
                }
                kind => self.other_chunk(kind, payload, done, &mut errors)?,
            }
            if done {
                break;
            }
        }
        match errors.first {
            Some((fault, _)) => Err(fault),
            None if answers.iter().any(Vec::is_empty) => {
                Fault::malformed("the status of a context is missing")
            }
            None => Ok(answers),
        }
    }

    fn send(&mut self, command: u16, offset: u64, length: u32) -> Result<u64, Fault> {
        self.last_cookie += 1;
        let cookie = self.last_cookie;
        // QEMU answers a read that fails halfway through its fragments by ending the connection, without a word of
        // why. In one piece, it reports the error. Who reads knows where holes are and does not ask for them.
        let unfragmented = self.unfragmented && command == command::READ;
        let request = Request { unfragmented, command, cookie, offset, length };
        self.stream.get_mut().write_all(&request.encode())?;
        match command {
            command::READ => self.traffic.reads += 1,
            command::BLOCK_STATUS => self.traffic.statuses += 1,
            _ => {}
        }
        Ok(cookie)
    }

    /// Receives one chunk or simple reply, and returns the read that it completes.
    fn receive<'buf>(&mut self, flights: &mut Vec<Flight<'buf>>) -> Result<Option<Flight<'buf>>, Fault> {
        let reply = self.reply()?;
        let (Reply::Simple { cookie, .. } | Reply::Chunk { cookie, .. }) = reply;
        let Some(index) = flights.iter().position(|flight| flight.cookie == cookie) else {
            return unasked(cookie);
        };
        let flight = &mut flights[index];
        let done = match reply {
            Reply::Simple { error: 0, .. } if self.structured => {
                return Fault::malformed("a simple reply where chunks were agreed on");
            }
            Reply::Simple { error: 0, .. } => {
                self.stream.read_exact(flight.buf)?;
                flight.filled.add(0, flight.buf.len())?;
                self.traffic.data_bytes += flight.buf.len() as u64;
                true
            }
            Reply::Simple { error, .. } => {
                flight.errors.add(failed(error, String::new()), None)?;
                true
            }
            Reply::Chunk { done, kind, .. } => {
                let payload = self.chunk_length()?;
                match kind {
                    chunk::OFFSET_DATA => self.data(payload, flight)?,
                    chunk::OFFSET_HOLE => self.hole(payload, flight)?,
                    kind => self.other_chunk(kind, payload, done, &mut flight.errors)?,
                }
                done
            }
        };
        if !done {
            return Ok(None);
        }
        let flight = flights.remove(index);
        match flight.filled.first_gap(flight.buf.len()) {
            Some(gap) if flight.errors.first.is_none() => {
                Fault::malformed(format!("the bytes at offset {} are missing", flight.offset + gap as u64))
            }
            _ => Ok(Some(flight)),
        }
    }

    fn reply(&mut self) -> Result<Reply, Fault> {
        let mut header = [0; SIMPLE_REPLY];
        self.stream.read_exact(&mut header)?;
        let reply = Reply::decode(&header)?;
        if matches!(reply, Reply::Chunk { .. }) && !self.structured {
            return Fault::malformed("a chunk where simple replies were agreed on");
        }
        Ok(reply)
    }

    fn chunk_length(&mut self) -> Result<usize, Fault> {
        let mut length = [0; CHUNK_REST];
        self.stream.read_exact(&mut length)?;
        Ok(u32::from_be_bytes(length) as usize)
    }

    /// Every caller has bounded `length`.
    fn payload(&mut self, length: usize) -> Result<Vec<u8>, Fault> {
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        Ok(payload)
    }

    /// Straight into the caller's buffer, so a server cannot make memory grow.
    fn data(&mut self, payload: usize, flight: &mut Flight<'_>) -> Result<(), Fault> {
        let Some(length) = payload.checked_sub(DATA_OFFSET) else {
            return Fault::malformed(format!("data of {payload} bytes, its offset included"));
        };
        let mut offset = [0; DATA_OFFSET];
        self.stream.read_exact(&mut offset)?;
        let part = flight.part(u64::from_be_bytes(offset), length)?;
        self.stream.read_exact(part)?;
        self.traffic.data_bytes += length as u64;
        Ok(())
    }

    fn hole(&mut self, payload: usize, flight: &mut Flight<'_>) -> Result<(), Fault> {
        if payload != HOLE {
            return Fault::malformed(format!("a hole described in {payload} bytes"));
        }
        let mut bytes = [0; HOLE];
        self.stream.read_exact(&mut bytes)?;
        let (offset, length) = message::hole(&bytes)?;
        flight.part(offset, length as usize)?.fill(0);
        self.traffic.hole_bytes += u64::from(length);
        Ok(())
    }

    /// A chunk that any reply may have: none, or an error.
    fn other_chunk(
        &mut self,
        kind: u16,
        payload: usize,
        done: bool,
        errors: &mut Errors,
    ) -> Result<(), Fault> {
        match kind {
            chunk::NONE if done && payload == 0 => Ok(()),
            chunk::NONE => Fault::malformed("an empty chunk that is not the last, or not empty"),
            kind if kind & chunk::ERROR != 0 && payload <= LONGEST_ERROR => {
                let payload = self.payload(payload)?;
                let (error, message, at) = message::error_chunk(kind, &payload)?;
                errors.add(failed(error, message), at)
            }
            _ => Fault::malformed(format!("a chunk of kind {kind} and {payload} bytes")),
        }
    }
}

impl<S: Read + Write> Drop for Connection<S> {
    fn drop(&mut self) {
        if !self.given_up {
            // A courtesy: a server that is gone already does not need it.
            let _ = self.send(command::DISCONNECT, 0, 0);
        }
    }
}

impl Flight<'_> {
    /// Where `length` bytes for `offset` of the disk belong, noted as arriving.
    fn part(&mut self, offset: u64, length: usize) -> Result<&mut [u8], Fault> {
        let start = offset.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok());
        let end = start.and_then(|start| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if length > 0 && end <= self.buf.len() => {
                self.filled.add(start, end)?;
                Ok(&mut self.buf[start..end])
            }
            _ => Fault::malformed(format!("{length} bytes for offset {offset}, which were not asked for")),
        }
    }
}

impl Errors {
    fn add(&mut self, fault: Fault, at: Option<u64>) -> Result<(), Fault> {
        self.count += 1;
        if self.count > MOST_ERRORS {
            return Fault::malformed(format!("more than {MOST_ERRORS} errors for one request"));
        }
        self.first.get_or_insert((fault, at));
        Ok(())
    }
}

fn failed(error: u32, message: String) -> Fault {
    Fault::Failed { error, message }
}

fn unasked<T>(cookie: u64) -> Result<T, Fault> {
    Fault::malformed(format!("a reply to request {cookie}, which does not wait for one"))
}
