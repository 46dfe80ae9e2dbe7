//! A chain of layers, and the flattened disk that it shows.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::BlockCache;
use super::error::{ImageError, shown};
use super::file::{Counters, ImageFile, ReadCounters};
use super::layer::{Content, Layer, Run, Shared, Source};
use super::paths::{Allowed, open_named_by_caller, open_named_by_image, resolve};
use super::qcow2::{Qcow2, References};
use super::raw::Raw;
use super::{Extent, ExtentKind, Format, OpenOptions};

/// No chain is deeper than this, whatever the caller allows: reads recurse through the layers.
const DEEPEST: usize = 256;
/// For blocks of 16 KiB: 64 shards of 16 blocks.
const METADATA_CACHE: (usize, usize) = (64, 16 << 20);
/// For decompressed clusters: 4 shards of up to 16 clusters.
const CLUSTER_CACHE: (usize, usize) = (4, 32 << 20);

/// A chain of image files, opened read-only and checked. Layer 0 is the base.
///
/// Reading takes `&self` and works from many threads at once.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
    shared: Arc<Shared>,
}

impl Chain {
    /// Opens `path` and all that it is based on, and checks headers and L1 tables.
    ///
    /// # Errors
    /// Whatever is missing, refused or damaged, naming the file. Nothing outside the directories of `path` and
    /// `options.allow_dirs` is opened because an image says so.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        let format = match options.format {
            Some(format) => format,
            None => format_by_extension(path)?,
        };
        let allowed = Allowed::new(path, options)?;
        let shared = Arc::new(Shared {
            metadata: BlockCache::new(METADATA_CACHE.0, METADATA_CACHE.1),
            clusters: BlockCache::new(CLUSTER_CACHE.0, CLUSTER_CACHE.1),
            counters: Counters::default(),
        });
        let limit = options.max_depth.clamp(1, DEEPEST);
        let mut layers = Vec::new();
        let mut seen = HashSet::new();
        let mut next = Some((open_named_by_caller(path)?, format));
        while let Some((file, format)) = next {
            if !seen.insert((file.stat.device, file.stat.inode)) {
                return Err(ImageError::Loop { path: file.path });
            }
            if options.keep_writers_out {
                file.keep_writers_out()?;
            }
            file.refuse_if_written()?;
            if layers.len() == limit {
                return Err(ImageError::TooDeep { path: path.to_owned(), limit });
            }
            let (layer, below) = open_layer(file, format, layers.len() as u32, &shared, &allowed)?;
            layers.push(layer);
            next = below;
        }
        layers.reverse();
        Ok(Self { layers, shared })
    }

    /// Number of layers: at least 1. The base has index 0, the top `len() - 1`.
    #[expect(clippy::len_without_is_empty, reason = "a chain has at least one layer")]
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// The layer `index`.
    ///
    /// # Panics
    /// If `index >= self.len()`.
    pub fn layer(&self, index: usize) -> &Layer {
        &self.layers[index]
    }

    /// Bytes of the top layer's virtual disk: a multiple of 512.
    pub fn virtual_size(&self) -> u64 {
        self.layers.last().map_or(0, Layer::virtual_size)
    }

    /// The extents that layer `index` itself allocates: ascending, disjoint, coalesced, within its virtual size.
    ///
    /// What is absent shows the layer below, or zeros at layer 0. A raw layer's holes are absent. Reads a few
    /// table blocks at a time, whatever the size of the disk; after an error the iterator ends.
    ///
    /// # Errors
    /// Damaged tables, and tables whose plain clusters add up to more than the file has.
    pub fn extents(
        &self,
        index: usize,
    ) -> Result<impl Iterator<Item = Result<Extent, ImageError>> + Send, ImageError> {
        let layer = self.checked(index)?;
        Ok(Extents { layer, position: 0, plain: 0, pending: None, done: false })
    }

    /// Fills `buf` with the bytes at `offset` of the flattened disk that layers `0..=index` show: exactly what
    /// QEMU would read, zeros past the end of layer `index`.
    ///
    /// # Errors
    /// Damage and I/O errors, naming file and guest offset. `buf` then holds anything.
    pub fn read_at(&self, index: usize, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        self.checked(index)?;
        self.read_layer(index, offset, buf)
    }

    /// Which parts of `[offset, offset + length)` of the flattened disk at layer `index` are certainly zero, found
    /// without reading data. The extents are ascending and coalesced and cover exactly the range; past the end is
    /// zero.
    ///
    /// # Errors
    /// Damaged tables.
    pub fn map(&self, index: usize, offset: u64, length: u64) -> Result<Vec<Extent>, ImageError> {
        self.checked(index)?;
        let mut found = Vec::new();
        self.map_layer(index, offset, offset.saturating_add(length), &mut found)?;
        Ok(found)
    }

    /// What was read from files since the chain was opened.
    pub fn counters(&self) -> ReadCounters {
        self.shared.counters.snapshot()
    }

    /// Proves that no layer changed since the chain was opened: size, modification time, header and tables of
    /// every layer are read again.
    ///
    /// # Errors
    /// [`ImageError::Changed`] naming the file that did.
    pub fn verify_unchanged(&self) -> Result<(), ImageError> {
        self.layers.iter().try_for_each(Layer::verify_unchanged)
    }

    fn checked(&self, index: usize) -> Result<&Layer, ImageError> {
        let layers = self.layers.len();
        self.layers.get(index).ok_or_else(|| ImageError::NoSuchLayer {
            path: self.layers[layers - 1].path().to_owned(),
            index,
            layers,
        })
    }

    fn read_layer(&self, index: usize, mut offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        let layer = &self.layers[index];
        let inside = layer.virtual_size().saturating_sub(offset).min(buf.len() as u64);
        let (mut rest, past) = buf.split_at_mut(inside as usize);
        past.fill(0);
        while !rest.is_empty() {
            let Run { length, source } = layer.readable_run_at(offset, offset + rest.len() as u64)?;
            let (piece, after) = rest.split_at_mut(length as usize);
            match source {
                Source::Unallocated if index > 0 => self.read_layer(index - 1, offset, piece)?,
                source => layer.read_run(source, offset, piece)?,
            }
            offset += length;
            rest = after;
        }
        Ok(())
    }

    fn map_layer(
        &self,
        index: usize,
        mut offset: u64,
        end: u64,
        found: &mut Vec<Extent>,
    ) -> Result<(), ImageError> {
        let layer = &self.layers[index];
        let inside = end.min(layer.virtual_size());
        while offset < inside {
            let Run { length, source } = layer.run_at(offset, inside)?;
            match source {
                Source::Unallocated if index > 0 => {
                    self.map_layer(index - 1, offset, offset + length, found)?;
                }
                Source::Unallocated | Source::Zero => append(found, offset, length, ExtentKind::Zero),
                Source::Data { .. } | Source::Compressed { .. } => {
                    append(found, offset, length, ExtentKind::Data);
                }
            }
            offset += length;
        }
        if offset < end {
            append(found, offset, end - offset, ExtentKind::Zero);
        }
        Ok(())
    }
}

