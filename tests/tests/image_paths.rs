//! Where an image may lead: no file outside the allowed directories, no loops, no guessed formats.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its own functions too")]

use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_client::image::{Chain, Format, ImageError, OpenOptions};
use underlay_tests::images::{Workshop, open_qcow2 as open, read_all, refusal, workshop};

type Outcome = Result<(), Box<dyn Error>>;

const QCOW2: Option<Format> = Some(Format::Qcow2);

/// Makes `image` name `named` as its backing file, whatever it says. Its header cluster must have room at 4096.
fn set_backing(w: &Workshop, image: &str, named: &[u8]) {
    w.patch(image, 4096, named).unwrap();
    w.patch(image, 8, &4096_u64.to_be_bytes()).unwrap();
    w.patch(image, 16, &(named.len() as u32).to_be_bytes()).unwrap();
}

/// Where the header says what format the backing file has: type, length, then the name.
fn format_record(w: &Workshop, image: &str) -> u64 {
    let bytes = fs::read(w.dir.join(image)).unwrap();
    bytes.windows(4).position(|bytes| bytes == 0xe279_2aca_u32.to_be_bytes()).unwrap() as u64
}

fn be64(w: &Workshop, image: &str, offset: u64) -> u64 {
    let bytes = fs::read(w.dir.join(image)).unwrap();
    u64::from_be_bytes(bytes[offset as usize..][..8].try_into().unwrap())
}

/// A named file is opened for the top image `top.qcow2` in `images/`; `outside.raw` lies beside that directory.
fn escape_setup() -> (tempfile::TempDir, Workshop) {
    let (dir, w) = workshop();
    w.noise("base.raw", 1 << 20, 1).unwrap();
    w.noise("../outside.raw", 1 << 20, 2).unwrap();
    fs::create_dir(w.dir.join("sub")).unwrap();
    symlink("../outside.raw", w.dir.join("link.raw")).unwrap();
    symlink("..", w.dir.join("up")).unwrap();
    symlink("/dev/zero", w.dir.join("zero")).unwrap();
    Command::new("mkfifo").arg(w.dir.join("pipe")).status().unwrap();
    w.img("create -f qcow2 -b base.raw -F raw top.qcow2").unwrap();
    (dir, w)
}

fn escapes(w: &Workshop) -> Vec<(Vec<u8>, &'static str)> {
    let outside = w.dir.parent().unwrap().join("outside.raw");
    let mut names: Vec<(Vec<u8>, &str)> = vec![
        (outside.display().to_string().into_bytes(), "outside the allowed directories"),
        (format!("file:{}", outside.display()).into_bytes(), "outside the allowed directories"),
    ];
    for (name, expect) in [
        ("../outside.raw", "outside the allowed directories"),
        ("sub/../../outside.raw", "outside the allowed directories"),
        ("link.raw", "outside the allowed directories"),
        ("up/outside.raw", "outside the allowed directories"),
        ("/dev/zero", "outside the allowed directories"),
        ("zero", "outside the allowed directories"),
        ("/proc/self/mem", "outside the allowed directories"),
        ("/proc/version", "outside the allowed directories"),
        ("/etc/passwd", "outside the allowed directories"),
        (".", "outside the allowed directories"),
        ("sub", "a directory"),
        ("pipe", "a pipe"),
        ("missing.raw", "cannot find"),
        ("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"base.raw\"}}", "plain files"),
        ("nbd://localhost/x", "plain files"),
        ("nbd:localhost:10809", "plain files"),
        ("fat:rw:/etc", "plain files"),
        ("file:base.raw", "plain files"),
        ("base.raw\0/../../x", "not a file name"),
    ] {
        names.push((name.as_bytes().to_vec(), expect));
    }
    names
}

#[test]
fn a_named_path_never_leads_outside() {
    let (_dir, w) = escape_setup();
    let top = w.dir.join("top.qcow2");
    for (name, expect) in escapes(&w) {
        set_backing(&w, "top.qcow2", &name);
        let said = refusal(&top);
        assert!(said.contains(expect), "{}: {said}", String::from_utf8_lossy(&name));
    }
    set_backing(&w, "top.qcow2", b"../outside.raw");
    let error = open(&top).unwrap_err();
    let allow = w.dir.parent().unwrap().to_owned();
    assert_eq!(
        error.hint().unwrap(),
        format!("if you trust this image, add --allow-dir {}", allow.display())
    );
    let options = OpenOptions { format: QCOW2, allow_dirs: vec![allow], ..OpenOptions::default() };
    assert_eq!(Chain::open(&top, &options).unwrap().len(), 2);
}

