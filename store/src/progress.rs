//! What the library tells while it works. It never talks to the user: a caller shows, records or ignores this.

/// Receives progress. Called from many threads.
pub trait Progress: Send + Sync {
    /// A phase begins; `total` is its expected amount of work in bytes or objects, if known.
    fn phase(&self, name: &'static str, total: Option<u64>);
    /// More of the current phase is done.
    fn advance(&self, amount: u64);
    /// Something a person should know that does not stop the work. Never used for repository errors.
    fn notice(&self, text: &str);
}

/// Ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &'static str, _total: Option<u64>) {}
    fn advance(&self, _amount: u64) {}
    fn notice(&self, _text: &str) {}
}
