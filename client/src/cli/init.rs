//! `underlay init`.

use std::path::Path;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::json;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::backend::{Backend, Honours, Options};
use underlay_store::cut::CutParameters;
use underlay_store::id::{RepositoryId, SlotId};
use underlay_store::key::slot::{Argon2id, Slot};
use underlay_store::key::{Key, RestoreKey, file};
use underlay_store::names::DESCRIPTOR;
use underlay_store::repository::Repository;
use underlay_store::snapshot::{Descriptor, Timestamp};
use zeroize::Zeroizing;

use super::App;
use super::prompt;
use super::report::Failure;
use super::text::{say, warn};
use crate::remote::{RemoteAuthority, is_remote};

/// How to make a repository without being asked.
const NAME_A_KEY: &str =
    "give --key-file FILE for a new key file, or --passphrase-file FILE, or set UNDERLAY_PASSPHRASE";

/// Make a new repository and its keys.
///
/// With --key-file FILE the restore key is written to FILE, which must not exist. With a passphrase (--passphrase-file,
/// UNDERLAY_PASSPHRASE or a prompt) the restore key is kept in the repository, locked by that passphrase. Both may be given.
/// Whoever loses all of them has lost the data.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  underlay init --repo /backup/vms --key-file /root/underlay.key\n  \
                        underlay init --repo s3://bucket/vms --passphrase-file /root/passphrase")]
pub(super) struct Init {
    /// What to call the passphrase in `underlay key list`
    #[arg(long, default_value = "first")]
    label: String,
    /// Where chunks end. Larger ones need less memory and fewer requests, and store more
    #[arg(long, value_enum, default_value = "default")]
    chunk_size: ChunkSize,
}

/// Presets of the cutter.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ChunkSize {
    /// 16 to 96 KiB by content, 28 KiB on average
    Default,
    /// 64 to 512 KiB by content
    Large,
    /// 256 KiB to 2 MiB by content, for very large repositories
    Huge,
    /// 64 KiB, fixed
    #[value(name = "fixed-64k")]
    Fixed64K,
}

impl ChunkSize {
    fn parameters(self) -> CutParameters {
        let cut = |minimum, maximum, mask_bits| CutParameters { minimum, maximum, mask_bits };
        match self {
            Self::Default => CutParameters::default(),
            Self::Large => cut(64 << 10, 512 << 10, 5),
            Self::Huge => cut(256 << 10, 2 << 20, 7),
            Self::Fixed64K => cut(64 << 10, 64 << 10, 0),
        }
    }
}

impl Init {
    pub fn run(self, app: &App) -> Result<(), Failure> {
        let location = app.location()?;
        let key_file = app.global.key_file.as_deref();
        if let Some(path) = key_file.filter(|path| path.symlink_metadata().is_ok()) {
            return Err(Failure::usage(format!("{} already exists", path.display())).hint(
                "a new repository has a new key, and no key is overwritten: choose another --key-file",
            ));
        }
        let passphrase = new_passphrase(app)?;
        let key = RestoreKey::generate();
        let descriptor = Descriptor {
            repository: RepositoryId::random(),
            created: Timestamp::now(),
            public_key: key.backup().public_key(),
            cut: self.chunk_size.parameters(),
        };
        let document = descriptor.seal(key.backup())?;
        let key = Key::Restore(key);
        let mut slots = Vec::new();
        if let Some(passphrase) = &passphrase {
            let (id, cost) = (descriptor.repository, Argon2id::default());
            let slot = Slot::create(id, &key, passphrase, &self.label, descriptor.created, cost)?;
            slots.push((slot.slot, slot.seal().into()));
        }
        let place = Place::open(app, location)?;
        // The key is safe before the repository exists.
        if let Some(path) = key_file {
            file::write(path, &file::to_json(&descriptor.repository, &key))?;
        }
        if let Err(error) = app.runtime.block_on(place.make(document.into(), slots)) {
            if let Some(path) = key_file {
                app.runtime.block_on(discard_key(&place, &error, path));
            }
            return Err(error.into());
        }
        tell(app, &descriptor, passphrase.is_some(), &place)
    }
}

