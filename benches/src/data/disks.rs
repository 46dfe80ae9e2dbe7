use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use underlay_tests::commands::run;
use underlay_tests::{Error, Result};

use super::guests::{GUESTS, guests};
use crate::tools::Disk;

const CLUSTER: u64 = 64 << 10;
const BLOCK: usize = 4096;

/// Makes the disks of one run in a folder of its own.
#[derive(Debug)]
pub struct Disks {
    guests: Vec<(&'static str, PathBuf)>,
    folder: PathBuf,
}

impl Disks {
    /// Disks go to `folder`; the guests are built first, if need be.
    pub fn new(folder: &Path, quick: bool) -> Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { guests: guests(quick)?, folder: folder.to_owned() })
    }

    /// All images of a chain lie in one folder, as they would on a host.
    fn image(&self, guest: &str) -> Result<PathBuf> {
        let kept = self.guests.iter().find(|(name, _)| *name == guest);
        let (_, kept) = kept.ok_or_else(|| Error::new(format!("there is no guest {guest}")))?;
        let own = self.folder.join(format!("{guest}.qcow2"));
        if !own.exists() && fs::hard_link(kept, &own).is_err() {
            fs::copy(kept, &own)?;
        }
        if let Some(base) = GUESTS.iter().find(|known| known.name == guest).and_then(|known| known.base) {
            self.image(base)?;
        }
        Ok(own)
    }

    /// A guest's disk with its chain of images.
    pub fn chain(&self, guest: &str) -> Result<Disk> {
        let image = self.image(guest)?;
        let raw = self.folder.join(format!("{guest}.raw"));
        flat(&image, &raw)?;
        Ok(Disk { vm: guest.to_owned(), image, raw })
    }

    /// A guest's disk in one image without a base.
    pub fn alone(&self, guest: &str) -> Result<Disk> {
        let chain = self.chain(guest)?;
        let image = self.folder.join(format!("{guest}-alone.qcow2"));
        run("qemu-img", ["convert", "-O", "qcow2"].map(Path::new).into_iter().chain([&*chain.raw, &*image]))?;
        Ok(Disk { vm: guest.to_owned(), image, raw: chain.raw })
    }

    /// The disk after `count` clusters of 64 KiB were overwritten, far apart, with what does not compress; as an overlay on
    /// its image.
    pub fn isolated_changes(&self, disk: &Disk, count: u64) -> Result<Disk> {
        let file = File::open(&disk.raw)?;
        let used: Vec<u64> = clusters_with_data(&file)?;
        let step = used.len() as u64 / count;
        let writes = (0..count).map(|at| Ok((used[(at * step) as usize], noise(at, CLUSTER as usize))));
        self.overlay(disk, "changed", writes)
    }

    /// The first guest's disk grown to `size` bytes, and an overlay on it with `changed` bytes of real data in pieces of a
    /// cluster, spread over all of it.
    pub fn spread(&self, size: u64, changed: u64) -> Result<(Disk, Disk)> {
        let name = format!("{}g", size >> 30);
        let base = Disk {
            vm: name.clone(),
            image: self.folder.join(format!("{name}.qcow2")),
            raw: self.folder.join(format!("{name}.raw")),
        };
        if !base.image.exists() {
            fs::copy(self.image("minimal")?, &base.image)?;
            fs::set_permissions(&base.image, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            let image = base.image.display().to_string();
            run("qemu-img", ["resize", "-q", "-f", "qcow2", &image, &size.to_string()])?;
        }
        let content = self.folder.join("content");
        if !content.exists() {
            nonzero_bytes(&self.chain("minimal")?.raw, &content)?;
        }
        let content = File::open(content)?;
        let clusters = changed / CLUSTER;
        let (step, pool) = (size / clusters / CLUSTER * CLUSTER, content.metadata()?.len() / CLUSTER);
        let writes = (0..clusters).map(|at| {
            let mut bytes = vec![0; CLUSTER as usize];
            content.read_exact_at(&mut bytes, at % pool * CLUSTER)?;
            // Real data that is nowhere else: each block is marked.
            for (block, bytes) in bytes.chunks_mut(BLOCK).enumerate() {
                bytes[..8].copy_from_slice(&(at << 8 | block as u64).to_le_bytes());
                bytes[8..24].copy_from_slice(&(u128::from(size) << 64 | u128::from(changed)).to_le_bytes());
            }
            Ok((at * step, bytes))
        });
        let overlay = self.overlay(&base, &format!("{}m", changed >> 20), writes)?;
        Ok((base, overlay))
    }

    /// An overlay on the disk's image with these writes. Its raw file is made when it is asked for, with [`flat`].
    ///
    /// What is written is never all in memory: a program that is measured begins with the most that this one ever used.
    pub fn overlay(
        &self,
        disk: &Disk,
        name: &str,
        mut writes: impl Iterator<Item = Result<(u64, Vec<u8>)>>,
    ) -> Result<Disk> {
        let path = |ending: &str| self.folder.join(format!("{}-{name}.{ending}", disk.vm));
        let overlay = Disk { vm: disk.vm.clone(), image: path("qcow2"), raw: path("raw") };
        let base = disk.image.file_name().unwrap_or_default();
        let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"].map(AsRef::as_ref);
        run("qemu-img", create.into_iter().chain([base, overlay.image.as_os_str()]))?;
        loop {
            let pieces = tempfile::tempdir()?;
            let mut arguments = vec!["-f".to_owned(), "qcow2".into(), overlay.image.display().to_string()];
            for (number, write) in writes.by_ref().take(1000).enumerate() {
                let (at, bytes) = write?;
                let piece = pieces.path().join(number.to_string());
                fs::write(&piece, &bytes)?;
                arguments
                    .extend(["-c".into(), format!("write -q -s {} {at} {}", piece.display(), bytes.len())]);
            }
            if arguments.len() == 3 {
                return Ok(overlay);
            }
            run("qemu-io", &arguments)?;
        }
    }
}

/// Makes the raw file of an image, unless it is there.
pub fn flat(image: &Path, raw: &Path) -> Result<()> {
    if !raw.exists() {
        run("qemu-img", ["convert", "-O", "raw"].map(Path::new).into_iter().chain([image, raw]))?;
    }
    Ok(())
}

/// Copies the blocks of a raw disk that are not all zeros to `to`; returns how many bytes they have.
pub fn nonzero_bytes(raw: &Path, to: &Path) -> Result<u64> {
    let (file, mut out, mut copied) = (File::open(raw)?, BufWriter::new(File::create(to)?), 0);
    for cluster in clusters_with_data(&file)? {
        let mut bytes = vec![0; CLUSTER as usize];
        let length = (file.metadata()?.len() - cluster).min(CLUSTER) as usize;
        file.read_exact_at(&mut bytes[..length], cluster)?;
        for block in bytes[..length].chunks(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)) {
            out.write_all(block)?;
            copied += block.len() as u64;
        }
    }
    out.flush()?;
    Ok(copied)
}

/// Offsets of the clusters that are not all zeros.
fn clusters_with_data(file: &File) -> Result<Vec<u64>> {
    let (size, mut bytes, mut found) = (file.metadata()?.len(), vec![0; CLUSTER as usize], Vec::new());
    for at in (0..size).step_by(CLUSTER as usize) {
        let length = (size - at).min(CLUSTER) as usize;
        file.read_exact_at(&mut bytes[..length], at)?;
        if bytes[..length].iter().any(|byte| *byte != 0) {
            found.push(at);
        }
    }
    Ok(found)
}

/// Bytes that do not compress, different for every seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
