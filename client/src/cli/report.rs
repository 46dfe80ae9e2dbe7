//! Errors as a person reads them, and exit codes.

use std::error::Error as StdError;
use std::process::ExitCode;

use serde_json::json;
use underlay_store::Error;

use super::text::{say, warn};
use crate::backup::BackupError;
use crate::domain::DomainError;
use crate::hypervisor::{DefineError, HypervisorError};
use crate::image::ImageError;
use crate::openstack::OpenStackError;
use crate::restore::RestoreError;

pub(super) const DONE: u8 = 0;
pub(super) const FAILED: u8 = 1;
pub(super) const USAGE: u8 = 2;
pub(super) const IN_PART: u8 = 3;
pub(super) const NO_REPOSITORY: u8 = 10;
pub(super) const OWNED_ELSEWHERE: u8 = 11;
pub(super) const DAMAGE: u8 = 12;
pub(super) const INTERRUPTED: u8 = 130;

/// Why a verb did not do what was asked.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    /// From the outside in, each fact once.
    messages: Vec<String>,
    hint: Option<String>,
    /// The result has gone to stdout, or stdout is not for messages: nothing is added to it.
    stdout_is_taken: bool,
}

impl Failure {
    fn new(code: u8, messages: Vec<String>, hint: Option<String>) -> Self {
        Self { code, messages, hint, stdout_is_taken: false }
    }

    /// A wrong way to call the program.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, vec![message.into()], None)
    }

    /// Something outside the repository failed.
    pub fn failed(message: impl Into<String>, source: impl StdError) -> Self {
        let mut messages = vec![message.into()];
        messages.extend(chain(&source));
        Self::new(FAILED, messages, None)
    }

    /// Something is in the way, and nothing was done.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(FAILED, vec![message.into()], None)
    }

    /// An ending after the result has been printed.
    pub fn after_result(code: u8, message: impl Into<String>) -> Self {
        Self { stdout_is_taken: true, ..Self::new(code, vec![message.into()], None) }
    }

    /// The user's key file cannot be used.
    pub fn key_file(error: Error) -> Self {
        Self::new(FAILED, chain(&error), Some("check --key-file and UNDERLAY_KEY_FILE".into()))
    }

    /// The result could not be printed.
    pub fn stdout(error: std::io::Error) -> Self {
        let failure = match error.kind() {
            // Whoever closed the pipe has seen enough.
            std::io::ErrorKind::BrokenPipe => Self::new(DONE, Vec::new(), None),
            _ => Self::new(FAILED, vec!["cannot write to stdout".into(), error.to_string()], None),
        };
        failure.keep_stdout_clean()
    }

    /// Keeps stdout free of it, for it carries data.
    pub fn keep_stdout_clean(self) -> Self {
        Self { stdout_is_taken: true, ..self }
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// What to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// One line without the hint.
    pub fn line(&self) -> String {
        self.messages.join(": ")
    }

    /// Prints it on stderr.
    pub fn explain(&self) {
        if !self.messages.is_empty() {
            warn(format_args!("underlay: {}", self.line()));
        }
        if let Some(hint) = &self.hint {
            warn(format_args!("hint: {hint}"));
        }
    }

    /// What became of `domain`, for programs.
    pub fn document(&self, domain: &str) -> serde_json::Value {
        json!({ "domain": domain, "error": self.line(), "hint": self.hint, "exit_code": self.code })
    }

    /// Prints it and gives the exit code.
    pub fn report(self, json: bool) -> ExitCode {
        self.explain();
        if json && !self.stdout_is_taken {
            let document = json!({ "error": self.line(), "hint": self.hint, "exit_code": self.code });
            // It is on stderr already.
            let _ = say(document);
        }
        ExitCode::from(self.code)
    }
}

fn chain(error: &dyn StdError) -> Vec<String> {
    let mut messages = vec![error.to_string()];
    let mut source = error.source();
    while let Some(next) = source {
        let text = next.to_string();
        // Libraries like to repeat their source in their own message.
        if !messages.iter().any(|message| message.contains(&text)) {
            messages.push(text);
        }
        source = next.source();
    }
    messages
}

fn store_code(error: &Error) -> u8 {
    match error {
        Error::NoRepository { .. } => NO_REPOSITORY,
        Error::OwnedElsewhere { .. } => OWNED_ELSEWHERE,
        Error::Damaged { .. } | Error::Missing { .. } => DAMAGE,
        Error::Interrupted => INTERRUPTED,
        // What is stored and breaks a rule is damage; this is what the user gave.
        Error::Invalid { .. } | Error::Location { .. } => USAGE,
        _ => FAILED,
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self::new(store_code(error), chain(error), error.hint().map(str::to_owned))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Store(error) => error.into(),
            other => Self::new(FAILED, chain(&other), other.hint()),
        }
    }
}

impl From<HypervisorError> for Failure {
    fn from(error: HypervisorError) -> Self {
        let code = if matches!(error, HypervisorError::Interrupted) { INTERRUPTED } else { FAILED };
        Self::new(code, chain(&error), error.hint().map(str::to_owned))
    }
}

impl From<DefineError> for Failure {
    fn from(error: DefineError) -> Self {
        match error {
            DefineError::Hypervisor(error) => error.into(),
            other => Self::new(FAILED, chain(&other), other.hint().map(str::to_owned)),
        }
    }
}

impl From<DomainError> for Failure {
    fn from(error: DomainError) -> Self {
        match error {
            DomainError::Backup(error) => error.into(),
            DomainError::Hypervisor(error) => error.into(),
            DomainError::Image(error) => error.into(),
            other => {
                let code = if other.is_interruption() { INTERRUPTED } else { FAILED };
                Self::new(code, chain(&other), other.hint())
            }
        }
    }
}

impl From<OpenStackError> for Failure {
    fn from(error: OpenStackError) -> Self {
        let code = match &error {
            OpenStackError::Interrupted => INTERRUPTED,
            OpenStackError::Credentials { .. } => USAGE,
            _ => FAILED,
        };
        Self::new(code, chain(&error), error.hint().map(str::to_owned))
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::new(FAILED, chain(&error), error.hint())
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let code = match &error {
            RestoreError::Store(error) => store_code(error),
            // A pack that could not be fetched is not a damaged one.
            RestoreError::Data { source, .. } => store_code(source),
            _ => FAILED,
        };
        Self::new(code, chain(&error), error.hint().map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fact_is_told_once() {
        let source = std::io::Error::other("disk on fire");
        let error = Error::File { path: "/x".into(), action: "read", source };
        assert_eq!(Failure::from(error).line(), "cannot read /x: disk on fire");
        let repeating = Error::Backend { action: "read", object: "y".into(), source: "cannot read y".into() };
        assert_eq!(Failure::from(repeating).line(), "cannot read y");
    }

    #[test]
    fn exit_codes_are_a_contract() {
        let codes = [
            (Error::NoRepository { location: "x".into() }, 10),
            (Error::OwnedElsewhere { host: "x".into(), generation: 1 }, 11),
            (Error::damaged("x", "y"), 12),
            (Error::Missing { object: "x".into() }, 12),
            (Error::Interrupted, 130),
            (Error::Invalid { what: "VM name", value: "".into(), rule: "y".into() }, 2),
            (Error::NeedsRestoreKey, 1),
            (Error::EncodeCheck, 1),
        ];
        for (error, code) in codes {
            assert_eq!(Failure::from(&error).exit_code(), code, "{error}");
        }
    }
}
