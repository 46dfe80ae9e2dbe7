//! Packs: whether those that the catalog names are in the bucket, and are what their names say.

use std::collections::{HashMap, HashSet};

use super::{CheckReport, Ground, Scrubbed};
use crate::Result;
use crate::catalog::{PackRecord, PackState, PackSummary, Retired};
use crate::check::CheckOptions;
use crate::id::PackName;
use crate::names::ObjectName;
use crate::pack::{self, PackId, PackKind};
use crate::progress::Progress;

/// Packs read between two records of it.
const TOGETHER: usize = 64;

/// A pack that is not to be relied on.
pub(super) struct BadPack {
    pub id: PackId,
    pub what: String,
    /// An earlier check found it out.
    pub known: bool,
}

/// What is known of the packs once they were looked at.
#[derive(Default)]
pub(super) struct Packs {
    pub bad: HashMap<PackName, BadPack>,
    /// Packs that a collection is deleting: there or not, they are no copy of anything.
    pub going: HashSet<PackName>,
    /// The catalog says something else of a pack than the pack.
    pub catalog_differs: bool,
}

/// Compares the catalog with the bucket's listing, and reads packs where `options` ask for that.
///
/// # Errors
/// Only what stops the check itself.
pub(super) async fn packs(
    ground: &Ground<'_>,
    options: &CheckOptions,
    progress: &dyn Progress,
    report: &mut CheckReport,
) -> Result<Packs> {
    let mut found = Packs::default();
    let mut present: Vec<PackSummary> = Vec::new();
    for kind in [PackKind::Data, PackKind::Nodes] {
        present.extend(listed(ground, kind, progress, report, &mut found).await?);
    }
    if options.scrub || options.suspects {
        scrub(ground, options, progress, report, &mut found, present).await?;
    }
    if ground.record {
        let retired: Vec<Retired> = found.bad.keys().map(|pack| Retired::Pack(*pack)).collect();
        report.retired += ground.catalog.retire(&retired)?;
    }
    Ok(found)
}

/// Packs of the kind that are there with their whole length.
async fn listed(
    ground: &Ground<'_>,
    kind: PackKind,
    progress: &dyn Progress,
    report: &mut CheckReport,
    found: &mut Packs,
) -> Result<Vec<PackSummary>> {
    let listed: HashMap<PackName, u64> = (ground.backend.list(kind.folder()).await?.into_iter())
        .filter_map(|(name, size)| match ObjectName::parse(&name)? {
            ObjectName::Pack(_, name) => Some((name, size)),
            _ => None,
        })
        .collect();
    let known = ground.catalog.packs(kind)?;
    progress.phase("packs", None);
    let names: HashSet<PackName> = known.iter().map(|pack| pack.name).collect();
    let unknown = listed.keys().filter(|name| !names.contains(name)).count();
    if unknown > 0 {
        report.notices.push(format!(
            "{unknown} packs are in the bucket and not in the catalog: leftovers of interrupted backups"
        ));
    }
    let mut present = Vec::new();
    for pack in known {
        if pack.state == PackState::Deleting {
            found.going.insert(pack.name);
            continue;
        }
        report.packs += 1;
        report.pack_bytes += pack.size;
        progress.advance(1);
        let id = PackId::new(kind, pack.name);
        let size = match listed.get(&pack.name) {
            // Stored or deleted since it was listed, perhaps.
            None => ground.backend.size(&id.to_string()).await?,
            size => size.copied(),
        };
        let what = match size {
            None if !ground.catalog.is_in_use(&pack.name)? => continue,
            None => Some("it is missing from the bucket".to_owned()),
            Some(size) if size > pack.size && is_sound_but_longer(ground, &id, pack.size).await? => {
                report.find(
                    id.to_string(),
                    format!("{} bytes follow its end; all of it is sound", size - pack.size),
                );
                continue;
            }
            Some(size) if size != pack.size => {
                Some(format!("it has {size} bytes, the catalog says {}", pack.size))
            }
            Some(_) if pack.retired => Some("an earlier check found it damaged".to_owned()),
            Some(_) => None,
        };
        if size == Some(pack.size) {
            present.push(pack.clone());
        }
        if let Some(what) = what {
            found.bad.insert(pack.name, BadPack { id, what, known: pack.retired });
        }
    }
    Ok(present)
}

