//! Writes the seeds of every target, or of those named, below `corpus/`, under names that begin with `seed-`. Documents and packs hold random
//! keys and nonces, so they come out another way each time; there is no need to run this unless a format or a seed changes.
#![expect(clippy::print_stdout, reason = "a program that reports to a terminal")]

use std::fs;

use underlay_fuzz::TARGETS;

fn main() -> std::io::Result<()> {
    let wanted: Vec<_> = std::env::args().skip(1).collect();
    for target in TARGETS.iter().filter(|target| wanted.is_empty() || wanted.iter().any(|n| n == target.name))
    {
        let folder = target.folder();
        fs::create_dir_all(&folder)?;
        let seeds = (target.seeds)();
        for (name, bytes) in &seeds {
            fs::write(folder.join(format!("seed-{name}")), bytes)?;
        }
        let bytes: usize = seeds.iter().map(|(_, bytes)| bytes.len()).sum();
        println!("{:<14} {:>3} seeds, {bytes} bytes", target.name, seeds.len());
    }
    Ok(())
}