#[test]
fn external_data_files_and_deeper_layers_are_held_to_the_same_directories() {
    let (_dir, w) = escape_setup();
    w.img("create -f qcow2 -o data_file=guest.data data.qcow2 1M").unwrap();
    let bytes = fs::read(w.dir.join("data.qcow2")).unwrap();
    let name = bytes.windows(10).position(|bytes| bytes == b"guest.data").unwrap() as u64;
    for (named, expect) in [
        (b"//dev/zero", "outside the allowed directories"),
        (b"nbd://host", "plain files"),
        (b"base.raw\0x", "not a file name"),
        (b"../../gone", "cannot find"),
    ] {
        w.patch("data.qcow2", name, named).unwrap();
        let said = refusal(&w.dir.join("data.qcow2"));
        assert!(said.contains(expect), "{said}");
    }
    symlink("../outside.raw", w.dir.join("outsider.x")).unwrap();
    w.patch("data.qcow2", name, b"outsider.x").unwrap();
    assert!(refusal(&w.dir.join("data.qcow2")).contains("outside the allowed directories"));
    // A backing file in an allowed place does not make its neighbours allowed.
    let elsewhere = w.dir.parent().unwrap().join("elsewhere");
    fs::create_dir_all(elsewhere.join("allowed")).unwrap();
    let other = Workshop { dir: elsewhere.clone() };
    other.noise("secret.raw", 1 << 20, 9).unwrap();
    other.img("create -f qcow2 -b ../secret.raw -F raw allowed/middle.qcow2 1M").unwrap();
    let allowed = elsewhere.join("allowed");
    set_backing(&w, "top.qcow2", allowed.join("middle.qcow2").display().to_string().as_bytes());
    w.patch("top.qcow2", format_record(&w, "top.qcow2") + 4, b"\0\0\0\x05qcow2").unwrap();
    let options = OpenOptions { format: QCOW2, allow_dirs: vec![allowed], ..OpenOptions::default() };
    let error = Chain::open(&w.dir.join("top.qcow2"), &options).unwrap_err().to_string();
    assert!(error.contains("secret.raw") && error.contains("outside the allowed"), "{error}");
}

#[test]
fn loops_and_endless_chains_end() {
    let (_dir, w) = escape_setup();
    w.img("create -f qcow2 -b base.raw -F raw second.qcow2").unwrap();
    for image in ["top.qcow2", "second.qcow2"] {
        w.patch(image, format_record(&w, image) + 4, b"\0\0\0\x05qcow2").unwrap();
    }
    let top = w.dir.join("top.qcow2");
    fs::hard_link(&top, w.dir.join("twin.qcow2")).unwrap();
    symlink("top.qcow2", w.dir.join("alias.qcow2")).unwrap();
    set_backing(&w, "second.qcow2", b"top.qcow2");
    for name in ["top.qcow2", "./sub/../top.qcow2", "twin.qcow2", "alias.qcow2", "second.qcow2"] {
        set_backing(&w, "top.qcow2", name.as_bytes());
        assert!(matches!(open(&top), Err(ImageError::Loop { .. })), "{name}");
    }
    let layer = |index: usize| w.dir.join(format!("deep{index}.qcow2"));
    w.img("create -f qcow2 deep0.qcow2 1M").unwrap();
    for index in 1..=64 {
        let below = format!("deep{}.qcow2", index - 1);
        w.img(&format!("create -f qcow2 -b {below} -F qcow2 deep{index}.qcow2 1M")).unwrap();
    }
    assert_eq!(open(&layer(63)).unwrap().len(), 64);
    assert!(matches!(open(&layer(64)), Err(ImageError::TooDeep { limit: 64, .. })));
}

#[test]
fn formats_are_told_and_never_guessed() {
    let (_dir, w) = escape_setup();
    let open = |name: &str| Chain::open(&w.dir.join(name), &OpenOptions::default());
    fs::copy(w.dir.join("top.qcow2"), w.dir.join("disk.img")).unwrap();
    fs::copy(w.dir.join("top.qcow2"), w.dir.join("guest.raw")).unwrap();
    let error = open("disk.img").unwrap_err();
    assert!(error.hint().unwrap().contains("--format qcow2 or --format raw"), "{error}");
    assert_eq!(open("top.qcow2").unwrap().len(), 2);
    // A guest wrote a qcow2 header into its raw disk: still a raw disk.
    assert_eq!(open("guest.raw").unwrap().len(), 1);
    let format = format_record(&w, "top.qcow2");
    w.patch("top.qcow2", format, &[0x11; 4]).unwrap();
    let error = open("top.qcow2").unwrap_err();
    assert!(matches!(error, ImageError::BackingFormatNotRecorded { .. }), "{error}");
    assert!(error.hint().unwrap().contains("qemu-img rebase -u -F"), "{error}");
    w.patch("top.qcow2", format, &0xe279_2aca_u32.to_be_bytes()).unwrap();
    w.patch("top.qcow2", format + 8, b"qed").unwrap();
    assert!(matches!(open("top.qcow2"), Err(ImageError::BackingFormatUnsupported { .. })));
}

