//! The names of a repository's objects, in one place.

use std::fmt;

use crate::id::{PackName, SlotId, SnapshotId};
use crate::pack::PackKind;

/// The descriptor: what a repository is.
pub const DESCRIPTOR: &str = "underlay.json";
/// Folder of passphrase slots, with its slash.
pub const KEYS: &str = "keys/";
/// Folder of ownership claims, with its slash.
pub const CLAIMS: &str = "claims/";
/// Folder of data packs, with its slash.
pub const PACKS: &str = "packs/";
/// Folder of node packs, with its slash.
pub const NODES: &str = "nodes/";
/// Folder of snapshots, with its slash.
pub const SNAPSHOTS: &str = "snapshots/";
/// Folder of marks that protect snapshots, with its slash.
pub const PROTECTED: &str = "protected/";

/// Folder of marks on snapshots that lost data, with its slash.
pub const DAMAGED: &str = "damaged/";
/// Folder of records of what is being deleted, with its slash.
pub const DELETIONS: &str = "deletions/";
/// Folder of records of what was stored wrong, with its slash.
pub const RETIRED: &str = "retired/";

/// Folder of what each owner found of the deletions of those before it, with its slash.
pub const CLOSINGS: &str = "closings/";

/// An object of a repository. Displays as its name in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// `underlay.json`.
    Descriptor,
    /// `keys/<16 hex>.json`.
    Slot(SlotId),
    /// `claims/<16 hex>.json`; the value is the generation.
    Claim(u64),
    /// `packs/<2 hex>/<64 hex>` or `nodes/<2 hex>/<64 hex>`.
    Pack(PackKind, PackName),
    /// `snapshots/<32 hex>.json`.
    Snapshot(SnapshotId),
    /// `protected/<32 hex>.json`: that snapshot is protected.
    Protection(SnapshotId),
    /// `damaged/<32 hex>.json`: that snapshot lost data.
    Damage(SnapshotId),
    /// `retired/<64 hex>.json`: something in that pack was stored wrong.
    Retired(PackName),
    /// `deletions/<16 hex>-<8 hex>.json`: the generation of the owner who deletes, and a count.
    Deletion(u64, u32),
    /// `closings/<16 hex>.json`; the value is the generation of the owner who wrote it.
    Closing(u64),
}

impl ObjectName {
    /// Reads a name back; `None` if no object of this format is called that.
    pub fn parse(name: &str) -> Option<Self> {
        if name == DESCRIPTOR {
            return Some(Self::Descriptor);
        }
        let (folder, rest) = name.split_at(name.find('/')? + 1);
        match folder {
            PACKS => pack_name(rest).map(|name| Self::Pack(PackKind::Data, name)),
            NODES => pack_name(rest).map(|name| Self::Pack(PackKind::Nodes, name)),
            KEYS => SlotId::from_hex(rest.strip_suffix(".json")?).map(Self::Slot),
            SNAPSHOTS => SnapshotId::from_hex(rest.strip_suffix(".json")?).map(Self::Snapshot),
            PROTECTED => SnapshotId::from_hex(rest.strip_suffix(".json")?).map(Self::Protection),
            DAMAGED => SnapshotId::from_hex(rest.strip_suffix(".json")?).map(Self::Damage),
            RETIRED => PackName::from_hex(rest.strip_suffix(".json")?).map(Self::Retired),
            DELETIONS => {
                let (generation, number) = rest.strip_suffix(".json")?.split_once('-')?;
                let deletion = Self::Deletion(
                    u64::from_str_radix(generation, 16).ok()?,
                    u32::from_str_radix(number, 16).ok()?,
                );
                (deletion.to_string() == name).then_some(deletion)
            }
            CLAIMS => generation(rest).map(Self::Claim),
            CLOSINGS => generation(rest).map(Self::Closing),
            _ => None,
        }
    }
}

fn generation(rest: &str) -> Option<u64> {
    let digits = rest.strip_suffix(".json")?;
    let generation = u64::from_str_radix(digits, 16).ok()?;
    (format!("{generation:016x}") == digits).then_some(generation)
}

