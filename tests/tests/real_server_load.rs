//! Many clients of one server: machines of three hosts that share bases, on Garage; the server killed again and again; 64 clients beside
//! others that only want to be in the way; a disk that fills.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use underlay_tests::commands::run;
use underlay_tests::images::{self, Random};
use underlay_tests::program::Underlay;
use underlay_tests::s3::S3Server;
use underlay_tests::server::ServerProgram;

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A server, the repository on it, and whoever runs it.
struct Site {
    folder: TempDir,
    server: ServerProgram,
    operator: Underlay,
    backup_key: PathBuf,
}

impl Site {
    fn new(start: impl FnOnce(&Path) -> ServerProgram) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = start(folder.path());
        let token = server.token(&["--scope", "admin,maintain,restore"]).unwrap();
        let operator = server.client(folder.path(), &token).unwrap();
        operator.run(&["init"]).unwrap();
        let backup_key = folder.path().join("backup.key");
        operator.run(&["key", "export", "--holds", "backup", text(&backup_key)]).unwrap();
        Self { folder, server, operator, backup_key }
    }

    /// A host with a token and a state of its own.
    fn host(&self, name: &str) -> Underlay {
        let home = self.folder.path().join(name);
        std::fs::create_dir(&home).unwrap();
        let token = self.server.token(&["--scope", "backup"]).unwrap();
        let mut host = self.server.client(&home, &token).unwrap();
        host.key_file = self.backup_key.clone();
        host
    }

    fn expect_sound(&self) {
        self.operator.run(&["gc", "--max-unused", "0%", "--fence-after", "0s"]).unwrap();
        self.operator.run(&["check", "--read-data", "--scrub"]).unwrap();
    }
}

/// A host's own copy of a base with a machine's overlay on it.
fn machine(home: &Path, base: &Path, number: usize) -> PathBuf {
    let copy = home.join(base.file_name().unwrap());
    if !copy.exists() {
        std::fs::copy(base, &copy).unwrap();
    }
    let image = home.join(format!("vm{number}.qcow2"));
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&copy), text(&image)]).unwrap();
    let writes = format!("write -P {} {}M 2M", 100 + number, 200 + 3 * number);
    run("qemu-io", ["-f", "qcow2", text(&image), "-c", &writes]).unwrap();
    image
}

fn bytes_new(answer: &serde_json::Value) -> u64 {
    answer["bytes_new"].as_u64().unwrap()
}

/// Twelve machines of three hosts on two bases.
struct Machines {
    hosts: Vec<Underlay>,
    /// Host, name and image of each.
    all: Vec<(usize, String, PathBuf)>,
    bases: [PathBuf; 2],
}

impl Machines {
    fn new(site: &Site) -> Self {
        let folder = site.folder.path();
        let bases = ["base0", "base1"].map(|name| images::base(folder, name).unwrap());
        let hosts = (0..3).map(|number| site.host(&format!("host{number}"))).collect();
        let all = (0..12).map(|number| {
            let home = folder.join(format!("host{}", number % 3));
            (number % 3, format!("vm{number}"), machine(&home, &bases[number % 2], number))
        });
        Self { hosts, all: all.collect(), bases }
    }

    /// Bytes that are different in the machines of each host, by repositories that nobody shares.
    fn different(&self, folder: &Path, together: bool) -> u64 {
        let alone = |number: usize| {
            let folder = folder.join(format!("alone{number}"));
            std::fs::create_dir(&folder).unwrap();
            Underlay::init(text(&folder.join("repository")), &folder).unwrap()
        };
        let alone: Vec<Underlay> = (0..if together { 1 } else { 3 }).map(alone).collect();
        let of = |(host, vm, image): &(usize, String, PathBuf)| {
            bytes_new(&alone[host % alone.len()].backup(vm, image).unwrap())
        };
        self.all.iter().map(of).sum()
    }

    /// Backs all of them up at once; the bytes that were sent.
    fn back_up(&self) -> u64 {
        thread::scope(|scope| {
            let backup = |(host, vm, image): &(usize, String, PathBuf)| {
                let host = &self.hosts[*host];
                let (vm, image) = (vm.clone(), image.clone());
                scope.spawn(move || bytes_new(&host.backup(&vm, &image).unwrap()))
            };
            let running: Vec<_> = self.all.iter().map(backup).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).sum()
        })
    }

    fn restore_elsewhere(&self, site: &Site) {
        let folder = site.folder.path();
        for (host, vm, image) in &self.all {
            let elsewhere = site.operator.elsewhere(&folder.join(format!("host{}", (host + 1) % 3)));
            let restored = folder.join("restored.qcow2");
            elsewhere.restore(&format!("{vm}@latest"), &restored, "qcow2").unwrap();
            run("qemu-img", ["compare", "-f", "qcow2", "-F", "qcow2", text(&restored), text(image)]).unwrap();
            std::fs::remove_file(restored).unwrap();
        }
    }
}