#[test]
fn a_layer_that_changes_is_noticed() {
    let (_dir, w) = escape_setup();
    w.io("top.qcow2", &["write -P 5 0 128k"]).unwrap();
    let chain = open(&w.dir.join("top.qcow2")).unwrap();
    chain.verify_unchanged().unwrap();
    let modified = |name: &str| fs::metadata(w.dir.join(name)).unwrap().modified().unwrap();
    let set = |name: &str, time| {
        fs::File::options().write(true).open(w.dir.join(name)).unwrap().set_modified(time).unwrap();
    };
    // The time is put back, so only the tables tell.
    let (before, l1) = (modified("top.qcow2"), be64(&w, "top.qcow2", 40));
    let l2 = be64(&w, "top.qcow2", l1) & !(1 << 63);
    w.patch("top.qcow2", l2 + 8, &[0; 8]).unwrap();
    set("top.qcow2", before);
    let error = chain.verify_unchanged().unwrap_err().to_string();
    assert!(error.contains("top.qcow2: changed") && error.contains("mapping tables"), "{error}");
    let chain = open(&w.dir.join("top.qcow2")).unwrap();
    set("base.raw", before);
    let error = chain.verify_unchanged().unwrap_err();
    assert!(matches!(&error, ImageError::Changed { path, .. } if path.ends_with("base.raw")), "{error}");
}

#[test]
fn block_devices_are_layers_whose_identity_never_repeats() {
    let (_dir, w) = escape_setup();
    let device = LoopDevice::attach(&w.dir.join("base.raw"));
    set_backing(&w, "top.qcow2", device.0.as_bytes());
    let top = w.dir.join("top.qcow2");
    assert!(refusal(&top).contains("outside the allowed directories"));
    let options = OpenOptions { format: QCOW2, allow_dirs: vec!["/dev".into()], ..OpenOptions::default() };
    let [first, second] = [(), ()].map(|()| Chain::open(&top, &options).unwrap());
    let mut disk = vec![0xee; 1 << 20];
    first.read_at(1, 0, &mut disk).unwrap();
    assert!(disk == fs::read(w.dir.join("base.raw")).unwrap());
    first.verify_unchanged().unwrap();
    assert_eq!(first.layer(1).identity().unwrap(), second.layer(1).identity().unwrap());
    assert_ne!(first.layer(0).identity().unwrap(), second.layer(0).identity().unwrap());
}

/// A loop device over a file, detached on drop. Needs root.
struct LoopDevice(String);

impl LoopDevice {
    /// Needs root, as `cargo xtask test` says.
    fn attach(file: &Path) -> Self {
        let mut losetup = Command::new("losetup");
        let output = losetup.args(["--find", "--show", "--read-only"]).arg(file).output().unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

const STRACE_DIR: &str = "UNDERLAY_TEST_STRACE_DIR";

/// Not a test by itself: what `no_file_outside_the_allowed_directories_is_opened` watches.
#[test]
fn child_that_opens_hostile_images() {
    let Some(dir) = std::env::var_os(STRACE_DIR) else { return };
    let w = Workshop { dir: PathBuf::from(dir) };
    let _ = fs::File::open(w.dir.join("START"));
    for image in fs::read_dir(&w.dir).unwrap().flatten().map(|entry| entry.path()) {
        if image.extension().is_some_and(|extension| extension == "qcow2") {
            let _ = read_all(&image);
        }
    }
    let _ = fs::File::open(w.dir.join("END"));
}

#[test]
fn no_file_outside_the_allowed_directories_is_opened() -> Outcome {
    let (dir, w) = escape_setup();
    for (index, (name, _)) in escapes(&w).into_iter().enumerate() {
        let copy = format!("escape{index}.qcow2");
        fs::copy(w.dir.join("top.qcow2"), w.dir.join(&copy))?;
        set_backing(&w, &copy, &name);
    }
    let log = dir.path().join("strace.log");
    let status = Command::new("strace")
        .args(["-f", "-s", "4096", "-e", "trace=open,openat,openat2,creat,open_by_handle_at", "-o"])
        .arg(&log)
        .arg(std::env::current_exe()?)
        .args(["--exact", "child_that_opens_hostile_images"])
        .env(STRACE_DIR, &w.dir)
        .status()?;
    assert!(status.success());
    let log = fs::read_to_string(log)?;
    let allowed = format!("\"{}", w.dir.display());
    let outside =
        |line: &&str| line.contains("open") && !line.contains(&allowed) && !line.contains("\"/proc/self/fd/");
    let (before, watched) = log.split_once("/START\"").ok_or("the child did not start")?;
    let (watched, _) = watched.split_once("/END\"").ok_or("the child did not finish")?;
    assert!(watched.contains("base.raw"), "nothing was opened");
    assert!(before.lines().any(|line| outside(&line)), "the loader's libraries would go unnoticed too");
    let opened: Vec<&str> = watched.lines().skip(1).filter(outside).collect();
    assert!(opened.is_empty(), "opened outside: {opened:#?}");
    Ok(())
}
