//! The double as this host: files, memos, journal, and who hears of steps.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::host::Host;
use super::world::World;
use crate::domain::record::{Content, DomainRecord, FileIdentity};
use crate::domain::{DomainError, FreeSpace, Journal, Layers, Moment, Observer, Step};
use crate::hypervisor::{Backing, HypervisorError};
use crate::image::LayerIdentity;
use crate::state::{Memo, StateError};

impl Observer for Host {
    fn reached(&self, step: Step, moment: Moment) {
        if moment == Moment::Before {
            self.world().taken.insert(step);
        }
        self.moment();
    }
}

fn file_error(action: &'static str, path: &Path, error: HypervisorError) -> DomainError {
    DomainError::File { action, path: path.to_owned(), source: io::Error::other(error) }
}

fn state_error(action: &'static str, error: HypervisorError) -> StateError {
    StateError { action, path: "/state".into(), source: io::Error::other(error) }
}

impl World {
    /// Nobody may take such a file away.
    fn expect_ours(&self, path: &Path) {
        let shown = path.display();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let of_a_pull = name.starts_with("underlay-") && self.others.contains(path);
        assert!(of_a_pull || name.contains(".underlay-"), "{shown} is not ours, and is taken away");
        let pulls = self.machine.process.iter().filter_map(|process| process.pull.as_ref());
        let listens = pulls.into_iter().any(|pull| pull.request.socket == path);
        let used = listens || self.machine.uses(path) || self.machine.is_open(path);
        assert!(!used, "{shown} is in use, and is taken away");
    }

    /// A memo must be true whenever it is believed.
    pub fn expect_true(&self, memo: &Memo) {
        let Some(path) = self.images.with_inode(memo.identity.inode) else { return };
        let image = self.images.get(path);
        if image.identity() == memo.identity {
            let below = memo.below.map(|root| self.trees[&root].clone()).unwrap_or_default();
            assert_eq!(image.over(&below), self.trees[&memo.root], "a memo lies about {}", path.display());
        }
    }
}

impl Layers for Host {
    fn exists(&self, path: &Path) -> Result<bool, DomainError> {
        let world = self.ask().map_err(|error| file_error("look for", path, error))?;
        Ok(world.images.contains(path) || world.others.contains(path))
    }

    fn is_open(&self, path: &Path) -> Result<bool, DomainError> {
        let world = self.ask().map_err(|error| file_error("ask for locks on", path, error))?;
        Ok(world.machine.is_open(path))
    }

    fn free_space(&self, folder: &Path) -> Result<FreeSpace, DomainError> {
        let world = self.ask().map_err(|error| file_error("look at", folder, error))?;
        Ok(FreeSpace { device: 1, bytes: world.free })
    }

    fn identity(&self, layer: &Backing, _: &BTreeSet<PathBuf>) -> Result<LayerIdentity, DomainError> {
        let world = self.ask().map_err(|error| file_error("open", &layer.path, error))?;
        match world.images.contains(&layer.path) {
            true => Ok(world.images.get(&layer.path).identity()),
            false => Err(file_error("open", &layer.path, super::host::failed("no such file"))),
        }
    }

    fn file(&self, path: &Path) -> Result<FileIdentity, DomainError> {
        let found = self.ask().map_err(|error| file_error("look at", path, error))?;
        let inode = found.images.get(path).identity().inode;
        Ok(FileIdentity { path: path.to_owned(), device: 1, inode, born: None })
    }

    fn flush(&self, path: &Path) -> Result<(), DomainError> {
        self.ask().map(drop).map_err(|error| file_error("flush", path, error))
    }

    fn remember(
        &self,
        layer: &Backing,
        chain: &BTreeSet<PathBuf>,
        content: &Content,
    ) -> Result<(), DomainError> {
        let identity = self.identity(layer, chain)?;
        let mut world = self.world();
        let memo = Memo { identity, below: content.below, root: content.root };
        world.expect_true(&memo);
        world.memos.insert(memo.identity.inode, memo);
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), DomainError> {
        let fault = self.begin().map_err(|error| file_error("remove", path, error))?;
        {
            let mut world = self.world();
            world.expect_ours(path);
            let gone = world.others.remove(path) || world.images.files.remove(path).is_some();
            assert!(gone, "{} is not there", path.display());
        }
        self.end(fault).map_err(|error| file_error("remove", path, error))
    }

    fn set_aside(&self, path: &Path) -> Result<PathBuf, DomainError> {
        let fault = self.begin().map_err(|error| file_error("set aside", path, error))?;
        let aside = {
            let mut world = self.world();
            world.expect_ours(path);
            let named = (0..).map(|number| PathBuf::from(format!("{}.stale{number}", path.display())));
            let aside = named.into_iter().find(|name| !world.images.contains(name)).unwrap();
            let image = world.images.get(path).clone();
            world.images.files.insert(aside.clone(), image);
            aside
        };
        self.moment();
        self.world().images.files.remove(path);
        self.end(fault).map_err(|error| file_error("set aside", path, error))?;
        Ok(aside)
    }
}

/// Held until it is dropped, which a killed process does, too.
struct Lock {
    host: Host,
    uuid: String,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.host.world().locks.remove(&self.uuid);
    }
}

impl Journal for Host {
    fn all(&self) -> Result<Vec<Result<DomainRecord, StateError>>, StateError> {
        let world = self.ask().map_err(|error| state_error("list", error))?;
        Ok(world.journal.values().map(|text| Ok(serde_json::from_str(text).unwrap())).collect())
    }

    fn load(&self, uuid: &str) -> Result<Option<DomainRecord>, StateError> {
        let world = self.ask().map_err(|error| state_error("read", error))?;
        Ok(world.journal.get(uuid).map(|text| serde_json::from_str(text).unwrap()))
    }

    fn store(&self, record: &DomainRecord) -> Result<(), StateError> {
        let fault = self.begin().map_err(|error| state_error("write", error))?;
        let text = serde_json::to_string(record).unwrap();
        self.world().journal.insert(record.uuid.clone(), text);
        self.end(fault).map_err(|error| state_error("write", error))
    }

    fn lock(&self, uuid: &str) -> Result<Option<Box<dyn Send>>, StateError> {
        let mut world = self.ask().map_err(|error| state_error("lock", error))?;
        let free = world.locks.insert(uuid.to_owned());
        Ok(free.then(|| Box::new(Lock { host: self.clone(), uuid: uuid.to_owned() }) as Box<dyn Send>))
    }
}
