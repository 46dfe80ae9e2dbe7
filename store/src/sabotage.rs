//! Rules of the store that tests break on purpose, to see whether they would notice. Nothing is ever broken without the feature
//! `simulation`.

/// A rule that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// A collection marks what open sessions were promised.
    MarkPins = 1,
    /// A collection leaves the packs of open sessions alone.
    KeepSessionPacks = 2,
    /// A collection marks again before it decides.
    MarkAgain = 3,
    /// What is on its way out is not offered.
    OfferOnlyLive = 4,
    /// A commit proves every reference.
    Prove = 5,
    /// The claim is read again after a deletion is recorded and before anything is deleted.
    ReadClaimAgain = 6,
    /// What is about to be deleted is recorded in the bucket.
    RecordDeletions = 7,
    /// A collection reads a pack before it lets another copy of what is in it go.
    ReadKeepers = 8,
    /// A catalog that was built anew needs a new claim.
    ClaimAnew = 9,
    /// Nodes that are dead are not offered, even where their pack stays.
    HideDeadNodes = 10,
}

#[cfg(feature = "simulation")]
pub use switched::break_on_this_thread;

#[cfg(feature = "simulation")]
pub(crate) use switched::broken;

#[cfg(feature = "simulation")]
mod switched {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Rule;

    thread_local! {
        static BROKEN: RefCell<Option<Arc<AtomicU8>>> = const { RefCell::new(None) };
    }

    /// From here on this thread breaks the rule whose number is in `rule`; 0 is none.
    pub fn break_on_this_thread(rule: Arc<AtomicU8>) {
        BROKEN.with(|broken| *broken.borrow_mut() = Some(rule));
    }

    pub(crate) fn broken(rule: Rule) -> bool {
        BROKEN.with(|broken| {
            broken.borrow().as_ref().is_some_and(|broken| broken.load(Ordering::Relaxed) == rule as u8)
        })
    }
}

#[cfg(not(feature = "simulation"))]
pub(crate) const fn broken(_: Rule) -> bool {
    false
}
