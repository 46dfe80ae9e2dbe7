//! The NBD client against the real `qemu-nbd`.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its own functions too")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use underlay_client::nbd::{ALLOCATION, DIRTY, Export, Extent, HOLE, NbdError, ZERO, dirty_bitmap};
use underlay_tests::commands::{run_command, spawn, terminate, wait_until};
use underlay_tests::images::{Random, Workshop, image_kinds, workshop};

const PATIENCE: Duration = Duration::from_secs(60);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// Most bytes that one question about a status can be about.
const SPAN: u64 = 4 * GIB - 64 * KIB;

/// A `qemu-nbd` that ends with the test.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Serves read-only; `arguments` name the image, and whatever else is needed.
    fn start<S: AsRef<OsStr>>(folder: &Path, arguments: impl IntoIterator<Item = S>) -> Self {
        let socket = folder.join("nbd.sock");
        let _ = fs::remove_file(&socket);
        let mut command = Command::new("qemu-nbd");
        command.current_dir(folder).args(["-r", "-t", "-e", "8", "-k"]).arg(&socket).args(arguments);
        let child = spawn(&mut command).unwrap();
        wait_until("qemu-nbd listens", PATIENCE, || Ok(UnixStream::connect(&socket).is_ok())).unwrap();
        Self { child, socket }
    }

    fn open(&self, contexts: &[&str]) -> Export {
        Export::connect(&self.socket, "", contexts, PATIENCE).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}

fn all<const N: usize>(export: &Export, contexts: [&str; N]) -> Vec<Extent<N>> {
    export.extents(contexts).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Ascending, adjacent, merged, and all of `size`.
fn assert_sound<const N: usize>(extents: &[Extent<N>], size: u64) {
    assert_eq!(extents.first().map_or(0, |first| first.offset), 0);
    assert_eq!(extents.last().map_or(0, Extent::end), size);
    for pair in extents.windows(2) {
        assert!(pair[0].end() == pair[1].offset && pair[0].flags != pair[1].flags, "{pair:?}");
    }
}

/// What `qemu-img map` says, merged as the client merges.
fn mapped(image: &Path, format: &str) -> Vec<Extent<1>> {
    // A relative data file is looked for where the program runs.
    let mut command = Command::new("qemu-img");
    command.current_dir(image.parent().unwrap()).args(["map", "--output=json", "-f", format]).arg(image);
    let json = run_command(&mut command).unwrap();
    let runs: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    let mut extents: Vec<Extent<1>> = Vec::new();
    for found in runs {
        let flag = |name: &str, flag: u32| if found[name].as_bool().unwrap() { flag } else { 0 };
        let flags = [(HOLE - flag("data", HOLE)) | flag("zero", ZERO)];
        let (offset, length) = (found["start"].as_u64().unwrap(), found["length"].as_u64().unwrap());
        match extents.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ => extents.push(Extent { offset, length, flags }),
        }
    }
    extents
}

/// Reads pieces of any alignment, from several threads, each of which must be what `disk` has.
fn assert_reads_anywhere(export: &Export, disk: &[u8]) {
    thread::scope(|scope| {
        for seed in 0..3 {
            scope.spawn(move || {
                let mut random = Random(seed);
                for _ in 0..40 {
                    let offset = random.below(disk.len() as u64) as usize;
                    let limit = (disk.len() - offset).min([20, 5000, 3_000_000][random.below(3) as usize]);
                    let mut bytes = vec![0xee; 1 + random.below(limit as u64) as usize];
                    export.read_at(offset as u64, &mut bytes).unwrap();
                    assert!(bytes == disk[offset..][..bytes.len()], "{} bytes at {offset}", bytes.len());
                }
            });
        }
    });
}

#[test]
fn every_kind_of_image_is_read_and_mapped_as_qemu_does() {
    let mut checked = 0;
    for kind in image_kinds() {
        // The one is too large to read whole; the others have no bytes, or a size that only a header can have.
        if ["huge-sparse", "zero-length", "raw-empty-file", "odd-header-size", "names"].contains(&kind.name) {
            continue;
        }
        let (folder, w) = workshop();
        let case = kind.build(&w.dir).unwrap();
        let flat = folder.path().join("flat.raw");
        case.flatten(&flat).unwrap();
        let mut disk = fs::read(&flat).unwrap();
        let server = Server::start(&w.dir, ["-f", case.format, case.top.to_str().unwrap()]);
        let export = server.open(&[ALLOCATION]);
        // A raw file's last sector is filled up with zeros, on the one way as on the other.
        disk.resize(disk.len().next_multiple_of(512), 0);
        assert_eq!(export.size(), disk.len() as u64, "{}", kind.name);
        let mut bytes = vec![0xee; disk.len()];
        export.read_at(0, &mut bytes).unwrap();
        assert!(bytes == disk, "{}: other bytes", kind.name);
        assert_reads_anywhere(&export, &disk);
        let extents = all(&export, [ALLOCATION]);
        assert_sound(&extents, export.size());
        assert_eq!(extents, mapped(&case.top, case.format), "{}", kind.name);
        checked += 1;
    }
    assert!(checked > 30, "only {checked} kinds");
}

