//! What can end the backup of a domain.

use std::error::Error;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::backup::BackupError;
use crate::hypervisor::HypervisorError;
use crate::image::ImageError;
use crate::state::StateError;

/// Why a domain could not be backed up, or brought in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// Nothing was touched: something about the domain stands in the way.
    #[error("domain {domain}: {reason}")]
    Refused { domain: String, reason: String, hint: String },
    /// The guest's file systems could not be frozen, and nothing less was wanted.
    #[error("domain {domain}: its file systems cannot be frozen: {reason}")]
    NotQuiesced { domain: String, reason: String },
    /// The domain is in a state that underlay did not make and must not change.
    #[error("domain {domain}: {problem}")]
    Unsound { domain: String, problem: String, hint: String },
    /// Another process is at it.
    #[error("domain {domain}: another underlay is working on it")]
    Busy { domain: String },
    /// The hypervisor failed.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The backup itself failed.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// An image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What this host remembers cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A layer's file cannot be handled.
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// The backup failed and afterwards the disks could not be given back.
    #[error("{}; and afterwards the disks could not be given back: {}", whole(first), whole(second))]
    NotGivenBack { first: Box<DomainError>, second: Box<DomainError> },
    /// The backup failed and afterwards the disks went on being shown.
    #[error("{}; and afterwards the pull of its disks could not be ended: {}", whole(first), whole(second))]
    PullNotEnded { first: Box<DomainError>, second: Box<DomainError> },
}

impl DomainError {
    /// What the user can do next, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { hint, .. } | Self::Unsound { hint, .. } => Some(hint.clone()),
            Self::NotQuiesced { .. } => Some(
                "see to qemu-guest-agent and its hooks in the guest, or take a crash-consistent backup without --require-quiesce"
                    .into(),
            ),
            Self::Busy { .. } => Some("wait until it is done".into()),
            Self::Hypervisor(error) => error.hint().map(str::to_owned),
            Self::Backup(error) => error.hint(),
            Self::Image(error) => error.hint(),
            Self::NotGivenBack { .. } => {
                Some("the guest runs on in its overlays; `underlay recover` tries again".into())
            }
            Self::PullNotEnded { .. } => {
                Some("`underlay recover` tries again; until then scratch files beside the disks grow".into())
            }
            Self::State(StateError { action: "read", source, .. }) if source.kind() == ErrorKind::InvalidData => Some(
                "the record is damaged, or a newer underlay wrote it. If nothing can be restored, move it away: the chains stay \
                 whole, and their overlays stay as layers. A guest that an interrupted backup left frozen needs `virsh domfsthaw`"
                    .into(),
            ),
            Self::State(_) | Self::File { .. } => None,
        }
    }

    /// Whether the user asked to stop.
    pub fn is_interruption(&self) -> bool {
        match self {
            Self::Backup(BackupError::Store(underlay_store::Error::Interrupted))
            | Self::Hypervisor(HypervisorError::Interrupted) => true,
            Self::NotGivenBack { first, .. } | Self::PullNotEnded { first, .. } => first.is_interruption(),
            _ => false,
        }
    }
}

/// An error with what caused it: what goes into another error's text is asked for no cause.
fn whole(error: &DomainError) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_error(action: &'static str, source: std::io::Error) -> DomainError {
        StateError { action, path: "/state/1.json".into(), source }.into()
    }

    #[test]
    fn both_failures_are_told_with_their_causes() {
        let full = || Box::new(state_error("write", ErrorKind::StorageFull.into()));
        let error = DomainError::NotGivenBack { first: full(), second: full() };
        let one = "cannot write /state/1.json: no storage space";
        let expected = format!("{one}; and afterwards the disks could not be given back: {one}");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn what_to_do_about_a_damaged_record_is_told() {
        let damaged = state_error("read", ErrorKind::InvalidData.into());
        assert!(damaged.hint().unwrap().contains("move it away"));
        assert_eq!(state_error("read", ErrorKind::PermissionDenied.into()).hint(), None);
    }
}
