//! Where a `clouds.yaml` lies, and the `secure.yaml` with what is secret of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::settings::Settings;
use crate::openstack::OpenStackError;

/// Where they lie, after the working directory and the user's own folder.
const SYSTEM_FOLDER: &str = "/etc/openstack";
/// What their names may end in. JSON is YAML, too.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Bytes of such a file that are read.
const LONGEST: u64 = 1 << 20;
/// Values that all its aliases together may repeat.
const REPEATED: usize = 10_000;

/// Either of them.
#[derive(Default, Deserialize)]
struct CloudsFile {
    #[serde(default)]
    clouds: Option<BTreeMap<String, Option<Settings>>>,
}

/// What the first `clouds.yaml` that there is says of the cloud `name`, and the first `secure.yaml`.
pub(super) fn find(
    name: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, OpenStackError> {
    let found = |names: &[PathBuf]| names.iter().find(|path| path.is_file()).cloned();
    let candidates = candidates("clouds", variable("OS_CLIENT_CONFIG_FILE"), variable);
    let path = found(&candidates).ok_or_else(|| {
        let looked: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        OpenStackError::Credentials {
            problem: format!(
                "the cloud {name} is to be used, and there is no clouds.yaml ({})",
                looked.join(", ")
            ),
        }
    })?;
    let beside = ENDINGS.map(|ending| path.with_file_name(format!("secure.{ending}")));
    let mut secure: Vec<_> = variable("OS_CLIENT_SECURE_FILE").map(PathBuf::from).into_iter().collect();
    secure.extend(beside.into_iter().chain(self::candidates("secure", None, variable)));
    let secure = found(&secure).map(|path| Ok((text(&path)?, path))).transpose()?;
    let secure = secure.as_ref().map(|(text, path)| (path.as_path(), text.as_str()));
    cloud(name, &path, &text(&path)?, secure)
}

/// Files that may be the one of that stem, the first one first.
fn candidates(
    stem: &str,
    configured: Option<String>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Vec<PathBuf> {
    let own = variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let own = own.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")));
    let folders =
        [Some(PathBuf::from(".")), own.map(|own| own.join("openstack")), Some(SYSTEM_FOLDER.into())];
    let named = |folder: PathBuf| ENDINGS.map(|ending| folder.join(format!("{stem}.{ending}")));
    configured.map(PathBuf::from).into_iter().chain(folders.into_iter().flatten().flat_map(named)).collect()
}

/// What the texts of both files say of the cloud `name`.
pub(super) fn cloud(
    name: &str,
    path: &Path,
    clouds: &str,
    secure: Option<(&Path, &str)>,
) -> Result<Settings, OpenStackError> {
    let cloud = parse(path, clouds, name)?.ok_or_else(|| OpenStackError::Credentials {
        problem: format!("{} has no cloud {name}", path.display()),
    })?;
    let secret = secure.map(|(path, text)| parse(path, text, name)).transpose()?.flatten();
    Ok(match secret {
        Some(secret) => cloud.merged(secret),
        None => cloud,
    })
}

fn parse(path: &Path, text: &str, name: &str) -> Result<Option<Settings>, OpenStackError> {
    let options = serde_saphyr::options! {
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: REPEATED },
    };
    // Its own message would show the lines around, and a password may be there.
    let file: CloudsFile = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = error.location().map(|place| format!(" in line {}", place.line())).unwrap_or_default();
        failed(path, format!("it is no clouds.yaml{place}"))
    })?;
    Ok(file.clouds.unwrap_or_default().remove(name).map(|cloud| cloud.unwrap_or_default().renamed()))
}

fn text(path: &Path) -> Result<Zeroizing<String>, OpenStackError> {
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(|error| failed(path, error))?;
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(|error| failed(path, error))?;
    match text.len() as u64 > LONGEST {
        true => Err(failed(path, format!("it is longer than {LONGEST} bytes"))),
        false => Ok(text),
    }
}

fn failed(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OpenStackError {
    OpenStackError::File { path: path.to_owned(), source: source.into() }
}
