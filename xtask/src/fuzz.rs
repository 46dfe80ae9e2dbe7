use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::run::{Result, at, capture, cargo, root, show};

/// What libFuzzer needs to see which ways an input takes, in words of the stable compiler.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Ccodegen-units=1 -Cdebug-assertions";
/// How long one target is tried unless said otherwise.
const SECONDS: &str = "300";
/// No input grows longer, in bytes: what is found may become part of the source tree.
const LONGEST: u64 = 16 << 10;
/// What is kept of one target at most: inputs, and bytes.
const KEPT: (usize, u64) = (60, 48 << 10);

/// Runs fuzz targets one after another, guided by coverage; then keeps what takes ways that no input of the tree takes.
pub fn fuzz(arguments: &[String]) -> Result<()> {
    let (mut seconds, mut targets) = (SECONDS.to_owned(), Vec::new());
    for argument in arguments {
        match argument.strip_prefix("--seconds=") {
            Some(number) => number.clone_into(&mut seconds),
            None => targets.push(argument.clone()),
        }
    }
    let known = targets_of_the_tree()?;
    if targets.is_empty() {
        targets.clone_from(&known);
    }
    if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
        return Err(format!("there is no target {unknown}; there are {}", known.join(" ")));
    }
    let program = build()?;
    for target in &targets {
        println!("==> {target}");
        let found = root().join("target/fuzz/found").join(target);
        fs::create_dir_all(&found).map_err(at(&found))?;
        let mut run = Command::new(&program);
        run.args([format!("-max_total_time={seconds}"), format!("-max_len={LONGEST}")]);
        run.args(["-use_value_profile=1", "-timeout=60", "-print_final_stats=1"]);
        run.arg(format!("-artifact_prefix={}/failed-", root().join("target/fuzz").display()));
        show(run.arg(&found).arg(corpus().join(target)).env("UNDERLAY_FUZZ", target))?;
        keep(&program, target, &found)?;
    }
    Ok(())
}

fn corpus() -> PathBuf {
    root().join("tests/fuzz/corpus")
}

fn targets_of_the_tree() -> Result<Vec<String>> {
    let entries = fs::read_dir(corpus()).map_err(at(&corpus()))?;
    let mut targets: Vec<_> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    targets.sort();
    Ok(targets)
}

/// Everything is built for `--target` so that build scripts are not watched.
fn build() -> Result<PathBuf> {
    let version = capture(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
    let folder = root().join("target/fuzz");
    let mut build = cargo(["build", "--locked", "--package", "underlay-fuzz", "--bin", "fuzz-guided"]);
    build.args(["--features", "guided", "--target", host, "--target-dir"]).arg(&folder);
    show(build.env("RUSTFLAGS", FLAGS))?;
    Ok(folder.join(host).join("debug/fuzz-guided"))
}

/// Adds to the tree what takes new ways, short inputs and long ones, as far as there is room.
fn keep(program: &PathBuf, target: &str, found: &PathBuf) -> Result<()> {
    let (tree, chosen) = (corpus().join(target), root().join("target/fuzz/chosen").join(target));
    let _ = fs::remove_dir_all(&chosen);
    fs::create_dir_all(&chosen).map_err(at(&chosen))?;
    for entry in fs::read_dir(&tree).map_err(at(&tree))?.flatten() {
        fs::copy(entry.path(), chosen.join(entry.file_name())).map_err(at(&entry.path()))?;
    }
    let before = files(&chosen)?;
    let mut merge = Command::new(program);
    merge.args(["-set_cover_merge=1".to_owned(), format!("-max_len={LONGEST}")]);
    capture(merge.arg(&chosen).arg(found).env("UNDERLAY_FUZZ", target))?;
    let mut new = files(&chosen)?;
    new.retain(|file| !before.contains(file));
    let room = KEPT.1.saturating_sub(before.iter().map(|(length, _)| length).sum());
    let most = KEPT.0.saturating_sub(before.len()).min(new.len());
    // Evenly over all lengths.
    let picked = |count: usize| (0..count).map(|at| &new[at * new.len() / count]).collect::<Vec<_>>();
    let picked = (0..=most).rev().map(picked);
    let mut fitting = picked.filter(|picked| picked.iter().map(|(length, _)| length).sum::<u64>() <= room);
    let fitting = fitting.next().unwrap_or_default();
    let kept = fitting.len();
    for (_, path) in fitting {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = format!("way-{}", name.chars().take(12).collect::<String>());
        fs::copy(path, tree.join(name)).map_err(at(path))?;
    }
    println!("{target}: {kept} inputs kept");
    Ok(())
}

/// The files of a folder with their lengths, the shortest first.
fn files(folder: &PathBuf) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(at(folder))?.flatten() {
        files.push((entry.metadata().map_err(at(&entry.path()))?.len(), entry.path()));
    }
    files.sort();
    Ok(files)
}
