//! The configuration file. Every mistake is named with its line and key.

mod job;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};

pub use job::{Forget, JobConfig, JobKind};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's report.
        #[source]
        source: std::io::Error,
    },
    /// It says something that cannot be meant.
    #[error("{path}: {what}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, key and rule.
        what: String,
    },
}

/// What a server is to do.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The folder for tokens, the self-signed certificate and the catalogs of buckets.
    pub state: PathBuf,
    /// Certificate and key; without it one is made and signed by itself.
    pub tls: Option<TlsFiles>,
    /// No TLS at all. On other than loopback addresses only together with `insecure_http_anywhere`.
    #[serde(default)]
    pub insecure_http: bool,
    /// Tokens may go over the network for everyone to read.
    #[serde(default)]
    pub insecure_http_anywhere: bool,
    /// What may be too much.
    #[serde(default)]
    pub limits: Limits,
    /// Who reads the metrics.
    #[serde(default)]
    pub metrics: Metrics,
    /// The repositories.
    #[serde(default, rename = "repository")]
    pub repositories: Vec<RepositoryConfig>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, and those above it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Who reads the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Everyone who reaches the server. Otherwise it takes a token with the scope maintain.
    pub public: bool,
}

/// A repository to serve.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// Its name in URLs: 1 to 64 of `a-z`, `0-9`, `-`, `_`, `.`, beginning with a letter or digit.
    #[serde(deserialize_with = "repository_name")]
    pub name: String,
    /// A directory, or `s3://bucket/prefix`.
    pub location: String,
    /// Writers do not trust each other: what one has stored is offered to others only once it was verified.
    #[serde(default)]
    pub strict: bool,
    /// Packs go between clients and the bucket and not through the server.
    #[serde(default)]
    pub direct: bool,
    /// What the server does in it by itself.
    #[serde(default, rename = "job")]
    pub jobs: Vec<JobConfig>,
}

/// What may be too much. Times in seconds, sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at once.
    pub connections: u32,
    /// Until a connection's TLS is agreed on.
    pub handshake_seconds: u32,
    /// Until a request's head is there, and until a new connection's first request with a valid token.
    pub head_seconds: u32,
    /// Until a connection without requests is closed.
    pub idle_seconds: u32,
    /// Until the next bytes of a body.
    pub stall_seconds: u32,
    /// Until a body is whole.
    pub body_seconds: u32,
    /// Until a request waits no longer for memory.
    pub wait_seconds: u32,
    /// For bodies and answers; at least 256 MiB.
    #[serde(deserialize_with = "memory")]
    pub memory: u64,
    /// Requests of one token at once.
    pub requests_per_token: u32,
    /// Sessions of one token at once.
    pub sessions_per_token: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            handshake_seconds: 10,
            head_seconds: 15,
            idle_seconds: 120,
            stall_seconds: 30,
            body_seconds: 900,
            wait_seconds: 60,
            memory: 512 << 20,
            requests_per_token: 64,
            sessions_per_token: 32,
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|what| ConfigError::Wrong { path: path.to_owned(), what })
    }

    /// Reads a text.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let mut names = BTreeSet::new();
        for repository in &config.repositories {
            if !names.insert(&repository.name) {
                return Err(format!("two repositories are called {:?}: `name` must differ", repository.name));
            }
            if repository.direct && !repository.location.starts_with("s3://") {
                return Err(format!(
                    "the repository {:?} is no bucket: clients cannot be sent there, so leave `direct` out",
                    repository.name
                ));
            }
            let mut jobs = BTreeSet::new();
            if let Some(job) = repository.jobs.iter().find(|job| !jobs.insert(&job.name)) {
                return Err(format!(
                    "two jobs of the repository {:?} are called {:?}: give one of them another `name`",
                    repository.name, job.name
                ));
            }
        }
        if config.insecure_http && config.tls.is_some() {
            return Err("`insecure_http` and `[tls]` exclude each other".to_owned());
        }
        if config.insecure_http && !config.listen.ip().is_loopback() && !config.insecure_http_anywhere {
            return Err(format!(
                "`insecure_http` on {}: everyone on the network could read tokens; listen on 127.0.0.1, use TLS, or set \
                 `insecure_http_anywhere = true`",
                config.listen
            ));
        }
        Ok(config)
    }
}

fn repository_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    match is_repository_name(&name) {
        true => Ok(name),
        false => Err(de::Error::custom(format!(
            "`name` {name:?}: 1 to 64 of a-z, 0-9, `-`, `_`, `.`, beginning with a letter or digit"
        ))),
    }
}

/// Whether a repository may have this name.
pub(crate) fn is_repository_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=64).contains(&name.len())
        && name.starts_with(plain)
        && name.chars().all(|c| plain(c) || "-_.".contains(c))
}

fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let bytes = u64::deserialize(deserializer)?;
    match bytes >= 256 << 20 {
        true => Ok(bytes),
        false => Err(de::Error::custom("`memory`: at least 268435456 (256 MiB)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "listen = \"127.0.0.1:7443\"\nstate = \"/s\"\n\n[[repository]]\nname = \"vms\"\nlocation = \"/r\"\n";

    #[test]
    fn a_short_file_is_enough() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.repositories[0].name, "vms");
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn mistakes_are_named_with_line_and_key() {
        for (from, to, expected) in [
            ("location", "lokation", ["line 6", "lokation"]),
            ("name = \"vms\"", "name = \"Vms!\"", ["line 5", "`name`"]),
            ("127.0.0.1:7443", "localhost", ["line 1", "listen"]),
            ("state = \"/s\"", "", ["missing field", "state"]),
            ("\n[[rep", "[limits]\nmemory = 5\n\n[[rep", ["line 4", "memory"]),
            ("\n[[rep", "[limits]\nconections = 5\n\n[[rep", ["line 4", "conections"]),
            ("\n[[rep", "insecure_http = 1\n\n[[rep", ["line 3", "insecure_http"]),
            ("\n[[rep", "[metrics]\npublik = true\n\n[[rep", ["line 4", "publik"]),
        ] {
            let error = Config::parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn names_are_unique_direct_needs_a_bucket_and_plain_http_is_for_loopback() {
        let twice = format!("{GOOD}\n[[repository]]\nname = \"vms\"\nlocation = \"/q\"\n");
        assert!(Config::parse(&twice).unwrap_err().contains("vms"));
        let direct = format!("{GOOD}direct = true\n");
        assert!(Config::parse(&direct).unwrap_err().contains("`direct`"));
        assert!(Config::parse(&direct.replace("/r", "s3://bucket/r")).is_ok());
        let plain = format!("insecure_http = true\n{GOOD}");
        assert!(Config::parse(&plain).is_ok());
        let open = plain.replace("127.0.0.1", "0.0.0.0");
        assert!(Config::parse(&open).unwrap_err().contains("insecure_http_anywhere"));
        assert!(Config::parse(&format!("insecure_http_anywhere = true\n{open}")).is_ok());
    }
}
