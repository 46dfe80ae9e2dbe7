//! What can go wrong with an image: which file, which field or which guest offset, and what to do next.

use std::io;
use std::path::PathBuf;

/// Why an image chain cannot be opened or read. Every variant names the file it is about.
///
/// `Display` states the fact once and never repeats its `source`; [`ImageError::hint`] says what the user can do.
/// Names that came from inside an image are shown escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The operating system refused to open, stat or read a file. `offset` is in bytes of the file,
    /// `guest_offset` in bytes of the disk.
    #[error("{}: cannot {action}{}{}", path.display(), at("file", *offset), at("guest", *guest_offset))]
    Io {
        path: PathBuf,
        action: &'static str,
        offset: Option<u64>,
        guest_offset: Option<u64>,
        source: io::Error,
    },

    /// Neither the caller nor the file's extension says what format the top image has.
    #[error("{}: the format of this image is not known", path.display())]
    FormatNotGiven { path: PathBuf },

    /// The image names a backing file and does not record its format. Probing it would let a guest choose.
    #[error("{}: the format of its backing file {named:?} is not recorded", path.display())]
    BackingFormatNotRecorded { path: PathBuf, named: String },

    /// The image records a format for its backing file that underlay does not read.
    #[error("{}: its backing file {named:?} has the format {format:?}, which is not supported", path.display())]
    BackingFormatUnsupported { path: PathBuf, named: String, format: String },

    /// The image names a file outside its own directory and the allowed ones. That file was not opened.
    #[error("{}: names {named:?}, which is {} and outside the allowed directories", path.display(), resolved.display())]
    NotAllowed { path: PathBuf, named: String, resolved: PathBuf },

    /// The image names something that is not a plain path: a protocol, `json:`, or an impossible name.
    #[error("{}: names {named:?}: {problem}", path.display())]
    BadName { path: PathBuf, named: String, problem: &'static str },

    /// A file of the chain is neither a regular file nor a block device.
    #[error("{}: is {found}, not a regular file or a block device", path.display())]
    NotAFile { path: PathBuf, found: &'static str },

    /// The chain comes back to a file that it already contains.
    #[error("{}: is already part of its own backing chain", path.display())]
    Loop { path: PathBuf },

    /// The chain has more than `limit` layers.
    #[error("{}: the backing chain has more than {limit} layers", path.display())]
    TooDeep { path: PathBuf, limit: usize },

    /// A header field holds a value that a sound, supported image cannot have.
    #[error("{}: header field {field} is {found}: {problem}", path.display())]
    Header { path: PathBuf, field: &'static str, found: String, problem: String },

    /// The image is sound but uses something underlay cannot read.
    #[error("{}: {feature} is not supported", path.display())]
    Unsupported { path: PathBuf, feature: String, hint: Option<&'static str> },

    /// A mapping table, or the data it points to, is damaged. `guest_offset` is in bytes of the layer's disk.
    #[error("{}: damaged at guest offset {guest_offset}: {problem}", path.display())]
    Damaged { path: PathBuf, guest_offset: u64, problem: String },

    /// The file is not what it was when the chain was opened.
    #[error("{}: changed while it was being read ({what})", path.display())]
    Changed { path: PathBuf, what: &'static str },
    /// A running machine or an image tool writes to the file.
    #[error("{}: in use, another process has it open for writing", path.display())]
    InUse { path: PathBuf },

    /// The caller asked for a layer that the chain does not have.
    #[error("{}: the chain has {layers} layers, there is no layer {index}", path.display())]
    NoSuchLayer { path: PathBuf, index: usize, layers: usize },
}

impl ImageError {
    /// What the user can do next, if there is something. One sentence, not part of the error's text.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::FormatNotGiven { .. } => Some(
                "say what it is with --format qcow2 or --format raw; underlay never guesses, \
                 because a guest can write a qcow2 header into its raw disk"
                    .into(),
            ),
            Self::BackingFormatNotRecorded { path, named } => Some(format!(
                "record it with: qemu-img rebase -u -F raw|qcow2 -b {named:?} {:?}",
                path.display().to_string()
            )),
            Self::NotAllowed { resolved, .. } => resolved
                .parent()
                .map(|directory| format!("if you trust this image, add --allow-dir {}", directory.display())),
            Self::TooDeep { .. } => Some("shorten the chain with qemu-img commit or blockcommit".into()),
            Self::Unsupported { hint, .. } => hint.map(Into::into),
            Self::Damaged { path, .. } | Self::Header { path, .. } => {
                Some(format!("look at it with: qemu-img check -f qcow2 {:?}", path.display().to_string()))
            }
            Self::InUse { .. } => Some(
                "stop the machine, or freeze its disk with an external snapshot and back up the frozen file"
                    .into(),
            ),
            Self::Changed { .. } => {
                Some("only back up layers that nobody writes; run the backup again".into())
            }
            _ => None,
        }
    }

    /// Adds which guest data an I/O error is about.
    pub(super) fn at_guest(mut self, offset: u64) -> Self {
        if let Self::Io { guest_offset, .. } = &mut self {
            *guest_offset = Some(offset);
        }
        self
    }
}

fn at(whose: &str, offset: Option<u64>) -> String {
    offset.map(|offset| format!(" at {whose} offset {offset}")).unwrap_or_default()
}

/// A name found inside an image, made safe to show: lossy UTF-8, at most 200 characters.
pub(super) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(200).collect()
}
