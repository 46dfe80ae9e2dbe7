//! Holds underlay against other programs and against this machine's limits.
//!
//!     cargo xtask bench [PART...] [--rounds=N] [--in=FOLDER] [--as=NAME] [--few] [--quick] [--report] [--build-rustic]
//!
//! Parts are speed, storage, growth and remote; without any, all run. Results of parts that do not run are kept. Everything is
//! made in FOLDER (without it, below target) and removed again; NAME keeps the results of one folder apart from those of another.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use underlay_benches::bench::{Bench, say};
use underlay_benches::data::Disks;
use underlay_benches::parts::PARTS;
use underlay_benches::report::{markdown, svg};
use underlay_benches::results::Results;
use underlay_tests::{Error, Result, rivals};

/// What the command line says.
struct Options {
    parts: Vec<String>,
    rounds: usize,
    quick: bool,
    /// Only underlay and restic.
    few: bool,
    report: bool,
    /// Where everything is made.
    work: Option<PathBuf>,
    /// What the folder of the results is named.
    name: String,
}

#[expect(clippy::print_stderr, reason = "a program that reports to a terminal")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = options()?;
    let own = std::env::current_exe()?;
    let target = own.ancestors().find(|folder| folder.ends_with("target"));
    let target = target.ok_or_else(|| Error::new("this program does not lie below a folder named target"))?;
    let folder = target.join(&options.name);
    std::fs::create_dir_all(&folder)?;
    let json = folder.join("results.json");
    let results = if options.quick { Results::default() } else { Results::load(&json)? };
    let results = if options.report { results } else { measured(&options, &folder, &json, results)? };
    let files = [("results.md", markdown(&results)), ("results.svg", svg(&results))];
    for (name, text) in files {
        std::fs::write(folder.join(name), text)?;
    }
    say(&markdown(&results));
    say(&format!("in {}: results.json, results.md, results.svg", folder.display()));
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options {
        parts: Vec::new(),
        rounds: 3,
        quick: false,
        few: false,
        report: false,
        work: None,
        name: "bench".to_owned(),
    };
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => {
                (options.quick, options.rounds) = (true, 1);
                "bench-quick".clone_into(&mut options.name);
            }
            "--few" => options.few = true,
            "--report" => options.report = true,
            "--build-rustic" => drop(rivals::rustic()?),
            other => match other.split_once('=') {
                Some(("--rounds", rounds)) => {
                    options.rounds =
                        rounds.parse().map_err(|_| Error::new(format!("{other}: not a number")))?;
                }
                Some(("--in", folder)) => options.work = Some(folder.into()),
                Some(("--as", name)) => name.clone_into(&mut options.name),
                None if PARTS.iter().any(|(part, _)| *part == other) => options.parts.push(other.to_owned()),
                _ => return Err(Error::new(format!("{other}: there is no such part or option"))),
            },
        }
    }
    Ok(options)
}

fn measured(options: &Options, folder: &Path, json: &Path, results: Results) -> Result<Results> {
    let work = tempfile::tempdir_in(options.work.as_deref().unwrap_or(folder))?;
    let disks = Disks::new(&work.path().join("disks"), options.quick)?;
    let (rounds, quick, few) = (options.rounds, options.quick, options.few);
    let mut bench = Bench { disks, work: PathBuf::from(work.path()), rounds, quick, few, results };
    machine(&mut bench)?;
    let raised = std::fs::write("/proc/self/autogroup", "-10").is_ok();
    bench.fact("has a larger share of the processors than what else runs here", raised);
    for (name, part) in PARTS {
        if options.parts.is_empty() || options.parts.iter().any(|wanted| wanted == name) {
            bench.results.forget(name);
            let before = load()?;
            part(&mut bench)?;
            bench.fact(&format!("load before and after {name}"), format!("{before} {}", load()?));
            bench.results.save(json)?;
        }
    }
    Ok(bench.results)
}

/// What the numbers depend on.
fn machine(bench: &mut Bench) -> Result<()> {
    let processors = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let count = std::thread::available_parallelism()?;
    bench.fact("processor", format!("{count} x {}", model.trim_start_matches([' ', '\t', ':'])));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    bench.fact("kernel", kernel.trim());
    for (name, program) in [("zstd", "zstd"), ("qemu-img", "qemu-img")] {
        let version = underlay_tests::commands::run_command(Command::new(program).arg("--version"))?;
        bench.fact(name, version.lines().next().unwrap_or_default());
    }
    Ok(())
}

/// How busy the machine is.
fn load() -> Result<String> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(load.split(' ').next().unwrap_or_default().to_owned())
}
