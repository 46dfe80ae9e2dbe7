//! Disk images of every kind that underlay reads, made with the real `qemu-img` and `qemu-io`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use underlay_client::image::{self, Chain, Format, ImageError};

/// One way an image or a chain can be built.
#[derive(Debug, Clone, Copy)]
pub struct ImageKind {
    /// Short, unique, fit for a directory name.
    pub name: &'static str,
    builder: fn(&Workshop) -> io::Result<()>,
    format: &'static str,
    top: &'static str,
}

/// A built chain.
#[derive(Debug, Clone)]
pub struct ImageCase {
    /// The top image. All files of the chain lie in or below its directory.
    pub top: PathBuf,
    /// `raw` or `qcow2`, as `qemu-img -f` takes it.
    pub format: &'static str,
}

impl ImageKind {
    /// Builds the chain in `dir`, which must exist and be empty.
    pub fn build(&self, dir: &Path) -> io::Result<ImageCase> {
        (self.builder)(&Workshop { dir: dir.to_owned() })?;
        Ok(ImageCase { top: dir.join(self.top), format: self.format })
    }
}

impl ImageCase {
    /// The flattened disk as `qemu-img convert` writes it to `to`. The oracle.
    pub fn flatten(&self, to: &Path) -> io::Result<()> {
        flatten(&self.top, self.format, to)
    }
}

/// Converts one image with everything below it to a raw file.
pub fn flatten(image: &Path, format: &str, to: &Path) -> io::Result<()> {
    // QEMU resolves a relative external data file against the current directory.
    let dir = image.parent().unwrap_or(Path::new("."));
    let mut command = Command::new("qemu-img");
    run(command.current_dir(dir).args(["convert", "-f", format, "-O", "raw"]).arg(image).arg(to))
}

/// A directory to build images in, with short ways to run the tools there.
#[derive(Debug)]
pub struct Workshop {
    pub dir: PathBuf,
}

impl Workshop {
    /// `qemu-img` with arguments that are separated by single spaces; `~` stands for a space within one.
    pub fn img(&self, arguments: &str) -> io::Result<()> {
        let arguments = arguments.split_whitespace().map(|word| word.replace('~', " "));
        run(Command::new("qemu-img").current_dir(&self.dir).args(arguments))
    }

    /// `qemu-io` commands on a qcow2 `image`.
    pub fn io(&self, image: &str, commands: &[&str]) -> io::Result<()> {
        let mut tool = Command::new("qemu-io");
        tool.current_dir(&self.dir).args(["-f", "qcow2", "-d", "unmap"]);
        for command in commands {
            tool.args(["-c", command]);
        }
        run(tool.arg(image))
    }

    /// A raw file of `size` bytes of half-compressible noise with a few holes and zero blocks.
    pub fn noise(&self, name: &str, size: u64, seed: u64) -> io::Result<()> {
        let file = File::create(self.dir.join(name))?;
        file.set_len(size)?;
        let mut random = Random(seed);
        let mut block = vec![0; 64 << 10];
        for offset in (0..size).step_by(block.len()) {
            if random.below(8) == 0 {
                continue;
            }
            let length = block.len().min((size - offset) as usize);
            for byte in &mut block[..length] {
                *byte = if random.below(2) == 0 { 0x41 } else { random.below(256) as u8 };
            }
            if random.below(8) == 0 {
                block[4096..16384].fill(0);
            }
            file.write_all_at(&block[..length], offset)?;
        }
        Ok(())
    }

    /// Random writes, zeros and discards of 512-byte granularity in the first `size` bytes of a qcow2 image.
    pub fn scribble(&self, image: &str, size: u64, count: u64, seed: u64) -> io::Result<()> {
        let mut random = Random(seed);
        let mut commands = Vec::new();
        for _ in 0..count {
            let length = 512 * (1 + random.below(200.min(size / 512)));
            let offset = 512 * random.below((size - length) / 512 + 1);
            commands.push(match random.below(6) {
                0 => format!("write -z {offset} {length}"),
                1 => format!("write -z -u {offset} {length}"),
                2 => format!("discard {offset} {length}"),
                _ => format!("write -P {} {offset} {length}", 1 + random.below(255)),
            });
        }
        self.io(image, &commands.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Overwrites bytes of a file in place.
    pub fn patch(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.dir.join(name))?.write_all_at(bytes, offset)
    }
}

/// SplitMix64: the same numbers for the same seed, for ever.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{command:?} failed: {said}")))
}

