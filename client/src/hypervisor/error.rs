//! What can go wrong with a hypervisor.

use std::io;

/// Why the hypervisor could not be asked, or did not do what was asked.
///
/// `Display` states the fact once; [`HypervisorError::hint`] says what the user can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HypervisorError {
    /// A program is not there or cannot be started.
    #[error("`{program}` cannot be started")]
    Program { program: String, source: io::Error },

    /// The command ran and failed. `message` is what it said, on one line.
    #[error("`{command}` failed: {message}")]
    Failed { command: String, message: String },

    /// The command did not end in time.
    #[error("`{command}` did not end within {seconds} s")]
    TimedOut { command: String, seconds: u64 },

    /// There is no domain of that name.
    #[error("there is no domain {domain:?}")]
    NoDomain { domain: String },

    /// The domain vanished while it was read.
    #[error("domain {domain:?} has no definition any more")]
    NoDefinition { domain: String },

    /// A definition is not what libvirt documents.
    #[error("the definition of domain {domain:?} cannot be understood: {problem}")]
    Definition { domain: String, problem: String },

    /// A definition cannot be made to name other files.
    #[error("the definition of domain {domain:?} cannot be adapted: {problem}")]
    NotAdaptable { domain: String, problem: String, hint: Option<&'static str> },

    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl HypervisorError {
    /// What a hypervisor says that cannot do something.
    pub(super) fn unsupported(what: &str) -> Self {
        Self::Failed { command: what.to_owned(), message: "this hypervisor does not offer it".into() }
    }

    /// What the user can do next, if there is something. One sentence, not part of the error's text.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Program { .. } => Some("install libvirt-clients and qemu-utils"),
            Self::NoDomain { .. } => {
                Some("`virsh list --all` shows what there is; --connect chooses another hypervisor")
            }
            // virsh's own words, whatever the language of libvirtd.
            Self::Failed { message, .. } if message.starts_with("failed to connect to the hypervisor") => {
                Some(
                    "is libvirtd running, and may this user talk to it? --connect chooses another hypervisor",
                )
            }
            Self::NotAdaptable { hint, .. } => *hint,
            _ => None,
        }
    }
}
