//! The file with all tokens. The program that makes and revokes them is another process: whoever asks sees its changes at once.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::{Deserialize, Serialize};
use underlay_store::hexadecimal::Hex;
use underlay_store::snapshot::Timestamp;

use super::{NewToken, Secret, Token, hash, id_of};

const VERSION: u32 = 1;
const NAME: &str = "tokens.json";

/// Why the tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be used.
    #[error("cannot {action} {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The operating system's report.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is damaged: {what}; no token is valid until it is mended")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// There is no such token.
    #[error("there is no token {id}")]
    Unknown {
        /// The id, or what was taken for one.
        id: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    tokens: Vec<Token>,
}

/// The tokens on disk, for whoever makes and revokes them.
#[derive(Clone, Debug)]
pub struct TokenFile {
    folder: PathBuf,
}

impl TokenFile {
    /// The file in this state folder.
    pub fn new(state: &Path) -> Self {
        Self { folder: state.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// All tokens, in the order they were made in.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn list(&self) -> Result<Vec<Token>, TokenError> {
        read(&self.path())
    }

    /// Makes a token. It is valid when this returns.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn create(&self, new: NewToken) -> Result<(Token, Secret), TokenError> {
        let (token, secret) = Token::make(new);
        self.change(|tokens| {
            tokens.push(token.clone());
            Ok(())
        })?;
        Ok((token, secret))
    }

    /// Makes a token worthless, with all sessions it has open. `id` is its whole id.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn revoke(&self, id: &str) -> Result<Token, TokenError> {
        let mut revoked = None;
        self.change(|tokens| {
            let found = tokens.iter_mut().find(|token| token.id.to_string() == id);
            let token = found.ok_or_else(|| TokenError::Unknown { id: id.to_owned() })?;
            token.revoked.get_or_insert(Timestamp::now());
            revoked = Some(token.clone());
            Ok(())
        })?;
        revoked.ok_or_else(|| TokenError::Unknown { id: id.to_owned() })
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Vec<Token>) -> Result<(), TokenError>,
    ) -> Result<(), TokenError> {
        let path = self.path();
        let failed =
            |action: &'static str| move |source| TokenError::File { path: path.clone(), action, source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(failed.clone()("create the folder of"))?;
        let lock = File::create(self.folder.join("tokens.lock")).map_err(failed.clone()("lock"))?;
        lock.lock().map_err(failed.clone()("lock"))?;
        let mut tokens = self.list()?;
        change(&mut tokens)?;
        let text = serde_json::to_vec_pretty(&Document { version: VERSION, tokens })
            .map_err(|error| failed.clone()("write")(io::Error::other(error)))?;
        write_whole(&self.folder, NAME, &text).map_err(failed("write"))
    }
}

/// Writes a private file whole or not at all.
pub(crate) fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let partial = folder.join(format!("{name}.partial"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, folder.join(name))?;
    File::open(folder)?.sync_all()
}

fn read(path: &Path) -> Result<Vec<Token>, TokenError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(TokenError::File { path: path.to_owned(), action: "read", source }),
    };
    let damaged = |what: String| TokenError::Damaged { path: path.to_owned(), what };
    let document: Document = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    match document.version {
        VERSION => Ok(document.tokens),
        other => Err(damaged(format!("it has version {other}; this build knows {VERSION}"))),
    }
}

/// What tells that a file was replaced.
type Stamp = Option<(u64, u64, i64, i64)>;

#[derive(Debug, Default)]
struct Loaded {
    stamp: Option<Stamp>,
    tokens: HashMap<[u8; 8], Arc<Token>>,
}

/// The tokens as the server sees them.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

impl Tokens {
    /// Those of this state folder.
    pub fn new(state: &Path) -> Self {
        Self { path: state.join(NAME), loaded: Mutex::default() }
    }

    /// The valid token of this text; `None` if there is none, whatever the reason.
    pub fn authenticate(&self, text: &str, now: Timestamp) -> Option<Arc<Token>> {
        let id = id_of(text)?;
        let presented = hash(text);
        let token = self.find(id)?;
        verify_slices_are_equal(&token.hash.0, &presented.0).ok()?;
        token.is_valid(now).then_some(token)
    }

