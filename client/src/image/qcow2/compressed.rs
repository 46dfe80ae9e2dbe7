//! Decompresses one cluster.

use std::cell::RefCell;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress as inflate};
use zstd::bulk::Decompressor;
use zstd::zstd_safe;

use super::header::Compression;

thread_local! {
    static ZSTD: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Decompresses `input`, which may have anything after the stream's end, into exactly `output`.
pub(super) fn decompress(kind: Compression, input: &[u8], output: &mut [u8]) -> Result<(), String> {
    let written = match kind {
        Compression::Zlib => deflated(input, output)?,
        Compression::Zstd => zstandard(input, output)?,
    };
    if written != output.len() {
        return Err(format!("decompresses to {written} bytes instead of {}", output.len()));
    }
    Ok(())
}

fn deflated(input: &[u8], output: &mut [u8]) -> Result<usize, String> {
    let mut state = Box::<DecompressorOxide>::default();
    match inflate(&mut state, input, output, 0, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF) {
        (TINFLStatus::Done | TINFLStatus::HasMoreOutput, _, written) => Ok(written),
        (status, _, _) => Err(format!("the zlib stream is damaged ({status:?})")),
    }
}

fn zstandard(input: &[u8], output: &mut [u8]) -> Result<usize, String> {
    let damaged = |reason: String| format!("the zstd frame is damaged ({reason})");
    let length = zstd_safe::find_frame_compressed_size(input)
        .map_err(|code| damaged(zstd_safe::get_error_name(code).to_owned()))?;
    let frame = input.get(..length).ok_or_else(|| damaged("too short".into()))?;
    ZSTD.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new().map_err(|error| damaged(error.to_string()))?),
        };
        decompressor.decompress_to_buffer(frame, output).map_err(|error| damaged(error.to_string()))
    })
}
