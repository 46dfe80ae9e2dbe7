//! How long libvirt waits for the guest's agent.

use std::ffi::OsStr;
use std::time::Duration;

use super::{PROMPT, Virsh, arguments};
use crate::hypervisor::HypervisorError;

/// libvirt's own patience with a guest's agent: it finds out within seconds whether there is one, then waits for ever.
const USUAL_PATIENCE: &str = "-2";

impl Virsh {
    /// How long libvirt waits for the guest's agent from now on; without `patience` as long as it usually does.
    fn wait_for_agent(
        &self,
        domain: &str,
        reference: &OsStr,
        patience: Option<Duration>,
    ) -> Result<(), HypervisorError> {
        let patience = patience.map_or_else(|| USUAL_PATIENCE.to_owned(), arguments::seconds);
        let command = self.about("guest-agent-timeout", reference).args(["--timeout", &patience]);
        self.change(domain, &command, Some(PROMPT))
    }

    /// Does what talks to the guest's agent, with a bounded patience meanwhile.
    pub(super) fn with_patience<T>(
        &self,
        domain: &str,
        patience: Duration,
        talk: impl FnOnce(&OsStr) -> Result<T, HypervisorError>,
    ) -> Result<T, HypervisorError> {
        let reference = self.reference(domain)?;
        self.wait_for_agent(domain, &reference, Some(patience))?;
        let result = talk(&reference);
        if let Err(error) = self.wait_for_agent(domain, &reference, None) {
            tracing::warn!(%error, domain, "libvirt will go on waiting only {patience:?} for the guest's agent");
        }
        result
    }
}
