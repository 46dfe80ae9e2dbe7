use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The Debian archive that this machine's own package sources name. The kit never names a host of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Where the archive is, as the machine's sources write it.
    pub uri: String,
    /// Code name of the machine's own release, such as `bookworm`.
    pub codename: String,
    /// The keyring or key the source names, if any.
    pub signed_by: Option<PathBuf>,
    /// Every suite that the machine's sources name at this archive.
    pub suites: Vec<String>,
}

/// One entry of the machine's sources: URIs, suites, keyring.
#[derive(Debug, Default)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    signed_by: Option<PathBuf>,
}

impl Archive {
    /// Finds the archive that serves this machine's own release.
    pub fn of_this_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .ok_or_else(|| {
                Error::new("/etc/os-release names no VERSION_CODENAME: is this a Debian machine?")
            })?
            .trim_matches('"');
        Self::among(&configured_sources(Path::new("/etc/apt")), codename)
            .ok_or_else(|| Error::new(format!("no package source of this machine serves {codename}")))
    }

    fn among(sources: &[Source], codename: &str) -> Option<Self> {
        let own = sources.iter().find(|source| source.suites.iter().any(|suite| suite == codename))?;
        let uri = own.uris.first()?;
        let same_archive = sources.iter().filter(|source| source.uris.contains(uri));
        Some(Self {
            uri: uri.clone(),
            codename: codename.to_owned(),
            signed_by: own.signed_by.clone(),
            suites: same_archive.flat_map(|source| source.suites.clone()).collect(),
        })
    }

    /// A one-line package source for a suite of the same archive, such as `bookworm-backports`.
    #[must_use]
    pub fn source_line(&self, suite: &str) -> String {
        let options =
            self.signed_by.as_ref().map(|key| format!("[signed-by={}] ", key.display())).unwrap_or_default();
        format!("deb {options}{} {suite} main", self.uri)
    }
}

fn configured_sources(folder: &Path) -> Vec<Source> {
    let mut files = vec![folder.join("sources.list")];
    let parts = fs::read_dir(folder.join("sources.list.d")).into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()));
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(parse_line)),
            Some("sources") => sources.extend(text.split("\n\n").filter_map(parse_stanza)),
            _ => {}
        }
    }
    sources
}

fn parse_line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        signed_by: signed_by.map(PathBuf::from),
    })
}

fn parse_stanza(stanza: &str) -> Option<Source> {
    let field = |name: &str| {
        let found = stanza.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        });
        found.unwrap_or_default()
    };
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    if !words(field("Types")).iter().any(|kind| kind == "deb") || field("Enabled") == "no" {
        return None;
    }
    let signed_by = Some(field("Signed-By")).filter(|path| path.starts_with('/')).map(PathBuf::from);
    Some(Source { uris: words(field("URIs")), suites: words(field("Suites")), signed_by })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_notations() {
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        fs::write(
            parts.join("debian.sources"),
            "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
             Components: main\nSigned-By: /keys/debian.gpg\n\nTypes: deb\nURIs: http://mirror.example/security\n\
             Suites: bookworm-security\nComponents: main\n",
        )
        .unwrap();
        fs::write(
            parts.join("more.list"),
            "# deb nothing\ndeb [arch=amd64 signed-by=/keys/debian.gpg] http://mirror.example/debian bookworm-backports main\n",
        )
        .unwrap();
        let archive = Archive::among(&configured_sources(folder.path()), "bookworm").unwrap();
        assert_eq!(archive.suites, ["bookworm", "bookworm-updates", "bookworm-backports"]);
        assert_eq!(
            archive.source_line("trixie"),
            "deb [signed-by=/keys/debian.gpg] http://mirror.example/debian trixie main"
        );
        assert_eq!(Archive::among(&configured_sources(folder.path()), "sid"), None);
    }
}
