//! What is stored: all guests, one after another, into one repository.

use std::fs;

use underlay_tests::Result;

use super::speed::start_anew;
use crate::bench::{Bench, Label};
use crate::data::GUESTS;
use crate::tools::Mode;

const PART: &str = "storage";

/// Measures once: what is stored does not depend on the machine's mood.
pub fn run(bench: &mut Bench) -> Result<()> {
    let tools = bench.tools().ready(&bench.work)?;
    for tool in &tools {
        start_anew(bench, &**tool)?;
    }
    let guests = if bench.quick { &GUESTS[..1] } else { &GUESTS[..] };
    for guest in guests {
        let disk = bench.disks.chain(guest.name)?;
        for tool in &tools {
            let Some(commands) = tool.backup(&disk, Mode::Usual) else { continue };
            let label = Label { part: PART, step: guest.name, tool: &tool.name(), round: 0 };
            bench.measure(label, commands, None)?;
            let stored = tool.stored()?;
            if let Some(sample) = bench.results.samples.last_mut() {
                sample.stored = Some(stored);
            }
        }
        fs::remove_file(&disk.raw)?;
    }
    Ok(())
}
