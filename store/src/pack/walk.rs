//! Walks a pack frame by frame: for a pack whose trailer is damaged.

use super::layout::FrameRef;
use super::{MAXIMUM_LENGTH, PackId};

/// What a walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk<'a> {
    /// Frames whose headers are sound, in order. Payloads are unchecked, except for nodes' checksums.
    pub frames: Vec<FrameRef<'a>>,
    /// Where no frame begins any more, in bytes: the trailer, or damage.
    pub end: u32,
    /// Why it ended there.
    pub reason: &'static str,
}

/// Reads one frame after another from `start` (bytes; the header's length) until none begins. Behind a damaged frame the
/// trailer, if it is sound, knows what follows; without one, what follows is lost.
pub fn walk_frames<'a>(pack: &PackId, start: u32, bytes: &'a [u8]) -> Walk<'a> {
    let mut walk = Walk { frames: Vec::new(), end: start, reason: "a pack is at most 64 MiB" };
    while walk.end < MAXIMUM_LENGTH {
        let rest = bytes.get(walk.end as usize..).unwrap_or_default();
        match FrameRef::read(pack.kind, walk.end, rest) {
            Ok(frame) => {
                walk.end = walk.end.saturating_add(frame.entry().frame_length());
                walk.frames.push(frame);
            }
            Err(reason) => {
                walk.reason = reason;
                break;
            }
        }
    }
    walk
}
