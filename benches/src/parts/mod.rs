//! The parts of the comparison. Each can be run by itself.

mod growth;
mod remote;
mod speed;
mod storage;

use underlay_tests::Result;

use crate::bench::Bench;

/// A part: its name, and what measures it.
pub type Part = (&'static str, fn(&mut Bench) -> Result<()>);

/// All parts, in the order in which they run.
pub const PARTS: [Part; 4] =
    [("speed", speed::run), ("storage", storage::run), ("growth", growth::run), ("remote", remote::run)];
