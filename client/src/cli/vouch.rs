//! `underlay check --unverified`: what holders of the keys do for writers that do not trust each other.

use serde_json::{Value, json};

use super::App;
use super::report::Failure;
use super::text::{count, size};
use crate::restore::{Environment, VouchReport, vouch};

/// What was verified, and what came of it.
pub(super) struct Vouched {
    pub report: VouchReport,
    /// Packs that the repository did not know to be sound.
    pub new: u64,
}

/// Verifies every pack that nobody has, withdraws what is wrong and vouches for the rest.
pub(super) fn vouch_for(app: &App, environment: &Environment<'_>) -> Result<Vouched, Failure> {
    let authority = environment.authority;
    let packs = app.wait(authority.unverified())?;
    let report = vouch(environment, &packs)?;
    let withdrawal = &report.withdrawal;
    if !withdrawal.chunks.is_empty() || !withdrawal.node_copies.is_empty() {
        app.wait(authority.withdraw(withdrawal))?;
    }
    let new = app.wait(authority.vouch(&report.sound))?;
    Ok(Vouched { report, new })
}

impl Vouched {
    pub fn document(&self) -> Value {
        json!({ "packs": self.report.packs, "bytes": self.report.bytes, "vouched": self.new,
                "wrong": self.report.damage.len() })
    }

    pub fn line(&self) -> String {
        let VouchReport { packs, bytes, .. } = &self.report;
        let (read, new) = (count(*packs, "pack"), count(self.new, "pack"));
        format!(
            "{read} ({}) verified with keys for the first time; {new} now sound for every writer",
            size(*bytes)
        )
    }
}
