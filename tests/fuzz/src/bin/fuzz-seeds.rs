//! Writes the seeds of every target below `corpus/`, under names that begin with `seed-`. Documents and packs hold random
//! keys and nonces, so they come out another way each time; there is no need to run this unless a format or a seed changes.
#![expect(clippy::print_stdout, reason = "a program that reports to a terminal")]

use std::fs;

use underlay_fuzz::TARGETS;

fn main() -> std::io::Result<()> {
    for target in TARGETS {
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
