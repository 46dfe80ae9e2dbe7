//! Long work on the server: started, asked after, begun again if the server forgot it.

use std::time::Duration;

use underlay_store::Result;
use underlay_store::id::JobId;
use underlay_store::progress::Progress;
use underlay_store::wire::{JobRequest, JobState, JobStatus, kind, word};

use super::RemoteAuthority;
use super::http::{Ask, Method};

/// A server that is restarted forgets its jobs, which may all be begun again; so often it is done.
const STARTS: u32 = 3;

/// What of a job's progress has been passed on.
#[derive(Default)]
struct Told {
    version: u64,
    phase: u64,
    done: u64,
    notices: usize,
}

impl Told {
    fn tell(&mut self, status: &JobStatus, progress: &dyn Progress) {
        self.version = status.version;
        if let Some(phase) = &status.phase {
            if phase.number != self.phase {
                progress.phase(word(&phase.name, "working"), phase.total);
                (self.phase, self.done) = (phase.number, 0);
            }
            progress.advance(phase.done.saturating_sub(self.done));
            self.done = self.done.max(phase.done);
        }
        status.notices.iter().skip(self.notices).for_each(|notice| progress.notice(notice));
        self.notices = self.notices.max(status.notices.len());
    }
}

impl RemoteAuthority {
    /// Has a job done, and waits for its end.
    pub(super) async fn job(&self, request: &JobRequest, progress: &dyn Progress) -> Result<JobState> {
        let mut starts = 0;
        'start: loop {
            starts += 1;
            let path = format!("/jobs/{}", JobId::random());
            self.http.send(&Ask::json(Method::PUT, &path, request)?).await.result?;
            let mut told = Told::default();
            loop {
                let sent = self.http.send(&Ask::get(format!("{path}?seen={}", told.version))).await;
                if sent.kind.as_deref() == Some(kind::NO_JOB) && starts < STARTS {
                    progress.notice("the server was restarted; it begins again");
                    continue 'start;
                }
                let answer = sent.result?;
                let status: JobStatus = serde_json::from_slice(&answer)
                    .map_err(|error| self.http.nonsense(format!("its answer: {error}")))?;
                told.tell(&status, progress);
                match status.state {
                    JobState::Running => {}
                    JobState::Failed(problem) if problem.kind() == kind::INTERRUPTED && starts < STARTS => {
                        progress.notice("the server ends; it is asked again");
                        self.http.rest(Duration::from_secs(1)).await;
                        continue 'start;
                    }
                    JobState::Failed(problem) => return Err(self.http.told(problem)),
                    ended => return Ok(ended),
                }
            }
        }
    }
}