#[test]
fn data_holes_and_zero_clusters_are_told_apart() {
    let (_folder, w) = workshop();
    w.img("create -f qcow2 top.qcow2 8M").unwrap();
    w.io("top.qcow2", &["write -P 7 1M 1M", "write -z 3M 1M", "write -P 0 5M 64k"]).unwrap();
    let server = Server::start(&w.dir, ["-f", "qcow2", "top.qcow2"]);
    let export = server.open(&[ALLOCATION]);
    let extent = |start: u64, end: u64, flags| Extent {
        offset: start * 64 * KIB,
        length: (end - start) * 64 * KIB,
        flags: [flags],
    };
    // What was never written is a hole that reads as zeros; so is a zero cluster, to QEMU.
    let expected = [
        extent(0, 16, HOLE | ZERO),
        extent(16, 32, 0),
        extent(32, 80, HOLE | ZERO),
        extent(80, 81, 0),
        extent(81, 128, HOLE | ZERO),
    ];
    assert_eq!(all(&export, [ALLOCATION]), expected);
    let part = export.extents_within([ALLOCATION], MIB - 1..MIB + 1).unwrap();
    let part: Vec<_> = part.map(Result::unwrap).collect();
    assert_eq!(
        part,
        [
            Extent { offset: MIB - 1, length: 1, flags: [HOLE | ZERO] },
            Extent { offset: MIB, length: 1, flags: [0] }
        ]
    );
    assert_eq!(export.extents_within([ALLOCATION], 5..5).unwrap().count(), 0);
}

