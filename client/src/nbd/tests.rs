//! The client against servers that are only bytes: sound ones, and ones that lie.

use std::cell::{Cell, RefCell};
use std::io::{self, BufReader, Cursor, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::error::{Fault, Peer};
use super::handshake::{Agreed, Context};
use super::message;

mod connection;
mod handshake;
mod pure;

/// A server whose every answer is known beforehand. Clones share what was sent and what was asked for.
#[derive(Debug, Clone)]
struct Script {
    answers: Cursor<Vec<u8>>,
    sent: Rc<RefCell<Vec<u8>>>,
    /// Most bytes that the client had room for at one time: what it took memory for.
    largest: Rc<Cell<usize>>,
}

impl Script {
    fn new(answers: Vec<u8>) -> Self {
        Self { answers: Cursor::new(answers), sent: Rc::default(), largest: Rc::default() }
    }

    /// The client's side, and the script to look at afterwards.
    fn stream(&self) -> BufReader<Script> {
        BufReader::new(self.clone())
    }
}

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.largest.set(self.largest.get().max(buf.len()));
        self.answers.read(buf)
    }
}

impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.sent.borrow_mut().extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn peer() -> Peer {
    Peer::new(Path::new("/run/vm.sock"), "vda", Duration::from_secs(5))
}

/// An export of `size` bytes with two contexts, numbered 7 and 8.
fn agreed(size: u64, structured: bool) -> Agreed {
    let context = |number, name: &str| Context { number, name: name.to_owned() };
    let contexts = vec![context(7, super::ALLOCATION), context(8, "qemu:dirty-bitmap:b")];
    Agreed { size, minimum: 1, maximum: 1 << 20, structured, unfragmented: structured, contexts }
}

fn greeting(flags: u16) -> Vec<u8> {
    [&b"NBDMAGICIHAVEOPT"[..], &flags.to_be_bytes()].concat()
}

fn option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let words = [option, kind, payload.len() as u32].map(u32::to_be_bytes).concat();
    [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &words, payload].concat()
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

fn chunk(done: bool, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    chunk_announcing(done, kind, cookie, payload.len() as u32, payload)
}

fn chunk_announcing(done: bool, kind: u16, cookie: u64, length: u32, payload: &[u8]) -> Vec<u8> {
    [
        &0x668e_33ef_u32.to_be_bytes()[..],
        &u16::from(done).to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
        payload,
    ]
    .concat()
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, length: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

fn descriptors(number: u32, runs: &[(u32, u32)]) -> Vec<u8> {
    let words = runs.iter().flat_map(|&(length, flags)| [length, flags]);
    std::iter::once(number).chain(words).flat_map(u32::to_be_bytes).collect()
}

fn error_payload(error: u32, message: &str, offset: Option<u64>) -> Vec<u8> {
    let length = (message.len() as u16).to_be_bytes();
    let offset = offset.map(|offset| offset.to_be_bytes().to_vec()).unwrap_or_default();
    [&error.to_be_bytes()[..], &length, message.as_bytes(), &offset].concat()
}

/// What a fault says, as the user reads it.
fn told(fault: Fault) -> String {
    peer().error("read", Some(0), fault).to_string()
}
