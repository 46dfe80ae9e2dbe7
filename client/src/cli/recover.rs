//! `underlay recover`.

use clap::Args;
use serde_json::{Value, json};

use super::App;
use super::backup_domain::{Connection, Host};
use super::report::{FAILED, Failure, IN_PART};
use super::text::say;
use crate::domain::Recovered;

/// Bring the disks of domains in order after an interrupted backup.
///
/// Every backup does this first for its own domain. It needs no repository and no key. Nothing that a domain uses is removed; a
/// file that must not be used any more is renamed to end in .stale.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay recover\n  underlay recover --domain web")]
pub(super) struct Recover {
    /// Only this domain
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

impl Recover {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let host = Host::new(app, &self.connection);
        let lifecycle = host.lifecycle(&*app.observer, &*app.progress);
        let done = lifecycle.recover(self.domain.as_deref())?;
        let total = done.len();
        let (mut failures, mut documents, mut acted) = (Vec::new(), Vec::new(), false);
        for Recovered { domain, actions } in done {
            match actions.map_err(Failure::from) {
                Err(failure) => {
                    documents.push(failure.document(&domain));
                    failures.push(failure);
                }
                Ok(actions) => {
                    acted |= !actions.is_empty();
                    documents.push(json!({ "domain": domain, "actions": actions }));
                    if !app.global.json {
                        actions.iter().try_for_each(|action| say(format!("{domain}: {action}")))?;
                    }
                }
            }
        }
        match app.global.json {
            true => say(json!({ "domains": Value::from_iter(documents) }))?,
            false if !acted && failures.is_empty() => say("no backup was interrupted")?,
            false => {}
        }
        match failures.len() {
            0 => Ok(()),
            1 if total == 1 => Err(failures.remove(0).keep_stdout_clean()),
            failed => {
                failures.iter().for_each(Failure::explain);
                let code = if failed == total { FAILED } else { IN_PART };
                let message = format!("{failed} of {total} domains could not be brought in order");
                Err(Failure::after_result(code, message))
            }
        }
    }
}