const fn kind(name: &'static str, builder: fn(&Workshop) -> io::Result<()>) -> ImageKind {
    ImageKind { name, builder, format: "qcow2", top: "top.qcow2" }
}

/// Every kind of image. Each builds in well under a second.
pub fn image_kinds() -> Vec<ImageKind> {
    let mut kinds = single_kinds();
    kinds.extend(chain_kinds());
    kinds
}

const MIB: u64 = 1 << 20;

fn single_kinds() -> Vec<ImageKind> {
    let raw = |name, builder| ImageKind { name, builder, format: "raw", top: "top.raw" };
    vec![
        raw("raw", |w| w.noise("top.raw", 3 * MIB, 1)),
        raw("raw-odd-size", |w| w.noise("top.raw", 1_000_003, 2)),
        raw("raw-empty-file", |w| w.noise("top.raw", 0, 2)),
        kind("empty", |w| w.img("create -f qcow2 top.qcow2 3M")),
        kind("zero-length", |w| w.img("create -f qcow2 top.qcow2 0")),
        kind("clusters-512", |w| scribbled(w, "cluster_size=512", 3 * MIB)),
        kind("clusters-2m", |w| scribbled(w, "cluster_size=2M", 9 * MIB)),
        kind("version-2", |w| scribbled(w, "compat=0.10", 3 * MIB)),
        kind("extended-l2", |w| scribbled(w, "extended_l2=on", 3 * MIB)),
        kind("extended-l2-16k", |w| scribbled(w, "extended_l2=on,cluster_size=16k", 3 * MIB)),
        kind("odd-size", |w| scribbled(w, "cluster_size=64k", 1_000_448)),
        kind("odd-header-size", |w| {
            scribbled(w, "cluster_size=64k", 1_000_448)?;
            w.patch("top.qcow2", 24, &1_000_447_u64.to_be_bytes())
        }),
        kind("refcount-1", |w| scribbled(w, "refcount_bits=1", 3 * MIB)),
        kind("refcount-64", |w| scribbled(w, "refcount_bits=64", 3 * MIB)),
        kind("preallocation-off", |w| scribbled(w, "preallocation=off", 1_000_448)),
        kind("preallocation-metadata", |w| scribbled(w, "preallocation=metadata", 1_000_448)),
        kind("preallocation-falloc", |w| scribbled(w, "preallocation=falloc", 1_000_448)),
        kind("preallocation-full", |w| scribbled(w, "preallocation=full", 1_000_448)),
        kind("preallocation-extended", |w| scribbled(w, "preallocation=metadata,extended_l2=on", 1_000_448)),
        kind("zlib", |w| compressed(w, "compression_type=zlib")),
        kind("zstd", |w| compressed(w, "compression_type=zstd")),
        kind("zlib-512", |w| compressed(w, "compression_type=zlib,cluster_size=512")),
        kind("zstd-2m", |w| compressed(w, "compression_type=zstd,cluster_size=2M")),
        kind("zlib-extended", |w| compressed(w, "compression_type=zlib,extended_l2=on")),
        kind("zlib-version-2", |w| compressed(w, "compat=0.10")),
        kind("data-file", |w| scribbled(w, "data_file=guest.data", 1_000_448)),
        kind("data-file-raw", |w| scribbled(w, "data_file=guest.data,data_file_raw=on", 1_000_448)),
        kind("data-file-extended", |w| scribbled(w, "data_file=guest.data,extended_l2=on", 3 * MIB)),
        kind("dirty", |w| {
            w.img("create -f qcow2 -o lazy_refcounts=on top.qcow2 3M")?;
            // Killed with the dirty bit set: the failure is what is wanted.
            let _ = w.io("top.qcow2", &["write -P 7 1M 300k", "flush", "abort"]);
            Ok(())
        }),
        kind("snapshots", |w| {
            scribbled(w, "cluster_size=64k", 3 * MIB)?;
            w.img("snapshot -c one top.qcow2")?;
            w.scribble("top.qcow2", 3 * MIB, 10, 77)?;
            w.img("snapshot -c two top.qcow2")?;
            w.scribble("top.qcow2", 3 * MIB, 10, 78)
        }),
        kind("bitmaps", |w| {
            scribbled(w, "cluster_size=64k", 3 * MIB)?;
            w.img("bitmap --add top.qcow2 backup")?;
            w.scribble("top.qcow2", 3 * MIB, 10, 79)
        }),
        kind("huge-sparse", |w| {
            w.img("create -f qcow2 top.qcow2 8T")?;
            let commands = ["write -P 9 8796093005824 9k", "write -P 8 4398046511104 1M", "write -z 5T 1M"];
            w.io("top.qcow2", &commands)
        }),
    ]
}

