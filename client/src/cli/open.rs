//! From a location and a key to an open repository, and to the snapshots in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use underlay_store::Error;
use underlay_store::authority::{Authority, StoredDocument};
use underlay_store::backend::{Backend, Options};
use underlay_store::id::SnapshotId;
use underlay_store::key::{Key, RestoreKey, file, slot};
use underlay_store::names::{DESCRIPTOR, KEYS, ObjectName, SNAPSHOTS};
use underlay_store::repository::{Access, Repository};
use underlay_store::snapshot::{DamageMark, Descriptor, PrivateMetadata, Snapshot, select};

use zeroize::Zeroizing;

use super::App;
use super::prompt;
use super::report::Failure;
use super::text::warn;
use crate::remote::{RemoteAuthority, RemoteOptions, is_remote};
use crate::restore;
use crate::state::state_directory;

/// How to name a key without being asked.
const NAME_A_KEY: &str = "give --key-file FILE or --passphrase-file FILE, or set UNDERLAY_PASSPHRASE";

/// An open repository and the key at hand.
pub(super) struct Opened {
    pub authority: Arc<dyn Authority>,
    pub descriptor: Descriptor,
    pub key: Key,
}

/// A snapshot that is to be restored, and the repository that it lies in, opened by the restore key.
pub(super) struct Restorable {
    pub opened: Opened,
    pub snapshot: Snapshot,
}

/// What a repository lists.
#[derive(Debug)]
pub(super) struct Snapshots {
    /// Verified, oldest first.
    pub sound: Vec<Snapshot>,
    /// Those that cannot be believed.
    pub damaged: Vec<Unreadable>,
}

/// A snapshot's object that is not what a holder of the key wrote.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// The object.
    pub name: String,
    /// What is wrong with it.
    pub error: Error,
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
        if is_remote(self.location()?) {
            if access == Access::TakeOver {
                return Err(Failure::usage("a server owns its repositories")
                    .hint("on the server's host: `underlay-server serve --take-over NAME`"));
            }
            return Ok(Arc::new(self.remote()?));
        }
        let backend = self.backend()?;
        if access == Access::TakeOver {
            warn(format_args!("the store: {}", self.wait(backend.probe())?));
        }
        let repository = self.wait(Repository::open(backend, &state_directory(), access))?;
        Ok(Arc::new(repository))
    }

    /// The repository's objects, for what is done without its authority.
    pub fn backend(&self) -> Result<Backend, Failure> {
        let location = self.location()?;
        match is_remote(location) {
            true => Err(Failure::usage("this is done where the repository lies, not through a server").hint(
                "on the server's host, give --repo the location that the server's configuration names",
            )),
            false => Ok(Backend::open(location, Options::default())?),
        }
    }

    /// The repository on a server.
    pub fn remote(&self) -> Result<RemoteAuthority, Failure> {
        let token = match &self.global.token_file {
            Some(path) => prompt::first_line(path)?,
            None => Zeroizing::new(std::env::var("UNDERLAY_TOKEN").unwrap_or_default()),
        };
        if token.trim().is_empty() {
            return Err(Failure::usage("a server wants a token").hint(
                "give --token-file FILE, or set UNDERLAY_TOKEN; `underlay-server token create` makes one",
            ));
        }
        let options = RemoteOptions {
            token: Zeroizing::new(token.trim().to_owned()),
            fingerprint: self.global.server_fingerprint.clone(),
            allow_http: self.global.allow_http,
            stopping: Some(self.stopping.clone()),
        };
        // Its connections live on the runtime's threads.
        let _runtime = self.runtime.enter();
        Ok(RemoteAuthority::new(self.location()?, &options)?)
    }

    /// Opens the repository and finds the key: a key file, or a passphrase.
    pub fn open(&self, access: Access) -> Result<Opened, Failure> {
        let authority = self.authority(access)?;
        let bytes = self.wait(authority.descriptor())?;
        let named = Descriptor::peek(&bytes)?;
        let key = match self.global.key_file_to_use() {
            // What is wrong with the user's own file is no damage to the repository.
            Some(path) => file::read(path, &named.repository).map_err(Failure::key_file)?,
            None => self.key_by_passphrase(&named, &self.wait(authority.key_slots())?)?,
        };
        let descriptor = Descriptor::open(&bytes, key.backup())?;
        if let Ok(backend) = self.backend() {
            Repository::keep_descriptor(&backend, &state_directory(), descriptor.repository, &bytes);
        }
        Ok(Opened { authority, descriptor, key })
    }

    /// Opens the repository by the restore key, and finds the snapshot that the user means.
    pub fn restorable(&self, wanted: &str) -> Result<Restorable, Failure> {
        let opened = self.open(Access::Read)?;
        opened.restore_key()?;
        let snapshots = self.snapshots(&opened)?;
        snapshots.report_damaged();
        let snapshot = snapshots.select(wanted)?.clone();
        Ok(Restorable { opened, snapshot })
    }

    /// Finds the key without opening the repository: for when that is not possible.
    pub fn key(&self, backend: &Backend) -> Result<(Descriptor, Key), Failure> {
        let bytes = self.wait(backend.get(DESCRIPTOR))?;
        let named = Descriptor::peek(&bytes)?;
        let key = match self.global.key_file_to_use() {
            Some(path) => file::read(path, &named.repository).map_err(Failure::key_file)?,
            None => {
                let mut slots = Vec::new();
                for (name, _) in self.wait(backend.list(KEYS))? {
                    let bytes = self.wait(backend.get(&name))?;
                    slots.push(StoredDocument { name, bytes });
                }
                self.key_by_passphrase(&named, &slots)?
            }
        };
        Ok((Descriptor::open(&bytes, key.backup())?, key))
    }

    fn key_by_passphrase(&self, descriptor: &Descriptor, slots: &[StoredDocument]) -> Result<Key, Failure> {
        if slots.is_empty() {
            return Err(Failure::usage("this repository has no passphrase; it needs a key file")
                .hint("give --key-file FILE, or set UNDERLAY_KEY_FILE"));
        }
        let passphrase = match prompt::given(self.global.passphrase_file.as_deref())? {
            Some(passphrase) => passphrase,
            None => prompt::ask("Passphrase: ", NAME_A_KEY)?,
        };
        let slots: Vec<_> = slots.iter().map(|slot| (&slot.name, &slot.bytes)).collect();
        Ok(slot::open_any(&descriptor.repository, &slots, &passphrase)?)
    }

    /// The marks of snapshots that lost data.
    pub fn marks(&self, opened: &Opened) -> Result<BTreeMap<SnapshotId, Option<DamageMark>>, Failure> {
        let marked = self.wait(opened.authority.marked())?;
        Ok(marked.into_iter().map(|marked| (marked.snapshot, marked.mark)).collect())
    }

    /// All snapshots, verified.
    pub fn snapshots(&self, opened: &Opened) -> Result<Snapshots, Failure> {
        let (mut sound, mut damaged) = (Vec::new(), Vec::new());
        for document in self.wait(opened.authority.snapshots())? {
            let name = document.name;
            let snapshot = match ObjectName::parse(&name) {
                Some(ObjectName::Snapshot(id)) => {
                    let (repository, key) = (&opened.descriptor.repository, opened.key.backup());
                    Snapshot::open(&id, repository, &document.bytes, key)
                }
                _ => Err(Error::damaged(&name, "no snapshot has such a name")),
            };
            match snapshot {
                Ok(snapshot) => sound.push(snapshot),
                Err(error) => damaged.push(Unreadable { name, error }),
            }
        }
        sound.sort_by_key(|snapshot| (snapshot.time, snapshot.snapshot));
        Ok(Snapshots { sound, damaged })
    }
}

