//! The server and its clients as programs of their own: several hosts, one repository, real images; the server killed at any moment.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use underlay_tests::commands::{run, spawn, wait_until};
use underlay_tests::images;
use underlay_tests::program::Underlay;
use underlay_tests::server::ServerProgram;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn overlay(base: &Path, path: &Path, writes: &str) {
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(base), text(path)]).unwrap();
    run("qemu-io", ["-f", "qcow2", text(path), "-c", writes]).unwrap();
}

/// The layer after that of Monday.
fn tuesday(monday: &Path) -> PathBuf {
    text(monday).replace("monday", "tuesday").into()
}

/// How many packs a repository in a directory has.
fn packs(repository: &str) -> usize {
    let found = run("find", [&format!("{repository}/packs"), "-type", "f"]);
    found.map_or(0, |found| found.lines().count())
}

fn restores_exactly(underlay: &Underlay, snapshot: &str, image: &Path, to: &Path) {
    underlay.restore(snapshot, to, "qcow2").unwrap();
    run("qemu-img", ["compare", "-f", "qcow2", "-F", "qcow2", text(to), text(image)]).unwrap();
    std::fs::remove_file(to).unwrap();
}

/// A host has the backup key and a token to match: it reads nothing, and drops nothing.
fn may_only_back_up(host: &Underlay, vm: &str) {
    let refused = host.output(["restore", &format!("{vm}@latest"), "--to", "/dev/null"]).unwrap();
    assert!(!refused.status.success());
    for verb in [vec!["gc"], vec!["check"], vec!["forget", "--keep-last", "1"]] {
        let refused = host.command([]).args(&verb).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{verb:?}: {}", String::from_utf8_lossy(&refused.stderr));
    }
}

#[test]
fn three_hosts_share_a_base_and_restore_each_others_machines() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut server = ServerProgram::start(folder, text(&folder.join("repository"))).unwrap();
    let operator = server
        .client(folder, &server.token(&["--scope", "admin,maintain,restore", "--expires", "1h"]).unwrap())
        .unwrap();
    let missing = operator.output(["list"]).unwrap();
    assert_eq!(missing.status.code(), Some(10), "{}", String::from_utf8_lossy(&missing.stderr));
    operator.run(&["init"]).unwrap();
    assert!(!operator.output(["init"]).unwrap().status.success(), "its key file is there");
    let backup_key = folder.join("backup.key");
    operator.run(&["key", "export", "--holds", "backup", text(&backup_key)]).unwrap();
    let base = images::base(folder, "base").unwrap();
    let hosts: Vec<(Underlay, PathBuf, String)> = (1..=3)
        .map(|number| {
            let home = folder.join(format!("host{number}"));
            std::fs::create_dir(&home).unwrap();
            let token = server.token(&["--scope", "backup", "--vm", &format!("h{number}-*")]).unwrap();
            let mut host = server.client(&home, &token).unwrap();
            host.key_file = backup_key.clone();
            let image = folder.join(format!("monday{number}.qcow2"));
            overlay(&base, &image, &format!("write -P {} {number}0M 3M", 16 + number));
            (host, image, format!("h{number}-web"))
        })
        .collect();
    let (first, rest) = hosts.split_first().unwrap();
    let whole = first.0.backup(&first.2, &first.1).unwrap();
    thread::scope(|scope| {
        for (host, image, vm) in rest {
            scope.spawn(|| {
                let outcome = host.backup(vm, image).unwrap();
                let new = outcome["bytes_new"].as_u64().unwrap();
                assert!(new < 4 << 20, "the base is stored once: {outcome}");
            });
        }
    });
    assert!(whole["bytes_new"].as_u64().unwrap() > 40 << 20, "{whole}");
    for (number, (host, image, vm)) in hosts.iter().enumerate() {
        let tuesday = tuesday(image);
        overlay(image, &tuesday, "write -P 99 100M 300k");
        let second = host.backup(vm, &tuesday).unwrap();
        assert_eq!(second["layers_read"], 1, "{second}");
        let own = host.json(["list"]).unwrap();
        assert_eq!(own.as_array().unwrap().len(), 2, "only its own: {own}");
        let elsewhere = operator.elsewhere(&folder.join(format!("host{}", (number + 1) % 3 + 1)));
        restores_exactly(&elsewhere, &format!("{vm}@latest"), &tuesday, &folder.join("restored.qcow2"));
        may_only_back_up(host, vm);
    }
    let foreign = hosts[0].0.command(["backup", "--vm", "h2-web"]).arg(&hosts[0].1).output().unwrap();
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("not for the machine"), "{foreign:?}");
    assert_eq!(operator.json(["list"]).unwrap().as_array().unwrap().len(), 6);
    operator.run(&["check", "--read-data", "--scrub"]).unwrap();
    operator.run(&["protect", "h1-web@latest"]).unwrap();
    operator.run(&["forget", "--keep-last", "1"]).unwrap();
    operator.run(&["gc", "--max-unused", "0%"]).unwrap();
    operator.run(&["repair"]).unwrap();
    operator.run(&["key", "list"]).unwrap();
    assert!(operator.run(&["show", "h3-web@latest"]).unwrap().contains("h3-web"));
    let local = operator.output(["repair", "catalog"]).unwrap();
    assert_eq!(local.status.code(), Some(2), "{local:?}");
    for (_, image, vm) in &hosts {
        let tuesday = tuesday(image);
        restores_exactly(&operator, &format!("{vm}@latest"), &tuesday, &folder.join("restored.qcow2"));
    }
    server.terminate();
    let gone = operator.output(["list"]).unwrap();
    assert!(String::from_utf8_lossy(&gone.stderr).contains("cannot be reached"), "{gone:?}");
    let embedded = Underlay::existing(text(&folder.join("repository")), folder).unwrap();
    assert!(embedded.output(["check"]).unwrap().status.success(), "it is an ordinary repository");
}

