//! Image files on this host.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::hypervisor::Backing;
use crate::image::{Chain, Format, ImageError, LayerIdentity, OpenOptions, is_open_in_qemu};
use crate::state::{Memo, Memos};

use super::record::{Content, FileIdentity};
use super::{DomainError, FreeSpace, Layers};

/// Ending of a file that was set aside.
const STALE: &str = "stale";

/// The real files, and this host's memos.
#[derive(Debug)]
pub struct LocalLayers {
    state: PathBuf,
}

impl LocalLayers {
    /// Memos lie below the folder `state`.
    pub fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }
}

/// The format that libvirt names, among those that can be read.
///
/// # Errors
/// [`ImageError::Unsupported`] for all others.
pub(super) fn image_format(layer: &Backing) -> Result<Format, ImageError> {
    match layer.format.as_str() {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        other => Err(ImageError::Unsupported {
            path: layer.path.clone(),
            feature: format!("the format {other:?}"),
            hint: None,
        }),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DomainError {
    move |source| DomainError::File { action, path: path.to_owned(), source }
}

impl Layers for LocalLayers {
    fn exists(&self, path: &Path) -> Result<bool, DomainError> {
        fs::exists(path).map_err(failed("look for", path))
    }

    fn is_open(&self, path: &Path) -> Result<bool, DomainError> {
        is_open_in_qemu(path).map_err(failed("ask for locks on", path))
    }

    fn free_space(&self, folder: &Path) -> Result<FreeSpace, DomainError> {
        let device = fs::metadata(folder).map_err(failed("look at", folder))?.dev();
        let space = rustix::fs::statvfs(folder);
        let space = space.map_err(|errno| failed("find the free space of", folder)(errno.into()))?;
        Ok(FreeSpace { device, bytes: space.f_bavail * space.f_frsize })
    }

    fn identity(&self, layer: &Backing, chain: &BTreeSet<PathBuf>) -> Result<LayerIdentity, DomainError> {
        let options = OpenOptions {
            format: Some(image_format(layer)?),
            allow_files: chain.iter().cloned().collect(),
            ..OpenOptions::default()
        };
        let chain = Chain::open(&layer.path, &options)?;
        Ok(chain.layer(chain.len() - 1).identity()?)
    }

    fn file(&self, path: &Path) -> Result<FileIdentity, DomainError> {
        let found = fs::metadata(path).map_err(failed("look at", path))?;
        let born = found.created().ok().and_then(|born| born.duration_since(SystemTime::UNIX_EPOCH).ok());
        let born = born.map(|born| u64::try_from(born.as_nanos()).unwrap_or(u64::MAX));
        Ok(FileIdentity { path: path.to_owned(), device: found.dev(), inode: found.ino(), born })
    }

    fn flush(&self, path: &Path) -> Result<(), DomainError> {
        fs::File::open(path).and_then(|file| file.sync_all()).map_err(failed("flush", path))
    }

    fn remember(
        &self,
        layer: &Backing,
        chain: &BTreeSet<PathBuf>,
        content: &Content,
    ) -> Result<(), DomainError> {
        let identity = self.identity(layer, chain)?;
        let memos = Memos::new(&self.state, content.repository);
        Ok(memos.put(&Memo { identity, below: content.below, root: content.root })?)
    }

    fn remove(&self, path: &Path) -> Result<(), DomainError> {
        fs::remove_file(path).map_err(failed("remove", path))
    }

    fn set_aside(&self, path: &Path) -> Result<PathBuf, DomainError> {
        for number in 0.. {
            let ending = if number == 0 { STALE.to_owned() } else { format!("{STALE}{number}") };
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{ending}"));
            let aside = PathBuf::from(name);
            // A link, unlike a rename, never takes the place of something.
            match fs::hard_link(path, &aside) {
                Ok(()) => return self.remove(path).map(|()| aside),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("set aside", path)(error)),
            }
        }
        unreachable!("there is always another number")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let layers = LocalLayers::new(folder.path());
        let overlay = folder.path().join("web.qcow2");
        for (content, name) in [("one", "web.qcow2.stale"), ("two", "web.qcow2.stale1")] {
            fs::write(&overlay, content).unwrap();
            let aside = layers.set_aside(&overlay).unwrap();
            assert_eq!(aside, folder.path().join(name));
            assert_eq!(fs::read_to_string(aside).unwrap(), content);
            assert!(!layers.exists(&overlay).unwrap());
        }
        assert!(layers.free_space(folder.path()).unwrap().bytes > 0);
        assert!(layers.remove(&overlay).is_err());
    }
}