impl Opened {
    /// The restore key, if that is what is at hand.
    pub fn restore_key(&self) -> Result<&RestoreKey, Failure> {
        Ok(self.key.restore()?)
    }

    /// What restores and checks of disks work with.
    pub fn reading<'a>(&'a self, app: &'a App) -> Result<restore::Environment<'a>, Failure> {
        Ok(restore::Environment {
            authority: &*self.authority,
            key: self.restore_key()?,
            repository: self.descriptor.repository,
            runtime: app.runtime.handle().clone(),
            progress: &*app.progress,
            cancel: &app.cancel,
        })
    }

    /// What only the restore key reads of a snapshot; `None` without it, or if the snapshot keeps nothing of the kind.
    pub fn private(&self, snapshot: &Snapshot) -> Result<Option<PrivateMetadata>, Failure> {
        match (&self.key, &snapshot.private) {
            (Key::Restore(key), Some(field)) => {
                Ok(Some(field.open(key, &snapshot.repository, &snapshot.snapshot)?))
            }
            _ => Ok(None),
        }
    }
}

impl Restorable {
    /// What only the restore key reads of it; `None` if it keeps nothing of the kind.
    pub fn private(&self) -> Result<Option<PrivateMetadata>, Failure> {
        self.opened.private(&self.snapshot)
    }
}

impl Snapshots {
    /// The snapshot that the user means.
    pub fn select(&self, wanted: &str) -> Result<&Snapshot, Failure> {
        let error = match select(&self.sound, wanted) {
            Ok(snapshot) => return Ok(snapshot),
            Err(error @ Error::NoSnapshot { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        let digits = wanted.to_ascii_lowercase();
        let is_wanted =
            |name: &str| name.strip_prefix(SNAPSHOTS).is_some_and(|name| name.starts_with(&digits));
        if digits.len() >= 4
            && let Some(damaged) = self.damaged.iter().find(|damaged| is_wanted(&damaged.name))
        {
            return Err(Failure::from(&damaged.error));
        }
        let failure = Failure::from(error);
        match self.sound.iter().any(|snapshot| snapshot.vm == wanted) {
            true => Err(failure.hint(format!("that is a machine: its newest snapshot is {wanted}@latest"))),
            false => Err(failure),
        }
    }

    /// Says which snapshots cannot be believed. How many there are.
    pub fn report_damaged(&self) -> usize {
        for damaged in &self.damaged {
            warn(format_args!("underlay: {}", Failure::from(&damaged.error).line()));
        }
        self.damaged.len()
    }
}
