//! What all requests share.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use underlay_store::repository::Access;

use crate::config::Config;
use crate::hosted::Hosted;
use crate::jobs::{History, Jobs};
use crate::limits::Shares;
use crate::metrics::Metrics;
use crate::page::Visits;
use crate::tokens::Tokens;

/// Repositories, tokens, limits and jobs.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) tokens: Tokens,
    pub(crate) shares: Shares,
    pub(crate) jobs: Jobs,
    pub(crate) metrics: Metrics,
    /// Everyone may read the metrics.
    pub(crate) metrics_are_public: bool,
    /// Who looks at pages.
    pub(crate) visits: Visits,
    /// There is no TLS.
    pub(crate) is_plain: bool,
    hosted: BTreeMap<String, Arc<Hosted>>,
    under_way: watch::Sender<usize>,
}

impl Server {
    pub(crate) fn new(config: &Config) -> Self {
        let hosted = config.repositories.iter().map(|repository| {
            (repository.name.clone(), Arc::new(Hosted::new(repository, config.state.clone())))
        });
        Self {
            tokens: Tokens::new(&config.state),
            shares: Shares::new(config.limits),
            metrics: Metrics::default(),
            metrics_are_public: config.metrics.public,
            visits: Visits::default(),
            is_plain: config.insecure_http,
            jobs: Jobs::new(History::open(&config.state)),
            hosted: hosted.collect(),
            under_way: watch::Sender::new(0),
        }
    }

    /// The repository of this name, if the configuration names it.
    pub(crate) fn hosted(&self, name: &str) -> Option<&Arc<Hosted>> {
        self.hosted.get(name)
    }

    /// All that the configuration names.
    pub(crate) fn all_hosted(&self) -> impl Iterator<Item = &Arc<Hosted>> {
        self.hosted.values()
    }

    /// Opens all repositories; `take_over` are taken from whoever owns them.
    ///
    /// # Errors
    /// The name of one that is to be taken over and is not configured.
    pub(crate) async fn open_all(&self, take_over: &[String]) -> Result<(), String> {
        if let Some(unknown) = take_over.iter().find(|name| !self.hosted.contains_key(*name)) {
            return Err(format!("no repository is called {unknown:?}"));
        }
        for hosted in self.hosted.values() {
            let access = match take_over.iter().any(|name| name == hosted.name()) {
                true => Access::TakeOver,
                false => Access::Write,
            };
            // Whoever asks for one that failed hears why.
            let _ = hosted.opened_with(access).await;
        }
        Ok(())
    }

    /// Whether each repository is open, or yet to be made.
    pub(crate) async fn is_ready(&self) -> bool {
        for hosted in self.hosted.values() {
            if hosted.repository().await.is_err_and(|problem| problem.kind() != "no-repository") {
                return false;
            }
        }
        true
    }

    /// Does something to its end, even if whoever asked goes away meanwhile.
    ///
    /// # Panics
    /// If `work` does.
    pub(crate) async fn carry_through<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let guard = UnderWay::begin(Arc::clone(self));
        let task = tokio::spawn(async move {
            let _guard = guard;
            work.await
        });
        match task.await {
            Ok(value) => value,
            Err(failure) => std::panic::resume_unwind(failure.into_panic()),
        }
    }

    /// Waits until nothing is under way that is to be done to its end.
    pub(crate) async fn all_is_done(&self) {
        let _ = self.under_way.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Counts while it lives.
struct UnderWay(Arc<Server>);

impl UnderWay {
    fn begin(server: Arc<Server>) -> Self {
        server.under_way.send_modify(|count| *count += 1);
        Self(server)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|count| *count -= 1);
    }
}
