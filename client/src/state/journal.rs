//! Records of domains: what was about to be done to their disks.

use std::fs::{self, File, TryLockError};
use std::io::{Error, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::StateError;
use crate::domain::Journal;
use crate::domain::record::{DomainRecord, VERSION};

/// One small JSON file a domain, named by its UUID, below this host's state folder.
#[derive(Debug)]
pub struct FileJournal {
    folder: PathBuf,
}

impl FileJournal {
    /// The records below the folder `state`.
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join("domains") }
    }

    fn path(&self, uuid: &str, ending: &str) -> PathBuf {
        // What libvirt calls a UUID has hexadecimal digits and dashes. Anything else must not lead elsewhere.
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        self.folder.join(format!("{}.{ending}", uuid.chars().map(safe).collect::<String>()))
    }

    /// A record is durable only if its folder is.
    fn make_folder(&self) -> Result<(), Error> {
        if !self.folder.is_dir() {
            fs::create_dir_all(&self.folder)?;
            self.folder.parent().map_or(Ok(()), |state| File::open(state)?.sync_all())?;
        }
        Ok(())
    }

    fn read(path: &Path) -> Result<Option<DomainRecord>, StateError> {
        let failed = |source| StateError { action: "read", path: path.to_owned(), source };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        // Unlike a memo this cannot be done without: it says which files are whose.
        let record: DomainRecord = serde_json::from_slice(&text)
            .map_err(|error| failed(Error::new(ErrorKind::InvalidData, error)))?;
        if record.version != VERSION {
            let problem =
                format!("it has version {}, and this build reads version {VERSION}", record.version);
            return Err(failed(Error::new(ErrorKind::InvalidData, problem)));
        }
        Ok(Some(record))
    }
}

impl Journal for FileJournal {
    fn all(&self) -> Result<Vec<Result<DomainRecord, StateError>>, StateError> {
        let failed = |source| StateError { action: "list", path: self.folder.clone(), source };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(source) if source.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed(source)),
        };
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                match Self::read(&path) {
                    Ok(record) => records.extend(record),
                    Err(error) => unreadable.push(error),
                }
            }
        }
        records.sort_by(|a, b| (&a.name, &a.uuid).cmp(&(&b.name, &b.uuid)));
        unreadable.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(records.into_iter().map(Ok).chain(unreadable.into_iter().map(Err)).collect())
    }

    fn load(&self, uuid: &str) -> Result<Option<DomainRecord>, StateError> {
        Self::read(&self.path(uuid, "json"))
    }

    fn store(&self, record: &DomainRecord) -> Result<(), StateError> {
        let path = self.path(&record.uuid, "json");
        let partial = self.path(&record.uuid, "partial");
        let write = || {
            self.make_folder()?;
            let mut file = File::create(&partial)?;
            serde_json::to_writer_pretty(&mut file, record)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| StateError { action: "write", path: path.clone(), source })
    }

    fn lock(&self, uuid: &str) -> Result<Option<Box<dyn Send>>, StateError> {
        let path = self.path(uuid, "lock");
        let failed = |source| StateError { action: "lock", path: path.clone(), source };
        self.make_folder().map_err(failed)?;
        let file = File::create(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_kept_and_found() {
        let state = tempfile::tempdir().unwrap();
        let journal = FileJournal::new(state.path());
        assert!(journal.all().unwrap().is_empty());
        let record = DomainRecord::new("web", "8ba6a0f4-0000-4000-8000-000000000001", "qemu:///system");
        journal.store(&record).unwrap();
        assert_eq!(journal.load(&record.uuid).unwrap(), Some(record.clone()));
        assert!(matches!(&*journal.all().unwrap(), [Ok(found)] if *found == record));
        let lock = journal.lock(&record.uuid).unwrap();
        assert!(lock.is_some() && journal.lock(&record.uuid).unwrap().is_none());
        drop(lock);
        assert!(journal.lock(&record.uuid).unwrap().is_some());
        assert_eq!(journal.load("../../etc/passwd").unwrap(), None);
    }

    #[test]
    fn a_record_that_cannot_be_understood_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let journal = FileJournal::new(state.path());
        let mut record = DomainRecord::new("web", "1", "qemu:///system");
        record.version = 7;
        journal.store(&record).unwrap();
        let error = journal.load("1").unwrap_err();
        assert_eq!(error.source.to_string(), "it has version 7, and this build reads version 1");
        fs::write(journal.path("1", "json"), "{").unwrap();
        assert!(journal.load("1").is_err());
        journal.store(&DomainRecord::new("db", "2", "qemu:///system")).unwrap();
        let all = journal.all().unwrap();
        assert!(matches!(&*all, [Ok(db), Err(error)] if db.uuid == "2" && error.path.ends_with("1.json")));
    }
}
