//! What a backup of a domain would do, in words.

use super::plan::{self, Approach, Facts, Wishes};
use super::record::{FrozenDisk, Strategy};
use super::tracking::new_checkpoint;
use super::{DomainError, Lifecycle, guards};

/// What a backup of a domain would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The domain.
    pub domain: String,
    /// How; `None` if it is stopped.
    pub strategy: Option<Approach>,
    /// An interrupted backup would be brought in order first.
    pub recovers: bool,
    /// What would be done, a line each.
    pub steps: Vec<String>,
}

impl Lifecycle<'_> {
    /// What a backup would do. Changes nothing.
    ///
    /// # Errors
    /// What would keep the backup from beginning.
    pub fn intent(&self, name: &str, wishes: &Wishes) -> Result<Intent, DomainError> {
        let domain = self.hands.domain(name)?;
        let record = self.record(&domain)?;
        let recovers = record.operation.is_some() || record.pull.is_some() || record.thaw_pending;
        let mut intent = Intent { domain: name.to_owned(), strategy: None, recovers, steps: Vec::new() };
        if recovers {
            intent
                .steps
                .push("bring an interrupted backup in order; what follows may then be different".into());
        }
        let selection = self.select(&domain, wishes)?;
        intent.steps.extend(plan::changes(&record, &selection));
        if !domain.is_running() {
            let read = selection.disks.iter().map(|disk| {
                format!(
                    "read {} as {}, and let nobody start the domain meanwhile",
                    disk.active.path.display(),
                    disk.target
                )
            });
            intent.steps.extend(read);
            return Ok(intent);
        }
        if wishes.strategy == Some(Approach::Bitmap) {
            match recovers {
                // Its job is still there, and would be refused.
                true => guards::guard_bitmaps(name, &selection)?,
                false => drop(self.pull_request(&domain, &selection, wishes, &new_checkpoint())?),
            }
            intent.strategy = Some(Approach::Bitmap);
            let read = selection.disks.iter().map(|disk| {
                let since =
                    record.tracking.as_ref().is_some_and(|known| known.disks.contains_key(&disk.target));
                let what = if since {
                    "what was written since the last backup, if its bitmap is sound"
                } else {
                    "all of it"
                };
                format!("show {} as it is at one moment, and read {what}", disk.target)
            });
            intent.steps.extend(read);
            return Ok(intent);
        }
        let operation = match recovers {
            // Its jobs and overlays are still there, and would be refused.
            true => self.planned(&domain, &selection, &record, wishes, &Facts::default())?,
            false => self.operation(&domain, &selection, &record, wishes)?,
        };
        intent.strategy = Some(operation.strategy.into());
        intent.steps.extend(operation.disks.iter().flat_map(|disk| describe(disk, operation.strategy)));
        Ok(intent)
    }
}

fn describe(disk: &FrozenDisk, strategy: Strategy) -> Vec<String> {
    let (target, frozen, overlay) = (&disk.target, disk.frozen.path.display(), disk.overlay.display());
    let mut lines = vec![
        format!("freeze {target}: {frozen} stays as it is, the guest goes on in {overlay}"),
        format!("read {frozen} as {target}, except for layers that are known"),
    ];
    lines.push(match (strategy, &disk.merge) {
        (Strategy::Pivot, _) => {
            format!("merge {overlay} into {frozen}, which the guest goes on in, and remove it")
        }
        (Strategy::Rotate, Some(merge)) => {
            let overlays: Vec<_> = merge.overlays.iter().map(|path| path.display().to_string()).collect();
            let into = merge.into.path.display();
            format!("merge {} into {into}, and remove it", overlays.join(" and "))
        }
        (Strategy::Rotate, None) => {
            format!("leave the guest in {overlay}; the next backup merges that into {frozen}")
        }
    });
    lines
}
