//! The small objects: documents that say who may do what, and how a repository is opened.

use super::{CheckReport, Ground};
use crate::names::{self, ObjectName};
use crate::snapshot::{Claim, DamageMark, Descriptor, Protection, RetiredPlaces};
use crate::{Result, key};

/// Reads every document but snapshots. What needs a key to be verified is verified by whoever has it.
///
/// # Errors
/// Only what stops the check itself.
pub(super) async fn documents(ground: &Ground<'_>, report: &mut CheckReport) -> Result<()> {
    let Ground { backend, repository, .. } = ground;
    match backend.get(names::DESCRIPTOR).await.and_then(|bytes| Descriptor::peek(&bytes)) {
        Ok(_) => {}
        Err(error) if error.is_damage() => report.find(names::DESCRIPTOR, error.to_string()),
        Err(error) => return Err(error),
    }
    let mut claims = Vec::new();
    for folder in [names::KEYS, names::CLAIMS, names::PROTECTED, names::DAMAGED, names::RETIRED] {
        for (name, _) in backend.list(folder).await? {
            let Some(object) = ObjectName::parse(&name) else { continue };
            let bytes = match backend.get(&name).await {
                // Whoever owns it may have lifted or removed it since it was listed.
                Err(error) if error.is_damage() => continue,
                other => other?,
            };
            let read = match object {
                ObjectName::Slot(_) => key::slot::Slot::read(repository, &name, &bytes).map(drop),
                ObjectName::Claim(generation) => Claim::open(generation, repository, &bytes).map(drop),
                ObjectName::Protection(snapshot) => Protection::open(&snapshot, &bytes).map(drop),
                ObjectName::Damage(snapshot) => DamageMark::open(&snapshot, &bytes).map(drop),
                ObjectName::Retired(pack) => RetiredPlaces::open(&pack, repository, &bytes).map(drop),
                _ => Ok(()),
            };
            match (object, read) {
                (ObjectName::Claim(generation), read) => claims.push((generation, name, read)),
                (_, Err(error)) => report.find(name, error.to_string()),
                (_, Ok(())) => {}
            }
        }
    }
    claims.sort_unstable_by_key(|(generation, ..)| *generation);
    let newest = claims.last().map(|(generation, ..)| *generation);
    for (generation, name, read) in claims {
        match read {
            Ok(()) => {}
            Err(error) if Some(generation) == newest => report.find(name, error.to_string()),
            // Nothing depends on it any more.
            Err(error) => report.notices.push(error.to_string()),
        }
    }
    Ok(())
}
