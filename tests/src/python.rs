use std::path::{Path, PathBuf};

use crate::commands::run;
use crate::{Result, cache};

/// The Python of a virtual environment that has these packages, made on first use. `packages` pin their versions, so that a test's outcome does
/// not change with the day it runs on.
///
/// Programs of it are started as modules (`-m`): their scripts remember the path they were installed at.
pub fn environment(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let recipe = format!("1 {}", packages.join(" "));
    let folder = cache::build_once(name, &recipe, |folder| {
        run("python3", ["-m".as_ref(), "venv".as_ref(), folder.as_os_str()])?;
        let install = ["-m", "pip", "install", "--quiet"];
        let packages = packages.iter().copied();
        run(&python_in(folder).display().to_string(), install.into_iter().chain(packages)).map(drop)
    })?;
    Ok(python_in(&folder))
}

fn python_in(environment: &Path) -> PathBuf {
    environment.join("bin/python")
}