    /// The token as it is now; `None` if it is not valid any more.
    pub fn current(&self, token: &Token, now: Timestamp) -> Option<Arc<Token>> {
        self.find(token.id).filter(|now_token| now_token.hash == token.hash && now_token.is_valid(now))
    }

    fn find(&self, id: Hex<8>) -> Option<Arc<Token>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = fs::metadata(&self.path)
            .ok()
            .map(|found| (found.ino(), found.len(), found.mtime(), found.mtime_nsec()));
        if loaded.stamp != Some(stamp) {
            // Whatever cannot be read lets nobody in.
            let tokens = read(&self.path).unwrap_or_else(|error| {
                tracing::error!(error = &error as &dyn std::error::Error, "the tokens cannot be read");
                Vec::new()
            });
            loaded.tokens = tokens.into_iter().map(|token| (token.id.0, Arc::new(token))).collect();
            loaded.stamp = Some(stamp);
        }
        loaded.tokens.get(&id.0).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use underlay_store::id::{RepositoryId, SessionHandle};

    use super::super::Scope;
    use super::*;

    fn new(expires: Option<Timestamp>) -> NewToken {
        NewToken {
            label: "host".into(),
            scopes: vec![Scope::Backup],
            repositories: vec!["vms".into()],
            machines: vec!["web*".into()],
            expires,
        }
    }

    #[test]
    fn tokens_are_valid_until_they_expire_or_are_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let (file, tokens) = (TokenFile::new(folder.path()), Tokens::new(folder.path()));
        let now = Timestamp::now();
        assert_eq!(tokens.authenticate("ult1_x", now), None, "there is no file yet");
        let (token, secret) = file.create(new(None)).unwrap();
        assert_eq!(*tokens.authenticate(secret.expose(), now).unwrap(), token);
        let other = secret.expose().replace(['a', '1'], "0");
        for wrong in ["", "Bearer", &other, &secret.expose()[..70], &format!("{}0", secret.expose())] {
            assert_eq!(tokens.authenticate(wrong, now), None, "{wrong}");
        }
        let soon = Timestamp::from_milliseconds(now.as_milliseconds() + 1000).unwrap();
        let (_, short) = file.create(new(Some(soon))).unwrap();
        assert!(tokens.authenticate(short.expose(), now).is_some());
        assert!(tokens.authenticate(short.expose(), soon).is_none());
        file.revoke(&token.id.to_string()).unwrap();
        assert_eq!(tokens.authenticate(secret.expose(), now), None, "at once");
        assert!(file.revoke("0123456789abcdef").is_err());
        assert_eq!(file.list().unwrap().len(), 2, "what is revoked stays to be seen");
    }

    #[test]
    fn secrets_are_not_kept_and_the_file_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let (_, secret) = TokenFile::new(folder.path()).create(new(None)).unwrap();
        let path = folder.path().join(NAME);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&secret.expose()[22..]));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let (file, tokens) = (TokenFile::new(folder.path()), Tokens::new(folder.path()));
        let (_, secret) = file.create(new(None)).unwrap();
        assert!(tokens.authenticate(secret.expose(), Timestamp::now()).is_some());
        write_whole(folder.path(), NAME, b"{").unwrap();
        assert!(tokens.authenticate(secret.expose(), Timestamp::now()).is_none());
        assert!(matches!(file.create(new(None)), Err(TokenError::Damaged { .. })), "and is not overwritten");
    }

    #[test]
    fn what_a_token_is_for() {
        let (token, _) = Token::make(new(None));
        assert!(token.covers_repository("vms") && !token.covers_repository("vms2"));
        assert!(token.covers_machine("web-1") && !token.covers_machine("db") && !token.covers_all_machines());
        assert!(token.has_any(&[Scope::Restore, Scope::Backup]) && !token.has_any(&[Scope::Admin]));
    }

    #[test]
    fn a_handle_means_another_session_to_another_token() {
        let (one, two) = (Token::make(new(None)).0, Token::make(new(None)).0);
        let (repository, handle) = (RepositoryId::random(), SessionHandle::random());
        assert_eq!(one.session(repository, handle), one.session(repository, handle));
        assert_ne!(one.session(repository, handle), two.session(repository, handle));
        assert_ne!(one.session(repository, handle), one.session(RepositoryId::random(), handle));
        assert_ne!(one.session(repository, handle), one.session(repository, SessionHandle::random()));
    }
}
