//! A guest that stops while its disks are shown, because what it overwrites finds no room in a scratch file.

use std::panic::resume_unwind;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::{DomainError, Lifecycle};
use crate::hypervisor::HypervisorError;

/// Whether the reading is over.
#[derive(Default)]
struct Over(Mutex<bool>, Condvar);

impl Over {
    fn set(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.1.notify_all();
    }
}

/// Says that the reading is over when it is dropped, whatever ended it.
struct Reading<'a>(&'a Over);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.set();
    }
}

impl Lifecycle<'_> {
    /// Reads what a pull shows. When the guest stops meanwhile for want of room, the pull is ended, with which its writes need no room
    /// in a scratch file any more, and the guest goes on: it is worth more than this backup. One that `was_stuck` before stays so: that
    /// is not for us to change.
    pub(super) fn read_while_it_runs<T>(
        &self,
        name: &str,
        was_stuck: bool,
        read: impl FnOnce() -> Result<T, DomainError>,
    ) -> Result<T, DomainError> {
        if was_stuck {
            return read();
        }
        let over = Over::default();
        let (outcome, given_up) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| self.give_up_when_stuck(name, &over));
            let reading = Reading(&over);
            let outcome = read();
            drop(reading);
            (outcome, watch.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        match given_up {
            Some(goes_on) => Err(stopped_meanwhile(name, goes_on)),
            None => outcome,
        }
    }

    /// Looks at the guest until the reading is over. If it was given up: whether the guest goes on.
    fn give_up_when_stuck(&self, name: &str, over: &Over) -> Option<Result<bool, HypervisorError>> {
        let mut is_over = over.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*is_over {
            // Whoever does not answer is looked at again.
            if self.hands.is_stuck(name).unwrap_or(false) {
                return Some(self.let_go_on(name));
            }
            let waited = over.1.wait_timeout(is_over, self.patience.watch);
            is_over = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }

    /// Ends the pull, and lets the guest go on without it; whether it does. The pull ends a moment after it was told to: until then the
    /// guest stops again at once.
    fn let_go_on(&self, name: &str) -> Result<bool, HypervisorError> {
        self.hands.end_pull(name)?;
        let started = Instant::now();
        loop {
            let has_ended = self.hands.pull_socket(name)?.is_none();
            if has_ended {
                self.hands.resume(name)?;
                std::thread::sleep(self.patience.poll);
            }
            let goes_on = has_ended && !self.hands.is_stuck(name)?;
            if goes_on || started.elapsed() > self.patience.close {
                return Ok(goes_on);
            }
            std::thread::sleep(self.patience.poll);
        }
    }
}

fn stopped_meanwhile(name: &str, goes_on: Result<bool, HypervisorError>) -> DomainError {
    let guest = match goes_on {
        Ok(true) => "it goes on, and the backup was given up".to_owned(),
        Ok(false) => "the backup was given up, and it does not go on yet".to_owned(),
        Err(error) => format!("the backup was given up, and it cannot be let go on ({error})"),
    };
    DomainError::Unsound {
        domain: name.to_owned(),
        problem: format!(
            "its guest was paused, for what it overwrote during the backup found no room: {guest}"
        ),
        hint: "make room beside its disks, or name a folder with more by --overlay-dir, and back it up again"
            .into(),
    }
}
