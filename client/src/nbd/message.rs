//! The bytes of the protocol: pure encoding and decoding, no I/O.
//!
//! Every number is big-endian. The names are those of the protocol's document, `doc/proto.md` of the NBD project.

use super::error::Fault;

/// Longest name of an export or a context that the protocol allows, in bytes.
pub(super) const LONGEST_NAME: usize = 4096;
/// Bytes of the server's first message.
pub(super) const GREETING: usize = 18;
/// Bytes before the payload of a reply to an option.
pub(super) const OPTION_REPLY: usize = 20;
/// Bytes of a simple reply, which a structured one also has at least.
pub(super) const SIMPLE_REPLY: usize = 16;
/// Bytes that a structured reply's header has more than a simple one's.
pub(super) const CHUNK_REST: usize = 4;
/// Bytes before the data of `OFFSET_DATA`.
pub(super) const DATA_OFFSET: usize = 8;
/// Bytes of an `OFFSET_HOLE`.
pub(super) const HOLE: usize = 12;
/// Most bytes of an error chunk: number, length of the message, message, offset.
pub(super) const LONGEST_ERROR: usize = 4 + 2 + LONGEST_NAME + 8;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The flag of a request that may not be answered in fragments.
const DF: u16 = 1 << 2;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const INFO_EXPORT: u16 = 0;
/// A flag of `INFO_EXPORT`; the others are about more than reading.
const SEND_DF: u16 = 1 << 7;
const INFO_BLOCK_SIZE: u16 = 3;

/// What a client asks before it reads.
pub(super) mod option {
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;
    pub(in super::super) const LIST_META_CONTEXT: u32 = 9;
    pub(in super::super) const SET_META_CONTEXT: u32 = 10;
}

/// What a server answers to an option.
pub(super) mod answer {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const META_CONTEXT: u32 = 4;
    /// Set in every answer that says no.
    pub(in super::super) const ERROR: u32 = 1 << 31;
    pub(in super::super) const UNSUPPORTED: u32 = ERROR + 1;
    pub(in super::super) const UNKNOWN: u32 = ERROR + 6;
}

/// What a client asks of an open export.
pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const DISCONNECT: u16 = 2;
    pub(in super::super) const BLOCK_STATUS: u16 = 7;
}

/// The kinds of chunks that a structured reply consists of.
pub(super) mod chunk {
    /// The flag of a reply's last chunk.
    pub(in super::super) const DONE: u16 = 1;
    pub(in super::super) const NONE: u16 = 0;
    pub(in super::super) const OFFSET_DATA: u16 = 1;
    pub(in super::super) const OFFSET_HOLE: u16 = 2;
    pub(in super::super) const BLOCK_STATUS: u16 = 5;
    /// Set in every kind that reports an error, also in kinds that do not exist yet.
    pub(in super::super) const ERROR: u16 = 1 << 15;
    pub(in super::super) const ERROR_OFFSET: u16 = ERROR + 2;
}

/// The flags that a client answers to the server's first message.
pub(super) fn client_flags(greeting: &[u8; GREETING]) -> Result<[u8; 4], Fault> {
    let mut fields = Fields(greeting);
    if fields.u64()? != NBD_MAGIC {
        return Fault::malformed("it does not start as an NBD server does");
    }
    if fields.u64()? != OPTION_MAGIC {
        return Fault::malformed("the server speaks the old style, which has neither exports nor contexts");
    }
    let flags = fields.u16()?;
    if flags & FIXED_NEWSTYLE == 0 {
        return Fault::malformed("the server does not speak the fixed new style");
    }
    Ok(u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes())
}

