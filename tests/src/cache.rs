use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::{Error, Result};

/// The cache: `$UNDERLAY_CACHE`, else `$XDG_CACHE_HOME/underlay`, else `~/.cache/underlay`.
pub fn directory() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("UNDERLAY_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("underlay")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/underlay")))
        .ok_or_else(|| Error::new("no cache folder: none of UNDERLAY_CACHE, XDG_CACHE_HOME and HOME is set"))
}

/// The folder that `build` fills, built at most once for each text of `recipe`.
///
/// `build` gets an empty folder, which takes its final name only when `build` succeeds: a folder with that name is
/// always whole. What is built must therefore not remember its own path. Other processes that ask meanwhile wait.
/// `recipe` holds everything that decides the result (versions, scripts): another text is another folder.
pub fn build_once(name: &str, recipe: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    build_once_in(&directory()?, name, recipe, build)
}

/// The folder that [`build_once`] made of this recipe; `None` if it never did.
pub fn built(name: &str, recipe: &str) -> Result<Option<PathBuf>> {
    Ok(Some(folder_in(&directory()?, name, recipe)).filter(|built| built.is_dir()))
}

fn folder_in(cache: &Path, name: &str, recipe: &str) -> PathBuf {
    cache.join(format!("{name}-{:016x}", fingerprint(recipe)))
}

fn build_once_in(
    cache: &Path,
    name: &str,
    recipe: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let built = folder_in(cache, name, recipe);
    if built.is_dir() {
        return Ok(built);
    }
    fs::create_dir_all(cache)?;
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock()?;
    if built.is_dir() {
        return Ok(built);
    }
    let building = cache.join(format!("{name}.building"));
    if building.exists() {
        fs::remove_dir_all(&building)?;
    }
    fs::create_dir(&building)?;
    let start = Instant::now();
    say(&format!("building {name} (once; kept in {})", cache.display()));
    if let Err(error) = build(&building) {
        let _ = fs::remove_dir_all(&building);
        return Err(error.context(format!("building {name}")));
    }
    fs::rename(&building, &built)?;
    say(&format!("built {name} in {} s", start.elapsed().as_secs()));
    Ok(built)
}

/// FNV-1a: only tells recipes apart, and must give the same answer in every build of the kit.
fn fingerprint(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Tells whoever waits why it takes long.
#[expect(clippy::print_stderr, reason = "a first build takes minutes: silence would look like a hang")]
fn say(line: &str) {
    eprintln!("kit: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_built_once_and_another_recipe_apart() {
        let cache = tempfile::tempdir().unwrap();
        let build = |text: &'static str| {
            move |folder: &Path| fs::write(folder.join("part"), text).map_err(crate::Error::from)
        };
        let first = build_once_in(cache.path(), "part", "v1", build("one")).unwrap();
        let again = build_once_in(cache.path(), "part", "v1", build("never built")).unwrap();
        let other = build_once_in(cache.path(), "part", "v2", build("two")).unwrap();
        assert_eq!(first, again);
        assert_eq!(fs::read_to_string(first.join("part")).unwrap(), "one");
        assert_eq!(fs::read_to_string(other.join("part")).unwrap(), "two");
    }

    #[test]
    fn a_failed_build_leaves_nothing_behind() {
        let cache = tempfile::tempdir().unwrap();
        let failed = build_once_in(cache.path(), "part", "v1", |folder| {
            fs::write(folder.join("half"), "x")?;
            Err(Error::new("no luck"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "building part: no luck");
        let names: Vec<_> = fs::read_dir(cache.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["part.lock"]);
    }

    #[test]
    fn builders_at_the_same_time_build_once() {
        let cache = tempfile::tempdir().unwrap();
        let built = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    build_once_in(cache.path(), "part", "v1", |_| {
                        built.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(built.into_inner(), 1);
    }
}