#[test]
fn twelve_machines_at_once_store_each_base_once() {
    let s3 = S3Server::garage().unwrap();
    let site = Site::new(|folder| ServerProgram::on_s3(folder, &s3, "127.0.0.1:0").unwrap());
    let machines = Machines::new(&site);
    let different = machines.different(site.folder.path(), true);
    let started = Instant::now();
    let sent = machines.back_up();
    println!(
        "12 machines at once: {} MiB sent where {} MiB are different, {:.1} s",
        sent / MIB,
        different / MIB,
        started.elapsed().as_secs_f64()
    );
    // Without waiting for each other, six of them send each base, which is a fifth of all.
    assert!(sent <= different + different / 10, "{sent} bytes were sent, {different} are different");
    machines.restore_elsewhere(&site);
    site.expect_sound();
}

#[test]
fn in_strict_mode_each_writer_stores_each_base_until_it_is_verified() {
    let s3 = S3Server::garage().unwrap();
    let site =
        Site::new(|folder| ServerProgram::on_s3_with(folder, &s3, "127.0.0.1:0", "strict = true").unwrap());
    let machines = Machines::new(&site);
    let different = machines.different(site.folder.path(), false);
    let sent = machines.back_up();
    site.operator.run(&["check", "--unverified"]).unwrap();
    let late = site.host("late");
    let image = machine(&site.folder.path().join("late"), &machines.bases[0], 20);
    let after = bytes_new(&late.backup("vm20", &image).unwrap());
    println!(
        "12 machines of 3 writers at once: {} MiB sent where {} MiB are different; once verified, the next writer's \
         machine: {} MiB",
        sent / MIB,
        different / MIB,
        after / MIB
    );
    assert!(sent <= different + different / 10, "{sent} bytes were sent, {different} are different");
    assert!(after <= 3 * MIB, "{after} bytes of a base that was verified");
    machines.restore_elsewhere(&site);
    site.expect_sound();
}

/// Backs machines up, one after another, until it is told to stop. What was acknowledged, and what it holds.
fn back_up_for_ever(
    host: &Underlay,
    vm: &str,
    seed: u64,
    image: &Path,
    over: &AtomicBool,
) -> Vec<(String, blake3::Hash)> {
    const PIECE: usize = 64 << 10;
    const PIECES: u64 = 32;
    let (mut random, mut acknowledged) = (Random(seed), Vec::new());
    let mut disk = vec![0; PIECE * PIECES as usize];
    while !over.load(Ordering::Relaxed) {
        for _ in 0..4 {
            let (at, content) = (random.below(PIECES) as usize * PIECE, random.below(2000));
            let mut piece = blake3::Hasher::new().update(&content.to_le_bytes()).finalize_xof();
            piece.fill(&mut disk[at..at + PIECE]);
        }
        std::fs::write(image, &disk).unwrap();
        let mut command = host.command(["backup", "--vm", vm, "--format", "raw", "--json"]);
        let output = command.arg(image).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => {
                let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                acknowledged.push((answer["snapshot"].as_str().unwrap().to_owned(), blake3::hash(&disk)));
            }
            // It says why, and nobody counts on it.
            Some(1) => assert!(said.contains("error") && !said.contains("panicked"), "{said}"),
            _ => panic!("{output:?}"),
        }
        thread::sleep(Duration::from_millis(random.below(4000)));
    }
    acknowledged
}

/// Restores all of them, several at once, and compares.
fn expect_exact(site: &Site, acknowledged: &BTreeMap<String, blake3::Hash>) {
    let all: Vec<_> = acknowledged.iter().collect();
    thread::scope(|scope| {
        for (number, part) in all.chunks(all.len().div_ceil(4)).enumerate() {
            let restored = site.folder.path().join(format!("restored{number}.raw"));
            scope.spawn(move || {
                for (snapshot, hash) in part {
                    site.operator
                        .run(&["restore", snapshot, "--force", "--format", "raw", "--to", text(&restored)])
                        .unwrap();
                    assert!(
                        blake3::hash(&std::fs::read(&restored).unwrap()) == **hash,
                        "{snapshot} is not exact"
                    );
                }
            });
        }
    });
}

