//! What a disk is read from: files that nobody writes to, or a running machine that shows what its disk was at one moment.

use std::path::Path;
use std::time::Duration;

use underlay_store::id::Root;

use super::BackupError;
use crate::image::{Chain, Extent, ExtentKind};
use crate::nbd::{self, ALLOCATION, DIRTY, Export, ZERO};

/// How long a running machine may take to answer a request.
const PATIENCE: Duration = Duration::from_secs(120);

/// One disk of the VM.
#[derive(Debug)]
pub struct DiskSource {
    /// Its name in the snapshot, such as `vda`.
    pub name: String,
    /// Where its content is.
    pub content: DiskContent,
}

/// Where a disk's content is.
#[derive(Debug)]
pub enum DiskContent {
    /// Layers, none of which is written while the backup runs.
    Layers(Chain),
    /// An export that shows the disk as it was at one moment.
    Live(Box<LiveDisk>),
}

/// A disk that a running machine exports as it was at one moment, and what is known of it.
#[derive(Debug)]
pub struct LiveDisk {
    export: Export,
    /// What the disk held before, and the context that says what was written since.
    since: Option<(Root, String)>,
}

/// Extents that a source names, or why it cannot.
pub(super) type Extents<'a> = Box<dyn Iterator<Item = Result<Extent, BackupError>> + Send + 'a>;

impl LiveDisk {
    /// Opens the export `name` of the server at `socket`. `since` has what the disk held when the dirty bitmap was begun that the
    /// server exports under that name.
    ///
    /// # Errors
    /// Whatever keeps it from being opened.
    pub fn open(socket: &Path, name: &str, since: Option<(Root, &str)>) -> Result<Self, BackupError> {
        let since = since.map(|(root, bitmap)| (root, nbd::dirty_bitmap(bitmap)));
        let contexts: Vec<&str> =
            std::iter::once(ALLOCATION).chain(since.iter().map(|(_, context)| context.as_str())).collect();
        let export = Export::connect(socket, name, &contexts, PATIENCE)?;
        Ok(Self { export, since })
    }

    /// What the disk held before, if that is known.
    pub(super) fn since(&self) -> Option<Root> {
        self.since.as_ref().map(|(root, _)| *root)
    }

    /// Whether any of these bytes was written since.
    pub(super) fn is_dirty(&self, offset: u64, length: u64) -> Result<bool, BackupError> {
        let Some((_, context)) = &self.since else { return Ok(true) };
        for extent in self.export.extents_within([context.as_str()], offset..offset + length)? {
            if extent?.flags[0] & DIRTY != 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What was written since, as the bitmap says; without `since` all that is not zero for certain.
    pub(super) fn extents(&self, since: bool) -> Result<Extents<'_>, BackupError> {
        let (context, is_wanted): (&str, fn(u32) -> bool) = match &self.since {
            Some((_, context)) if since => (context, |flags| flags & DIRTY != 0),
            _ => (ALLOCATION, |flags| flags & ZERO == 0),
        };
        let extents = self.export.extents([context])?.filter_map(move |extent| match extent {
            Ok(extent) if is_wanted(extent.flags[0]) => {
                Some(Ok(Extent { offset: extent.offset, length: extent.length, kind: ExtentKind::Data }))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error.into())),
        });
        Ok(Box::new(extents))
    }
}

impl DiskContent {
    /// Bytes of the disk as seen at layer `index`; a live disk has one.
    pub(super) fn size(&self, index: usize) -> u64 {
        match self {
            Self::Layers(chain) => chain.layer(index).virtual_size(),
            Self::Live(live) => live.export.size(),
        }
    }

    /// What layer `index` itself allocates. Of a live disk, what may differ from `below`.
    pub(super) fn extents(&self, index: usize, below: Option<Root>) -> Result<Extents<'_>, BackupError> {
        match self {
            Self::Layers(chain) => {
                Ok(Box::new(chain.extents(index)?.map(|extent| extent.map_err(BackupError::from))))
            }
            Self::Live(live) => live.extents(below.is_some()),
        }
    }

    /// Fills `buf` with the bytes at `offset` of the disk as seen at layer `index`.
    pub(super) fn read_at(&self, index: usize, offset: u64, buf: &mut [u8]) -> Result<(), BackupError> {
        match self {
            Self::Layers(chain) => Ok(chain.read_at(index, offset, buf)?),
            Self::Live(live) => Ok(live.export.read_at(offset, buf)?),
        }
    }

    /// How many layers there are.
    pub(super) fn layers(&self) -> usize {
        match self {
            Self::Layers(chain) => chain.len(),
            Self::Live(_) => 1,
        }
    }

    /// Bytes of data that were read.
    pub(super) fn bytes_read(&self) -> u64 {
        match self {
            Self::Layers(chain) => chain.counters().data_bytes,
            Self::Live(live) => live.export.traffic().data_bytes,
        }
    }

    /// Proves that it is still what it was when it was opened. A live disk shows one moment, or nothing any more.
    pub(super) fn verify_unchanged(&self) -> Result<(), BackupError> {
        match self {
            Self::Layers(chain) => Ok(chain.verify_unchanged()?),
            Self::Live(_) => Ok(()),
        }
    }
}
