//! What is wrong with an image. Every message names the file, and the field where there is one.

use std::io;
use std::path::{Path, PathBuf};

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The operating system refused.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// Its report.
        #[source]
        source: io::Error,
    },
    /// A value that breaks the format, or that points out of the file.
    #[error("{path} is damaged: {field} {what}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The field of the format.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A valid image that underlay does not read.
    #[error("{path} cannot be backed up: {field} {what}", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field of the format.
        field: &'static str,
        /// Why not.
        what: String,
    },
    /// A file named inside an image lies where images may not point.
    #[error("{image} names {named}, which lies outside the directories it may use", image = image.display(), named = named.display())]
    Outside {
        /// The image that names it.
        image: PathBuf,
        /// The file, links resolved.
        named: PathBuf,
    },
    /// Something that is no file at all.
    #[error("{path} is neither a regular file nor a block device", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The format of the top image is not given.
    #[error("the format of {path} is not known", path = path.display())]
    UnknownFormat {
        /// The image.
        path: PathBuf,
    },
    /// An image that names its backing file without a format.
    #[error("{image} names its backing file {named:?} without a format", image = image.display())]
    NoBackingFormat {
        /// The image.
        image: PathBuf,
        /// The backing file, as written.
        named: String,
    },
    /// A chain that does not end.
    #[error("the chain of {path} {what}", path = path.display())]
    Chain {
        /// The top image.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file that changed while it was read. Nothing read can be trusted.
    #[error("{path} changed while it was being read", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A virtual machine has the image open for writing.
    #[error("{path} is in use: another process writes to it", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

impl ImageError {
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), action, source }
    }

    pub(super) fn damaged(path: &Path, field: &'static str, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), field, what: what.into() }
    }

    pub(super) fn unsupported(path: &Path, field: &'static str, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), field, what: what.into() }
    }

    /// What the user can do next, where there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Outside { named, .. } => {
                let parent = named.parent().unwrap_or(Path::new("/"));
                format!("if that file belongs to this chain, allow its directory: --allow-dir {:?}", parent.display().to_string())
            }
            Self::UnknownFormat { .. } => "say which it is: --format qcow2 or --format raw".into(),
            Self::NoBackingFormat { image, named } => format!(
                "record it, after making sure what it is: qemu-img rebase -u -F qcow2 -b {named:?} {:?}",
                image.display().to_string()
            ),
            Self::Damaged { path, .. } => format!("see what `qemu-img check {:?}` says", path.display().to_string()),
            Self::Changed { .. } | Self::InUse { .. } => {
                "back up a frozen image: stop the machine, or take an external snapshot and give the frozen file".into()
            }
            _ => return None,
        })
    }
}
