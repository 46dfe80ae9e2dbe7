//! A chain of layers, and the flattened disk that a guest sees through it.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::identity::LayerIdentity;
use super::paths::{Allowed, Opened, open_named};
use super::qcow2::Qcow2Layer;
use super::raw::RawLayer;
use super::{Extent, ExtentKind, Format, ImageError, OpenOptions, Place};

/// One image file of a chain, open for reading.
#[derive(Debug)]
pub struct Layer {
    kind: Kind,
    /// As it was when it was first asked for.
    identity: OnceLock<LayerIdentity>,
}

#[derive(Debug)]
enum Kind {
    Raw(RawLayer),
    Qcow2(Box<Qcow2Layer>),
}

impl Layer {
    fn opened(&self) -> &Opened {
        match &self.kind {
            Kind::Raw(raw) => &raw.opened,
            Kind::Qcow2(qcow2) => &qcow2.opened,
        }
    }

    /// The file's path, links resolved.
    pub fn path(&self) -> &Path {
        &self.opened().path
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match &self.kind {
            Kind::Raw(_) => Format::Raw,
            Kind::Qcow2(_) => Format::Qcow2,
        }
    }

    /// Bytes of guest address space.
    pub fn virtual_size(&self) -> u64 {
        match &self.kind {
            Kind::Raw(raw) => raw.virtual_size,
            Kind::Qcow2(qcow2) => qcow2.virtual_size(),
        }
    }

    fn current_identity(&self) -> Result<LayerIdentity, ImageError> {
        match &self.kind {
            Kind::Raw(raw) => raw.identity(),
            Kind::Qcow2(qcow2) => qcow2.identity(),
        }
    }

    /// What the layer was when this was first called; reads all of its map, none of its data.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn identity(&self) -> Result<LayerIdentity, ImageError> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity.clone());
        }
        let identity = self.current_identity()?;
        Ok(self.identity.get_or_init(|| identity).clone())
    }

    /// Where a run lies in this layer. `offset` is below its virtual size.
    fn place(&self, offset: u64, limit: u64) -> Result<(Place, u64), ImageError> {
        let limit = limit.min(self.virtual_size() - offset);
        match &self.kind {
            Kind::Raw(raw) => Ok(raw.place(offset, limit)),
            Kind::Qcow2(qcow2) => qcow2.place(offset, limit),
        }
    }
}

/// What reading a chain has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounters {
    /// Bytes of clusters read from files; of compressed ones, their compressed length.
    pub data_bytes: u64,
    /// Reads of clusters.
    pub data_reads: u64,
    /// Bytes of L1 and L2 tables read.
    pub metadata_bytes: u64,
}

/// The layers of one disk, base first. All files are open; reading is safe from many threads.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
    data_bytes: AtomicU64,
    data_reads: AtomicU64,
}

