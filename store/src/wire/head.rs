//! What every binary message begins with, and reading fields from it.

use super::Wrong;

/// Bytes before the items.
pub(super) const HEAD: usize = 12;
const VERSION: u8 = 1;

/// Reads fields one after another.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

/// Begins a message of `count` items.
pub(super) fn begin(magic: [u8; 4], kind: u8, count: usize, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + capacity);
    out.extend_from_slice(&magic);
    out.extend_from_slice(&[VERSION, kind, 0, 0]);
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    out
}

impl<'a> Reader<'a> {
    /// Reads the head of a message called `what`, of which there is one kind; gives how many items follow.
    pub(super) fn open(what: &'static str, magic: [u8; 4], bytes: &'a [u8]) -> Result<(Self, usize), Wrong> {
        match Self::open_kinds(what, magic, bytes)? {
            (reader, 0, count) => Ok((reader, count)),
            _ => Err(format!("reserved bytes of {what} are not zero")),
        }
    }

    /// The same for a message of several kinds; gives which it is, too.
    pub(super) fn open_kinds(
        what: &'static str,
        magic: [u8; 4],
        bytes: &'a [u8],
    ) -> Result<(Self, u8, usize), Wrong> {
        let mut reader = Self { rest: bytes, what };
        if reader.take::<4>()? != magic {
            return Err(format!("this is no message of {what}"));
        }
        let [version, kind, zero, also_zero] = reader.take()?;
        if version != VERSION {
            return Err(format!("{what} have version {version}; this build knows {VERSION}"));
        }
        if (zero, also_zero) != (0, 0) {
            return Err(format!("reserved bytes of {what} are not zero"));
        }
        let count = u32::from_le_bytes(reader.take()?) as usize;
        Ok((reader, kind, count))
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(*field)
    }

    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], Wrong> {
        let (slice, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(slice)
    }

    /// Fails if fewer bytes are left than `count` items of at least `smallest` bytes take: before room is made for them.
    pub(super) fn expect_at_least(&self, count: usize, smallest: usize) -> Result<(), Wrong> {
        match count.checked_mul(smallest) {
            Some(needed) if needed <= self.rest.len() => Ok(()),
            _ => Err(self.short()),
        }
    }

    /// Fails if anything is left.
    pub(super) fn finish(self) -> Result<(), Wrong> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(format!("{left} bytes follow the {}", self.what)),
        }
    }

    fn short(&self) -> Wrong {
        format!("the {} are cut off", self.what)
    }
}