/// One option with its data.
pub(super) fn encode_option(number: u32, data: &[u8]) -> Vec<u8> {
    [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &length(data), data].concat()
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`. Without queries the first lists everything.
pub(super) fn meta_query(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = [&length(export.as_bytes()), export.as_bytes()].concat();
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend(length(query.as_bytes()));
        data.extend(query.as_bytes());
    }
    data
}

/// The data of `GO`, which also asks for the block sizes.
pub(super) fn go(export: &str) -> Vec<u8> {
    let name = export.as_bytes();
    [&length(name), name, &1_u16.to_be_bytes(), &INFO_BLOCK_SIZE.to_be_bytes()].concat()
}

/// Lengths are bounded by [`LONGEST_NAME`] before anything is encoded.
fn length(data: &[u8]) -> [u8; 4] {
    (data.len() as u32).to_be_bytes()
}

/// A reply to an option, before its payload of `length` bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub length: u32,
}

impl OptionReply {
    pub(super) fn decode(bytes: &[u8; OPTION_REPLY]) -> Result<Self, Fault> {
        let mut fields = Fields(bytes);
        if fields.u64()? != OPTION_REPLY_MAGIC {
            return Fault::malformed("a reply to an option has a wrong magic number");
        }
        Ok(Self { option: fields.u32()?, kind: fields.u32()?, length: fields.u32()? })
    }
}

/// Number and name of a granted or listed context.
pub(super) fn meta_context(payload: &[u8]) -> Result<(u32, String), Fault> {
    let mut fields = Fields(payload);
    let number = fields.u32()?;
    Ok((number, name(fields.0)?))
}

/// The name of a listed export. A description may follow, and is not looked at.
pub(super) fn listed_export(payload: &[u8]) -> Result<String, Fault> {
    let mut fields = Fields(payload);
    let length = fields.u32()? as usize;
    name(fields.bytes(length)?)
}

fn name(bytes: &[u8]) -> Result<String, Fault> {
    if bytes.len() > LONGEST_NAME {
        return Fault::malformed(format!("a name of {} bytes", bytes.len()));
    }
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// One piece of information about the export that is being opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Information {
    /// Bytes of the disk, and whether reads may ask for an answer in one piece.
    Export { size: u64, unfragmented: bool },
    /// Smallest and largest request for data, in bytes.
    BlockSizes { minimum: u32, maximum: u32 },
    /// Something that a reader does not need.
    Other,
}

impl Information {
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Fault> {
        let mut fields = Fields(payload);
        let found = match fields.u16()? {
            INFO_EXPORT => {
                let size = fields.u64()?;
                Self::Export { size, unfragmented: fields.u16()? & SEND_DF != 0 }
            }
            INFO_BLOCK_SIZE => {
                let minimum = fields.u32()?;
                fields.u32()?;
                Self::BlockSizes { minimum, maximum: fields.u32()? }
            }
            _ => return Ok(Self::Other),
        };
        fields.end()?;
        Ok(found)
    }
}

/// A request, which has no payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// A read is answered in one piece of data.
    pub unfragmented: bool,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    pub(super) fn encode(self) -> Vec<u8> {
        let flags = if self.unfragmented { DF } else { 0 };
        [
            &REQUEST_MAGIC.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ]
        .concat()
    }
}

/// A reply without its payload. Of a chunk, the last [`CHUNK_REST`] bytes, its length, are still to be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { done: bool, kind: u16, cookie: u64 },
}

impl Reply {
    pub(super) fn decode(bytes: &[u8; SIMPLE_REPLY]) -> Result<Self, Fault> {
        let mut fields = Fields(bytes);
        match fields.u32()? {
            SIMPLE_REPLY_MAGIC => Ok(Self::Simple { error: fields.u32()?, cookie: fields.u64()? }),
            STRUCTURED_REPLY_MAGIC => {
                let flags = fields.u16()?;
                Ok(Self::Chunk { done: flags & chunk::DONE != 0, kind: fields.u16()?, cookie: fields.u64()? })
            }
            other => Fault::malformed(format!("a reply starts with {other:#010x}")),
        }
    }
}

/// The payload of `OFFSET_HOLE`: offset and length in bytes.
pub(super) fn hole(payload: &[u8; HOLE]) -> Result<(u64, u32), Fault> {
    let mut fields = Fields(payload);
    Ok((fields.u64()?, fields.u32()?))
}

/// The payload of an error chunk: the protocol's number, a message, and where, if the kind tells.
pub(super) fn error_chunk(kind: u16, payload: &[u8]) -> Result<(u32, String, Option<u64>), Fault> {
    let mut fields = Fields(payload);
    let error = fields.u32()?;
    if error == 0 {
        return Fault::malformed("an error chunk without an error");
    }
    let length = usize::from(fields.u16()?);
    let message = shown(fields.bytes(length)?);
    let offset = if kind == chunk::ERROR_OFFSET { Some(fields.u64()?) } else { None };
    // Kinds that are not known yet may carry more.
    if kind <= chunk::ERROR_OFFSET {
        fields.end()?;
    }
    Ok((error, message, offset))
}

/// A message of the server, made safe to show: lossy UTF-8, at most 200 characters.
pub(super) fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().take(200).collect()
}

/// What is left of a message. Taking more than there is is an error, never a panic.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let Some((taken, rest)) = self.0.split_at_checked(length) else {
            return Fault::malformed(format!("{length} bytes announced where {} follow", self.0.len()));
        };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn end(&self) -> Result<(), Fault> {
        match self.0.len() {
            0 => Ok(()),
            more => Fault::malformed(format!("{more} bytes more than the message has")),
        }
    }
}
