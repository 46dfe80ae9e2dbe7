//! `https://host:port/name`.

use underlay_store::Error;

/// Whether a location is a server's.
pub fn is_remote(location: &str) -> bool {
    location.starts_with("https://") || location.starts_with("http://")
}

/// A repository on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// As the user wrote it.
    pub text: String,
    /// `https://host:port`.
    pub server: String,
    /// The repository's name there.
    pub name: String,
}

impl Location {
    /// Reads `https://host:port/name` or `http://host:port/name`.
    ///
    /// # Errors
    /// [`Error::Location`] saying what is wrong.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Location { location: text.to_owned(), reason: reason.to_owned() };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it is no URL"))?;
        if !["https", "http"].contains(&scheme) {
            return Err(wrong("it is neither https nor http"));
        }
        let (host, name) =
            rest.split_once('/').ok_or_else(|| wrong("it names no repository: https://host:port/name"))?;
        let name = name.trim_end_matches('/');
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if host.is_empty() || !host.chars().all(|c| plain(c) || "[]:".contains(c)) {
            return Err(wrong("it names no host: https://host:port/name"));
        }
        if name.is_empty() || !name.chars().all(plain) {
            return Err(wrong("it names no repository: https://host:port/name"));
        }
        Ok(Self { text: text.to_owned(), server: format!("{scheme}://{host}"), name: name.to_owned() })
    }

    /// Whether nothing is encrypted on the way.
    pub fn is_plain(&self) -> bool {
        self.server.starts_with("http://")
    }

    /// Whether the server is on this very host.
    pub fn is_loopback(&self) -> bool {
        let host = self.server.split_once("://").map_or("", |(_, host)| host);
        let host = match host.strip_prefix('[') {
            Some(address) => address.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let location = Location::parse("https://backup.example:7443/vms/").unwrap();
        assert_eq!(
            (location.server.as_str(), location.name.as_str()),
            ("https://backup.example:7443", "vms")
        );
        for local in ["http://127.0.0.1:1/a", "http://localhost/a", "http://[::1]:1/a", "http://127.9.9.9/a"]
        {
            assert!(Location::parse(local).unwrap().is_loopback(), "{local}");
        }
        for far in ["http://10.0.0.1:1/a", "http://localhost.example/a", "http://[::2]:1/a"] {
            assert!(!Location::parse(far).unwrap().is_loopback(), "{far}");
        }
        for wrong in [
            "https://",
            "https://host",
            "https://host/",
            "https:///a",
            "https://u@host/a",
            "https://host/a/b",
            "https://host/a?b",
            "ftp://host/a",
        ] {
            assert!(Location::parse(wrong).is_err(), "{wrong}");
        }
        assert!(is_remote("https://x") && is_remote("http://x") && !is_remote("s3://x") && !is_remote("/x"));
    }
}
