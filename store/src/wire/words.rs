//! Words that errors and progress take as constants, read from a message.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Words remembered in all; a server that speaks of more is not taken at its word.
const MANY: usize = 512;
/// No such word is longer, in bytes.
const LONGEST: usize = 64;

static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// The word as a constant. It stays in memory for good, so only so many are taken; for any other it is `else_word`.
pub fn word(text: &str, else_word: &'static str) -> &'static str {
    if text.is_empty() || text.len() > LONGEST || text.chars().any(char::is_control) {
        return else_word;
    }
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(word) = known.get(text) {
        return word;
    }
    if known.len() >= MANY {
        return else_word;
    }
    let word: &'static str = Box::leak(text.to_owned().into_boxed_str());
    known.insert(word);
    word
}
