//! What to do about a part that cannot be had.

use std::sync::{Mutex, PoisonError};

use underlay_store::Error;

use super::RestoreError;

/// Stops at the first damage, or gathers all of it.
#[derive(Debug)]
pub(super) enum Damage {
    /// A restore: half a disk is no disk.
    Stop,
    /// A check: what else is there to find.
    Collect(Mutex<Vec<RestoreError>>),
}

impl Damage {
    /// Whether work goes on after this error. A repository that cannot be reached is no finding.
    pub(super) fn collects(&self, error: &Error) -> bool {
        error.is_damage() && matches!(self, Self::Collect(_))
    }

    /// Takes note of it, or fails with it.
    pub(super) fn report(&self, error: RestoreError) -> Result<(), RestoreError> {
        let finding = match &error {
            RestoreError::Store(source) => self.collects(source),
            RestoreError::Data { source, .. } => self.collects(source),
            _ => false,
        };
        match self {
            Self::Collect(found) if finding => {
                found.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// What was gathered.
    pub(super) fn into_found(self) -> Vec<RestoreError> {
        match self {
            Self::Stop => Vec::new(),
            Self::Collect(found) => found.into_inner().unwrap_or_else(PoisonError::into_inner),
        }
    }
}