#[test]
fn a_backup_outlives_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let location = text(&folder.join("repository")).to_owned();
    let mut server = ServerProgram::start(folder, &location).unwrap();
    let token = server.token(&["--scope", "admin,backup,restore,maintain"]).unwrap();
    let underlay = server.client(folder, &token).unwrap();
    underlay.run(&["init"]).unwrap();
    let (mut done, mut failed) = (Vec::new(), 0);
    for number in 0..4 {
        let image = folder.join(format!("{number}.raw"));
        run("sh", ["-c", &format!("head -c 80M /dev/urandom > {image:?}")]).unwrap();
        let vm = format!("vm{number}");
        let mut command = underlay.command(["backup", "--vm", &vm, "--format", "raw", "--json"]);
        let before = packs(&location);
        let child = spawn(command.arg(&image).stdout(std::process::Stdio::piped())).unwrap();
        // In the middle: so many packs are there, or a little later.
        wait_until("packs come", Duration::from_secs(100), || Ok(packs(&location) >= before + number))
            .unwrap();
        thread::sleep(Duration::from_millis(37 * number as u64));
        server.kill();
        thread::sleep(Duration::from_millis(200));
        server = ServerProgram::listen(folder, &location, &server.address.clone()).unwrap();
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(0) => done.push((vm, image)),
            // A commit that was cut off between two steps is not repeated; what was stored stays.
            Some(1) => failed += 1,
            _ => panic!("{output:?}"),
        }
    }
    assert!(done.len() >= 3, "{} of 4 backups outlived the server, {failed} did not", done.len());
    for (vm, image) in &done {
        let to = folder.join("restored.raw");
        underlay.restore(&format!("{vm}@latest"), &to, "raw").unwrap();
        run("cmp", [text(image), text(&to)]).unwrap();
        std::fs::remove_file(to).unwrap();
    }
    underlay.run(&["check", "--read-data"]).unwrap();
    underlay.run(&["gc"]).unwrap();
    underlay.run(&["check"]).unwrap();
}
