//! Compressed clusters.

use std::collections::VecDeque;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use crate::image::ImageError;
use crate::image::paths::Opened;

/// Bytes of decompressed clusters kept, but at least one cluster.
const CACHE: usize = 4 << 20;

/// Decompresses clusters and keeps the last few: readers come back for the rest of a large one.
#[derive(Debug)]
pub(super) struct Decompressed {
    cluster: usize,
    zstd: bool,
    recent: Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>,
}

impl Decompressed {
    pub fn new(cluster_bits: u32, zstd: bool) -> Self {
        Self { cluster: 1 << cluster_bits, zstd, recent: Mutex::default() }
    }

    /// Fills `buffer` with the cluster's bytes from `within` on. Returns bytes read from the file.
    pub fn read(&self, opened: &Opened, host: u64, length: u64, within: usize, buffer: &mut [u8]) -> Result<u64, ImageError> {
        let known = self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|(at, _)| *at == host).cloned();
        let (cluster, read) = match known {
            Some((_, cluster)) => (cluster, 0),
            None => {
                let (cluster, read) = self.load(opened, host, length)?;
                let cluster = Arc::new(cluster);
                let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
                recent.truncate((CACHE / self.cluster).max(1) - 1);
                recent.push_front((host, Arc::clone(&cluster)));
                (cluster, read)
            }
        };
        buffer.copy_from_slice(&cluster[within..within + buffer.len()]);
        Ok(read)
    }

    fn load(&self, opened: &Opened, host: u64, length: u64) -> Result<(Vec<u8>, u64), ImageError> {
        let mut packed = vec![0; length.min(opened.length - host) as usize];
        opened.file.read_exact_at(&mut packed, host).map_err(ImageError::io(&opened.path, "read"))?;
        let mut plain = vec![0; self.cluster];
        let whole = if self.zstd { unzstd(&packed, &mut plain) } else { inflate(&packed, &mut plain) };
        if !whole {
            let what = format!("at {host:#x} does not decompress to {} bytes", self.cluster);
            return Err(ImageError::damaged(&opened.path, "compressed cluster", what));
        }
        Ok((plain, packed.len() as u64))
    }
}

/// The stated length is an upper bound: what follows the stream is not ours.
fn unzstd(packed: &[u8], plain: &mut [u8]) -> bool {
    zstd::Decoder::with_buffer(packed).is_ok_and(|decoder| {
        let mut decoder = decoder.single_frame();
        decoder.window_log_max(27).is_ok() && decoder.read_exact(plain).is_ok()
    })
}

fn inflate(packed: &[u8], plain: &mut [u8]) -> bool {
    let mut state = Box::<DecompressorOxide>::default();
    let (status, _, written) = decompress(&mut state, packed, plain, 0, inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF);
    matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput) && written == plain.len()
}