fn chain_kinds() -> Vec<ImageKind> {
    vec![
        kind("version-2-over-raw", |w| over_raw(w, "compat=0.10")),
        kind("clusters-512-over-raw", |w| over_raw(w, "cluster_size=512")),
        kind("clusters-2m-over-raw", |w| over_raw(w, "cluster_size=2M")),
        kind("extended-l2-over-raw", |w| over_raw(w, "extended_l2=on,cluster_size=128k")),
        kind("over-zlib", |w| over_compressed(w, "compression_type=zlib")),
        kind("over-zstd", |w| over_compressed(w, "compression_type=zstd,cluster_size=2M")),
        kind("zeros-over-data", |w| {
            w.noise("base.raw", 3 * MIB, 20)?;
            w.img("create -f qcow2 -b base.raw -F raw top.qcow2")?;
            w.io("top.qcow2", &["write -P 3 0 2M", "write -z 64k 128k", "write -z -u 256k 128k"])?;
            w.io("top.qcow2", &["discard 512k 256k", "write -z 2100k 10k", "discard 2M 1M"])
        }),
        kind("middle-shorter", |w| {
            w.noise("base.raw", 3 * MIB, 30)?;
            w.img("create -f qcow2 -b base.raw -F raw middle.qcow2 1000448")?;
            w.scribble("middle.qcow2", 1_000_448, 10, 31)?;
            w.img("create -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 3M")?;
            w.scribble("top.qcow2", 3 * MIB, 6, 32)
        }),
        kind("overlay-larger", |w| sized(w, 5 * MIB)),
        kind("overlay-smaller", |w| sized(w, 1_500_160)),
        kind("base-odd-size", |w| {
            w.noise("base.raw", 1_000_003, 36)?;
            w.img("create -f qcow2 -b base.raw -F raw top.qcow2 3M")?;
            w.scribble("top.qcow2", 3 * MIB, 5, 37)
        }),
        kind("mixed-clusters", |w| {
            w.noise("base.raw", 3 * MIB, 38)?;
            w.img("create -f qcow2 -o cluster_size=2M -b base.raw -F raw one.qcow2")?;
            w.scribble("one.qcow2", 3 * MIB, 12, 39)?;
            w.img("create -f qcow2 -o cluster_size=512 -b one.qcow2 -F qcow2 two.qcow2")?;
            w.scribble("two.qcow2", 3 * MIB, 12, 40)?;
            w.img("create -f qcow2 -o extended_l2=on -b two.qcow2 -F qcow2 top.qcow2")?;
            w.scribble("top.qcow2", 3 * MIB, 12, 41)
        }),
        kind("deep-24", |w| {
            w.noise("layer0.raw", 3 * MIB, 50)?;
            w.img("create -f qcow2 -b layer0.raw -F raw layer1.qcow2")?;
            for layer in 1..23 {
                w.scribble(&format!("layer{layer}.qcow2"), 3 * MIB, 3, 50 + layer)?;
                let next = layer + 1;
                w.img(&format!("create -f qcow2 -b layer{layer}.qcow2 -F qcow2 layer{next}.qcow2"))?;
            }
            fs::rename(w.dir.join("layer23.qcow2"), w.dir.join("top.qcow2"))?;
            w.scribble("top.qcow2", 3 * MIB, 3, 99)
        }),
        kind("names", |w| {
            fs::create_dir(w.dir.join("über uns"))?;
            w.noise("über uns/bäse 基.raw", 3 * MIB, 60)?;
            symlink("über uns/bäse 基.raw", w.dir.join("a link"))?;
            w.img("create -f qcow2 -b a~link -F raw ./mid~dle:1.qcow2")?;
            w.scribble("./mid dle:1.qcow2", 3 * MIB, 6, 61)?;
            let middle = w.dir.join("mid dle:1.qcow2").display().to_string().replace(' ', "~");
            w.img(&format!("create -f qcow2 -b {middle} -F qcow2 top.qcow2"))?;
            w.scribble("top.qcow2", 3 * MIB, 6, 62)
        }),
        kind("data-file-base", |w| {
            w.img("create -f qcow2 -o data_file=guest.data base.qcow2 1000448")?;
            w.scribble("base.qcow2", 1_000_448, 12, 70)?;
            w.img("create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 3M")?;
            w.scribble("top.qcow2", 3 * MIB, 6, 71)
        }),
    ]
}

