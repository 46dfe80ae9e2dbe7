//! `underlay key`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use underlay_store::id::SlotId;
use underlay_store::key::slot::{Argon2id, Slot};
use underlay_store::key::{Holds, Key, file};
use underlay_store::names::ObjectName;
use underlay_store::repository::Access;
use underlay_store::snapshot::{Descriptor, Timestamp};

use super::App;
use super::open::{Opened, ask, first_line};
use super::report::Failure;
use super::text::table;

/// List, add, remove and export keys.
///
/// The backup key adds data and cannot read it back; the restore key does both.
#[derive(Debug, Args)]
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
}

#[derive(Debug, Args)]
struct Remove {
    /// Its id, as `underlay key list` shows it
    slot: String,
    /// Even if it is the last that opens the restore key. Be sure that a key file or a paper copy exists
    #[arg(long)]
    force: bool,
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
            Verb::Paper(paper) => {
                let opened = app.open(Access::Read)?;
                print!("{}", *file::to_paper(&opened.descriptor.repository, &chosen(&opened, paper.holds)?));
                Ok(())
            }
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

/// The slots of the repository. Needs no key.
fn slots(app: &App) -> Result<Vec<Slot>, Failure> {
    let authority = app.authority(Access::Read)?;
    let descriptor = Descriptor::peek(&app.runtime.block_on(authority.descriptor())?)?;
    let stored = app.runtime.block_on(authority.key_slots())?;
    let read = stored.iter().map(|slot| Slot::read(&descriptor.repository, &slot.name, &slot.bytes));
    Ok(read.collect::<Result<_, _>>()?)
}

fn list(app: &App) -> Result<(), Failure> {
    let slots = slots(app)?;
    if app.global.json {
        let slots = slots.iter().map(|slot| {
            json!({ "slot": slot.slot, "holds": slot.holds, "label": slot.label, "created": slot.created })
        });
        println!("{}", serde_json::Value::from_iter(slots));
    } else if slots.is_empty() {
        println!("no passphrases: this repository opens with a key file");
    } else {
        let rows: Vec<_> = slots
            .iter()
            .map(|slot| {
                vec![
                    slot.slot.to_string(),
                    slot.holds.to_string(),
                    slot.created.to_string(),
                    slot.label.clone(),
                ]
            })
            .collect();
        table(&["SLOT", "HOLDS", "CREATED", "LABEL"], &rows);
    }
    Ok(())
}

impl Add {
    fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Write)?;
        let key = chosen(&opened, self.holds)?;
        let passphrase = match &self.new_passphrase_file {
            Some(path) => first_line(path)?,
            None => {
                let passphrase = ask("New passphrase: ")?;
                if passphrase != ask("Again: ")? {
                    return Err(Failure::usage("the two passphrases differ"));
                }
                passphrase
            }
        };
        if passphrase.is_empty() {
            return Err(Failure::usage("an empty passphrase protects nothing"));
        }
        let (repository, cost) = (opened.descriptor.repository, Argon2id::default());
        let slot = Slot::create(repository, &key, &passphrase, &self.label, Timestamp::now(), cost)?;
        app.runtime.block_on(opened.authority.put_key_slot(slot.slot, slot.seal().into()))?;
        match app.global.json {
            true => println!("{}", json!({ "slot": slot.slot, "holds": slot.holds })),
            false => println!("passphrase {} opens the {} key", slot.slot, slot.holds),
        }
        Ok(())
    }
}

impl Remove {
    fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Write)?;
        let stored = app.runtime.block_on(opened.authority.key_slots())?;
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
        // A damaged slot opens nothing, so it does not count as one that remains.
        let remaining = stored.iter().filter_map(|document| {
            Slot::read(&opened.descriptor.repository, &document.name, &document.bytes).ok()
        });
        let remains = remaining.into_iter().any(|other| other.slot != slot && other.holds == Holds::Restore);
        if !remains && !self.force {
            return Err(Failure::usage("no other passphrase opens the restore key")
                .hint("add one first, or give --force if a key file or a paper copy of it exists"));
        }
        app.runtime.block_on(opened.authority.delete_key_slot(slot))?;
        match app.global.json {
            true => println!("{}", json!({ "removed": slot })),
            false => println!("passphrase {slot} removed"),
        }
        Ok(())
    }
}

impl Export {
    fn run(self, app: &App) -> Result<(), Failure> {
        let opened = app.open(Access::Read)?;
        let key = chosen(&opened, self.holds)?;
        file::write(&self.file, &file::to_json(&opened.descriptor.repository, &key))?;
        match app.global.json {
            true => println!("{}", json!({ "file": self.file, "holds": key.holds() })),
            false => println!("{} key written to {}", key.holds(), self.file.display()),
        }
        Ok(())
    }
}
