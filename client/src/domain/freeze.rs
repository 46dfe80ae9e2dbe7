//! Freezing all disks of a running domain at one moment, with the guest's help where it can be had.

use std::time::Instant;

use underlay_store::snapshot::Consistency;

use crate::hypervisor::{Agent, Domain, HypervisorError, Overlay};

use super::record::{DomainRecord, Operation, Phase, Standing};
use super::{DomainError, Lifecycle};

/// Whether the guest's file systems are flushed and frozen while its disks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quiesce {
    /// If its agent answers.
    #[default]
    IfPossible,
    /// Or there is no backup.
    Required,
    /// Not at all.
    Never,
}

/// Which disks write to their overlays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    All,
    None,
    Some,
}

impl Lifecycle<'_> {
    /// Freezes the disks of `record`'s operation, which is recorded first. When this fails, nothing, all or some of them may be
    /// frozen; [`Lifecycle::unwind`] brings that in order.
    pub(super) fn freeze(
        &self,
        domain: &Domain,
        record: &mut DomainRecord,
        operation: Operation,
        quiesce: Quiesce,
    ) -> Result<Consistency, DomainError> {
        let with_agent = self.asks_agent(domain, quiesce)?;
        let overlays: Vec<Overlay> = operation
            .disks
            .iter()
            .map(|disk| Overlay { target: disk.target.clone(), path: disk.overlay.clone() })
            .collect();
        record.operation = Some(operation);
        record.thaw_pending = with_agent;
        self.hands.store(record)?;
        let consistency = if with_agent {
            let tried = self.hands.freeze(&domain.name, &overlays, Some(self.patience.quiesce));
            self.after_quiesced(&domain.name, record, tried, quiesce)?
        } else {
            None
        };
        let consistency = match consistency {
            Some(consistency) => consistency,
            None => self.freeze_as_it_is(&domain.name, record, &overlays)?,
        };
        if let Some(operation) = &mut record.operation {
            operation.phase = Phase::Frozen;
        }
        self.hands.store(record)?;
        Ok(consistency)
    }

    /// Whether the agent takes part.
    pub(super) fn asks_agent(&self, domain: &Domain, quiesce: Quiesce) -> Result<bool, DomainError> {
        if quiesce == Quiesce::Never {
            return Ok(false);
        }
        let missing = match domain.current()?.agent {
            Agent::Absent => "the domain has no channel for a guest agent",
            Agent::Disconnected => "no agent runs in the guest",
            Agent::Connected if self.hands.agent_answers(&domain.name, self.patience.agent)? => {
                return Ok(true);
            }
            Agent::Connected => "the guest's agent does not answer",
        };
        match quiesce {
            Quiesce::Required => {
                Err(DomainError::NotQuiesced { domain: domain.name.clone(), reason: missing.into() })
            }
            _ => {
                self.notice(&domain.name, &format!("{missing}: this backup is crash-consistent"));
                Ok(false)
            }
        }
    }

    /// What an attempt with the agent's help came to; `None` if the disks are not frozen and may be without it.
    fn after_quiesced(
        &self,
        name: &str,
        record: &mut DomainRecord,
        tried: Result<(), HypervisorError>,
        quiesce: Quiesce,
    ) -> Result<Option<Consistency>, DomainError> {
        let Err(error) = tried else {
            record.thaw_pending = false;
            self.expect_frozen(name, record)?;
            return Ok(Some(Consistency::Filesystem));
        };
        self.go_on_unfrozen(name, record, &error, quiesce)?;
        match self.extent(name, record)? {
            Extent::None => Ok(None),
            _ => {
                self.expect_frozen(name, record)?;
                Ok(Some(Consistency::Crash))
            }
        }
    }

    /// After a failed attempt to freeze the file systems: thaws them, and goes on without, if that is wanted.
    pub(super) fn go_on_unfrozen(
        &self,
        name: &str,
        record: &mut DomainRecord,
        error: &HypervisorError,
        quiesce: Quiesce,
    ) -> Result<(), DomainError> {
        // Whatever failed, they may be frozen, or may become so when a slow agent comes to it.
        let thawed = self.thaw(name, record);
        let reason = error.to_string();
        if quiesce == Quiesce::Required {
            thawed?;
            return Err(DomainError::NotQuiesced { domain: name.to_owned(), reason });
        }
        if let Err(error) = thawed {
            // It stays recorded, and is tried again when the backup is done.
            self.notice(name, &error.to_string());
        }
        self.notice(name, &format!("{reason}: this backup is crash-consistent"));
        Ok(())
    }

    fn freeze_as_it_is(
        &self,
        name: &str,
        record: &DomainRecord,
        overlays: &[Overlay],
    ) -> Result<Consistency, DomainError> {
        // What a failed attempt left would be in the way.
        let domain = self.hands.domain(name)?;
        for overlay in overlays {
            self.quarantine(&domain, &overlay.path)?;
        }
        let tried = self.hands.freeze(name, overlays, None);
        match (self.extent(name, record)?, tried) {
            (Extent::None, Err(error)) => Err(error.into()),
            (_, tried) => {
                if let Err(error) = tried {
                    self.notice(name, &format!("the disks are frozen, although {error}"));
                }
                self.expect_frozen(name, record)?;
                Ok(Consistency::Crash)
            }
        }
    }

    /// How many of the operation's disks write to their overlays now.
    fn extent(&self, name: &str, record: &DomainRecord) -> Result<Extent, DomainError> {
        let domain = self.hands.domain(name)?;
        let disks = record.operation.iter().flat_map(|operation| &operation.disks);
        let frozen: Vec<bool> = disks
            .map(|disk| {
                let now = domain.live.as_ref().and_then(|live| live.disk(&disk.target));
                disk.standing(now) == Standing::Frozen
            })
            .collect();
        Ok(match (frozen.contains(&true), frozen.contains(&false)) {
            (true, false) => Extent::All,
            (true, true) => Extent::Some,
            (false, _) => Extent::None,
        })
    }

    /// Makes sure that every disk writes to its overlay and will do so after the next start.
    fn expect_frozen(&self, name: &str, record: &DomainRecord) -> Result<(), DomainError> {
        let problem = match self.extent(name, record)? {
            Extent::None => "libvirt says that its disks were frozen, and they were not",
            Extent::Some => "only some of its disks were frozen",
            Extent::All => {
                let domain = self.hands.domain(name)?;
                let disks = record.operation.iter().flat_map(|operation| &operation.disks);
                let saved = domain.inactive.as_ref().is_none_or(|inactive| {
                    disks.clone().all(|disk| disk.writes_to_overlay(inactive.disk(&disk.target)))
                });
                if saved {
                    return Ok(());
                }
                "libvirt did not save that its disks are frozen"
            }
        };
        let (problem, hint) = match self.hands.domain(name)?.is_running() {
            true => (
                problem,
                "look at libvirtd's log; a full disk under /etc/libvirt is a common cause, or somebody else who changed its \
                 disks at that moment",
            ),
            false => ("it stopped while its disks were frozen", "back it up again"),
        };
        Err(DomainError::Unsound { domain: name.to_owned(), problem: problem.into(), hint: hint.into() })
    }

    /// Thaws the guest's file systems and makes sure of it, waiting for a slow agent.
    ///
    /// # Errors
    /// [`DomainError::Unsound`] if they may still be frozen. That stays recorded, and is tried again by every later recovery.
    pub(super) fn thaw(&self, name: &str, record: &mut DomainRecord) -> Result<(), DomainError> {
        let started = Instant::now();
        loop {
            let looked = match self.hands.thaw(name, self.patience.agent) {
                Ok(()) => Ok(true),
                Err(_) => self.is_surely_thawed(name),
            };
            let in_time = started.elapsed() < self.patience.thaw;
            match looked {
                Ok(true) => {
                    record.thaw_pending = false;
                    self.hands.store(record)?;
                    return Ok(());
                }
                Ok(false) if !in_time => {
                    return Err(DomainError::Unsound {
                        domain: name.to_owned(),
                        problem: "its guest's agent does not answer, and its file systems may be frozen"
                            .into(),
                        hint: format!(
                            "`virsh domfsthaw {name}` thaws them once the agent answers, and so does `underlay recover`"
                        ),
                    });
                }
                Ok(false) => {}
                // A libvirtd that died while it froze is often back in a moment.
                Err(HypervisorError::Failed { .. } | HypervisorError::TimedOut { .. }) if in_time => {}
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(self.patience.poll);
        }
    }

    /// Whether the guest's file systems are not frozen, for sure: an agent that has frozen them does not tell the time.
    fn is_surely_thawed(&self, name: &str) -> Result<bool, HypervisorError> {
        Ok(!self.hands.domain(name)?.is_running() || self.hands.agent_answers(name, self.patience.agent)?)
    }
}
