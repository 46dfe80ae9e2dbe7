//! How cost grows: with the disk's size, with what changed, with snapshots, with machines. Underlay alone.

use std::fs;

use underlay_tests::Result;

use super::speed::start_anew;
use crate::bench::{Bench, Label};
use crate::tools::{Disk, Mode, Tool, Underlay};

const PART: &str = "growth";
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const TOOL: &str = "underlay";

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    let underlay = Underlay::local(&bench.work)?;
    disk_size(bench, &underlay)?;
    changed_bytes(bench, &underlay)?;
    snapshots(bench, &underlay)?;
    machines(bench, &underlay)
}

fn back_up(bench: &mut Bench, underlay: &Underlay, step: &str, round: usize, disk: &Disk) -> Result<()> {
    let commands = underlay.backup(disk, Mode::Usual).unwrap_or_default();
    bench.measure(Label { part: PART, step, tool: TOOL, round }, commands, None)?;
    let stored = underlay.stored()?;
    if let Some(sample) = bench.results.samples.last_mut() {
        sample.stored = Some(stored);
    }
    Ok(())
}

/// The same changes, spread over disks of several sizes.
fn disk_size(bench: &mut Bench, underlay: &Underlay) -> Result<()> {
    let (sizes, changed): (&[u64], _) =
        if bench.quick { (&[10, 1024], 4 * MIB) } else { (&[10, 100, 1024, 8192], GIB / 10) };
    let mut disks = Vec::new();
    for size in sizes {
        disks.push((size, bench.disks.spread(size * GIB, changed)?));
    }
    for round in 0..bench.rounds {
        start_anew(bench, underlay)?;
        for (size, (base, overlay)) in &disks {
            let step = |what: &str| format!("disk of {size} GiB, {what}");
            back_up(bench, underlay, &step("its base"), round, base)?;
            back_up(bench, underlay, &step(&format!("{} MiB changed", changed / MIB)), round, overlay)?;
            back_up(bench, underlay, &step("unchanged"), round, overlay)?;
            restore(bench, underlay, &step("restore to qcow2"), round, overlay)?;
        }
    }
    disks.iter().try_for_each(|(_, (_, overlay))| Ok(fs::remove_file(&overlay.image)?))
}

fn restore(bench: &mut Bench, underlay: &Underlay, step: &str, round: usize, disk: &Disk) -> Result<()> {
    let folder = bench.work.join("restored");
    fs::create_dir_all(&folder)?;
    let (commands, file) = underlay.restore(disk, &folder, crate::tools::Output::Qcow2);
    bench.measure(Label { part: PART, step, tool: TOOL, round }, commands, Some(&file))?;
    Ok(fs::remove_dir_all(folder)?)
}

/// More and more changes on one disk.
fn changed_bytes(bench: &mut Bench, underlay: &Underlay) -> Result<()> {
    let changes: &[u64] = if bench.quick { &[1, 4] } else { &[16, 64, 256, 1024] };
    let mut disks = Vec::new();
    for changed in changes {
        disks.push((changed, bench.disks.spread(100 * GIB, changed * MIB)?));
    }
    for round in 0..bench.rounds {
        for (changed, (base, overlay)) in &disks {
            // Each into a repository that knows the base and nothing else.
            start_anew(bench, underlay)?;
            bench.run(underlay.backup(base, Mode::Usual).unwrap_or_default())?;
            back_up(bench, underlay, &format!("{changed} MiB changed"), round, overlay)?;
        }
    }
    disks.iter().try_for_each(|(_, (_, overlay))| Ok(fs::remove_file(&overlay.image)?))
}

/// The same disk after more and more snapshots of it.
fn snapshots(bench: &mut Bench, underlay: &Underlay) -> Result<()> {
    let counts: &[usize] = if bench.quick { &[1, 3] } else { &[1, 10, 100, 500] };
    let (base, overlay) = bench.disks.spread(10 * GIB, MIB)?;
    fs::remove_file(overlay.image)?;
    start_anew(bench, underlay)?;
    let mut made = 0;
    for count in counts {
        while made < *count {
            bench.run(underlay.backup(&base, Mode::Usual).unwrap_or_default())?;
            made += 1;
        }
        back_up(bench, underlay, &format!("after {count} snapshots, unchanged"), 0, &base)?;
        let everything = underlay.backup(&base, Mode::Everything).unwrap_or_default();
        let step = format!("after {count} snapshots, everything read");
        bench.measure(Label { part: PART, step: &step, tool: TOOL, round: 0 }, everything, None)?;
    }
    Ok(())
}

/// More and more machines on one base, each with changes of its own.
fn machines(bench: &mut Bench, underlay: &Underlay) -> Result<()> {
    let (count, shown): (u64, &[u64]) = if bench.quick { (2, &[1, 2]) } else { (50, &[1, 2, 10, 25, 50]) };
    let (base, scratch) = bench.disks.spread(10 * GIB, MIB)?;
    fs::remove_file(scratch.image)?;
    start_anew(bench, underlay)?;
    bench.run(underlay.backup(&base, Mode::Usual).unwrap_or_default())?;
    for machine in 1..=count {
        let mut noise = blake3::Hasher::new().update(&machine.to_le_bytes()).finalize_xof();
        let writes = (0..4).map(|piece| {
            let mut bytes = vec![0; MIB as usize];
            noise.fill(&mut bytes);
            Ok((machine * 8 * MIB + piece * MIB, bytes))
        });
        let mut disk = bench.disks.overlay(&base, &format!("machine-{machine}"), writes)?;
        disk.vm = format!("machine-{machine}");
        if shown.contains(&machine) {
            back_up(bench, underlay, &format!("machine {machine} on one base, 4 MiB of its own"), 0, &disk)?;
        } else {
            bench.run(underlay.backup(&disk, Mode::Usual).unwrap_or_default())?;
        }
        fs::remove_file(disk.image)?;
    }
    Ok(())
}
