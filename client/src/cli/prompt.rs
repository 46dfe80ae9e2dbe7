//! Passphrases: from a file, the environment, or a person at the terminal.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use underlay_store::Error;
use zeroize::Zeroizing;

use super::report::Failure;

const VARIABLE: &str = "UNDERLAY_PASSPHRASE";

/// The terminal as it was before a prompt hid what is typed; `None` while nothing is asked.
static ASKING: Mutex<Option<(File, Termios)>> = Mutex::new(None);

/// If a prompt is open, gives the terminal back as it was; true if there was one.
pub(super) fn give_terminal_back() -> bool {
    let asking = ASKING.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((terminal, before)) = asking else { return false };
    let _ = tcsetattr(&terminal, OptionalActions::Now, &before);
    true
}

/// The passphrase that a file's first line or `UNDERLAY_PASSPHRASE` gives; `None` if neither is named.
pub(super) fn given(file: Option<&Path>) -> Result<Option<Zeroizing<String>>, Failure> {
    if let Some(path) = file {
        return first_line(path).map(Some);
    }
    match std::env::var(VARIABLE) {
        Ok(passphrase) => Ok(Some(Zeroizing::new(passphrase))),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Failure::usage(format!("{VARIABLE} is not UTF-8 text")))
        }
    }
}

/// The first line of a file, without its end.
pub(super) fn first_line(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::failed(format!("cannot read the passphrase in {}", path.display()), error)
    })?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

/// Asks on the terminal. `instead` says how to do without one.
pub(super) fn ask(prompt: &str, instead: &str) -> Result<Zeroizing<String>, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::usage("no key is given and there is no terminal to ask for a passphrase").hint(instead)
        );
    }
    let before = File::open("/dev/tty").ok().and_then(|terminal| {
        let settings = tcgetattr(&terminal).ok()?;
        Some((terminal, settings))
    });
    *ASKING.lock().unwrap_or_else(PoisonError::into_inner) = before;
    let answer = rpassword::prompt_password(prompt).map(Zeroizing::new);
    ASKING.lock().unwrap_or_else(PoisonError::into_inner).take();
    answer.map_err(|error| match error.kind() {
        ErrorKind::Interrupted => Error::Interrupted.into(),
        _ => Failure::failed("cannot ask for a passphrase", error),
    })
}

/// Asks for a new passphrase, twice.
pub(super) fn ask_new(instead: &str) -> Result<Zeroizing<String>, Failure> {
    let passphrase = ask("New passphrase: ", instead)?;
    if passphrase != ask("Again: ", instead)? {
        return Err(Failure::usage("the two passphrases differ"));
    }
    Ok(passphrase)
}

/// Refuses a passphrase that protects nothing.
pub(super) fn not_empty(passphrase: Zeroizing<String>) -> Result<Zeroizing<String>, Failure> {
    if passphrase.is_empty() {
        return Err(Failure::usage("an empty passphrase protects nothing"));
    }
    Ok(passphrase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for (text, line) in [
            ("secret", "secret"),
            ("secret\n", "secret"),
            ("secret\r\nmore", "secret"),
            (" two words \n", " two words "),
            ("", ""),
        ] {
            let path = folder.path().join("passphrase");
            std::fs::write(&path, text).unwrap();
            assert_eq!(*first_line(&path).unwrap(), line);
        }
        assert!(first_line(&folder.path().join("none")).is_err());
        assert!(not_empty(Zeroizing::new(String::new())).is_err());
    }
}
