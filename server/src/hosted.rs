//! The repositories that are served. Each is opened once, as soon as it can be.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Mutex;
use underlay_store::Error;
use underlay_store::backend::{Backend, Options};
use underlay_store::id::{SlotId, WriterId};
use underlay_store::repository::{Access, Repository};
use underlay_store::wire::Problem;

use crate::coming::{Circle, Coming};
use crate::config::{JobConfig, RepositoryConfig};

/// What failed is tried again after so long, when somebody asks.
const PATIENCE: Duration = Duration::from_secs(2);

/// One repository of the configuration.
#[derive(Debug)]
pub(crate) struct Hosted {
    name: String,
    location: String,
    strict: bool,
    direct: bool,
    jobs: Vec<JobConfig>,
    state: PathBuf,
    /// Chunks that clients are about to send.
    pub(crate) coming: Coming,
    opened: RwLock<Option<Arc<Repository>>>,
    /// Held while it is opened or made; when that failed last, and why.
    opening: Mutex<Option<(Instant, Problem)>>,
}

impl Hosted {
    pub(crate) fn new(config: &RepositoryConfig, state: PathBuf) -> Self {
        let RepositoryConfig { name, location, strict, direct, jobs } = config.clone();
        let (coming, opened, opening) = (Coming::default(), RwLock::default(), Mutex::default());
        Self { name, location, strict, direct, jobs, state, coming, opened, opening }
    }

    /// Whose uploads help this writer.
    pub(crate) fn circle(&self, writer: WriterId) -> Circle {
        self.strict.then_some(writer)
    }

    /// Whether packs go between clients and the bucket.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the server does in it by itself.
    pub(crate) fn jobs(&self) -> &[JobConfig] {
        &self.jobs
    }

    /// The repository, opened if it is not yet.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(crate) async fn repository(&self) -> Result<Arc<Repository>, Problem> {
        self.opened_with(Access::Write).await
    }

    /// Opens it; with [`Access::TakeOver`], whoever owns it.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(crate) async fn opened_with(&self, access: Access) -> Result<Arc<Repository>, Problem> {
        if let Some(repository) = self.current() {
            return Ok(repository);
        }
        let mut opening = self.opening.lock().await;
        if let Some(repository) = self.current() {
            return Ok(repository);
        }
        if let Some((_, problem)) = opening.as_ref().filter(|(when, _)| when.elapsed() < PATIENCE) {
            return Err(problem.clone());
        }
        match self.open(access).await {
            Ok(repository) => {
                tracing::info!(repository = %self.name, id = %repository.id(), "opened");
                *opening = None;
                let repository = Arc::new(repository);
                *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&repository));
                Ok(repository)
            }
            Err(error) => {
                match error {
                    Error::NoRepository { .. } => {
                        tracing::info!(repository = %self.name, "there is none yet");
                    }
                    _ => {
                        tracing::error!(repository = %self.name, error = &error as &dyn std::error::Error, "cannot be opened")
                    }
                }
                let problem = Problem::of(&error, true);
                *opening = Some((Instant::now(), problem.clone()));
                Err(problem)
            }
        }
    }

    /// Makes the repository of documents that a client made.
    ///
    /// # Errors
    /// As [`Repository::init`]; [`Error::Location`] if the store is not fit for one.
    pub(crate) async fn make(&self, descriptor: Bytes, slots: Vec<(SlotId, Bytes)>) -> Result<(), Error> {
        let mut opening = self.opening.lock().await;
        let location = self.location.clone();
        let backend = Backend::open(&location, Options { create: true })?;
        let honours = backend.probe().await?;
        if !honours.suffices() {
            let reason = format!("its store is not fit for one: {honours}");
            return Err(Error::Location { location: self.name.clone(), reason });
        }
        if self.direct {
            backend.probe_signed().await?;
        }
        Repository::init(&backend, descriptor, slots).await?;
        tracing::info!(repository = %self.name, store = %honours, "made");
        *opening = None;
        Ok(())
    }

    /// Lets go of a repository that another host has taken over: whether it is given back is found out by opening it again.
    pub(crate) fn lost(&self) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn current(&self) -> Option<Arc<Repository>> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn open(&self, access: Access) -> Result<Repository, Error> {
        let (location, state) = (self.location.clone(), self.state.clone());
        let (strict, direct) = (self.strict, self.direct);
        // Its catalog may have to be built: that blocks, and goes on if whoever asked goes away.
        let opened = tokio::spawn(async move {
            let backend = Backend::open(&location, Options::default())?;
            if direct {
                backend.probe_signed().await?;
            }
            let repository = Repository::open(backend, &state, access).await?;
            repository.set_strict(strict).await?;
            Ok(repository)
        });
        match opened.await {
            Ok(opened) => opened,
            Err(failure) => match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::Interrupted),
            },
        }
    }
}
