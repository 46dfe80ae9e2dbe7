//! How long it takes: one guest backed up for the first time, again, changed, and restored; and the next machine on its base.

use std::path::PathBuf;

use underlay_tests::Result;

use crate::bench::{Bench, Label, say};
use crate::data::nonzero_bytes;
use crate::tools::{Disk, Mode, Output, Tool, limits};

const PART: &str = "speed";

/// Step, and what is done to which disk.
const STEPS: [(&str, Step); 9] = [
    ("first full backup, encoding unchecked", Step::First(Mode::Unchecked)),
    ("first full backup", Step::First(Mode::Usual)),
    ("unchanged", Step::Again(Mode::Usual)),
    ("unchanged, everything read", Step::Again(Mode::Everything)),
    ("restore to raw", Step::Restore(Output::Raw)),
    ("restore to qcow2", Step::Restore(Output::Qcow2)),
    ("300 isolated changes", Step::Changed),
    ("next machine's base", Step::Base),
    ("next machine on that base", Step::Next),
];

#[derive(Clone, Copy, PartialEq)]
enum Step {
    /// Into an empty repository.
    First(Mode),
    Again(Mode),
    Changed,
    Base,
    Next,
    Restore(Output),
}

/// The disks of this part.
struct Set {
    first: Disk,
    changed: Disk,
    base: Disk,
    next: Disk,
    content: PathBuf,
}

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    let set = prepare(bench)?;
    let tools = bench.tools().ready(&bench.work)?;
    // The first round warms up: it is thrown away.
    let (from, to) = if bench.quick { (0, 1) } else { (0, bench.rounds + 1) };
    for round in from..to {
        for (name, step) in STEPS {
            for at in 0..tools.len() {
                let tool = &*tools[(at + round) % tools.len()];
                one(bench, &set, tool, name, step, round)?;
            }
        }
        measure_limits(bench, &set, round)?;
        if round == 0 && !bench.quick {
            bench.results.samples.retain(|sample| sample.part != PART);
        }
    }
    Ok(())
}

fn prepare(bench: &mut Bench) -> Result<Set> {
    let (guest, changes) = if bench.quick { ("minimal", 30) } else { ("services", 300) };
    let first = bench.disks.alone(guest)?;
    let changed = bench.disks.isolated_changes(&first, changes)?;
    crate::data::flat(&changed.image, &changed.raw)?;
    let mut base = bench.disks.chain("minimal")?;
    base.vm = "base".to_owned();
    let mut next = if bench.quick { changed.clone() } else { bench.disks.chain("clone-a")? };
    next.vm = "next".to_owned();
    let content = bench.work.join("content");
    let bytes = nonzero_bytes(&first.raw, &content)?;
    bench.fact("bytes of the first guest that are not zero", bytes);
    bench.fact("bytes of the next machine's overlay", std::fs::metadata(&next.image)?.len());
    Ok(Set { first, changed, base, next, content })
}

fn one(bench: &mut Bench, set: &Set, tool: &dyn Tool, name: &str, step: Step, round: usize) -> Result<()> {
    let label = Label { part: PART, step: name, tool: &tool.name(), round };
    let commands = match step {
        Step::First(mode) => {
            let Some(commands) = tool.backup(&set.first, mode) else { return Ok(()) };
            start_anew(bench, tool)?;
            Some(commands)
        }
        Step::Again(mode) => tool.backup(&set.first, mode),
        Step::Changed => tool.backup(&set.changed, Mode::Usual),
        Step::Base => tool.backup(&set.base, Mode::Usual),
        Step::Next => tool.backup(&set.next, Mode::Usual),
        Step::Restore(output) => return restore(bench, set, tool, label, output),
    };
    if let Some(commands) = commands {
        let stored = bench.measure(label, commands, None).map(|_| tool.stored())??;
        if let Some(sample) = bench.results.samples.last_mut() {
            sample.stored = Some(stored);
        }
    }
    Ok(())
}

/// An empty repository, and nothing remembered.
pub fn start_anew(bench: &Bench, tool: &dyn Tool) -> Result<()> {
    let repository = tool.repository();
    if let Some(folder) =
        repository.parent().filter(|folder| folder.starts_with(&bench.work) && **folder != bench.work)
    {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
    }
    bench.run(tool.init())
}

fn restore(bench: &mut Bench, set: &Set, tool: &dyn Tool, label: Label<'_>, output: Output) -> Result<()> {
    let folder = bench.work.join("restored");
    std::fs::create_dir_all(&folder)?;
    let (commands, file) = tool.restore(&set.first, &folder, output);
    bench.measure(label, commands, Some(&file))?;
    if label.round == 0 {
        let format = if output == Output::Raw { "raw" } else { "qcow2" };
        let mut compare = std::process::Command::new("qemu-img");
        compare.args(["compare", "-q", "-f", "raw", "-F", format]).args([&set.first.raw, &file]);
        bench.run(vec![compare])?;
        say(&format!("  {}: restored {format} is identical", label.tool));
    }
    Ok(std::fs::remove_dir_all(folder)?)
}

fn measure_limits(bench: &mut Bench, set: &Set, round: usize) -> Result<()> {
    let folder = bench.work.join("limits");
    for (name, command, file) in limits(&set.first, &set.content, &folder)? {
        std::fs::create_dir_all(&folder)?;
        let label = Label { part: PART, step: name, tool: "limit", round };
        let written = file.map(|file| folder.join(file));
        let size = |path: &PathBuf| std::fs::metadata(path).ok().map(|found| found.len());
        bench.measure(label, vec![command], written.as_deref())?.stored = written.as_ref().and_then(size);
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}