#[test]
fn fifty_kills_of_the_server_lose_nothing() {
    const KILLS: usize = 50;
    let s3 = S3Server::garage().unwrap();
    let mut site = Site::new(|folder| ServerProgram::on_s3(folder, &s3, "127.0.0.1:0").unwrap());
    let folder = site.folder.path().to_owned();
    let address = site.server.address.clone();
    let hosts: Vec<Underlay> = (0..3).map(|number| site.host(&format!("host{number}"))).collect();
    let (over, acknowledged) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    let mut random = Random(7);
    thread::scope(|scope| {
        for number in 0..12 {
            let (host, over, acknowledged) = (&hosts[number % 3], &over, &acknowledged);
            let image = folder.join(format!("vm{number}.raw"));
            scope.spawn(move || {
                let done = back_up_for_ever(host, &format!("vm{number}"), number as u64, &image, over);
                acknowledged.lock().unwrap().extend(done);
            });
        }
        for _ in 0..KILLS {
            thread::sleep(Duration::from_millis(200 + random.below(1300)));
            site.server.kill();
            site.server = ServerProgram::on_s3(&folder, &s3, &address).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    let acknowledged = acknowledged.into_inner().unwrap();
    println!("{KILLS} kills; {} snapshots were acknowledged", acknowledged.len());
    assert!(acknowledged.len() >= KILLS, "{} backups only: this was no load", acknowledged.len());
    site.expect_sound();
    expect_exact(&site, &acknowledged);
}

/// The most memory that the process ever had, in bytes.
fn peak_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Connections that say little, and slowly, for as long as the server lets them.
fn in_the_way(address: &str, count: usize) -> Vec<TcpStream> {
    let begun = |number: usize| {
        let mut stream = TcpStream::connect(address).unwrap();
        match number % 3 {
            // Not a word.
            0 => {}
            // Half a TLS record.
            1 => stream.write_all(&[22, 3, 1, 2, 0, 1, 0]).unwrap(),
            // No TLS at all.
            _ => stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nx").unwrap(),
        }
        stream
    };
    (0..count).map(begun).collect()
}

#[test]
fn sixty_four_clients_are_served_beside_those_that_are_in_the_way() {
    let site = Site::new(|folder| ServerProgram::start(folder, text(&folder.join("repository"))).unwrap());
    let folder = site.folder.path();
    let hosts: Vec<Underlay> = (0..8).map(|number| site.host(&format!("host{number}"))).collect();
    let images: Vec<PathBuf> = (0..64).map(|number| folder.join(format!("vm{number}.raw"))).collect();
    for image in &images {
        run("sh", ["-c", &format!("head -c 8M /dev/urandom > {image:?}")]).unwrap();
    }
    let mut nuisances = in_the_way(&site.server.address, 60);
    let before = peak_memory(site.server.id());
    let started = Instant::now();
    thread::scope(|scope| {
        for (number, image) in images.iter().enumerate() {
            let host = &hosts[number % hosts.len()];
            let vm = format!("vm{number}");
            scope.spawn(move || {
                host.json(["backup", "--vm", &vm, "--format", "raw", text(image)]).unwrap();
            });
        }
    });
    let peak = peak_memory(site.server.id());
    println!(
        "64 clients at once: {:.1} s, the server's memory {} MiB, {} MiB before",
        started.elapsed().as_secs_f64(),
        peak / MIB,
        before / MIB
    );
    // All that bodies may take, and what the rest takes.
    assert!(peak < (512 + 128) * MIB, "{} MiB", peak / MIB);
    for stream in &mut nuisances {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut all = Vec::new();
        // A reset is an end, too; what is not ended fails by its time.
        if let Err(error) = stream.read_to_end(&mut all) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the server ends it");
        }
    }
    assert_eq!(site.operator.json(["list"]).unwrap().as_array().unwrap().len(), 64);
    site.expect_sound();
}

/// A file system of its own, gone with this.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = run("umount", ["-l", text(&self.0)]);
    }
}

#[test]
fn a_disk_that_fills_stops_backups_and_nothing_else() {
    let small = tempfile::tempdir().unwrap();
    run("mount", ["-t", "tmpfs", "-o", "size=48m", "none", text(small.path())]).unwrap();
    let mounted = Small(small.path().to_owned());
    let repository = mounted.0.join("repository");
    let site = Site::new(|folder| ServerProgram::start(folder, text(&repository)).unwrap());
    let folder = site.folder.path();
    let host = site.host("host");
    let image = |name: &str, size: &str| {
        let image = folder.join(name);
        run("sh", ["-c", &format!("head -c {size} /dev/urandom > {image:?}")]).unwrap();
        image
    };
    let (fits, too_large) = (image("fits.raw", "10M"), image("large.raw", "80M"));
    let back_up = |vm: &str, image: &Path| {
        host.command(["backup", "--vm", vm, "--format", "raw"]).arg(image).output().unwrap()
    };
    assert!(back_up("web", &fits).status.success());
    let full = back_up("large", &too_large);
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(full.status.code(), Some(1), "{said}");
    assert!(said.to_lowercase().contains("space") || said.contains("write"), "it says why: {said}");
    let restored = folder.join("restored.raw");
    site.operator.restore("web@latest", &restored, "raw").unwrap();
    run("cmp", [text(&restored), text(&fits)]).unwrap();
    run("mount", ["-o", "remount,size=200m", text(&mounted.0)]).unwrap();
    let now = back_up("large", &too_large);
    assert!(now.status.success(), "{}", String::from_utf8_lossy(&now.stderr));
    site.expect_sound();
    assert_eq!(site.operator.json(["list"]).unwrap().as_array().unwrap().len(), 2);
}