impl Chain {
    /// Opens the image at `path` and every layer below it.
    ///
    /// # Errors
    /// Anything about any layer that is damaged, unsupported or not allowed. No other file has been opened then.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        let format = options.format.or_else(|| by_ending(path)).ok_or(ImageError::UnknownFormat { path: path.to_owned() })?;
        let opened = open_named(path)?;
        let allowed = Allowed::new(&opened, &options.allow_dirs)?;
        let mut layers: Vec<Layer> = Vec::new();
        let mut next = Some((opened, format));
        while let Some((opened, format)) = next.take() {
            let bad_chain = |what: String| ImageError::Chain { path: path.to_owned(), what };
            if layers.iter().any(|layer| layer.opened().key == opened.key) {
                return Err(bad_chain(format!("comes back to {}", opened.path.display())));
            }
            if layers.len() == options.max_depth {
                return Err(bad_chain(format!("has more than {} layers", options.max_depth)));
            }
            let kind = match format {
                Format::Raw => Kind::Raw(RawLayer::new(opened)),
                Format::Qcow2 => {
                    let mut layer = Qcow2Layer::open(opened)?;
                    layer.open_data_file(&allowed)?;
                    next = below(&layer, &allowed)?;
                    Kind::Qcow2(Box::new(layer))
                }
            };
            layers.push(Layer { kind, identity: OnceLock::new() });
        }
        layers.reverse();
        Ok(Self { layers, data_bytes: AtomicU64::new(0), data_reads: AtomicU64::new(0) })
    }

    /// Number of layers: at least one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Layer `index`; 0 is the base.
    pub fn layer(&self, index: usize) -> &Layer {
        &self.layers[index]
    }

    /// Bytes of guest address space, as the guest sees them.
    pub fn virtual_size(&self) -> u64 {
        self.layers.last().map_or(0, Layer::virtual_size)
    }

    /// What reading has cost so far.
    pub fn counters(&self) -> ReadCounters {
        let metadata = self.layers.iter().map(|layer| match &layer.kind {
            Kind::Raw(_) => 0,
            Kind::Qcow2(qcow2) => qcow2.metadata_bytes(),
        });
        ReadCounters {
            data_bytes: self.data_bytes.load(Ordering::Relaxed),
            data_reads: self.data_reads.load(Ordering::Relaxed),
            metadata_bytes: metadata.sum(),
        }
    }

    /// Extents that layer `index` itself allocates: ascending, disjoint. What lies between them is the layer below's.
    ///
    /// # Errors
    /// None before the first item; items fail if the map is damaged.
    pub fn extents(&self, index: usize) -> Result<Extents<'_>, ImageError> {
        let layer = &self.layers[index];
        let (plain, compressed) = match &layer.kind {
            Kind::Raw(_) => (u64::MAX, u64::MAX),
            Kind::Qcow2(qcow2) => qcow2.limits(),
        };
        Ok(Extents { layer, at: 0, plain_left: plain, compressed_left: compressed })
    }

    /// Reads the flattened disk as seen at layer `index`.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read_at(&self, index: usize, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        let mut at = 0;
        while at < buffer.len() {
            let (layer, place, length) = self.find(index, offset + at as u64, (buffer.len() - at) as u64)?;
            let part = &mut buffer[at..at + length as usize];
            at += part.len();
            match (place, &self.layers[layer].kind) {
                (Place::Data(host), Kind::Raw(raw)) => self.read_data(&raw.opened, host, part)?,
                (Place::Data(host), Kind::Qcow2(qcow2)) => self.read_data(qcow2.data(), host, part)?,
                (Place::Compressed { host, length, within }, Kind::Qcow2(qcow2)) => {
                    let read = qcow2.read_compressed(host, length, within, part)?;
                    self.count(read);
                }
                _ => part.fill(0),
            }
        }
        Ok(())
    }

    /// Which parts of `[offset, offset + length)` of the flattened disk are zero without reading any data.
    ///
    /// # Errors
    /// If the map of a layer is damaged.
    pub fn map(&self, index: usize, offset: u64, length: u64) -> Result<Vec<Extent>, ImageError> {
        let (mut extents, mut at): (Vec<Extent>, u64) = (Vec::new(), offset);
        while at < offset + length {
            let (_, place, run) = self.find(index, at, offset + length - at)?;
            let kind = match place {
                Place::Data(_) | Place::Compressed { .. } => ExtentKind::Data,
                Place::Zero | Place::Below => ExtentKind::Zero,
            };
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.length += run,
                _ => extents.push(Extent { offset: at, length: run, kind }),
            }
            at += run;
        }
        Ok(extents)
    }

    /// Checks that every layer is still what it was when its identity was first taken.
    ///
    /// # Errors
    /// [`ImageError::Changed`] naming the first that is not.
    pub fn verify_unchanged(&self) -> Result<(), ImageError> {
        for layer in &self.layers {
            let changed = match layer.identity.get() {
                Some(before) => layer.current_identity().is_ok_and(|now| now != *before),
                None => false,
            };
            if changed {
                return Err(ImageError::Changed { path: layer.path().to_owned() });
            }
        }
        Ok(())
    }

    /// The layer and place that serve a run of the disk as seen at `index`, and the run's length, at most `limit`.
    fn find(&self, index: usize, offset: u64, mut limit: u64) -> Result<(usize, Place, u64), ImageError> {
        let mut at = index;
        loop {
            let layer = &self.layers[at];
            // Past its end a layer reads as zeros, whatever lies deeper.
            if offset >= layer.virtual_size() {
                return Ok((at, Place::Zero, limit));
            }
            let (place, length) = layer.place(offset, limit)?;
            limit = length;
            match (place, at.checked_sub(1)) {
                (Place::Below, Some(below)) => at = below,
                (Place::Below, None) => return Ok((at, Place::Zero, limit)),
                _ => return Ok((at, place, limit)),
            }
        }
    }

    fn count(&self, bytes: u64) {
        if bytes > 0 {
            self.data_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.data_reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads plain bytes; the last cluster of a file may be cut short, and is zeros from there on.
    fn read_data(&self, opened: &Opened, host: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        let there = opened.length.saturating_sub(host).min(buffer.len() as u64) as usize;
        let (data, tail) = buffer.split_at_mut(there);
        opened.file.read_exact_at(data, host).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => ImageError::Changed { path: opened.path.clone() },
            _ => ImageError::io(&opened.path, "read")(source),
        })?;
        tail.fill(0);
        self.count(there as u64);
        Ok(())
    }
}

