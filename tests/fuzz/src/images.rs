//! qcow2 images and chains of them.
//!
//! An input is three files ([`sparse`]): `top.qcow2`, which is opened, `base` and `data`, which it may name. `bait` lies
//! outside their folder. What is read is compared with [`plain_qcow2`], which shares no code with the reader.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use tempfile::TempDir;
use underlay_client::image::{Chain, ExtentKind, Format, ImageError, OpenOptions};
use underlay_tests::images::Workshop;

use crate::plain_qcow2::{Layer, read};
use crate::{Seed, allocations, sparse};

/// What is read of a disk from its start, in bytes.
const READ: u64 = 192 << 10;
/// What opening and reading may hold at once: one cluster a few times over, and the caches, whatever an image says.
const LIMIT: usize = 64 << 20;
const NAMES: [&str; sparse::FILES] = ["top.qcow2", "base", "data"];

/// An empty folder, in memory where there is such a place.
pub(crate) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder")
}

/// A chain.
///
/// # Panics
/// If another file than these is opened, if extents overlap or leave the disk, or if anything reads otherwise than the format says.
pub fn qcow2(bytes: &[u8]) {
    thread_local! { static FOLDER: OnceCell<TempDir> = const { OnceCell::new() } }
    FOLDER.with(|folder_cell| {
        let outside = folder_cell.get_or_init(folder).path();
        let inside = outside.join("images");
        fs::create_dir_all(&inside).expect("a folder for images");
        fs::write(outside.join("bait"), [b'!'; 4096]).expect("room for the bait");
        for (name, file) in NAMES.iter().zip(sparse::unpack(bytes)) {
            fs::write(inside.join(name), file).expect("room for an image");
        }
        let top = inside.join("top.qcow2");
        if let Err(error) = allocations::within(LIMIT, || examine(&top)) {
            // First the file it is about: one of these, or one that they name and that is not there.
            let text = error.to_string();
            assert!(text.starts_with('/'), "an error that names no file: {text}");
        }
    });
}

fn examine(top: &Path) -> Result<(), ImageError> {
    let folder = top.parent().expect("a file lies in a folder").canonicalize().expect("the folder is there");
    let options = OpenOptions { format: Some(Format::Qcow2), ..OpenOptions::default() };
    let chain = Chain::open(top, &options)?;
    let mut layers = Vec::new();
    for index in 0..chain.len() {
        let path = chain.layer(index).path();
        let real = path.canonicalize().expect("an open file is there");
        assert!(real.starts_with(&folder), "{} was opened", real.display());
        layers.push(Layer::open(path, chain.layer(index).format()));
        assert_eq!(layers[index].virtual_size(), chain.layer(index).virtual_size());
    }
    let last = chain.len() - 1;
    for (index, layer) in layers.iter_mut().enumerate() {
        check_extents(&chain, index, layer)?;
    }
    let size = chain.virtual_size();
    // The first bytes, and the last.
    for offset in [0, size.saturating_sub(4096)] {
        let length = if offset == 0 { size.min(READ) } else { 4096 };
        check_bytes(&chain, &mut layers, offset, length as usize)?;
    }
    chain.read_at(last, size, &mut [1; 512])?;
    chain.verify_unchanged()
}

/// Extents ascend, stay on the disk, and are where the tables say that something is.
fn check_extents(chain: &Chain, index: usize, layer: &mut Layer) -> Result<(), ImageError> {
    let size = chain.layer(index).virtual_size();
    let mut end = 0;
    let mut before = None;
    for extent in chain.extents(index)?.take(2000) {
        let extent = extent?;
        assert!(extent.offset >= end && extent.length > 0 && extent.end() <= size, "{extent:?} after {end}");
        assert!(before != Some((extent.offset, extent.kind)), "{extent:?} is not coalesced");
        for at in [extent.offset, extent.end() - 512] {
            match layer.sector(at) {
                // What is compressed is only looked at when it is read.
                None => assert!(layer.is_compressed(at), "the data of {extent:?} is not in the file"),
                Some(found) => assert!(found.is_some(), "{extent:?} of layer {index} is not in its tables"),
            }
        }
        if extent.offset > end && chain.layer(index).format() == Format::Qcow2 {
            for at in [end, extent.offset - 512] {
                assert_eq!(layer.sector(at), Some(None), "what is before {extent:?} is left out");
            }
        }
        (end, before) = (extent.end(), Some((extent.end(), extent.kind)));
    }
    Ok(())
}

