//! The program as its users see it: what it prints, what it exits with, what it leaves behind.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder with a repository, images, keys, and one host's state.
struct Place {
    folder: tempfile::TempDir,
}

const PASSPHRASE: (&str, &str) = ("UNDERLAY_PASSPHRASE", "correct horse");

impl Place {
    fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// With a repository that opens by `restore.key`.
    fn with_key() -> Self {
        let place = Self::empty();
        place.ok(&["init", "--key-file", &place.text("restore.key")]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The program with a clean environment; the restore key is named if there is one.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_underlay"));
        for variable in [PASSPHRASE.0, "UNDERLAY_PASSPHRASE_FILE", "UNDERLAY_KEY_FILE"] {
            command.env_remove(variable);
        }
        if self.path("restore.key").exists() {
            command.env("UNDERLAY_KEY_FILE", self.path("restore.key"));
        }
        command.env("UNDERLAY_REPO", self.path("repo")).env("UNDERLAY_STATE_DIR", self.path("state"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs what must succeed; its answer.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        answer(&self.run(arguments))
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs what must fail with this exit code; what it says on stderr.
    #[track_caller]
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        failure(&self.run(arguments), code)
    }

    /// A raw image of noise, the same for the same seed.
    fn image(&self, name: &str, seed: u8, length: usize) -> PathBuf {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// The only data pack, or one of them.
    fn pack(&self) -> PathBuf {
        let folder = fs::read_dir(self.path("repo/packs")).unwrap().next().unwrap().unwrap().path();
        fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
    }
}

#[track_caller]
fn answer(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn failure(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[track_caller]
fn keys_of(value: &Value, expected: &str) {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys.join(" "), expected, "{value}");
}

#[test]
fn two_disks_there_and_back() {
    let place = Place::with_key();
    let raw = place.image("data.raw", 1, 3 << 20);
    let (raw, image) = (raw.to_str().unwrap(), place.text("root.qcow2"));
    qemu_img(&["convert", "-O", "qcow2", raw, &image]);
    let said = place.ok(&["backup", "--vm", "db", &image, &format!("data={raw}")]);
    assert!(said.starts_with("snapshot ") && said.contains("2 layers read"), "{said}");
    let outcome = place.json(&["backup", "--vm", "db", &image]);
    let fields =
        "bytes_new bytes_read bytes_uploaded disk_bytes layers_known layers_read seconds snapshot time vm";
    keys_of(&outcome, fields);
    assert_eq!(outcome["layers_known"], 1);
    let listed = place.json(&["list", "db"]);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    keys_of(&listed[0], "consistency damaged disks snapshot statistics time vm");
    keys_of(&listed[0]["disks"][0], "name size");
    keys_of(&listed[0]["statistics"], "bytes_new bytes_read bytes_uploaded disk_bytes");
    assert_eq!(place.json(&["list", "other"]), Value::Array(Vec::new()));
    let first = listed[0]["snapshot"].as_str().unwrap();
    let table = place.ok(&["list"]);
    assert!(table.starts_with("SNAPSHOT") && table.contains(&first[..12]), "{table}");

    let folder = place.text("restored/");
    let written = place.json(&["restore", first, "--to", &folder]);
    assert_eq!(written["disks"].as_array().unwrap().len(), 2, "{written}");
    keys_of(&written["disks"][0], "disk path size statistics");
    for disk in ["data", "vda"] {
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &format!("{folder}{disk}.qcow2"), raw]);
    }
    place.ok(&["restore", "db@latest", "--to", &place.text("one.raw")]);
    assert!(fs::read(place.path("one.raw")).unwrap() == fs::read(raw).unwrap());
    let piped = place.run(&["restore", first, "--disk", "data", "--to", "-"]);
    assert!(piped.status.success() && piped.stdout == fs::read(raw).unwrap());
    assert!(
        place.fails(2, &["restore", first, "--to", &place.text("x.qcow2")]).contains("--disk (data, vda)")
    );
}

#[test]
fn show_tells_everything_to_the_restore_key() {
    let place = Place::with_key();
    let image = place.image("vm.raw", 2, 102_400);
    place.ok(&["backup", "--vm", "web", image.to_str().unwrap()]);
    let shown = place.ok(&["show", "web@latest"]);
    for fact in ["vm           web", "offline", "102400 bytes", "vda: ", image.to_str().unwrap()] {
        assert!(shown.contains(fact), "{fact}: {shown}");
    }
    let shown = place.json(&["show", "web@latest"]);
    let fields = "client consistency damaged disks private roots sealed session snapshot statistics time vm";
    keys_of(&shown, fields);
    assert_eq!((&shown["private"]["images"][0]["format"], &shown["sealed"]), (&"raw".into(), &false.into()));
    assert!(place.fails(1, &["show", "web"]).contains("web@latest"));
    assert!(place.fails(1, &["show", "web@2001"]).contains("no snapshot matches \"web@2001\""));
    assert!(place.fails(2, &["restore", "web@latest", "--disk", "vdz", "--to", "x"]).contains("vda"));
}

#[test]
fn a_backup_key_writes_and_reads_nothing_back() {
    let place = Place::with_key();
    let image = place.image("vm.raw", 3, 1 << 20);
    let file = place.text("backup.key");
    place.ok(&["key", "export", &file]);
    let mode = fs::metadata(place.path("backup.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = &["--key-file", &file][..];
    place.ok(&[&["backup", "--vm", "web", image.to_str().unwrap()], key].concat());
    assert!(place.ok(&[&["list"], key].concat()).contains("web"));
    assert!(place.ok(&[&["show", "web@latest"], key].concat()).contains("sealed"));
    assert_eq!(place.json(&[&["show", "web@latest"], key].concat())["sealed"], true);
    place.ok(&[&["check"], key].concat());
    let (restored, exported) = (place.text("new/"), place.text("new.key"));
    for refused in [
        &["restore", "web@latest", "--to", &restored][..],
        &["check", "--read-data"],
        &["key", "export", "--holds", "restore", &exported],
        &["key", "paper"],
    ] {
        assert!(place.fails(1, &[refused, key].concat()).contains("needs the restore key"), "{refused:?}");
    }
    assert!(!place.path("new").exists() && !place.path("new.key").exists());
}

#[test]
fn passphrases_open_and_can_be_changed() {
    let place = Place::empty();
    let with = |passphrase: &str, arguments: &[&str]| {
        place.command(arguments).env(PASSPHRASE.0, passphrase).output().unwrap()
    };
    assert!(answer(&with(PASSPHRASE.1, &["init"])).contains("key paper"));
    let wrong = failure(&with("wrong", &["list"]), 1);
    assert!(wrong.contains("opens none of the 1 key slots") && wrong.contains("hint: "), "{wrong}");
    assert!(place.fails(2, &["list"]).contains("no terminal"));

    fs::write(place.path("new"), "second\n").unwrap();
    let file = place.text("new");
    answer(&with(PASSPHRASE.1, &["key", "add", "--label", "office", "--new-passphrase-file", &file]));
    answer(&with("second", &["list"]));
    let slots: Value = serde_json::from_str(&answer(&with("", &["key", "list", "--json"]))).unwrap();
    keys_of(&slots[0], "created holds label slot");
    assert_eq!((&slots[0]["label"], &slots[1]["label"]), (&"first".into(), &"office".into()));
    let slot = |at: usize| slots[at]["slot"].as_str().unwrap().to_owned();
    answer(&with("second", &["key", "remove", &slot(0)]));
    failure(&with(PASSPHRASE.1, &["list"]), 1);
    let refused = failure(&with("second", &["key", "remove", &slot(1)]), 2);
    assert!(refused.contains("--force"), "{refused}");

    // A paper copy does for a key file; what is named on the command line counts for more than the environment.
    let paper = answer(&with("second", &["key", "paper"]));
    fs::write(place.path("paper"), paper).unwrap();
    answer(&with("second", &["key", "remove", &slot(1), "--force"]));
    place.ok(&["list", "--key-file", &place.text("paper")]);
    assert!(place.fails(2, &["list"]).contains("needs a key file"));
    place.ok(&["key", "add", "--key-file", &place.text("paper"), "--new-passphrase-file", &file]);
    let mut stale = place.command(&["list", "--passphrase-file", &file]);
    answer(&stale.env("UNDERLAY_KEY_FILE", place.path("gone")).output().unwrap());
    let gone = place.fails(1, &["list", "--key-file", &place.text("gone")]);
    assert!(gone.contains("cannot read key file") && gone.contains("check --key-file"), "{gone}");
}

#[test]
fn nothing_is_overwritten() {
    let place = Place::with_key();
    let image = place.image("vm.raw", 4, 102_400);
    place.ok(&["backup", "--vm", "web", image.to_str().unwrap()]);
    let key = fs::read(place.path("restore.key")).unwrap();
    place.fails(2, &["init"]);
    assert!(place.fails(1, &["init", "--key-file", &place.text("2.key")]).contains("already a repository"));
    assert!(!place.path("2.key").exists(), "the key of a repository that was not made");
    place.fails(2, &["key", "export", &place.text("restore.key")]);
    place.fails(2, &["key", "paper", &place.text("restore.key")]);
    assert!(fs::read(place.path("restore.key")).unwrap() == key);
    fs::write(place.path("there.raw"), "precious").unwrap();
    let refused = place.fails(1, &["restore", "web@latest", "--to", &place.text("there.raw")]);
    assert!(refused.contains("already exists") && refused.contains("--force"), "{refused}");
    assert_eq!(fs::read(place.path("there.raw")).unwrap(), b"precious");
    place.ok(&["restore", "web@latest", "--to", &place.text("there.raw"), "--force"]);
    assert!(fs::read(place.path("there.raw")).unwrap() == fs::read(image).unwrap());
}

#[test]
fn exit_codes_say_what_happened() {
    let place = Place::empty();
    assert!(place.fails(10, &["list"]).contains("underlay init"));
    let document: Value = serde_json::from_slice(&place.run(&["list", "--json"]).stdout).unwrap();
    keys_of(&document, "error exit_code hint");
    assert_eq!(document["exit_code"], 10);
    let mut nowhere = place.command(&["list"]);
    assert!(failure(&nowhere.env_remove("UNDERLAY_REPO").output().unwrap(), 2).contains("--repo"));
    place.fails(2, &["backup", "x.raw"]);
    place.fails(2, &["backup", "--vm", "a@b", "x.raw"]);
    place.fails(2, &["backup", "--vm", "a", ".x=y.raw"]);
    place.fails(2, &["backup", "--vm", "a", "d=x.raw", "d=y.raw"]);
    assert!(!place.path("repo").exists(), "only init makes anything");

    let place = Place::with_key();
    let image = place.image("vm.bin", 5, 51_200);
    let backup = ["backup", "--vm", "web", image.to_str().unwrap()];
    assert!(place.fails(1, &backup).contains("--format"));
    let backup = [&backup[..], &["--format", "raw"]].concat();
    place.ok(&backup);
    // Without its catalog and its state this host is another one.
    fs::remove_dir_all(place.path("repo/catalog")).unwrap();
    fs::remove_dir_all(place.path("state")).unwrap();
    assert!(place.fails(11, &backup).contains("--take-over"));
    place.ok(&["list"]);
    place.ok(&[&backup[..], &["--take-over"]].concat());
    place.ok(&backup);
}

#[test]
fn damage_is_found_named_and_never_restored() {
    let place = Place::with_key();
    let (good, bad) = (place.image("good.raw", 6, 204_800), place.image("bad.raw", 7, 204_800));
    place.ok(&["backup", "--vm", "one", bad.to_str().unwrap()]);
    let pack = place.pack();
    let disks = [format!("a={}", bad.display()), format!("b={}", good.display())];
    place.ok(&["backup", "--vm", "two", &disks[0], &disks[1]]);
    assert!(place.ok(&["check", "--read-data=1%", "--scrub"]).contains("no damage found"));
    flip(&pack, 5000);
    place.ok(&["check"]);
    let name = pack.file_name().unwrap().to_str().unwrap();
    let scrubbed = place.run(&["check", "--scrub"]);
    assert!(failure(&scrubbed, 12).contains("damaged"));
    assert!(String::from_utf8(scrubbed.stdout).unwrap().contains(name));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    failure(
        &place.command(&["check", "--scrub"]).stdout(writer).stderr(Stdio::piped()).output().unwrap(),
        12,
    );
    let output = place.run(&["check", "--read-data", "--json"]);
    failure(&output, 12);
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    keys_of(&checked, "read_data report sound withdrawn");
    let findings = checked["report"]["findings"].as_array().unwrap();
    assert!(findings.iter().any(|each| each["object"].as_str().unwrap().starts_with("chunk ")), "{checked}");
    let mut affected: Vec<_> = (checked["report"]["affected"].as_array().unwrap().iter())
        .map(|each| (each["vm"].as_str().unwrap(), each["disk"].as_str().unwrap()))
        .collect();
    affected.sort_unstable();
    assert_eq!(affected, [("one", "vda"), ("two", "a")]);

    assert!(place.fails(12, &["restore", "one@latest", "--to", &place.text("x.raw")]).contains(name));
    assert!(!place.path("x.raw").exists());
    let folder = place.text("some/");
    let output = place.run(&["restore", "two@latest", "--to", &folder, "--format", "raw", "--json"]);
    assert!(failure(&output, 3).contains("1 of 2 disks"));
    let written: Value = serde_json::from_slice(&output.stdout).unwrap();
    keys_of(&written["disks"][0], "disk error path size");
    assert!(fs::read(place.path("some/b.raw")).unwrap() == fs::read(good).unwrap());
    assert!(!place.path("some/a.raw").exists());
}

#[test]
fn a_forged_snapshot_is_named_and_the_others_are_listed() {
    let place = Place::with_key();
    let image = place.image("vm.raw", 8, 51_200);
    place.ok(&["backup", "--vm", "web", image.to_str().unwrap()]);
    let second = place.json(&["backup", "--vm", "web", image.to_str().unwrap()]);
    let id = second["snapshot"].as_str().unwrap();
    let object = place.path(&format!("repo/snapshots/{id}.json"));
    let text = fs::read_to_string(&object).unwrap().replace("\"vm\": \"web\"", "\"vm\": \"bew\"");
    fs::write(&object, text).unwrap();
    fs::remove_dir_all(place.path("repo/catalog")).unwrap();
    let output = place.run(&["list", "--json"]);
    assert!(failure(&output, 12).contains(id), "{output:?}");
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert!(place.fails(12, &["show", &id[..8]]).contains(id));
    let shown = place.run(&["show", "web@latest"]);
    assert!(shown.status.success() && String::from_utf8(shown.stderr).unwrap().contains(id));
    place.fails(12, &["check"]);
}

#[test]
fn an_interrupt_stops_in_order() {
    let place = Place::with_key();
    let image = place.image("vm.raw", 9, 8 << 20);
    place.ok(&["backup", "--vm", "web", image.to_str().unwrap()]);
    let mut command = place.command(&["restore", "web@latest", "--to", "-", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    // The pipe fills, and the program waits for its reader.
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    std::thread::sleep(std::time::Duration::from_millis(500));
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(failure(&output, 130).contains("interrupted"));
    let whole = fs::read(image).unwrap();
    assert!(rest.len() < whole.len() - 1 && whole[1..].starts_with(&rest), "only data comes out");
}

#[test]
fn a_result_that_cannot_be_printed_is_an_error() {
    let place = Place::with_key();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = place.command(&["list"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert!(failure(&output, 1).contains("cannot write to stdout"));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = place.command(&["list"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}: whoever read had enough");
}

#[test]
fn completions_and_manual_pages() {
    let place = Place::empty();
    assert!(place.ok(&["completions", "bash"]).contains("underlay"));
    assert!(place.ok(&["man"]).contains(".TH underlay"));
    place.ok(&["man", place.folder.path().to_str().unwrap()]);
    assert!(place.path("underlay.1").exists() && place.path("underlay-backup.1").exists());
    assert!(place.ok(&["--help"]).contains("Exit codes"));
}