/// An image of `size` with a bitmap `changes`, made after its first write, and read-only from now on.
fn with_bitmap(w: &Workshop, size: u64, granularity: u64, writes: &[(u64, u64)]) {
    w.img(&format!("create -f qcow2 -o lazy_refcounts=on top.qcow2 {size}")).unwrap();
    w.io("top.qcow2", &["write -P 1 0 3M"]).unwrap();
    w.img(&format!("bitmap --add -g {granularity} top.qcow2 changes")).unwrap();
    let writes: Vec<_> =
        writes.iter().map(|(offset, length)| format!("write -P 2 {offset} {length}")).collect();
    w.io("top.qcow2", &writes.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    // An enabled bitmap may not be exported read-only.
    w.img("bitmap --disable top.qcow2 changes").unwrap();
}

/// The blocks of `granularity` that `writes` touch, merged.
fn touched(size: u64, granularity: u64, writes: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let blocks = writes
        .iter()
        .flat_map(|(offset, length)| offset / granularity..(offset + length).div_ceil(granularity));
    let mut blocks: Vec<_> = blocks.collect();
    blocks.sort_unstable();
    blocks.dedup();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        let (start, end) = (block * granularity, size.min((block + 1) * granularity));
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}

#[test]
fn the_dirty_extents_are_exactly_the_writes() {
    let size = 40 * MIB + 512;
    let mut random = Random(11);
    let mut writes: Vec<_> =
        (0..60).map(|_| (random.below(39 * MIB / 512) * 512, 512 * (1 + random.below(300)))).collect();
    writes.push((size - 512, 512));
    for granularity in [4 * KIB, 64 * KIB, MIB] {
        let (_folder, w) = workshop();
        with_bitmap(&w, size, granularity, &writes);
        let server = Server::start(&w.dir, ["-f", "qcow2", "-B", "changes", "top.qcow2"]);
        let changes = dirty_bitmap("changes");
        let export = server.open(&[ALLOCATION, &changes]);
        let extents = all(&export, [&changes]);
        assert_sound(&extents, size);
        let dirty = extents.iter().filter(|extent| extent.flags == [DIRTY]);
        let dirty: Vec<_> = dirty.map(|extent| (extent.offset, extent.end())).collect();
        assert_eq!(dirty, touched(size, granularity, &writes), "granularity {granularity}");
        // Both at once say what each says alone, whichever is named first.
        let both = all(&export, [&changes, ALLOCATION]);
        assert_sound(&both, size);
        let alone = |index: usize| {
            let mut runs: Vec<(u64, u32)> = Vec::new();
            for extent in &both {
                match runs.last_mut() {
                    Some(last) if last.1 == extent.flags[index] => last.0 = extent.end(),
                    _ => runs.push((extent.end(), extent.flags[index])),
                }
            }
            runs
        };
        let ends = |extents: &[Extent<1>]| extents.iter().map(|e| (e.end(), e.flags[0])).collect::<Vec<_>>();
        assert_eq!(alone(0), ends(&extents));
        assert_eq!(alone(1), ends(&all(&export, [ALLOCATION])));
        assert!(alone(0).len() > 2 && alone(1).len() > 2);
    }
}

#[test]
fn a_disk_of_twenty_tebibytes_takes_few_requests() {
    let (_folder, w) = workshop();
    let (size, far) = (20 * TIB, 19 * TIB + 64 * KIB);
    with_bitmap(&w, size, 64 * KIB, &[(far, 1000 * KIB), (size - 512, 512)]);
    let server = Server::start(&w.dir, ["-f", "qcow2", "-B", "changes", "top.qcow2"]);
    let changes = dirty_bitmap("changes");
    let export = server.open(&[ALLOCATION, &changes]);
    let start = Instant::now();
    let extents = all(&export, [ALLOCATION, &changes]);
    let took = start.elapsed();
    let extent = |offset, end: u64, flags| Extent { offset, length: end - offset, flags };
    let written = far + 1024 * KIB;
    let last = size - 64 * KIB;
    assert_eq!(
        extents,
        [
            extent(0, 3 * MIB, [0, 0]),
            extent(3 * MIB, far, [HOLE | ZERO, 0]),
            extent(far, written, [0, DIRTY]),
            extent(written, last, [HOLE | ZERO, 0]),
            extent(last, size, [0, DIRTY]),
        ]
    );
    let statuses = export.traffic().statuses;
    assert_eq!(statuses, size.div_ceil(SPAN), "took {took:?}");
    let mut bytes = [0; 513];
    export.read_at(far + 1000 * KIB - 512, &mut bytes).unwrap();
    assert_eq!(bytes[..], [&[2; 512][..], &[0]].concat());
    export.read_at(size - 513, &mut bytes).unwrap();
    assert_eq!(bytes[..], [&[0][..], &[2; 512]].concat());
}

#[test]
fn what_is_missing_is_named_with_what_there_is() {
    let (_folder, w) = workshop();
    with_bitmap(&w, 4 * MIB, 64 * KIB, &[(0, 512)]);
    let server = Server::start(&w.dir, ["-f", "qcow2", "-B", "changes", "-x", "vda", "top.qcow2"]);
    let connect =
        |export: &str, contexts: &[&str]| Export::connect(&server.socket, export, contexts, PATIENCE);
    let socket = server.socket.display().to_string();

    let error = connect("vda", &[ALLOCATION, "qemu:dirty-bitmap:gone"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{socket}: export \"vda\" has no context \"qemu:dirty-bitmap:gone\"; the server has \"base:allocation\", \
             \"qemu:dirty-bitmap:changes\""
        )
    );
    assert!(error.hint().unwrap().contains("back up the whole disk once"));

    let expected = format!("{socket}: there is no export \"vdb\"; the server has \"vda\"");
    assert_eq!(connect("vdb", &[]).unwrap_err().to_string(), expected);
    assert_eq!(connect("vdb", &[ALLOCATION]).unwrap_err().to_string(), expected);

    let export = connect("vda", &[ALLOCATION]).unwrap();
    let error = export.extents(["qemu:dirty-bitmap:changes"]).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{socket}: export \"vda\": was opened without the context \"qemu:dirty-bitmap:changes\"")
    );
    let error = export.read_at(4 * MIB - 1, &mut [0; 2]).unwrap_err().to_string();
    assert!(error.ends_with("2 bytes at offset 4194303 are not within its 4194304 bytes"), "{error}");
    assert!(export.extents_within([ALLOCATION], 0..4 * MIB + 1).is_err());
    export.read_at(4 * MIB - 1, &mut [0]).unwrap();

    let error = Export::connect(&w.dir.join("nobody"), "vda", &[], PATIENCE).unwrap_err();
    assert!(matches!(&error, NbdError::Io { action: "connect", .. }), "{error:?}");
    assert!(error.to_string().contains("nobody: export \"vda\": cannot connect"), "{error}");
    assert!(error.hint().unwrap().contains("is the machine running"));
}

