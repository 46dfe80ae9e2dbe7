//! Rules for the names that people give.

use crate::{Error, Result};

const MAXIMUM_LENGTH: usize = 128;

/// Checks a VM's name: 1 to 128 bytes, no control characters, no `@` or `/`, not starting with `-` or `.`.
///
/// # Errors
/// [`Error::Invalid`] naming the rule that is broken.
pub fn vm_name(name: &str) -> Result<()> {
    check("VM name", name)
}

/// Checks a disk's name; the rules are those of [`vm_name`].
///
/// # Errors
/// [`Error::Invalid`] naming the rule that is broken.
pub fn disk_name(name: &str) -> Result<()> {
    check("disk name", name)
}

/// Checks a slot's label: at most 128 bytes, no control characters.
///
/// # Errors
/// [`Error::Invalid`] naming the rule that is broken.
pub fn label(label: &str) -> Result<()> {
    let broken = if label.len() > MAXIMUM_LENGTH {
        "at most 128 bytes"
    } else if label.chars().any(char::is_control) {
        "no control characters"
    } else {
        return Ok(());
    };
    Err(Error::Invalid { what: "label", value: label.into(), rule: broken.into() })
}

fn check(what: &'static str, name: &str) -> Result<()> {
    let broken = if name.is_empty() || name.len() > MAXIMUM_LENGTH {
        "1 to 128 bytes"
    } else if name.chars().any(char::is_control) {
        "no control characters"
    } else if name.contains(['@', '/']) {
        "no `@` and no `/`"
    } else if name.starts_with(['-', '.']) {
        "not starting with `-` or `.`"
    } else {
        return Ok(());
    };
    Err(Error::Invalid { what, value: name.into(), rule: broken.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "web-01", "käse 1", "a.b", &"x".repeat(128)] {
            assert!(vm_name(name).is_ok(), "{name}");
            assert!(disk_name(name).is_ok(), "{name}");
        }
        for name in ["", "a@b", "a/b", "-a", ".a", "..", "a\nb", "a\u{85}b", &"x".repeat(129)] {
            assert!(vm_name(name).is_err(), "{name}");
            assert!(disk_name(name).is_err(), "{name}");
        }
        assert!(label("").is_ok());
        assert!(label("a/b@c").is_ok());
        assert!(label("a\tb").is_err());
        assert!(label(&"x".repeat(129)).is_err());
    }
}