fn pack_name(rest: &str) -> Option<PackName> {
    let (folder, name) = rest.split_once('/')?;
    let name_digits = PackName::from_hex(name)?;
    (name.get(..2) == Some(folder)).then_some(name_digits)
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptor => f.write_str(DESCRIPTOR),
            Self::Slot(slot) => write!(f, "{KEYS}{slot}.json"),
            Self::Claim(generation) => write!(f, "{CLAIMS}{generation:016x}.json"),
            Self::Pack(kind, name) => {
                write!(f, "{}{:02x}/{name}", kind.folder(), name.as_bytes()[0])
            }
            Self::Snapshot(snapshot) => write!(f, "{SNAPSHOTS}{snapshot}.json"),
            Self::Protection(snapshot) => write!(f, "{PROTECTED}{snapshot}.json"),
            Self::Damage(snapshot) => write!(f, "{DAMAGED}{snapshot}.json"),
            Self::Retired(pack) => write!(f, "{RETIRED}{pack}.json"),
            Self::Closing(generation) => write!(f, "{CLOSINGS}{generation:016x}.json"),
            Self::Deletion(generation, number) => write!(f, "{DELETIONS}{generation:016x}-{number:08x}.json"),
        }
    }
}

/// `keys/<16 hex>.json`.
pub fn slot(slot: &SlotId) -> String {
    ObjectName::Slot(*slot).to_string()
}

/// `claims/<16 hex>.json`.
pub fn claim(generation: u64) -> String {
    ObjectName::Claim(generation).to_string()
}

/// `packs/<2 hex>/<64 hex>` or `nodes/<2 hex>/<64 hex>`.
pub fn pack(kind: PackKind, name: &PackName) -> String {
    ObjectName::Pack(kind, *name).to_string()
}

/// `snapshots/<32 hex>.json`.
pub fn snapshot(snapshot: &SnapshotId) -> String {
    ObjectName::Snapshot(*snapshot).to_string()
}

/// `protected/<32 hex>.json`.
pub fn protection(snapshot: &SnapshotId) -> String {
    ObjectName::Protection(*snapshot).to_string()
}

/// `damaged/<32 hex>.json`.
pub fn damage(snapshot: &SnapshotId) -> String {
    ObjectName::Damage(*snapshot).to_string()
}

/// `retired/<64 hex>.json`.
pub fn retired(pack: &PackName) -> String {
    ObjectName::Retired(*pack).to_string()
}

/// `deletions/<16 hex>-<8 hex>.json`.
pub fn deletion(generation: u64, number: u32) -> String {
    ObjectName::Deletion(generation, number).to_string()
}

/// `closings/<16 hex>.json`.
pub fn closing(generation: u64) -> String {
    ObjectName::Closing(generation).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let names = [
            ObjectName::Descriptor,
            ObjectName::Slot(SlotId::new([0xab; 8])),
            ObjectName::Claim(u64::MAX),
            ObjectName::Claim(1),
            ObjectName::Protection(SnapshotId::new([0x5f; 16])),
            ObjectName::Damage(SnapshotId::new([0x6f; 16])),
            ObjectName::Deletion(7, u32::MAX),
            ObjectName::Retired(PackName::new([0xcd; 32])),
            ObjectName::Closing(7),
            ObjectName::Pack(PackKind::Data, PackName::new([0xcd; 32])),
            ObjectName::Pack(PackKind::Nodes, PackName::new([0x01; 32])),
            ObjectName::Snapshot(SnapshotId::new([0xef; 16])),
        ];
        for name in names {
            assert_eq!(ObjectName::parse(&name.to_string()), Some(name));
        }
        assert_eq!(claim(10), "claims/000000000000000a.json");
        let hex = "cd".repeat(32);
        assert_eq!(pack(PackKind::Data, &PackName::new([0xcd; 32])), format!("packs/cd/{hex}"));
    }

    #[test]
    fn foreign_names_are_none() {
        let hex = "cd".repeat(32);
        for name in [
            String::new(),
            "underlay.json.tmp".into(),
            "keys/abababababababab".into(),
            "keys/ABABABABABABABAB.json".into(),
            "claims/+00000000000000a.json".into(),
            "claims/a.json".into(),
            "deletions/0000000000000001-1.json".into(),
            "deletions/+000000000000001-00000001.json".into(),
            format!("packs/{hex}"),
            format!("packs/ab/{hex}"),
            format!("packs/cd/{hex}.tmp"),
            format!("packs/cd//{hex}"),
            format!("other/cd/{hex}"),
            "snapshots/x/y.json".into(),
            "/".into(),
            "é/".into(),
        ] {
            assert_eq!(ObjectName::parse(&name), None, "{name}");
        }
    }
}