fn scribbled(w: &Workshop, options: &str, size: u64) -> io::Result<()> {
    w.img(&format!("create -f qcow2 -o {options} top.qcow2 {size}"))?;
    w.scribble("top.qcow2", size, 24, size)
}

fn compressed(w: &Workshop, options: &str) -> io::Result<()> {
    w.noise("source.raw", 3 * MIB, 10)?;
    w.img(&format!("convert -c -f raw -O qcow2 -o {options} source.raw top.qcow2"))?;
    w.scribble("top.qcow2", 3 * MIB, 4, 11)
}

fn over_raw(w: &Workshop, options: &str) -> io::Result<()> {
    w.noise("base.raw", 5 * MIB, 12)?;
    w.img(&format!("create -f qcow2 -o {options} -b base.raw -F raw top.qcow2"))?;
    w.scribble("top.qcow2", 5 * MIB, 24, 13)
}

fn over_compressed(w: &Workshop, options: &str) -> io::Result<()> {
    w.noise("source.raw", 5 * MIB, 14)?;
    w.img(&format!("convert -c -f raw -O qcow2 -o {options} source.raw base.qcow2"))?;
    w.img("create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2")?;
    w.scribble("top.qcow2", 5 * MIB, 24, 15)
}

fn sized(w: &Workshop, size: u64) -> io::Result<()> {
    w.noise("base.raw", 3 * MIB - 512, 33)?;
    w.img(&format!("create -f qcow2 -b base.raw -F raw top.qcow2 {size}"))?;
    w.scribble("top.qcow2", size, 8, 34)
}

/// Opens a qcow2 image with nothing allowed but its own directory.
///
/// # Errors
/// What the image room reports.
pub fn open_qcow2(path: &Path) -> Result<Chain, ImageError> {
    Chain::open(path, &image::OpenOptions { format: Some(Format::Qcow2), ..image::OpenOptions::default() })
}

/// Opens and reads everything in every way; the flattened disk, or the first error.
///
/// # Errors
/// What the image room reports first.
pub fn read_all(path: &Path) -> Result<Vec<u8>, ImageError> {
    let chain = open_qcow2(path)?;
    let top = chain.len() - 1;
    for index in 0..=top {
        chain.extents(index)?.try_for_each(|extent| extent.map(|_| ()))?;
    }
    chain.map(top, 0, chain.virtual_size())?;
    let mut disk = vec![0; chain.virtual_size() as usize];
    chain.read_at(top, 0, &mut disk)?;
    chain.verify_unchanged()?;
    Ok(disk)
}

/// Why an image is refused, as a user reads it.
///
/// # Panics
/// If it is not refused.
pub fn refusal(path: &Path) -> String {
    match read_all(path) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(error) => error.to_string(),
    }
}

/// A workshop in a folder of its own, inside the temporary one.
///
/// # Panics
/// If the folder cannot be made.
pub fn workshop() -> (tempfile::TempDir, Workshop) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let images = dir.path().join("images");
    std::fs::create_dir(&images).expect("a new folder");
    let real = images.canonicalize().expect("its real path");
    (dir, Workshop { dir: real })
}

/// Makes a qcow2 image called `name`, to be a base for others: a file system with real files, and 40 MiB that nothing else has.
pub fn base(folder: &Path, name: &str) -> crate::Result<PathBuf> {
    let (content, raw) = (folder.join(format!("{name}.files")), folder.join(format!("{name}.raw")));
    let image = folder.join(format!("{name}.qcow2"));
    let (content_text, raw_text) = (content.display().to_string(), raw.display().to_string());
    std::fs::create_dir(&content)?;
    crate::commands::run("cp", ["-r", "/usr/share/doc", &content_text])?;
    let random = format!("head -c 40M /dev/urandom > {:?}", content.join("random"));
    crate::commands::run("sh", ["-c", &random])?;
    crate::commands::run("mke2fs", ["-q", "-t", "ext4", "-d", &content_text, &raw_text, "400M"])?;
    crate::commands::run("qemu-img", ["convert", "-O", "qcow2", &raw_text, &image.display().to_string()])?;
    std::fs::remove_file(raw)?;
    std::fs::remove_dir_all(content)?;
    Ok(image)
}
