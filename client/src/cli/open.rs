//! From a location and a key to an open repository.

use std::fs;
use std::io::IsTerminal;
use std::sync::Arc;

use underlay_store::authority::{Authority, StoredDocument};
use underlay_store::backend::{Backend, Options};
use underlay_store::key::{Key, RestoreKey, file, slot};
use underlay_store::names::ObjectName;
use underlay_store::repository::{Access, Repository};
use underlay_store::snapshot::{Descriptor, Snapshot};
use zeroize::Zeroizing;

use super::App;
use super::report::Failure;
use crate::state::state_directory;

/// An open repository and the key at hand.
pub(super) struct Opened {
    pub authority: Arc<dyn Authority>,
    pub descriptor: Descriptor,
    pub key: Key,
}

impl App {
    /// The location the user gave.
    pub fn location(&self) -> Result<&str, Failure> {
        self.global.repo.as_deref().ok_or_else(|| {
            Failure::usage("no repository is named").hint("give --repo URL, or set UNDERLAY_REPO")
        })
    }

    /// Opens the repository without any key.
    pub fn authority(&self, access: Access) -> Result<Arc<dyn Authority>, Failure> {
        let backend = Backend::open(self.location()?, Options::default())?;
        let repository = self.runtime.block_on(Repository::open(backend, &state_directory(), access))?;
        Ok(Arc::new(repository))
    }

    /// Opens the repository and finds the key: a key file, or a passphrase.
    pub fn open(&self, access: Access) -> Result<Opened, Failure> {
        let authority = self.authority(access)?;
        let bytes = self.runtime.block_on(authority.descriptor())?;
        let named = Descriptor::peek(&bytes)?;
        let key = match &self.global.key_file {
            Some(path) => file::read(path, &named.repository)?,
            None => self.key_by_passphrase(&named, &self.runtime.block_on(authority.key_slots())?)?,
        };
        let descriptor = Descriptor::open(&bytes, key.backup())?;
        Ok(Opened { authority, descriptor, key })
    }

    fn key_by_passphrase(&self, descriptor: &Descriptor, slots: &[StoredDocument]) -> Result<Key, Failure> {
        if slots.is_empty() {
            return Err(Failure::usage("this repository has no passphrase; it needs a key file")
                .hint("give --key-file FILE, or set UNDERLAY_KEY_FILE"));
        }
        let slots: Vec<_> = slots.iter().map(|slot| (&slot.name, &slot.bytes)).collect();
        Ok(slot::open_any(&descriptor.repository, &slots, &self.passphrase("Passphrase: ")?)?)
    }

    /// The passphrase, from a file, the environment, or a prompt.
    pub fn passphrase(&self, prompt: &str) -> Result<Zeroizing<String>, Failure> {
        if let Some(path) = &self.global.passphrase_file {
            return first_line(path);
        }
        if let Ok(passphrase) = std::env::var("UNDERLAY_PASSPHRASE") {
            return Ok(Zeroizing::new(passphrase));
        }
        ask(prompt)
    }

    /// All snapshots, verified, oldest first; and those that are damaged, as messages.
    pub fn snapshots(&self, opened: &Opened) -> Result<(Vec<Snapshot>, Vec<String>), Failure> {
        let (mut sound, mut damaged) = (Vec::new(), Vec::new());
        for document in self.runtime.block_on(opened.authority.snapshots())? {
            let Some(ObjectName::Snapshot(id)) = ObjectName::parse(&document.name) else {
                damaged.push(format!("{}: no snapshot has such a name", document.name));
                continue;
            };
            match Snapshot::open(&id, &opened.descriptor.repository, &document.bytes, opened.key.backup()) {
                Ok(snapshot) => sound.push(snapshot),
                Err(error) => damaged.push(Failure::from(error).line()),
            }
        }
        sound.sort_by_key(|snapshot| (snapshot.time, snapshot.snapshot));
        Ok((sound, damaged))
    }
}

impl Opened {
    /// The restore key, if that is what is at hand.
    pub fn restore_key(&self) -> Result<&RestoreKey, Failure> {
        Ok(self.key.restore()?)
    }
}

/// The first line of a file, without its end.
pub(super) fn first_line(path: &std::path::Path) -> Result<Zeroizing<String>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::failed(format!("cannot read the passphrase in {}", path.display()), error)
    })?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

/// Asks on the terminal.
pub(super) fn ask(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("no key is given and there is no terminal to ask for a passphrase")
            .hint("give --key-file FILE or --passphrase-file FILE, or set UNDERLAY_PASSPHRASE"));
    }
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(|error| Failure::failed("cannot ask for a passphrase", error))
}