/// A raw disk below a `blkdebug` with `options`, and its bytes.
fn serve_debugged(w: &Workshop, options: &str) -> (Server, Vec<u8>) {
    w.noise("top.raw", 3 * MIB, 5).unwrap();
    let options = format!("driver=blkdebug,image.driver=file,image.filename=top.raw,{options}");
    let server = Server::start(&w.dir, ["--image-opts", &options]);
    (server, fs::read(w.dir.join("top.raw")).unwrap())
}

#[test]
fn a_server_with_large_blocks_is_asked_for_whole_ones() {
    let (_folder, w) = workshop();
    let (server, disk) = serve_debugged(&w, "align=4096");
    let export = server.open(&[ALLOCATION]);
    assert_reads_anywhere(&export, &disk);
    let mut byte = [0];
    let before = export.traffic().data_bytes;
    export.read_at(5000, &mut byte).unwrap();
    assert_eq!(byte[0], disk[5000]);
    let after = export.traffic().data_bytes;
    assert_eq!(after - before, 4096, "one byte is a block of the server's");
    let whole = all(&export, [ALLOCATION]);
    let part = export.extents_within([ALLOCATION], 1..3 * MIB - 1).unwrap();
    let part: Vec<_> = part.map(Result::unwrap).collect();
    assert_sound(&whole, 3 * MIB);
    assert_eq!(part.len(), whole.len());
    assert_eq!((part[0].offset, part.last().unwrap().end()), (1, 3 * MIB - 1));
}

#[test]
fn a_bad_sector_is_an_error_and_the_rest_is_still_read() {
    let (_folder, w) = workshop();
    let injected = "inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.errno=5,\
                    inject-error.0.sector=4000";
    let (server, disk) = serve_debugged(&w, injected);
    let export = server.open(&[]);
    let mut bytes = vec![0; disk.len()];
    let error = export.read_at(0, &mut bytes).unwrap_err();
    // The request of 256 KiB that the sector lies in.
    let place = 4000 * 512 / (256 * KIB) * 256 * KIB;
    assert!(
        matches!(&error, NbdError::Failed { error: 5, offset: Some(offset), .. } if *offset == place),
        "{error}"
    );
    export.read_at(0, &mut bytes[..1 << 20]).unwrap();
    assert!(bytes[..1 << 20] == disk[..1 << 20]);
}

#[test]
fn a_server_that_is_killed_is_an_error_that_says_where() {
    let (_folder, w) = workshop();
    w.noise("top.raw", 3 * MIB, 5).unwrap();
    let mut server = Server::start(&w.dir, ["-f", "raw", "top.raw"]);
    let export = server.open(&[ALLOCATION]);
    let mut bytes = vec![0; 1 << 20];
    export.read_at(0, &mut bytes).unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let error = export.read_at(MIB, &mut bytes).unwrap_err();
    assert!(matches!(error, NbdError::Ended { offset: Some(MIB), .. }), "{error}");
    let error = export.extents([ALLOCATION]).unwrap().next().unwrap().unwrap_err();
    assert!(matches!(error, NbdError::GivenUp { offset: Some(0), .. }), "{error}");
}

#[test]
fn a_silent_server_is_not_waited_for_longer_than_told() {
    let (_folder, w) = workshop();
    let socket = w.dir.join("silent.sock");
    // Never accepts: the first connections wait in its queue, and when that is full the system's call hangs.
    let _listener = UnixListener::bind(&socket).unwrap();
    let patience = Duration::from_millis(200);
    let start = Instant::now();
    let error = Export::connect(&socket, "vda", &[], patience).unwrap_err();
    assert!(start.elapsed() >= patience && start.elapsed() < PATIENCE);
    assert!(
        error.to_string().ends_with("export \"vda\": cannot negotiate: no answer within 0.2 s"),
        "{error}"
    );
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = socket.clone();
    thread::spawn(move || {
        while let Ok(stream) = UnixStream::connect(&path) {
            sender.send(stream).unwrap();
        }
    });
    let mut queued = Vec::new();
    while let Ok(stream) = receiver.recv_timeout(Duration::from_secs(1)) {
        queued.push(stream);
    }
    let error = Export::connect(&socket, "vda", &[], patience).unwrap_err();
    assert!(
        error.to_string().ends_with("cannot connect: no answer within 0.2 s"),
        "{error} after {}",
        queued.len()
    );
}
