//! From the server's first message to an open export.

use std::io::{BufReader, Read, Write};

use super::error::{Fault, NbdError, Peer};
use super::message::{self, GREETING, Information, LONGEST_NAME, OPTION_REPLY, OptionReply, answer, option};

/// Most bytes of one reply to an option: a name and a description, with room.
const LONGEST_REPLY: u32 = 4 * LONGEST_NAME as u32;
/// Most bytes of all replies to one option: tens of thousands of exports or bitmaps.
const MOST_REPLIES: u64 = 8 << 20;
/// Largest disk: offsets are signed in every server.
const LARGEST: u64 = i64::MAX as u64;
/// Largest smallest request that the protocol allows, in bytes.
const LARGEST_MINIMUM: u32 = 64 << 10;
/// Largest read that is asked for whatever a server allows, in bytes; and what every server allows that tells nothing.
const LARGEST_READ: u32 = 32 << 20;

const NEGOTIATE: &str = "negotiate";
const ASK_FOR_CONTEXTS: &str = "ask for contexts";
const OPEN: &str = "open it";

/// What client and server agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    /// Bytes of the disk, a multiple of `minimum`.
    pub size: u64,
    /// Every request starts and ends at a multiple of this. A power of two.
    pub minimum: u32,
    /// Most bytes of one read, a multiple of `minimum`.
    pub maximum: u32,
    /// Whether replies come in chunks.
    pub structured: bool,
    /// Whether reads may ask for an answer in one piece.
    pub unfragmented: bool,
    /// In the order in which they were asked for.
    pub contexts: Vec<Context>,
}

/// A granted context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    pub number: u32,
    pub name: String,
}

/// Negotiates up to the point where data can be read.
pub(super) fn negotiate<S: Read + Write>(
    stream: &mut BufReader<S>,
    peer: &Peer,
    contexts: &[&str],
) -> Result<Agreed, NbdError> {
    let mut handshake = Handshake { stream, peer };
    handshake.check_names(contexts)?;
    handshake.greet().map_err(|fault| peer.error(NEGOTIATE, None, fault))?;
    let structured = handshake
        .ask(option::STRUCTURED_REPLY, &[], |_, _| Fault::malformed("an answer where none fits"))
        .map_err(|fault| peer.error(NEGOTIATE, None, fault))?
        .is_none();
    let contexts = match contexts {
        [] => Vec::new(),
        // Statuses come in chunks only, so a server without those has none.
        [first, ..] if !structured => return Err(handshake.no_such_context(first, Vec::new())),
        wanted => handshake.set_contexts(wanted)?,
    };
    handshake.open(structured, contexts)
}

/// Why a server said no: its answer, and what it said.
struct Refusal {
    kind: u32,
    message: String,
}

struct Handshake<'a, S> {
    stream: &'a mut BufReader<S>,
    peer: &'a Peer,
}