/// Iterator over what one layer allocates.
#[derive(Debug)]
pub struct Extents<'a> {
    layer: &'a Layer,
    at: u64,
    /// Bytes of plain data the file can still hold: a map that names more names some of them twice.
    plain_left: u64,
    /// Compressed clusters it can still hold.
    compressed_left: u64,
}

impl Extents<'_> {
    fn raw(&mut self, raw: &RawLayer) -> Result<Option<Extent>, ImageError> {
        let found = raw.next_data(self.at)?;
        self.at = found.map_or(u64::MAX, |(offset, length)| offset + length);
        Ok(found.map(|(offset, length)| Extent { offset, length, kind: ExtentKind::Data }))
    }

    fn aliased(&self) -> ImageError {
        ImageError::damaged(self.layer.path(), "L2 table", "names more clusters than the file can hold")
    }

    fn qcow2(&mut self, qcow2: &Qcow2Layer) -> Result<Option<Extent>, ImageError> {
        let size = qcow2.virtual_size();
        while let Some(at) = qcow2.next_table(self.at).filter(|&at| at < size) {
            let (place, length) = self.layer.place(at, size - at)?;
            self.at = at + length;
            let kind = match place {
                Place::Below => continue,
                Place::Zero => ExtentKind::Zero,
                Place::Data(_) => {
                    self.plain_left = self.plain_left.checked_sub(length).ok_or_else(|| self.aliased())?;
                    ExtentKind::Data
                }
                Place::Compressed { .. } => {
                    self.compressed_left = self.compressed_left.checked_sub(1).ok_or_else(|| self.aliased())?;
                    ExtentKind::Data
                }
            };
            return Ok(Some(Extent { offset: at, length, kind }));
        }
        self.at = u64::MAX;
        Ok(None)
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let layer = self.layer;
        let found = match &layer.kind {
            Kind::Raw(raw) => self.raw(raw),
            Kind::Qcow2(qcow2) => self.qcow2(qcow2),
        };
        if found.is_err() {
            self.at = u64::MAX;
        }
        found.transpose()
    }
}

fn by_ending(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "qcow2" => Some(Format::Qcow2),
        "raw" => Some(Format::Raw),
        _ => None,
    }
}

/// Opens the layer below, if there is one.
fn below(layer: &Qcow2Layer, allowed: &Allowed) -> Result<Option<(Opened, Format)>, ImageError> {
    let image = &layer.opened.path;
    let Some((named, format)) = layer.backing() else { return Ok(None) };
    let format = match format {
        Some("qcow2") => Format::Qcow2,
        Some("raw" | "file" | "host_device") => Format::Raw,
        None => return Err(ImageError::NoBackingFormat { image: image.clone(), named: named.to_owned() }),
        Some(other) => {
            return Err(ImageError::unsupported(image, "backing format", format!("{other:?} is neither qcow2 nor raw")));
        }
    };
    Ok(Some((allowed.open(image, named)?, format)))
}
