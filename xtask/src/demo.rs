use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::run::{Result, at, capture, cargo, is_installed, root, show};

/// How many machines share the golden image.
const MACHINES: u64 = 4;
/// Bytes of real files in the golden image.
const GOLDEN_BYTES: u64 = 300 << 20;
/// Virtual size of every disk.
const DISK_BYTES: u64 = 1 << 30;
/// Where changes start: behind the files of the golden image.
const CHANGES_OFFSET: u64 = 512 << 20;
/// Bytes of real programs that every machine gets, as if it had installed the same package.
const SHARED_BYTES: u64 = 24 << 20;
/// Bytes that only one machine has, and that compress to nothing less.
const PRIVATE_BYTES: u64 = 4 << 20;

/// What one backup cost, from its `--json` report and the size of the repository after it.
struct Report {
    snapshot: String,
    disk_bytes: u64,
    bytes_read: u64,
    bytes_uploaded: u64,
    repository_bytes: u64,
    seconds: f64,
}

/// The demonstration's folder and programs.
struct Stage {
    folder: PathBuf,
    underlay: PathBuf,
}

/// Backs up four VM disks over one golden image on two days, restores two points in time, and prints what it cost.
pub fn demo() -> Result<()> {
    install_image_tools()?;
    println!("building underlay (release)");
    show(&mut cargo(["build", "--quiet", "--release", "--locked", "--package", "underlay-client"]))?;
    let stage = Stage::new()?;

    println!("making a golden image: ext4 with {} of this machine's own files", mebibytes(GOLDEN_BYTES));
    stage.make_golden()?;
    stage.run_underlay(&["init", "--key-file"], &[&stage.path("key")])?;

    let mut rows = Vec::new();
    for (day, below) in [("monday", None), ("tuesday", Some("monday"))] {
        println!("{day}: {MACHINES} machines change their disks; backing up each");
        for machine in 1..=MACHINES {
            let disk = stage.freeze(machine, day, below)?;
            rows.push((format!("{day} vm{machine}"), stage.back_up(machine, &disk)?));
        }
    }
    let reports: Vec<_> = rows.iter().map(|(_, report)| report).collect();
    let machines = usize::try_from(MACHINES).map_err(|error| error.to_string())?;
    println!(
        "restoring vm1 of monday as qcow2 and of tuesday as raw; comparing every byte with QEMU's own view"
    );
    let restored = [
        stage.restore_and_compare(reports[0], "vm1-monday.qcow2", "qcow2")?,
        stage.restore_and_compare(reports[machines], "vm1-tuesday.qcow2", "raw")?,
    ];
    print_table(&rows);
    println!("restored and identical: monday in {:.1} s, tuesday in {:.1} s", restored[0], restored[1]);
    println!("left to look at: {}", stage.folder.display());
    Ok(())
}

