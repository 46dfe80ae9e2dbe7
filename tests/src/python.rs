use std::ffi::OsStr;
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
        install(folder, packages)
    })?;
    Ok(python_in(&folder))
}

/// The same from the text of a requirements file, which pins every package, with the machine's own Python.
///
/// `modules` are links to files that Debian made for that Python and that no pip installs.
pub fn environment_of_file(name: &str, requirements: &str, modules: &[PathBuf]) -> Result<PathBuf> {
    let recipe = format!("1 {requirements}\0{modules:?}");
    let folder = cache::build_once(name, &recipe, |folder| {
        run("/usr/bin/python3", ["-m".as_ref(), "venv".as_ref(), folder.as_os_str()])?;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), requirements)?;
        install(folder, &["--no-deps".as_ref(), "-r".as_ref(), file.path().as_os_str()])?;
        let packages = "import sysconfig; print(sysconfig.get_path('purelib'))";
        let packages = run(&python_in(folder).display().to_string(), ["-c", packages])?;
        for module in modules {
            let link = Path::new(packages.trim()).join(module.file_name().unwrap_or_default());
            std::os::unix::fs::symlink(module, link)?;
        }
        Ok(())
    })?;
    Ok(python_in(&folder))
}

fn install<S: AsRef<OsStr>>(environment: &Path, what: &[S]) -> Result<()> {
    let words = ["-m", "pip", "install", "--quiet"].into_iter().map(OsStr::new);
    let python = python_in(environment).display().to_string();
    run(&python, words.chain(what.iter().map(AsRef::as_ref))).map(drop)
}

fn python_in(environment: &Path) -> PathBuf {
    environment.join("bin/python")
}
