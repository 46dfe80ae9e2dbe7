use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::commands::find_program;
use crate::{Error, Result, python};

/// Every package at one version.
pub(super) const REQUIREMENTS: &str = include_str!("requirements.txt");
/// Debian's own start script of RabbitMQ. The one on `PATH` changes the user first.
pub(crate) const RABBITMQ: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// Where Debian has the modules of its Python.
const MODULES: &str = "/usr/lib/python3/dist-packages";

/// The Python that has Keystone, Glance, Nova, Placement and OpenStack's clients: a virtual environment, made on first
/// use in one or two minutes. 400 MB.
///
/// Of its programs only their modules are used: their scripts remember the path they were installed at.
pub fn tools() -> Result<PathBuf> {
    let entries = fs::read_dir(MODULES).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_libvirt = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("libvirt") && name.ends_with(".py") || name.starts_with("libvirtmod")
    };
    let mut modules: Vec<_> = entries.filter(of_libvirt).collect();
    modules.sort();
    if modules.is_empty() {
        return Err(Error::new(
            "there is no python3-libvirt: `cargo xtask test` installs what the tests need",
        ));
    }
    python::environment_of_file("openstack", REQUIREMENTS, &modules)
}

/// The folder of the environment that this Python belongs to.
pub(super) fn environment_of(python: &Path) -> Result<&Path> {
    let folder = python.parent().and_then(Path::parent);
    folder.ok_or_else(|| Error::new(format!("{}: in no environment", python.display())))
}

/// The words that run `main` of a module, as a script of that name would.
pub(super) fn main_of(python: &Path, name: &str, module: &str) -> Vec<String> {
    let program = format!("import sys; sys.argv[0] = '{name}'; from {module} import main; sys.exit(main())");
    vec![python.display().to_string(), "-c".into(), program]
}

/// The path of a system's program.
pub(super) fn system_program(name: &str) -> Result<String> {
    let found = find_program(name).ok_or_else(|| {
        Error::new(format!("there is no {name}: `cargo xtask test` installs what the tests need"))
    })?;
    Ok(found.display().to_string())
}