impl<S: Read + Write> Handshake<'_, S> {
    fn check_names(&self, contexts: &[&str]) -> Result<(), NbdError> {
        if contexts.iter().chain([&self.peer.export.as_str()]).any(|name| name.len() > LONGEST_NAME) {
            let reason = format!("a name is longer than {LONGEST_NAME} bytes");
            return Err(self.refused(NEGOTIATE, reason));
        }
        Ok(())
    }

    fn greet(&mut self) -> Result<(), Fault> {
        let mut greeting = [0; GREETING];
        self.stream.read_exact(&mut greeting)?;
        let flags = message::client_flags(&greeting)?;
        Ok(self.stream.get_mut().write_all(&flags)?)
    }

    /// Sends one option and hands its answers to `take`, until the server says that it is done, or no.
    fn ask(
        &mut self,
        number: u32,
        data: &[u8],
        mut take: impl FnMut(u32, &[u8]) -> Result<(), Fault>,
    ) -> Result<Option<Refusal>, Fault> {
        self.stream.get_mut().write_all(&message::encode_option(number, data))?;
        let mut received = 0;
        loop {
            let mut header = [0; OPTION_REPLY];
            self.stream.read_exact(&mut header)?;
            let reply = OptionReply::decode(&header)?;
            if reply.option != number {
                return Fault::malformed(format!("option {number} was answered as {}", reply.option));
            }
            received += header.len() as u64 + u64::from(reply.length);
            if reply.length > LONGEST_REPLY || received > MOST_REPLIES {
                return Fault::malformed(format!("option {number} was answered with {received} bytes"));
            }
            let mut payload = vec![0; reply.length as usize];
            self.stream.read_exact(&mut payload)?;
            match reply.kind {
                answer::ACK if payload.is_empty() => return Ok(None),
                answer::ACK => return Fault::malformed("a confirmation with a payload"),
                kind if kind & answer::ERROR != 0 => {
                    return Ok(Some(Refusal { kind, message: message::shown(&payload) }));
                }
                kind => take(kind, &payload)?,
            }
        }
    }

    fn set_contexts(&mut self, wanted: &[&str]) -> Result<Vec<Context>, NbdError> {
        let mut granted: Vec<Context> = Vec::new();
        let query = message::meta_query(&self.peer.export, wanted);
        let refusal = self
            .ask(option::SET_META_CONTEXT, &query, |kind, payload| {
                let (number, name) = context_of(kind, payload)?;
                let known = granted.iter().any(|context| context.number == number || context.name == name);
                if known || !wanted.contains(&name.as_str()) {
                    return Fault::malformed(format!("context {name:?} was granted twice or unasked"));
                }
                granted.push(Context { number, name });
                Ok(())
            })
            .map_err(|fault| self.peer.error(ASK_FOR_CONTEXTS, None, fault))?;
        match refusal {
            Some(Refusal { kind: answer::UNKNOWN, .. }) => return Err(self.no_such_export()),
            Some(Refusal { kind: answer::UNSUPPORTED, .. }) => {
                return Err(self.no_such_context(wanted[0], Vec::new()));
            }
            Some(refusal) => return Err(self.refused(ASK_FOR_CONTEXTS, reason(&refusal))),
            None => {}
        }
        let mut ordered = Vec::with_capacity(wanted.len());
        for name in wanted {
            match granted.iter().find(|context| context.name == *name) {
                Some(context) => ordered.push(context.clone()),
                None => {
                    let available = self.list_contexts()?;
                    return Err(self.no_such_context(name, available));
                }
            }
        }
        Ok(ordered)
    }

    /// Everything that the server has for this export.
    fn list_contexts(&mut self) -> Result<Vec<String>, NbdError> {
        let mut available = Vec::new();
        let query = message::meta_query(&self.peer.export, &[]);
        self.ask(option::LIST_META_CONTEXT, &query, |kind, payload| {
            available.push(context_of(kind, payload)?.1);
            Ok(())
        })
        .map_err(|fault| self.peer.error(ASK_FOR_CONTEXTS, None, fault))?;
        Ok(available)
    }

    fn open(mut self, structured: bool, contexts: Vec<Context>) -> Result<Agreed, NbdError> {
        let (mut disk, mut minimum, mut maximum) = (None, 1, LARGEST_READ);
        let data = message::go(&self.peer.export);
        let refusal = self
            .ask(option::GO, &data, |kind, payload| {
                if kind != answer::INFO {
                    return Fault::malformed(format!("an answer of kind {kind} where information belongs"));
                }
                match Information::decode(payload)? {
                    Information::Export { size, unfragmented } => disk = Some((size, unfragmented)),
                    Information::BlockSizes { minimum: least, maximum: most } => {
                        (minimum, maximum) = (least, most);
                    }
                    Information::Other => {}
                }
                Ok(())
            })
            .map_err(|fault| self.peer.error(OPEN, None, fault))?;
        match refusal {
            Some(Refusal { kind: answer::UNKNOWN, .. }) => return Err(self.no_such_export()),
            Some(refusal) => return Err(self.refused(OPEN, reason(&refusal))),
            None => {}
        }
        let Some((size, unfragmented)) = disk else {
            let fault = Fault::Malformed("the size of the disk is missing".into());
            return Err(self.peer.error(OPEN, None, fault));
        };
        let maximum =
            check_sizes(size, minimum, maximum).map_err(|fault| self.peer.error(OPEN, None, fault))?;
        // Without chunks nothing is ever fragmented, and the flag is not allowed.
        let unfragmented = unfragmented && structured;
        Ok(Agreed { size, minimum, maximum, structured, unfragmented, contexts })
    }

    fn no_such_export(&mut self) -> NbdError {
        let mut available = Vec::new();
        // Only to say more: a server may keep its list to itself, and then the error is the same without it.
        let _ = self.ask(option::LIST, &[], |kind, payload| {
            if kind == answer::SERVER {
                available.push(message::listed_export(payload)?);
            }
            Ok(())
        });
        let (socket, export) = (self.peer.socket.clone(), self.peer.export.clone());
        NbdError::NoSuchExport { socket, export, available }
    }

    fn no_such_context(&self, context: &str, available: Vec<String>) -> NbdError {
        let (socket, export) = (self.peer.socket.clone(), self.peer.export.clone());
        NbdError::NoSuchContext { socket, export, context: context.to_owned(), available }
    }

    fn refused(&self, action: &'static str, reason: String) -> NbdError {
        let (socket, export) = (self.peer.socket.clone(), self.peer.export.clone());
        NbdError::Refused { socket, export, action, reason }
    }
}

fn context_of(kind: u32, payload: &[u8]) -> Result<(u32, String), Fault> {
    if kind != answer::META_CONTEXT {
        return Fault::malformed(format!("an answer of kind {kind} where a context belongs"));
    }
    message::meta_context(payload)
}

/// The most bytes that one read may have.
fn check_sizes(size: u64, minimum: u32, maximum: u32) -> Result<u32, Fault> {
    if !minimum.is_power_of_two() || minimum > LARGEST_MINIMUM || maximum < minimum {
        return Fault::malformed(format!("requests of {minimum} to {maximum} bytes"));
    }
    // The bytes past the last whole block could not be read, so a backup would lack them.
    if size > LARGEST || !size.is_multiple_of(u64::from(minimum)) {
        return Fault::malformed(format!("a disk of {size} bytes in blocks of {minimum}"));
    }
    let most = maximum.min(LARGEST_READ);
    Ok(most - most % minimum)
}

fn reason(refusal: &Refusal) -> String {
    let why = match refusal.kind - answer::ERROR {
        1 => "it is not supported",
        2 => "the server's policy forbids it",
        3 => "the server finds the request invalid",
        4 => "the server's platform cannot do it",
        5 => "the server wants TLS",
        7 => "the server is being shut down",
        8 => "the server wants block sizes to be respected",
        9 => "the request is too big",
        _ => "the server refuses",
    };
    if refusal.message.is_empty() { why.into() } else { format!("{why}: {:?}", refusal.message) }
}