/// Where the repository is to be made.
enum Place {
    /// Here, or in a bucket of which the store was tried out.
    Own(Backend, Honours),
    /// On a server, which tries out its own.
    Server(Box<RemoteAuthority>),
}

impl Place {
    fn open(app: &App, location: &str) -> Result<Self, Failure> {
        if is_remote(location) {
            return Ok(Self::Server(Box::new(app.remote()?)));
        }
        let backend = Backend::open(location, Options { create: true })?;
        let honours = app.wait(backend.probe())?;
        if !honours.suffices() {
            let reason = format!("its store is not fit for one: {honours}");
            return Err(Error::Location { location: location.to_owned(), reason }.into());
        }
        Ok(Self::Own(backend, honours))
    }

    async fn make(&self, descriptor: Bytes, slots: Vec<(SlotId, Bytes)>) -> Result<(), Error> {
        match self {
            Self::Own(backend, _) => Repository::init(backend, descriptor, slots).await,
            Self::Server(server) => server.make(descriptor, slots).await,
        }
    }

    /// Whether it is certain that there is no repository.
    async fn is_empty(&self) -> bool {
        match self {
            Self::Own(backend, _) => matches!(backend.size(DESCRIPTOR).await, Ok(None)),
            Self::Server(server) => {
                matches!(server.descriptor().await, Err(Error::NoRepository { .. } | Error::Denied { .. }))
            }
        }
    }

    /// What the store honours; `None` if that is a server's business.
    fn honours(&self) -> Option<String> {
        match self {
            Self::Own(_, honours) => Some(honours.to_string()),
            Self::Server(_) => None,
        }
    }
}

/// Removes the key of a repository that was not made. If that is not sure, the key stays: it may be the only one.
async fn discard_key(place: &Place, error: &Error, path: &Path) {
    let never_made = matches!(error, Error::AlreadyExists { .. }) || place.is_empty().await;
    if !never_made {
        warn(format_args!(
            "note: the repository may have been made all the same; its key is in {}",
            path.display()
        ));
    } else if let Err(error) = std::fs::remove_file(path) {
        warn(format_args!(
            "note: {} is the key of no repository and could not be removed: {error}",
            path.display()
        ));
    }
}

fn tell(app: &App, descriptor: &Descriptor, has_passphrase: bool, place: &Place) -> Result<(), Failure> {
    let (location, key_file) = (app.location()?, app.global.key_file.as_deref().map(Path::display));
    if app.global.json {
        return say(json!({
            "repository": descriptor.repository,
            "location": location,
            "key_file": key_file.map(|path| path.to_string()),
            "passphrase": has_passphrase,
            "store": place.honours(),
        }));
    }
    say(format!("repository {} made at {location}", descriptor.repository))?;
    if let Some(honours) = place.honours().filter(|_| location.contains("://")) {
        say(format!("the store: {honours}"))?;
    }
    if let Some(path) = &key_file {
        say(format!("the restore key is in {path}: keep a copy of that file somewhere else"))?;
    }
    if has_passphrase {
        say("the passphrase opens the restore key, which lies locked in the repository")?;
    }
    say(
        "Whoever loses every key file, paper copy and passphrase has lost the data: there is no other way in.",
    )?;
    say("")?;
    say("Next:")?;
    say("  underlay key paper                     a copy of the key to print")?;
    say("  underlay backup --vm NAME IMAGE        the first backup")
}

/// The passphrase for a new slot; `None` if a key file makes it unnecessary.
fn new_passphrase(app: &App) -> Result<Option<Zeroizing<String>>, Failure> {
    match prompt::given(app.global.passphrase_file.as_deref())? {
        Some(passphrase) => prompt::not_empty(passphrase).map(Some),
        None if app.global.key_file.is_some() => Ok(None),
        None => prompt::ask_new(NAME_A_KEY).and_then(prompt::not_empty).map(Some),
    }
}
