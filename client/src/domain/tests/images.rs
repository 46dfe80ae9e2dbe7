//! Image files of the double: what each allocates, what lies below it, and how often it was written to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::hypervisor::Backing;
use crate::image::LayerIdentity;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 65_536;

/// What a guest sees: a value a block, zero for zeros.
pub(super) type Content = Vec<u64>;

#[derive(Clone, Debug)]
pub(super) struct Image {
    pub format: String,
    /// Blocks of the disk.
    pub blocks: u64,
    /// What this file itself holds; zeros count.
    pub data: BTreeMap<u64, u64>,
    pub backing: Option<Backing>,
    pub inode: u64,
    /// Changes with every write.
    pub version: i64,
    /// By name.
    pub bitmaps: BTreeMap<String, Bitmap>,
}

/// A dirty bitmap of an image.
#[derive(Clone, Debug, Default)]
pub(super) struct Bitmap {
    /// Blocks written since it was begun.
    pub dirty: BTreeSet<u64>,
    /// It is in the file, and not in the memory of QEMU alone.
    pub stored: bool,
    /// QEMU died with what it had noted.
    pub unsound: bool,
}

impl Image {
    pub fn identity(&self) -> LayerIdentity {
        LayerIdentity {
            device: 1,
            inode: self.inode,
            size: self.data.len() as u64,
            mtime_seconds: self.version,
            mtime_nanos: 0,
            metadata: [0; 32],
        }
    }

    /// What is seen at this layer above `below`. What lies past the end of a layer is not seen through it.
    pub fn over(&self, below: &[u64]) -> Content {
        let seen = |block: u64| {
            let own = self.data.get(&block).copied();
            own.or_else(|| below.get(block as usize).copied()).unwrap_or_default()
        };
        (0..self.blocks).map(seen).collect()
    }
}

/// All files of the host.
#[derive(Clone, Debug, Default)]
pub(super) struct Images {
    pub files: BTreeMap<PathBuf, Image>,
    inodes: u64,
}

impl Images {
    pub fn get(&self, path: &Path) -> &Image {
        self.files.get(path).unwrap_or_else(|| panic!("{} is needed and is not there", path.display()))
    }

    pub fn contains(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    pub fn as_backing(&self, path: &Path) -> Backing {
        Backing { path: path.to_owned(), format: self.get(path).format.clone() }
    }

    pub fn create(&mut self, path: &Path, format: &str, blocks: u64, below: Option<&Path>) {
        self.inodes += 1;
        let data = match format {
            "raw" => (0..blocks).map(|block| (block, 0)).collect(),
            _ => BTreeMap::new(),
        };
        let backing = below.map(|below| self.as_backing(below));
        let (inode, format) = (self.inodes, format.to_owned());
        let image = Image { format, blocks, data, backing, inode, version: 0, bitmaps: BTreeMap::new() };
        assert!(self.files.insert(path.to_owned(), image).is_none(), "{} is there already", path.display());
    }

    pub fn change(&mut self, path: &Path) -> &mut Image {
        let image = self.files.get_mut(path);
        let image = image.unwrap_or_else(|| panic!("{} is written and is not there", path.display()));
        image.version += 1;
        image
    }

    /// Writes a block, which every bitmap notes.
    pub fn write(&mut self, path: &Path, block: u64, value: u64) {
        let image = self.change(path);
        image.data.insert(block, value);
        for bitmap in image.bitmaps.values_mut() {
            bitmap.dirty.insert(block);
        }
    }

    /// Another file takes the place of this one.
    pub fn replace(&mut self, path: &Path) -> &mut Image {
        self.inodes += 1;
        let inode = self.inodes;
        let image = self.change(path);
        image.inode = inode;
        image
    }

    pub fn grow(&mut self, path: &Path, blocks: u64) {
        let image = self.change(path);
        if image.format == "raw" {
            image.data.extend((image.blocks..blocks).map(|block| (block, 0)));
        }
        image.blocks = image.blocks.max(blocks);
    }

    /// The layers from `top` down, as the files themselves say.
    pub fn chain(&self, top: &Path) -> Vec<PathBuf> {
        let mut chain = vec![top.to_owned()];
        let mut image = self.get(top);
        while let Some(below) = &image.backing {
            assert!(!chain.contains(&below.path), "a loop of layers below {}", top.display());
            chain.push(below.path.clone());
            image = self.get(&below.path);
        }
        chain
    }

    /// What is seen at the top of a chain, which is given from the top down.
    pub fn view(&self, chain: &[PathBuf]) -> Content {
        chain.iter().rev().fold(Content::new(), |below, path| self.get(path).over(&below))
    }

    /// The next block that has to be written to `base` so that it holds what `layers`, the topmost first, hold.
    pub fn unmerged(&self, layers: &[PathBuf], base: &Path) -> Option<(u64, u64)> {
        let mut merged = BTreeMap::new();
        for layer in layers.iter().rev() {
            merged.extend(&self.get(layer).data);
        }
        let base = self.get(base);
        merged.into_iter().find(|(block, value)| base.data.get(block) != Some(value))
    }

    pub fn with_inode(&self, inode: u64) -> Option<&Path> {
        self.files.iter().find(|(_, image)| image.inode == inode).map(|(path, _)| path.as_path())
    }
}