impl Stage {
    fn new() -> Result<Self> {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        let folder = target.join("demo");
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(at(&folder))?;
        }
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        Ok(Self { folder, underlay: target.join("release/underlay") })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes `golden.qcow2`, which holds a real file system, without being root.
    fn make_golden(&self) -> Result<()> {
        let (files, raw, golden) = (self.path("files"), self.path("golden.raw"), self.path("golden.qcow2"));
        let left = copy_files(Path::new("/usr/share"), &files, GOLDEN_BYTES)?;
        copy_files(Path::new("/usr/lib"), &files.join("lib"), left)?;
        let size = format!("{}k", DISK_BYTES / 1024);
        let mut format = Command::new("/usr/sbin/mke2fs");
        capture(format.args(["-q", "-F", "-t", "ext4", "-d"]).args([&files, &raw]).arg(size))?;
        capture(qemu_img(&["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &golden]))?;
        fs::remove_file(&raw).map_err(at(&raw))?;
        fs::remove_dir_all(&files).map_err(at(&files))?;

        let programs = self.path("programs");
        copy_files(Path::new("/usr/bin"), &programs, SHARED_BYTES)?;
        let update = concatenated(&programs, SHARED_BYTES)?;
        fs::write(self.path("update"), update).map_err(at(&self.path("update")))?;
        fs::remove_dir_all(&programs).map_err(at(&programs))
    }

    /// Makes a machine's overlay of one day, on the overlay of an earlier day or on the golden image, and changes it.
    fn freeze(&self, machine: u64, day: &str, below: Option<&str>) -> Result<PathBuf> {
        let backing =
            below.map_or_else(|| "golden.qcow2".to_owned(), |below| format!("vm{machine}-{below}.qcow2"));
        let overlay = self.path(&format!("vm{machine}-{day}.qcow2"));
        let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
        capture(qemu_img(&create).args([&self.path(&backing), &overlay]))?;
        let private = self.path("private");
        fs::write(&private, noise(machine, day)).map_err(at(&private))?;
        // The shared update lies elsewhere on every disk, a whole number of 4 KiB blocks apart.
        let update_at = CHANGES_OFFSET + machine * 7 * 4096;
        let private_at = CHANGES_OFFSET + 2 * SHARED_BYTES + day.len() as u64 * PRIVATE_BYTES;
        if below.is_none() {
            write_into(&overlay, &self.path("update"), update_at, SHARED_BYTES)?;
        }
        write_into(&overlay, &private, private_at, PRIVATE_BYTES)?;
        Ok(overlay)
    }

    fn back_up(&self, machine: u64, disk: &Path) -> Result<Report> {
        let start = Instant::now();
        let name = format!("vm{machine}");
        let printed = self.run_underlay(&["backup", "--json", "--no-progress", "--vm", &name], &[disk])?;
        let seconds = start.elapsed().as_secs_f64();
        let line = printed.lines().last().unwrap_or_default();
        let report: serde_json::Value =
            serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        let number = |field: &str| {
            report[field]
                .as_u64()
                .ok_or_else(|| format!("the backup's report has no number {field:?}: {line}"))
        };
        Ok(Report {
            snapshot: report["snapshot"].as_str().unwrap_or_default().to_owned(),
            disk_bytes: number("disk_bytes")?,
            bytes_read: number("bytes_read")?,
            bytes_uploaded: number("bytes_uploaded")?,
            repository_bytes: folder_bytes(&self.path("repository"))?,
            seconds: report["seconds"].as_f64().unwrap_or(seconds),
        })
    }

    /// Restores one snapshot of vm1 and fails unless its content is the frozen overlay's. Returns seconds.
    fn restore_and_compare(&self, report: &Report, frozen: &str, format: &str) -> Result<f64> {
        let (frozen, restored) = (self.path(frozen), self.path(&format!("restored-{frozen}.{format}")));
        let start = Instant::now();
        self.run_underlay(
            &["restore", &report.snapshot, "--no-progress", "--format", format, "--to"],
            &[&restored],
        )?;
        let seconds = start.elapsed().as_secs_f64();
        capture(qemu_img(&["compare", "-f", "qcow2", "-F", format]).args([&frozen, &restored]))?;
        Ok(seconds)
    }

    fn run_underlay(&self, arguments: &[&str], paths: &[&Path]) -> Result<String> {
        let mut command = Command::new(&self.underlay);
        command.args(arguments).args(paths).env("UNDERLAY_REPO", self.path("repository"));
        capture(command.env("UNDERLAY_KEY_FILE", self.path("key")))
    }
}

fn install_image_tools() -> Result<()> {
    if is_installed("qemu-img") && is_installed("qemu-io") && is_installed("mke2fs") {
        return Ok(());
    }
    let install = "apt-get update -q && apt-get install -q -y --no-install-recommends qemu-utils e2fsprogs";
    let user = capture(Command::new("id").arg("-u"))?;
    if user.trim() != "0" {
        return Err(format!("the demo needs QEMU's image tools; as root, run:\n{install}"));
    }
    println!("installing qemu-utils and e2fsprogs");
    capture(Command::new("sh").args(["-c", install]).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

fn qemu_img(arguments: &[&str]) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(arguments);
    command
}

/// Copies regular files below `from` until `budget` bytes are used up; returns what is left of it.
fn copy_files(from: &Path, to: &Path, mut budget: u64) -> Result<u64> {
    fs::create_dir_all(to).map_err(at(to))?;
    let mut entries: Vec<_> = fs::read_dir(from).map_err(at(from))?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (Ok(kind), target) = (entry.file_type(), to.join(entry.file_name())) else { continue };
        if kind.is_dir() {
            budget = copy_files(&entry.path(), &target, budget)?;
        } else if kind.is_file() {
            let length = entry.metadata().map_err(at(&entry.path()))?.len();
            // A file that this user may not read is no loss.
            if length <= budget && fs::copy(entry.path(), &target).is_ok() {
                budget -= length;
            }
        }
    }
    Ok(budget)
}

/// The content of every file in `folder`, one after another, each from a 4 KiB boundary on; `length` bytes in all.
fn concatenated(folder: &Path, length: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    for entry in fs::read_dir(folder).map_err(at(folder))?.flatten().filter(|entry| entry.path().is_file()) {
        content.extend(fs::read(entry.path()).map_err(at(&entry.path()))?);
        content.resize(content.len().next_multiple_of(4096), 0);
    }
    content.resize(usize::try_from(length).map_err(|error| error.to_string())?, 0);
    Ok(content)
}

/// Bytes that do not compress, the same on every run for one machine and day (SplitMix64).
fn noise(machine: u64, day: &str) -> Vec<u8> {
    let mut state = day.bytes().fold(machine, |state, byte| state.wrapping_mul(257) + u64::from(byte));
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    });
    words.take(usize::try_from(PRIVATE_BYTES / 8).unwrap_or_default()).flatten().collect()
}

/// Writes `length` bytes of the file `content` into an image, through QEMU, as a guest would.
fn write_into(image: &Path, content: &Path, offset: u64, length: u64) -> Result<()> {
    let write = format!("write -q -s {} {offset} {length}", content.display());
    capture(Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(image)).map(drop)
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).map_err(at(folder))?.flatten() {
        let metadata = entry.metadata().map_err(at(&entry.path()))?;
        sum += if metadata.is_dir() { folder_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

fn print_table(rows: &[(String, Report)]) {
    println!(
        "\n{:<13} {:>12} {:>12} {:>12} {:>14} {:>8}",
        "", "disk", "read", "uploaded", "repository", "seconds"
    );
    for (name, report) in rows {
        println!(
            "{name:<13} {:>12} {:>12} {:>12} {:>14} {:>8.2}",
            mebibytes(report.disk_bytes),
            mebibytes(report.bytes_read),
            mebibytes(report.bytes_uploaded),
            mebibytes(report.repository_bytes),
            report.seconds
        );
    }
    let sum = |field: fn(&Report) -> u64| rows.iter().map(|(_, report)| field(report)).sum::<u64>();
    let stored = rows.last().map_or(0, |(_, report)| report.repository_bytes);
    println!(
        "{:<13} {:>12} {:>12} {:>12} {:>14} {:>8.2}\n",
        "together",
        mebibytes(sum(|report| report.disk_bytes)),
        mebibytes(sum(|report| report.bytes_read)),
        mebibytes(sum(|report| report.bytes_uploaded)),
        mebibytes(stored),
        rows.iter().map(|(_, report)| report.seconds).sum::<f64>()
    );
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
