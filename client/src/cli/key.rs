//! `underlay key`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use underlay_store::id::SlotId;
use underlay_store::key::slot::{Argon2id, Slot};
use underlay_store::key::{Holds, Key, file};
use underlay_store::names::ObjectName;
use underlay_store::repository::Access;
use underlay_store::snapshot::{Descriptor, Timestamp};

use super::App;
use super::open::Opened;
use super::owning::Owning;
use super::prompt;
use super::report::{DAMAGE, Failure};
use super::text::{count, say, say_bytes, table, warn};

/// List, add, remove and export keys.
///
/// The backup key adds data and cannot read it back; the restore key does both. From the restore key both can be
/// exported, from the backup key only itself.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay key list\n  underlay key add --label office\n  \
                        underlay key export --holds backup backup.key\n  underlay key paper key.txt")]
pub(super) struct KeyCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the passphrases that open this repository
    List,
    /// Add a passphrase
    Add(Add),
    /// Remove a passphrase. The key stays the same: whoever knew it may have copied it
    Remove(Remove),
    /// Write a key to a file
    Export(Export),
    /// Print a key to keep on paper
    Paper(Paper),
}

#[derive(Debug, Args)]
struct Add {
    /// Which key the passphrase opens
    #[arg(long, value_enum, default_value = "restore")]
    holds: Which,
    /// What to call it in `underlay key list`
    #[arg(long, default_value = "passphrase")]
    label: String,
    /// A file whose first line is the new passphrase; else a prompt
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    owning: Owning,
}

#[derive(Debug, Args)]
struct Remove {
    /// Its id, as `underlay key list` shows it
    slot: String,
    /// Even if it is the last that opens the restore key. Be sure that a key file or a paper copy exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    owning: Owning,
}

#[derive(Debug, Args)]
struct Export {
    /// The new file; it must not exist
    file: PathBuf,
    /// Which key to write
    #[arg(long, value_enum, default_value = "backup")]
    holds: Which,
}

#[derive(Debug, Args)]
struct Paper {
    /// The new file; it must not exist. Without it, the copy goes to stdout
    file: Option<PathBuf>,
    /// Which key to print
    #[arg(long, value_enum, default_value = "restore")]
    holds: Which,
}

/// The two keys of a repository.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    /// Adds data, reads nothing back
    Backup,
    /// Does everything
    Restore,
}

impl KeyCommand {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        match self.verb {
            Verb::List => list(app),
            Verb::Add(add) => add.run(app),
            Verb::Remove(remove) => remove.run(app),
            Verb::Export(export) => export.run(app),
            Verb::Paper(paper) => paper.run(app),
        }
    }
}

/// The key asked for, as far as the one at hand holds it.
fn chosen(opened: &Opened, which: Which) -> Result<Key, Failure> {
    match which {
        Which::Backup => Ok(Key::Backup(opened.key.backup().clone())),
        Which::Restore => Ok(Key::Restore(opened.restore_key()?.clone())),
    }
}

/// Needs no key. A slot that cannot be read is reported, and the others are listed.
fn list(app: &App) -> Result<(), Failure> {
    let authority = app.authority(Access::Read)?;
    let descriptor = Descriptor::peek(&app.wait(authority.descriptor())?)?;
    let stored = app.wait(authority.key_slots())?;
    let (mut slots, mut unreadable) = (Vec::new(), 0);
    for document in stored {
        match Slot::read(&descriptor.repository, &document.name, &document.bytes) {
            Ok(slot) => slots.push(slot),
            Err(error) => {
                warn(format_args!("underlay: {}", Failure::from(&error).line()));
                unreadable += 1;
            }
        }
    }
    slots.sort_by_key(|slot| (slot.created, slot.slot));
    let told = if app.global.json {
        let slots = slots.iter().map(|slot| {
            json!({ "slot": slot.slot, "holds": slot.holds, "label": slot.label, "created": slot.created })
        });
        say(serde_json::Value::from_iter(slots))
    } else if slots.is_empty() {
        say("no passphrases: this repository opens with a key file")
    } else {
        let row = |slot: &Slot| {
            let [id, holds, created] =
                [slot.slot.to_string(), slot.holds.to_string(), slot.created.to_string()];
            vec![id, holds, created, slot.label.clone()]
        };
        table(&["SLOT", "HOLDS", "CREATED", "LABEL"], &slots.iter().map(row).collect::<Vec<_>>())
    };
    match unreadable {
        0 => told,
        _ => Err(Failure::after_result(DAMAGE, format!("{} cannot be read", count(unreadable, "slot")))),
    }
}

