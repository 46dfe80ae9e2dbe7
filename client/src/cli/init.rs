//! `underlay init`.

use clap::{Args, ValueEnum};
use serde_json::json;
use underlay_store::backend::{Backend, Options};
use underlay_store::cut::CutParameters;
use underlay_store::id::RepositoryId;
use underlay_store::key::slot::{Argon2id, Slot};
use underlay_store::key::{Key, RestoreKey, file};
use underlay_store::repository::Repository;
use underlay_store::snapshot::{Descriptor, Timestamp};
use zeroize::Zeroizing;

use super::App;
use super::open::ask;
use super::report::Failure;

/// Make a new repository and its keys.
///
/// With --key-file FILE the restore key is written to FILE, which must not exist. With a passphrase (--passphrase-file,
/// UNDERLAY_PASSPHRASE or a prompt) the restore key is kept in the repository, locked by that passphrase. Both may be given.
/// Whoever loses all of them has lost the data.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  underlay init --repo /backup/vms --key-file /root/underlay.key")]
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
        if let Some(passphrase) = passphrase {
            let (id, cost) = (descriptor.repository, Argon2id::default());
            let slot = Slot::create(id, &key, &passphrase, &self.label, descriptor.created, cost)?;
            slots.push((slot.slot, slot.seal().into()));
        }
        let backend = Backend::open(app.location()?, Options { create: true })?;
        // The key is safe before the repository exists, and goes again if that fails.
        if let Some(path) = &app.global.key_file {
            file::write(path, &file::to_json(&descriptor.repository, &key))?;
        }
        if let Err(error) = app.runtime.block_on(Repository::init(&backend, document.into(), slots)) {
            if let Some(path) = &app.global.key_file {
                let _ = std::fs::remove_file(path);
            }
            return Err(error.into());
        }
        self.tell(app, &descriptor)
    }

    fn tell(&self, app: &App, descriptor: &Descriptor) -> Result<(), Failure> {
        let (location, key_file) = (app.location()?, app.global.key_file.as_deref());
        if app.global.json {
            println!(
                "{}",
                json!({ "repository": descriptor.repository, "location": location, "key_file": key_file })
            );
            return Ok(());
        }
        println!("repository {} made at {location}", descriptor.repository);
        match key_file {
            Some(path) => {
                println!("restore key written to {}: keep a copy of it somewhere else", path.display())
            }
            None => {
                println!("restore key locked by the passphrase: keep a paper copy too (`underlay key paper`)")
            }
        }
        println!("Whoever loses every restore key and passphrase has lost the data.");
        Ok(())
    }
}

/// The passphrase for a new slot; `None` if a key file makes it unnecessary.
fn new_passphrase(app: &App) -> Result<Option<Zeroizing<String>>, Failure> {
    let given = app.global.passphrase_file.is_some() || std::env::var_os("UNDERLAY_PASSPHRASE").is_some();
    if !given && app.global.key_file.is_some() {
        return Ok(None);
    }
    let passphrase = app.passphrase("New passphrase: ")?;
    if !given && passphrase != ask("Again: ")? {
        return Err(Failure::usage("the two passphrases differ"));
    }
    if passphrase.is_empty() {
        return Err(Failure::usage("an empty passphrase protects nothing"));
    }
    Ok(Some(passphrase))
}
