//! Work that goes on without its client: what one asked for, and what the server does by itself.

mod forget;
mod history;
mod scheduler;
mod told;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::gc::GcOptions;
use underlay_store::id::{JobId, RepositoryId};
use underlay_store::progress::Progress;
use underlay_store::repository::Repository;
use underlay_store::snapshot::Timestamp;
use underlay_store::wire::{JobRequest, JobState, JobStatus, Phase, Problem, kind};

pub(crate) use history::{Entry, History, Outcome};
pub(crate) use scheduler::{next, run as schedule};

use crate::config::{Forget, JobKind};

/// How long a job can be asked for once it has ended.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// Jobs of one repository that are remembered.
const MANY: usize = 256;
/// Notices of one job that are told.
const NOTICES: usize = 1000;
/// Progress within a phase is told no more often.
const TICK: Duration = Duration::from_millis(300);
/// How long an answer waits for news.
pub(crate) const WAIT: Duration = Duration::from_secs(20);

type Key = (RepositoryId, JobId);

/// What a job does.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// What a client can ask for.
    Asked(JobRequest),
    /// What only the server does.
    Forget(Forget),
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Self::Asked(request) => request.name(),
            Self::Forget(_) => "a forget",
        }
    }

    fn kind(&self) -> JobKind {
        match self {
            Self::Asked(JobRequest::Gc(_)) => JobKind::Gc,
            Self::Asked(JobRequest::Check(options)) if options.scrub => JobKind::Scrub,
            Self::Asked(JobRequest::Check(_)) => JobKind::Check,
            Self::Asked(JobRequest::Repair(_)) => JobKind::Repair,
            Self::Forget(_) => JobKind::Forget,
        }
    }
}

/// Where a job comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The repository's name.
    pub repository: String,
    /// The job's name in the configuration; its kind, if a client asks.
    pub job: String,
    /// The server begins it by itself.
    pub planned: bool,
}

impl Origin {
    /// A client asks for it.
    pub(crate) fn client(repository: &str, work: &Work) -> Self {
        Self { repository: repository.to_owned(), job: work.kind().to_string(), planned: false }
    }
}

/// One job.
#[derive(Debug)]
struct Job {
    what: &'static str,
    status: watch::Receiver<JobStatus>,
    task: AbortHandle,
    news: Arc<News>,
    ended: Option<Instant>,
}

/// All jobs of a server. A restart forgets all but their history.
#[derive(Debug)]
pub(crate) struct Jobs {
    known: Mutex<HashMap<Key, Job>>,
    history: History,
}

impl Jobs {
    pub(crate) fn new(history: History) -> Self {
        Self { known: Mutex::default(), history }
    }

    /// What ran.
    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// What a running job is at.
    pub(crate) fn phase(&self, id: JobId) -> Option<Phase> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let job = known.iter().find(|((_, other), _)| *other == id).map(|(_, job)| job)?;
        job.status.borrow().phase.clone()
    }

    /// Starts a job, unless it is known already.
    ///
    /// # Errors
    /// [`Error::Busy`] if another of its kind runs.
    pub(crate) fn start(
        &self,
        repository: &Arc<Repository>,
        id: JobId,
        work: Work,
        origin: Origin,
    ) -> Result<(), Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (repository.id(), id);
        if known.contains_key(&key) {
            return Ok(());
        }
        note_ends(&mut known);
        let what = work.name();
        let mut of_repository = known.iter().filter(|(other, _)| other.0 == key.0);
        if of_repository.clone().any(|(_, job)| job.ended.is_none() && job.what == what) {
            return Err(Error::Busy { what });
        }
        if of_repository.clone().count() >= MANY
            && let Some(oldest) =
                of_repository.by_ref().filter_map(|(key, job)| Some((job.ended?, *key))).min()
        {
            known.remove(&oldest.1);
        }
        let (sender, status) = watch::channel(JobStatus {
            version: 1,
            phase: None,
            notices: Vec::new(),
            state: JobState::Running,
        });
        let (history, told) = (self.history.clone(), Mutex::new(Instant::now()));
        let news = Arc::new(News { sender, told, id, history });
        tracing::info!(repository = %origin.repository, job = %origin.job, %id, "{what} begins");
        let Origin { repository: name, job, planned } = origin;
        self.history.begins(Entry {
            repository: name,
            job,
            kind: work.kind(),
            id,
            planned,
            state: Outcome::Running,
            started: Timestamp::now(),
            ended: None,
            told: String::new(),
        });
        let task = tokio::spawn(run(Arc::clone(repository), work, Arc::clone(&news))).abort_handle();
        known.insert(key, Job { what, status, task, news, ended: None });
        Ok(())
    }

    /// How a job stands, to be waited on.
    ///
    /// # Errors
    /// There is no such job.
    pub(crate) fn status(
        &self,
        repository: RepositoryId,
        id: JobId,
    ) -> Result<watch::Receiver<JobStatus>, Problem> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let job = known.get(&(repository, id));
        job.map(|job| job.status.clone()).ok_or_else(|| {
            Problem::new(
                404,
                kind::NO_JOB,
                format!("there is no job {id}: it ended long ago, or the server was restarted"),
            )
        })
    }

    /// Stops a job where it is; nothing happens to one that has ended.
    pub(crate) fn stop(&self, repository: RepositoryId, id: JobId) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = known.get(&(repository, id)) {
            job.stop(kind::FAILED, Outcome::Stopped);
        }
    }

    /// Stops all of them: the server ends.
    pub(crate) fn stop_all(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|job| {
            job.stop(kind::INTERRUPTED, Outcome::CutOff);
        });
    }
}

