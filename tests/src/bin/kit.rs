//! Prepares a machine for the tests: `kit packages` installs what is missing, `kit parts` builds what is cached,
//! `kit deny` checks the dependencies' licences and sources, `kit golden FOLDER` makes a golden repository.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to a terminal")]

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use underlay_tests::{Error, Result, crates, golden, guest, openapi, openstack, packages, rivals, s3};

fn main() -> ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        Some("packages") => install_packages(),
        Some("parts") => build_parts(),
        Some("deny") => check_dependencies(),
        Some("golden") => match std::env::args_os().nth(2) {
            Some(folder) => golden::write(folder.as_ref()),
            None => Err(Error::new("which folder?")),
        },
        _ => {
            eprintln!("usage: kit packages | parts | deny | golden FOLDER");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kit: {error}");
            ExitCode::FAILURE
        }
    }
}

fn install_packages() -> Result<()> {
    let missing = packages::missing();
    if !missing.is_empty() {
        println!("kit: installing {}", missing.join(" "));
    }
    packages::install_missing()
}

/// Makes one cached part and says where it lies.
type Part = fn() -> Result<PathBuf>;

/// Quick ones first: a machine that cannot make them says so within a minute.
fn build_parts() -> Result<()> {
    let parts: [(&str, Part); 7] = [
        ("restic", rivals::restic),
        ("moto", s3::moto_python),
        ("openapi", openapi::tools),
        ("openstack", openstack::tools),
        ("guest", guest::image),
        ("cargo-deny", crates::cargo_deny),
        ("garage", s3::garage_program),
    ];
    for (name, part) in parts {
        let start = Instant::now();
        let path = part()?;
        println!("kit: {name}: {} ({:.1} s)", path.display(), start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Advisories are left out: their database comes from a network that a test must not depend on.
fn check_dependencies() -> Result<()> {
    let mut command = Command::new(crates::cargo_deny()?);
    let status = command.args(["--locked", "check", "bans", "licenses", "sources"]).status()?;
    if status.success() { Ok(()) } else { Err(Error::new("cargo deny found what deny.toml does not allow")) }
}