/// Whether the pack's own bytes are what its name says, and others follow.
async fn is_sound_but_longer(ground: &Ground<'_>, id: &PackId, size: u64) -> Result<bool> {
    match ground.backend.get_range(&id.to_string(), 0..size).await {
        Ok(bytes) => Ok(pack::name_of(&bytes) == id.name),
        Err(error) if error.is_damage() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads packs whole: first those under suspicion, then those read longest ago.
async fn scrub(
    ground: &Ground<'_>,
    options: &CheckOptions,
    progress: &dyn Progress,
    report: &mut CheckReport,
    found: &mut Packs,
    mut present: Vec<PackSummary>,
) -> Result<()> {
    let suspects: HashSet<PackName> =
        ground.catalog.suspected_packs()?.into_iter().map(|pack| pack.name).collect();
    present.sort_by_key(|pack| (!suspects.contains(&pack.name), pack.checked, pack.name));
    let wanted = |pack: &PackSummary| options.scrub || suspects.contains(&pack.name);
    let all: u64 = present.iter().filter(|pack| wanted(pack)).map(|pack| pack.size).sum();
    progress.phase("scrub", Some(options.budget.unwrap_or(all).min(all)));
    let mut scrubbed = Scrubbed { recorded: ground.record, ..Scrubbed::default() };
    let (mut sound, mut read) = (Vec::new(), Vec::new());
    for pack in &mut present {
        let spent = scrubbed.packs > 0
            && options.budget.is_some_and(|budget| scrubbed.bytes.saturating_add(pack.size) > budget);
        if spent || !wanted(pack) {
            scrubbed.left += 1;
            continue;
        }
        let id = PackId::new(pack.kind, pack.name);
        scrubbed.packs += 1;
        scrubbed.bytes += pack.size;
        read.push(pack.name);
        match compare(ground, &id, found, report).await? {
            None => {
                found.bad.remove(&pack.name);
                sound.push(pack.name);
            }
            // Whoever has keys has told which of it is damaged.
            Some(_) if !options.scrub && !pack.retired => {}
            Some(what) => {
                found.bad.insert(pack.name, BadPack { id, what, known: pack.retired });
            }
        }
        pack.checked = ground.now_ms;
        progress.advance(pack.size);
        if read.len() >= TOGETHER {
            record(ground, report, &mut sound, &mut read)?;
        }
    }
    record(ground, report, &mut sound, &mut read)?;
    scrubbed.never = present.iter().filter(|pack| pack.checked == 0).count() as u64;
    scrubbed.oldest_ms = present.iter().map(|pack| pack.checked).filter(|checked| *checked > 0).min();
    report.scrub = Some(scrubbed);
    Ok(())
}

/// What is wrong with a pack's bytes, if anything.
async fn compare(
    ground: &Ground<'_>,
    id: &PackId,
    found: &mut Packs,
    report: &mut CheckReport,
) -> Result<Option<String>> {
    let bytes = match ground.backend.get(&id.to_string()).await {
        Ok(bytes) => bytes,
        // Deleted meanwhile, and rightly.
        Err(error) if error.is_damage() && !ground.catalog.is_in_use(&id.name)? => return Ok(None),
        Err(error) if error.is_damage() => return Ok(Some(error.to_string())),
        Err(error) => return Err(error),
    };
    if pack::name_of(&bytes) != id.name {
        return Ok(Some("its SHA-256 is not its name".to_owned()));
    }
    let entries = match pack::parse(id, &bytes) {
        Ok(index) => index.entries,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let record = PackRecord { name: id.name, kind: id.kind, size: bytes.len() as u64, entries };
    if !ground.catalog.agrees_with(&record)? && ground.catalog.is_in_use(&id.name)? {
        report.find("catalog", format!("what it says of {id} is not what {id} holds"));
        found.catalog_differs = true;
    }
    Ok(None)
}

fn record(
    ground: &Ground<'_>,
    report: &mut CheckReport,
    sound: &mut Vec<PackName>,
    read: &mut Vec<PackName>,
) -> Result<()> {
    if ground.record {
        report.reinstated += ground.catalog.packs_are_sound(sound, ground.now_ms)?;
        ground.catalog.packs_were_read(read, ground.now_ms)?;
    }
    sound.clear();
    read.clear();
    Ok(())
}
