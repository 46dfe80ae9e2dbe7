//! One image file of a chain.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Format;
use super::cache::BlockCache;
use super::error::ImageError;
use super::file::{Counters, ImageFile, Stat};
use super::qcow2::Qcow2;
use super::raw::Raw;

/// What a layer was when its chain was opened. Equal identities mean equal content of this layer's own file, as
/// far as the host can tell without reading the data.
///
/// A block device has no modification time to trust, so a layer on one has a new identity every time it is opened.
#[derive(Serialize, Deserialize, PartialEq, Eq, Clone, Debug)]
pub struct LayerIdentity {
    pub device: u64,
    pub inode: u64,
    /// Bytes of the file or block device, not of the virtual disk.
    pub size: u64,
    pub mtime_seconds: i64,
    pub mtime_nanos: u32,
    /// BLAKE3 over the header cluster, the active L1 table and the active L2 tables, and over what the host says
    /// of an external data file. Of a raw layer: over the constant `raw`. And over the time the file was made.
    pub metadata: [u8; 32],
}

/// One image file of a chain, open.
#[derive(Debug)]
pub struct Layer {
    content: Content,
    identity: LayerIdentity,
    /// Makes the identity of a layer on a block device unique to this opening.
    nonce: Option<[u8; 32]>,
}

#[derive(Debug)]
pub(super) enum Content {
    Raw(Raw),
    Qcow2(Box<Qcow2>),
}

/// What the layers of one chain share: the caches and the counters.
#[derive(Debug)]
pub(super) struct Shared {
    /// Blocks of L1 and L2 tables: at most 16 MiB.
    pub metadata: BlockCache,
    /// Decompressed clusters: at most 32 MiB.
    pub clusters: BlockCache,
    pub counters: Counters,
}

/// A run of a layer's disk that has one source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub length: u64,
    pub source: Source,
}

/// Where a layer has the bytes of a run. Offsets are bytes of the file that holds the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Nothing here: the layer below shows through.
    Unallocated,
    Zero,
    Data {
        host: u64,
    },
    /// One compressed cluster, of which the run is a part.
    Compressed {
        host: u64,
        length: u32,
    },
}

impl Source {
    /// Whether a run of `length` bytes from here goes on with `next`.
    pub(super) fn continues_as(self, length: u64, next: Source) -> bool {
        match (self, next) {
            (Self::Data { host }, Self::Data { host: next }) => host + length == next,
            (Self::Compressed { .. }, _) => false,
            (this, next) => this == next,
        }
    }
}

impl Layer {
    /// Takes the identity, which reads and checks all tables of the layer once.
    pub(super) fn new(content: Content) -> Result<Self, ImageError> {
        let on_device = content.files().any(|file| file.block_device);
        let nonce = on_device.then(random).transpose().map_err(|source| ImageError::Io {
            path: content.file().path.clone(),
            action: "get random bytes to identify",
            offset: None,
            guest_offset: None,
            source,
        })?;
        let mut layer = Self { identity: identity_of(content.file().stat, [0; 32]), content, nonce };
        layer.identity.metadata = layer.hash()?;
        Ok(layer)
    }

    /// The file's path: as the caller gave it, or as the image above names it, made relative to that image.
    pub fn path(&self) -> &Path {
        &self.content.file().path
    }

    pub fn format(&self) -> Format {
        match &self.content {
            Content::Raw(_) => Format::Raw,
            Content::Qcow2(_) => Format::Qcow2,
        }
    }

    /// Bytes of the layer's virtual disk: a multiple of 512.
    pub fn virtual_size(&self) -> u64 {
        match &self.content {
            Content::Raw(raw) => raw.virtual_size(),
            Content::Qcow2(qcow2) => qcow2.virtual_size(),
        }
    }

    /// What the layer was when it was opened. [`super::Chain::verify_unchanged`] proves that it still is.
    pub fn identity(&self) -> Result<LayerIdentity, ImageError> {
        Ok(self.identity.clone())
    }