impl Job {
    /// Ends it; `why` is [`kind::INTERRUPTED`] if it may as well be begun again.
    fn stop(&self, why: &str, outcome: Outcome) {
        self.task.abort();
        let stopped = Problem::new(503, why, format!("{} was stopped", self.what));
        let told = match outcome {
            Outcome::CutOff => "the server ended meanwhile",
            _ => "somebody stopped it",
        };
        self.news.end(JobState::Failed(stopped), outcome, told.to_owned());
    }
}

/// Notes which jobs have ended, and forgets those that ended long ago.
fn note_ends(known: &mut HashMap<Key, Job>) {
    for job in known.values_mut().filter(|job| job.ended.is_none()) {
        if !matches!(job.status.borrow().state, JobState::Running) {
            job.ended = Some(Instant::now());
        }
    }
    known.retain(|_, job| job.ended.is_none_or(|ended| ended.elapsed() < REMEMBERED));
}

async fn run(repository: Arc<Repository>, work: Work, news: Arc<News>) {
    let what = work.name();
    // Its own task, so that a panic is an outcome.
    let task = tokio::spawn({
        let news = Arc::clone(&news);
        async move {
            Ok::<_, Error>(match work {
                Work::Forget(options) => {
                    JobState::Forgotten(forget::forget(&repository, &options, &*news).await?)
                }
                Work::Asked(JobRequest::Gc(request)) => {
                    JobState::Collected(repository.gc(&GcOptions::from(&request), &*news).await?)
                }
                Work::Asked(JobRequest::Check(options)) => {
                    JobState::Checked(repository.check(&options, &*news).await?)
                }
                Work::Asked(JobRequest::Repair(options)) => {
                    JobState::Repaired(repository.repair(&options, &*news).await?)
                }
            })
        }
    });
    let _abort = AbortOnDrop(task.abort_handle());
    let state = match task.await {
        Ok(Ok(state)) => state,
        Ok(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "{what} failed");
            JobState::Failed(Problem::of(&error, true))
        }
        Err(_) => {
            JobState::Failed(Problem::new(500, kind::FAILED, "the server made a mistake; its log says more"))
        }
    };
    let (outcome, told) = told::told(&state);
    tracing::info!(job = %news.id, outcome = outcome.name(), "{what} has ended: {told}");
    news.end(state, outcome, told);
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells how a job stands to whoever waits for it.
#[derive(Debug)]
struct News {
    sender: watch::Sender<JobStatus>,
    /// When progress within a phase was told last.
    told: Mutex<Instant>,
    id: JobId,
    history: History,
}

impl News {
    /// Whether anything was changed: what has ended stays as it is.
    fn change(&self, change: impl FnOnce(&mut JobStatus)) -> bool {
        self.sender.send_if_modified(|status| {
            if !matches!(status.state, JobState::Running) {
                return false;
            }
            change(status);
            status.version += 1;
            true
        })
    }

    fn end(&self, state: JobState, outcome: Outcome, told: String) {
        if self.change(|status| status.state = state) {
            self.history.ended(self.id, outcome, told);
        }
    }
}

impl Progress for News {
    fn phase(&self, name: &'static str, total: Option<u64>) {
        self.change(|status| {
            let number = status.phase.as_ref().map_or(1, |phase| phase.number + 1);
            status.phase = Some(Phase { name: name.to_owned(), total, done: 0, number });
        });
    }

    fn advance(&self, amount: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.elapsed() >= TICK;
        if due {
            *told = Instant::now();
        }
        self.sender.send_if_modified(|status| {
            if let Some(phase) = &mut status.phase {
                phase.done += amount;
            }
            status.version += u64::from(due);
            due
        });
    }

    fn notice(&self, text: &str) {
        self.change(|status| {
            if status.notices.len() < NOTICES {
                status.notices.push(text.to_owned());
            }
        });
    }
}
