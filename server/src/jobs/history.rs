//! What ran, and what came of it: a small file that outlives the server.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use underlay_store::id::JobId;
use underlay_store::snapshot::Timestamp;

use crate::config::JobKind;
use crate::tokens::write_whole;

const VERSION: u32 = 1;
const NAME: &str = "jobs.json";
/// Runs of one job that are kept.
const KEPT: usize = 20;

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It goes on.
    Running,
    /// It ended well.
    Done,
    /// It ended, and found damage.
    Damaged,
    /// It could not be done.
    Failed,
    /// Somebody stopped it.
    Stopped,
    /// The server ended meanwhile.
    CutOff,
}

impl Outcome {
    /// Whether somebody should look at it.
    pub(crate) const fn needs_attention(self) -> bool {
        matches!(self, Self::Damaged | Self::Failed | Self::CutOff)
    }

    /// As it is written.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Damaged => "damaged",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::CutOff => "cut-off",
        }
    }
}

/// One run of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// The repository's name.
    pub repository: String,
    /// The job's name in the configuration; its kind, if somebody asked for it.
    pub job: String,
    /// What it does.
    pub kind: JobKind,
    /// Names the run.
    pub id: JobId,
    /// The server began it by itself.
    pub planned: bool,
    /// How it stands.
    pub state: Outcome,
    /// When it began.
    pub started: Timestamp,
    /// When it ended, if that is known.
    pub ended: Option<Timestamp>,
    /// What came of it, in a line.
    pub told: String,
}

impl Entry {
    fn is_of(&self, repository: &str, job: &str, planned: bool) -> bool {
        self.repository == repository && self.job == job && self.planned == planned
    }
}

#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    /// Oldest first.
    runs: Vec<Entry>,
    /// Since when each planned job is known: repository, job.
    known_since: BTreeMap<String, BTreeMap<String, Timestamp>>,
}

/// The runs of all jobs.
#[derive(Clone, Debug)]
pub(crate) struct History {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    document: Mutex<Document>,
    /// Held while the file is written, so that an older state never replaces a newer one.
    writing: Mutex<()>,
}

