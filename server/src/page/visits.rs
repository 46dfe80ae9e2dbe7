//! Who is signed in: a random cookie stands for a token. In memory only, as a hash; a restart signs everybody out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use underlay_store::hexadecimal::Hex;
use underlay_store::key::random_bytes;
use underlay_store::snapshot::Timestamp;

use crate::tokens::{Token, Tokens};

/// A visit ends after so long.
pub(super) const LASTS_SECONDS: u32 = 12 * 3600;
const LASTS: i64 = LASTS_SECONDS as i64 * 1000;
/// Visits at once.
const MANY: usize = 1024;

#[derive(Debug)]
struct Visit {
    token: Arc<Token>,
    until_ms: i64,
}

/// Everybody who is signed in.
#[derive(Debug, Default)]
pub(crate) struct Visits(Mutex<HashMap<[u8; 32], Visit>>);

fn hash(cookie: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, cookie.as_bytes()).as_ref());
    hash
}

impl Visits {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Visit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signs somebody in; the cookie.
    pub(super) fn begin(&self, token: Arc<Token>, now: Timestamp) -> String {
        let (cookie, now_ms) = (Hex(random_bytes::<32>()).to_string(), now.as_milliseconds());
        let mut visits = self.all();
        visits.retain(|_, visit| now_ms < visit.until_ms);
        if visits.len() >= MANY
            && let Some(oldest) = visits.iter().min_by_key(|(_, visit)| visit.until_ms).map(|(key, _)| *key)
        {
            visits.remove(&oldest);
        }
        visits.insert(hash(&cookie), Visit { token, until_ms: now_ms + LASTS });
        cookie
    }

    /// The token that the cookie stands for, if that is valid still.
    pub(super) fn token(&self, cookie: &str, tokens: &Tokens, now: Timestamp) -> Option<Arc<Token>> {
        let key = hash(cookie);
        let mut visits = self.all();
        let known = visits.get(&key).filter(|visit| now.as_milliseconds() < visit.until_ms)?;
        let token = tokens.current(&known.token, now);
        if token.is_none() {
            visits.remove(&key);
        }
        token
    }

    /// Signs somebody out.
    pub(super) fn end(&self, cookie: &str) {
        self.all().remove(&hash(cookie));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::{NewToken, Scope, TokenFile};

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_milliseconds(ms).unwrap()
    }

    #[test]
    fn a_visit_ends_with_its_time_its_token_or_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let file = TokenFile::new(folder.path());
        let new = NewToken {
            label: "page".into(),
            scopes: vec![Scope::Maintain],
            repositories: vec!["*".into()],
            machines: vec!["*".into()],
            expires: None,
        };
        let (made, secret) = file.create(new).unwrap();
        let (tokens, now) = (Tokens::new(folder.path()), Timestamp::now());
        let token = tokens.authenticate(secret.expose(), now).unwrap();
        let visits = Visits::default();
        let later = |ms: i64| at(now.as_milliseconds() + ms);
        let (one, two) = (visits.begin(Arc::clone(&token), now), visits.begin(Arc::clone(&token), now));
        assert!(visits.token(&one, &tokens, later(LASTS - 1)).is_some());
        assert!(visits.token(&one, &tokens, later(LASTS)).is_none());
        assert!(visits.token("00", &tokens, now).is_none());
        visits.end(&one);
        assert!(visits.token(&one, &tokens, now).is_none());
        file.revoke(&made.id.to_string()).unwrap();
        assert!(visits.token(&two, &tokens, now).is_none());
        for _ in 0..MANY + 10 {
            visits.begin(Arc::clone(&token), now);
        }
        assert_eq!(visits.all().len(), MANY);
    }
}
