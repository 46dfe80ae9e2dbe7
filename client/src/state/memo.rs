//! Memos: "this layer's flattened content is that root".

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use underlay_store::id::{RepositoryId, Root};

use super::StateError;
use crate::image::LayerIdentity;

/// What is known of one layer in one repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memo {
    /// The layer as it was when it was read.
    pub identity: LayerIdentity,
    /// Content of the layer below at that time; `None` for a base.
    pub below: Option<Root>,
    /// Content of the disk as seen at this layer.
    pub root: Root,
}

/// The memos of one repository, a small file each, named by device and inode.
#[derive(Debug)]
pub struct Memos {
    folder: PathBuf,
}

impl Memos {
    /// Opens the memos of `repository` below this host's state folder.
    pub fn new(state: &Path, repository: RepositoryId) -> Self {
        Self { folder: state.join("memos").join(repository.to_string()) }
    }

    fn path(&self, identity: &LayerIdentity) -> PathBuf {
        self.folder.join(format!("{:x}-{:x}.json", identity.device, identity.inode))
    }

    /// The root of the layer, if the layer and what lies below it are exactly what they were.
    ///
    /// # Errors
    /// If a memo exists and cannot be read. One that cannot be understood counts as none.
    pub fn get(&self, identity: &LayerIdentity, below: Option<&Root>) -> Result<Option<Root>, StateError> {
        let path = self.path(identity);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError { action: "read", path, source }),
        };
        let memo: Option<Memo> = serde_json::from_slice(&text).ok();
        Ok(memo
            .filter(|memo| memo.identity == *identity && memo.below.as_ref() == below)
            .map(|memo| memo.root))
    }

    /// Remembers. The file is replaced whole.
    ///
    /// # Errors
    /// If it cannot be written; what was there before is then still there.
    pub fn put(&self, memo: &Memo) -> Result<(), StateError> {
        let path = self.path(&memo.identity);
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        let write = || {
            fs::create_dir_all(&self.folder)?;
            let mut file = File::create(&partial)?;
            serde_json::to_writer(&mut file, memo)?;
            file.write_all(b"\n")?;
            fs::rename(&partial, &path)
        };
        write().map_err(|source| StateError { action: "write", path: path.clone(), source })
    }
}
