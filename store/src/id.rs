//! The names of things: 16- and 32-byte values, written as lower-case hex.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

macro_rules! id {
    ($(#[doc = $doc:literal])* $name:ident, $bytes:expr) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// Length in bytes.
            pub const LENGTH: usize = $bytes;

            /// Wraps raw bytes.
            pub const fn new(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// Wraps a slice; `None` if its length is not [`Self::LENGTH`].
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Parses lower-case hex; `None` for anything else.
            pub fn from_hex(text: &str) -> Option<Self> {
                let id = Self(hex::decode(text).ok()?.try_into().ok()?);
                (id.to_string() == text).then_some(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::from_hex(&text)
                    .ok_or_else(|| de::Error::custom(format!("expected {} hex digits, found {text:?}", 2 * $bytes)))
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut schema = crate::hexadecimal::schema($bytes);
                schema.insert("description".to_owned(), concat!($($doc, "\n"),*).trim().into());
                schema
            }
        }
    };
}

macro_rules! random_id {
    ($($name:ident),*) => {$(
        impl $name {
            /// A fresh random value from the operating system.
            ///
            /// # Panics
            /// If the operating system has no randomness to give; nothing safe can be done then.
            pub fn random() -> Self {
                Self(crate::key::random_bytes())
            }
        }
    )*};
}

id!(
    /// Keyed BLAKE3 of a chunk's plaintext: its identity. 32 bytes.
    ChunkId, 32
);
id!(
    /// Keyed BLAKE3 of a tree node's encoding: its identity. 32 bytes.
    NodeId, 32
);
id!(
    /// SHA-256 of a pack object: its name. 32 bytes.
    PackName, 32
);
id!(
    /// Names a repository for ever; part of everything it encrypts. 16 random bytes.
    RepositoryId, 16
);
id!(
    /// Names one snapshot. 16 random bytes.
    SnapshotId, 16
);
id!(
    /// Names one backup in progress. 16 random bytes.
    SessionId, 16
);
id!(
    /// Names a session before a server has opened it: chosen by the client, and worth nothing without its token. 16 random bytes.
    SessionHandle, 16
);
id!(
    /// Names work that a server does for a client: chosen by the client. 16 random bytes.
    JobId, 16
);
id!(
    /// Names one data key inside pack headers. 16 random bytes.
    DataKeyId, 16
);
id!(
    /// Names the host that owns a repository: all processes that share its state folder. 16 random bytes.
    OwnerId, 16
);
id!(
    /// Tells one catalog from all others, also from those that stood in its place before. 16 random bytes.
    CatalogId, 16
);
id!(
    /// Names whoever stores packs through a server: a hash over its token. 16 bytes.
    WriterId, 16
);
id!(
    /// Names a passphrase slot. 8 random bytes.
    SlotId, 8
);
random_id!(RepositoryId, SnapshotId, SessionId, SessionHandle, JobId, DataKeyId, OwnerId, CatalogId, SlotId);

/// What a disk holds: its size in bytes and the node that maps it to chunks. Equal roots, equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Bytes of guest address space.
    pub size: u64,
    /// The tree's topmost node; `None` if every byte is zero.
    pub node: Option<NodeId>,
}
