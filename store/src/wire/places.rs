//! Where chunks lie.

use super::Wrong;
use super::head::{Reader, begin};
use crate::catalog::Location;
use crate::id::PackName;
use crate::pack::Codec;

const PLACES: [u8; 4] = *b"ULpl";
/// Bytes of one place.
const PLACE: usize = 48;

/// Writes every place of each chunk. No chunk lies in more than 65,535 packs; further places are left out.
pub fn encode_places(chunks: &[Vec<Location>]) -> Vec<u8> {
    let length = chunks.iter().map(|places| 2 + PLACE * places.len()).sum();
    let mut out = begin(PLACES, 0, chunks.len(), length);
    for places in chunks {
        let count = u16::try_from(places.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        for place in places.iter().take(usize::from(count)) {
            out.extend_from_slice(place.pack.as_bytes());
            out.extend_from_slice(&place.offset.to_le_bytes());
            out.extend_from_slice(&place.payload_length.to_le_bytes());
            out.extend_from_slice(&place.plain_length.to_le_bytes());
            out.extend_from_slice(&[place.codec.as_byte(), u8::from(place.retired), 0, 0]);
        }
    }
    out
}

/// Reads the places of `expected` chunks.
///
/// # Errors
/// What is wrong with it.
pub fn decode_places(bytes: &[u8], expected: usize) -> Result<Vec<Vec<Location>>, Wrong> {
    let (mut reader, count) = Reader::open("places", PLACES, bytes)?;
    if count != expected {
        return Err(format!("the places of {count} chunks came; {expected} were asked for"));
    }
    reader.expect_at_least(count, 2)?;
    let mut chunks = Vec::with_capacity(count);
    for _ in 0..count {
        let places = usize::from(u16::from_le_bytes(reader.take()?));
        reader.expect_at_least(places, PLACE)?;
        chunks.push((0..places).map(|_| place(&mut reader)).collect::<Result<_, _>>()?);
    }
    reader.finish()?;
    Ok(chunks)
}

fn place(reader: &mut Reader<'_>) -> Result<Location, Wrong> {
    let pack = PackName::new(reader.take()?);
    let offset = u32::from_le_bytes(reader.take()?);
    let payload_length = u32::from_le_bytes(reader.take()?);
    let plain_length = u32::from_le_bytes(reader.take()?);
    let [codec, retired, 0, 0] = reader.take()? else {
        return Err("reserved bytes of a place are not zero".to_owned());
    };
    let codec = Codec::from_byte(codec).ok_or("the codec of a place is unknown")?;
    let retired = match retired {
        0 => false,
        1 => true,
        _ => return Err("a place is neither retired nor not".to_owned()),
    };
    Ok(Location { pack, offset, payload_length, plain_length, codec, retired })
}