    pub(super) fn verify_unchanged(&self) -> Result<(), ImageError> {
        for file in self.content.files() {
            if file.restat()? != file.stat {
                return Err(changed(file, "its size or modification time"));
            }
        }
        if self.hash()? != self.identity.metadata {
            return Err(changed(self.content.file(), "its header or mapping tables"));
        }
        Ok(())
    }

    /// See [`Qcow2::data_limit`].
    pub(super) fn data_limit(&self) -> Option<u64> {
        match &self.content {
            Content::Raw(_) => None,
            Content::Qcow2(qcow2) => qcow2.data_limit(),
        }
    }

    pub(super) fn run_at(&self, offset: u64, limit: u64) -> Result<Run, ImageError> {
        match &self.content {
            Content::Raw(raw) => raw.run_at(offset, limit),
            Content::Qcow2(qcow2) => qcow2.run_at(offset, limit),
        }
    }

    /// Like [`Layer::run_at`] for a caller that reads: does not ask where the holes of a raw file are.
    pub(super) fn readable_run_at(&self, offset: u64, limit: u64) -> Result<Run, ImageError> {
        match &self.content {
            Content::Raw(_) => Ok(Run { length: limit - offset, source: Source::Data { host: offset } }),
            Content::Qcow2(qcow2) => qcow2.run_at(offset, limit),
        }
    }

    pub(super) fn read_run(&self, source: Source, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        match &self.content {
            Content::Raw(raw) => raw.read(offset, buf),
            Content::Qcow2(qcow2) => qcow2.read_run(source, offset, buf),
        }
    }

    pub(super) fn damaged(&self, guest_offset: u64, problem: &str) -> ImageError {
        self.content.file().damaged(guest_offset, problem)
    }

    fn hash(&self) -> Result<[u8; 32], ImageError> {
        let mut hasher = blake3::Hasher::new();
        match &self.content {
            Content::Raw(_) => {
                hasher.update(b"raw");
            }
            Content::Qcow2(qcow2) => {
                qcow2.hash_metadata(&mut hasher)?;
                if let Some(data) = &qcow2.data {
                    hash_stat(&mut hasher, data.stat);
                }
            }
        }
        hash_birth(&mut hasher, self.content.file().stat);
        if let Some(nonce) = &self.nonce {
            hasher.update(nonce);
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

impl Content {
    fn file(&self) -> &ImageFile {
        match self {
            Self::Raw(raw) => &raw.file,
            Self::Qcow2(qcow2) => &qcow2.file,
        }
    }

    fn files(&self) -> impl Iterator<Item = &ImageFile> {
        let data = match self {
            Self::Raw(_) => None,
            Self::Qcow2(qcow2) => qcow2.data.as_ref(),
        };
        std::iter::once(self.file()).chain(data)
    }
}

fn identity_of(stat: Stat, metadata: [u8; 32]) -> LayerIdentity {
    LayerIdentity {
        device: stat.device,
        inode: stat.inode,
        size: stat.size,
        mtime_seconds: stat.mtime_seconds,
        mtime_nanos: stat.mtime_nanos,
        metadata,
    }
}

fn hash_stat(hasher: &mut blake3::Hasher, stat: Stat) {
    hasher.update(b"data file");
    hasher.update(&stat.device.to_le_bytes());
    hasher.update(&stat.inode.to_le_bytes());
    hasher.update(&stat.size.to_le_bytes());
    hasher.update(&stat.mtime_seconds.to_le_bytes());
    hasher.update(&stat.mtime_nanos.to_le_bytes());
    hash_birth(hasher, stat);
}

fn hash_birth(hasher: &mut blake3::Hasher, stat: Stat) {
    let since = |born: SystemTime| born.duration_since(SystemTime::UNIX_EPOCH).ok();
    if let Some(born) = stat.born.and_then(since) {
        hasher.update(b"born");
        hasher.update(&born.as_nanos().to_le_bytes());
    }
}

fn changed(file: &ImageFile, what: &'static str) -> ImageError {
    ImageError::Changed { path: file.path.clone(), what }
}

fn random() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}