/// A range reads as the format says, in one piece and in small ones, and what is said to be zero is.
fn check_bytes(chain: &Chain, layers: &mut [Layer], offset: u64, length: usize) -> Result<(), ImageError> {
    let last = chain.len() - 1;
    let mut whole = vec![0xaa; length];
    chain.read_at(last, offset, &mut whole)?;
    let expected = read(layers, offset, length).expect("what was read is not in the file");
    assert!(whole == expected, "{} bytes at {offset} read otherwise than the format says", length);
    let odd = length.min(700);
    let mut piece = vec![0xbb; odd - odd / 3];
    chain.read_at(last, offset + odd as u64 / 3, &mut piece)?;
    assert!(piece == whole[odd / 3..odd], "a piece reads otherwise than the whole");
    let mut end = offset;
    for extent in chain.map(last, offset, length as u64)? {
        assert_eq!(extent.offset, end);
        end = extent.end();
        let range = (extent.offset - offset) as usize..(end - offset) as usize;
        if extent.kind == ExtentKind::Zero {
            assert!(whole[range].iter().all(|byte| *byte == 0), "{extent:?} is not zero");
        }
    }
    assert_eq!(end, offset + length as u64);
    Ok(())
}

/// Images of every kind, made by `qemu-img`.
///
/// # Panics
/// If `qemu-img` or `qemu-io` is not there or fails.
pub fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut seed = |name: &str, make: &dyn Fn(&Workshop)| {
        let folder = folder();
        let workshop = Workshop { dir: folder.path().to_owned() };
        make(&workshop);
        let files = NAMES.map(|name| fs::read(folder.path().join(name)).unwrap_or_default());
        seeds.push((name.to_owned(), sparse::pack(&files)));
    };
    let img = |w: &Workshop, arguments: &str| w.img(arguments).expect("qemu-img makes an image");
    let io = |w: &Workshop, commands: &[&str]| w.io("top.qcow2", commands).expect("qemu-io writes");
    let plain = ["write -P 5 0 3k", "write -P 6 40k 9k", "write -z 20k 10k", "discard 41k 2k"];
    for (name, options) in [
        ("clusters-512", "cluster_size=512"),
        ("clusters-4k", "cluster_size=4k"),
        ("clusters-64k", "cluster_size=64k"),
        ("version-2", "compat=0.10,cluster_size=1k"),
        ("extended-l2", "extended_l2=on,cluster_size=16k"),
        ("data-file", "data_file=data,cluster_size=4k"),
        ("data-file-raw", "data_file=data,data_file_raw=on,cluster_size=4k"),
        ("refcount-1", "refcount_bits=1,cluster_size=512"),
        ("metadata", "preallocation=metadata,cluster_size=4k"),
    ] {
        seed(name, &|w| {
            img(w, &format!("create -f qcow2 -o {options} top.qcow2 100k"));
            io(w, &plain);
        });
    }
    for (name, options, backing) in [
        ("over-raw", "cluster_size=512", "raw"),
        ("over-raw-extended", "extended_l2=on,cluster_size=16k", "raw"),
        ("over-qcow2", "cluster_size=1k", "qcow2"),
        ("over-raw-version-2", "compat=0.10,cluster_size=4k", "raw"),
    ] {
        seed(name, &|w| {
            img(w, &format!("create -f {backing} base 60k"));
            let write = ["-c", "write -P 9 0 60k", "-c", "write -z 8k 8k"];
            let mut base = std::process::Command::new("qemu-io");
            base.current_dir(&w.dir).args(["-f", backing]).args(write).arg("base");
            assert!(base.output().expect("qemu-io starts").status.success());
            img(w, &format!("create -f qcow2 -o {options} -b base -F {backing} top.qcow2 100k"));
            io(w, &plain);
        });
    }
    for (name, options) in [
        ("zlib", "compression_type=zlib,cluster_size=4k"),
        ("zstd", "compression_type=zstd,cluster_size=4k"),
        ("zlib-512", "cluster_size=512"),
        ("zlib-extended", "extended_l2=on,cluster_size=16k"),
        ("zlib-version-2", "compat=0.10,cluster_size=4k"),
    ] {
        seed(name, &|w| {
            let text: String = (0..1500).map(|number| format!("{number} ")).collect();
            fs::write(w.dir.join("source"), text).expect("room for the source");
            img(w, &format!("convert -c -f raw -O qcow2 -o {options} source top.qcow2"));
        });
    }
    seed("outside", &|w| {
        fs::write(w.dir.join("base"), [1; 512]).expect("room for the base");
        img(w, "create -f qcow2 -u -o cluster_size=512 -b ../bait -F raw top.qcow2 4k");
    });
    seed("snapshots", &|w| {
        img(w, "create -f qcow2 -o cluster_size=512 top.qcow2 20k");
        io(w, &["write -P 5 0 3k"]);
        img(w, "snapshot -c one top.qcow2");
        io(w, &["write -P 6 1k 3k"]);
    });
    seeds
}