fn append(found: &mut Vec<Extent>, offset: u64, length: u64, kind: ExtentKind) {
    match found.last_mut() {
        Some(last) if last.kind == kind && last.end() == offset => last.length += length,
        _ => found.push(Extent { offset, length, kind }),
    }
}

/// The walk over one layer's tables.
#[derive(Debug)]
struct Extents<'chain> {
    layer: &'chain Layer,
    position: u64,
    /// Bytes of uncompressed data so far.
    plain: u64,
    pending: Option<Extent>,
    done: bool,
}

impl Extents<'_> {
    /// The next allocated run, not yet coalesced.
    fn step(&mut self) -> Result<Option<Extent>, ImageError> {
        let end = self.layer.virtual_size();
        while self.position < end {
            let offset = self.position;
            let Run { length, source } = self.layer.run_at(offset, end)?;
            self.position += length;
            let kind = match source {
                Source::Unallocated => continue,
                Source::Zero => ExtentKind::Zero,
                Source::Compressed { .. } => ExtentKind::Data,
                Source::Data { .. } => {
                    self.plain += length;
                    if self.layer.data_limit().is_some_and(|limit| self.plain > limit) {
                        let problem = "more clusters are allocated than the file holds; some are shared";
                        return Err(self.layer.damaged(offset, problem));
                    }
                    ExtentKind::Data
                }
            };
            return Ok(Some(Extent { offset, length, kind }));
        }
        Ok(None)
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            match self.step() {
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
                Ok(None) => self.done = true,
                Ok(Some(extent)) => match &mut self.pending {
                    Some(last) if last.kind == extent.kind && last.end() == extent.offset => {
                        last.length += extent.length;
                    }
                    pending => match pending.replace(extent) {
                        Some(complete) => return Some(Ok(complete)),
                        None => continue,
                    },
                },
            }
        }
        self.pending.take().map(Ok)
    }
}

type Below = Option<(ImageFile, Format)>;

fn open_layer(
    file: ImageFile,
    format: Format,
    number: u32,
    shared: &Arc<Shared>,
    allowed: &Allowed,
) -> Result<(Layer, Below), ImageError> {
    if format == Format::Raw {
        return Ok((Layer::new(Content::Raw(Raw { file, shared: Arc::clone(shared) }))?, None));
    }
    let path = file.path.clone();
    let open = |named: &[u8]| open_named_by_image(&path, named, &resolve(&path, named)?, allowed);
    let (qcow2, References { backing, backing_format }) =
        Qcow2::open(file, number, Arc::clone(shared), open)?;
    let below = match backing {
        None => None,
        Some(named) => {
            let format = recorded_format(&path, &named, backing_format.as_deref())?;
            Some((open(&named)?, format))
        }
    };
    Ok((Layer::new(Content::Qcow2(Box::new(qcow2)))?, below))
}

fn recorded_format(path: &Path, named: &[u8], recorded: Option<&[u8]>) -> Result<Format, ImageError> {
    let path: PathBuf = path.to_owned();
    match recorded {
        Some(b"raw") => Ok(Format::Raw),
        Some(b"qcow2") => Ok(Format::Qcow2),
        None | Some(b"") => Err(ImageError::BackingFormatNotRecorded { path, named: shown(named) }),
        Some(format) => {
            let format = shown(format);
            Err(ImageError::BackingFormatUnsupported { path, named: shown(named), format })
        }
    }
}

fn format_by_extension(path: &Path) -> Result<Format, ImageError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("qcow2") => Ok(Format::Qcow2),
        Some("raw") => Ok(Format::Raw),
        _ => Err(ImageError::FormatNotGiven { path: path.to_owned() }),
    }
}