impl Add {
    fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(self.owning.writing())?;
        let key = chosen(&opened, self.holds)?;
        let passphrase = prompt::not_empty(match &self.new_passphrase_file {
            Some(path) => prompt::first_line(path)?,
            None => prompt::ask_new("give the new one with --new-passphrase-file FILE")?,
        })?;
        let (repository, cost) = (opened.descriptor.repository, Argon2id::default());
        let slot = Slot::create(repository, &key, &passphrase, &self.label, Timestamp::now(), cost)?;
        app.runtime.block_on(opened.authority.put_key_slot(slot.slot, slot.seal().into()))?;
        match app.global.json {
            true => say(json!({ "slot": slot.slot, "holds": slot.holds })),
            false => say(format!("passphrase {} opens the {} key", slot.slot, slot.holds)),
        }
    }
}

impl Remove {
    fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(self.owning.writing())?;
        let stored = app.wait(opened.authority.key_slots())?;
        let ids: Vec<SlotId> = (stored.iter())
            .filter_map(|document| match ObjectName::parse(&document.name) {
                Some(ObjectName::Slot(slot)) => Some(slot),
                _ => None,
            })
            .collect();
        let Some(slot) = SlotId::from_hex(&self.slot).filter(|slot| ids.contains(slot)) else {
            return Err(Failure::usage(format!("there is no passphrase {:?}", self.slot))
                .hint("`underlay key list` shows them"));
        };
        // A damaged slot opens nothing: it may go, and does not count as one that remains.
        let restoring: Vec<SlotId> = (stored.iter())
            .filter_map(|other| Slot::read(&opened.descriptor.repository, &other.name, &other.bytes).ok())
            .filter_map(|other| (other.holds == Holds::Restore).then_some(other.slot))
            .collect();
        if restoring == [slot] && !self.force {
            return Err(Failure::usage("no other passphrase opens the restore key")
                .hint("add one first, or give --force if a key file or a paper copy of it exists"));
        }
        app.runtime.block_on(opened.authority.delete_key_slot(slot))?;
        match app.global.json {
            true => say(json!({ "removed": slot })),
            false => say(format!("passphrase {slot} removed")),
        }
    }
}

impl Export {
    fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        let key = chosen(&opened, self.holds)?;
        write_new(&self.file, &file::to_json(&opened.descriptor.repository, &key))?;
        match app.global.json {
            true => say(json!({ "file": self.file.display().to_string(), "holds": key.holds() })),
            false => say(format!("{} key written to {}", key.holds(), self.file.display())),
        }
    }
}

impl Paper {
    fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        let key = chosen(&opened, self.holds)?;
        let text = file::to_paper(&opened.descriptor.repository, &key);
        match (&self.file, app.global.json) {
            (None, false) => say_bytes(text.as_bytes()),
            (None, true) => say(json!({ "paper": text.as_str(), "holds": key.holds() })),
            (Some(path), json) => {
                write_new(path, &text)?;
                match json {
                    true => say(json!({ "file": path.display().to_string(), "holds": key.holds() })),
                    false => say(format!("{} key written to {}, to print", key.holds(), path.display())),
                }
            }
        }
    }
}

/// Keys never take the place of anything.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    if path.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!("{} already exists", path.display())).hint("choose another name"));
    }
    Ok(file::write(path, text)?)
}
