//! Randomness that repeats: a simulated run is replayed from its seed.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a thread takes its random bytes from. Fills the whole slice.
pub type Randomness = Arc<Mutex<dyn FnMut(&mut [u8]) + Send>>;

thread_local! {
    static SOURCE: RefCell<Option<Randomness>> = const { RefCell::new(None) };
}

/// From here on this thread's random bytes come from `source`; `None`: from the operating system again. Only for tests: keys made
/// on this thread are no secrets.
pub fn repeatable_randomness(source: Option<Randomness>) {
    SOURCE.with(|current| *current.borrow_mut() = source);
}

/// False if this thread has no source of its own.
pub(super) fn fill(bytes: &mut [u8]) -> bool {
    SOURCE.with(|current| match &*current.borrow() {
        Some(source) => {
            source.lock().unwrap_or_else(PoisonError::into_inner)(bytes);
            true
        }
        None => false,
    })
}