impl History {
    /// What the file in this state folder says. What was running is cut off; a file that cannot be read is set aside.
    pub(crate) fn open(state: &Path) -> Self {
        let mut document = Self::read(state).unwrap_or_else(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the history of jobs cannot be read; a new one begins"
            );
            let _ = std::fs::rename(state.join(NAME), state.join(format!("{NAME}.damaged")));
            Document::default()
        });
        for entry in document.runs.iter_mut().filter(|entry| entry.state == Outcome::Running) {
            entry.state = Outcome::CutOff;
            "the server ended meanwhile".clone_into(&mut entry.told);
        }
        let (document, writing) = (Mutex::new(document), Mutex::new(()));
        Self { shared: Arc::new(Shared { folder: state.to_owned(), document, writing }) }
    }

    /// The same for somebody else than the server: changes nothing, and what runs runs.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn look(state: &Path) -> io::Result<Vec<Entry>> {
        Ok(Self::read(state)?.runs)
    }

    fn read(state: &Path) -> io::Result<Document> {
        let bytes = match std::fs::read(state.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Document::default()),
            read => read?,
        };
        let document: Document = serde_json::from_slice(&bytes)?;
        match document.version {
            VERSION => Ok(document),
            other => Err(io::Error::other(format!("it has version {other}; this build knows {VERSION}"))),
        }
    }

    /// A run begins.
    pub(crate) fn begins(&self, entry: Entry) {
        let mut document = self.lock();
        let of_job = |other: &Entry| other.is_of(&entry.repository, &entry.job, entry.planned);
        let excess = (document.runs.iter().filter(|other| of_job(other)).count() + 1).saturating_sub(KEPT);
        let mut left = excess;
        document.runs.retain(|other| {
            let goes = left > 0 && of_job(other) && other.state != Outcome::Running;
            left -= usize::from(goes);
            !goes
        });
        document.runs.push(entry);
        drop(document);
        self.keep();
    }

    /// A run has ended.
    pub(crate) fn ended(&self, id: JobId, state: Outcome, told: String) {
        let mut document = self.lock();
        let found = document.runs.iter_mut().rev().find(|entry| entry.id == id);
        if let Some(entry) = found.filter(|entry| entry.state == Outcome::Running) {
            (entry.state, entry.told, entry.ended) = (state, told, Some(Timestamp::now()));
        }
        drop(document);
        self.keep();
    }

    /// All runs, oldest first.
    pub(crate) fn all(&self) -> Vec<Entry> {
        self.lock().runs.clone()
    }

    /// The last runs of a planned job, newest first, and since when it is known: from now on, if it was not.
    pub(crate) fn of_planned(&self, repository: &str, job: &str, now: Timestamp) -> (Vec<Entry>, Timestamp) {
        let mut document = self.lock();
        let runs =
            document.runs.iter().rev().filter(|entry| entry.is_of(repository, job, true)).cloned().collect();
        let jobs = document.known_since.entry(repository.to_owned()).or_default();
        if let Some(since) = jobs.get(job) {
            return (runs, *since);
        }
        jobs.insert(job.to_owned(), now);
        drop(document);
        self.keep();
        (runs, now)
    }

    fn lock(&self) -> MutexGuard<'_, Document> {
        self.shared.document.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is known now, soon: a disk may take its time, and nothing waits for it.
    fn keep(&self) {
        let shared = Arc::clone(&self.shared);
        let write = move || {
            let _writing = shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let document = shared.document.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let document = Document { version: VERSION, ..document };
            let written = std::fs::create_dir_all(&shared.folder)
                .and_then(|()| Ok(serde_json::to_vec_pretty(&document)?))
                .and_then(|text| write_whole(&shared.folder, NAME, &text));
            if let Err(error) = written {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the history of jobs cannot be written"
                );
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(job: &str, n: u8, planned: bool) -> Entry {
        Entry {
            repository: "vms".to_owned(),
            job: job.to_owned(),
            kind: JobKind::Gc,
            id: JobId::new([n; 16]),
            planned,
            state: Outcome::Running,
            started: Timestamp::from_milliseconds(i64::from(n) * 1000).unwrap(),
            ended: None,
            told: String::new(),
        }
    }

    #[test]
    fn what_a_restart_cut_off_is_known_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path());
        let now = Timestamp::from_milliseconds(5).unwrap();
        assert_eq!(history.of_planned("vms", "gc", now), (Vec::new(), now));
        history.begins(entry("gc", 1, true));
        history.begins(entry("gc", 2, false));
        history.ended(JobId::new([1; 16]), Outcome::Done, "freed nothing".to_owned());
        drop(history);
        let again = History::open(folder.path());
        let states: Vec<Outcome> = again.all().iter().map(|entry| entry.state).collect();
        assert_eq!(states, [Outcome::Done, Outcome::CutOff]);
        let later = Timestamp::from_milliseconds(9).unwrap();
        let (runs, since) = again.of_planned("vms", "gc", later);
        assert_eq!((runs.len(), since), (1, now), "what somebody asked for is apart");
        again.ended(JobId::new([1; 16]), Outcome::Failed, "no".to_owned());
        assert_eq!(again.all()[0].state, Outcome::Done, "what has ended stays as it is");
    }

    #[test]
    fn it_is_bounded_job_by_job() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path());
        history.begins(entry("scrub", 0, true));
        history.ended(JobId::new([0; 16]), Outcome::Done, String::new());
        for n in 1..100 {
            history.begins(entry("gc", n, true));
            history.ended(JobId::new([n; 16]), Outcome::Done, String::new());
        }
        let all = history.all();
        assert_eq!(all.len(), KEPT + 1);
        assert_eq!((all[0].job.as_str(), all[KEPT].id), ("scrub", JobId::new([99; 16])));
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        write_whole(folder.path(), NAME, b"{").unwrap();
        let history = History::open(folder.path());
        assert_eq!(history.all(), []);
        history.begins(entry("gc", 1, true));
        assert_eq!(History::look(folder.path()).unwrap().len(), 1);
        assert!(folder.path().join("jobs.json.damaged").exists());
    }
}
