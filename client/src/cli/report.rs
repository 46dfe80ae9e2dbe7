//! Errors as a person reads them, and exit codes.

use std::error::Error as StdError;
use std::process::ExitCode;

use serde_json::json;
use underlay_store::Error;

use crate::backup::BackupError;
use crate::image::ImageError;
use crate::restore::RestoreError;

pub(super) const FAILED: u8 = 1;
pub(super) const USAGE: u8 = 2;
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
}

impl Failure {
    /// A wrong way to call the program.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, messages: vec![message.into()], hint: None }
    }

    /// Something outside the repository failed.
    pub fn failed(message: impl Into<String>, source: impl StdError) -> Self {
        let mut messages = vec![message.into()];
        messages.extend(chain(&source));
        Self { code: FAILED, messages, hint: None }
    }

    /// An ending that has been explained already.
    pub fn code(code: u8, message: impl Into<String>) -> Self {
        Self { code, messages: vec![message.into()], hint: None }
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

    /// Prints it and gives the exit code.
    pub fn report(self, json: bool) -> ExitCode {
        eprintln!("underlay: {}", self.line());
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
        if json {
            println!("{}", json!({ "error": self.line(), "hint": self.hint, "exit_code": self.code }));
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
        _ => FAILED,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { code: store_code(&error), messages: chain(&error), hint: error.hint().map(str::to_owned) }
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Store(error) => error.into(),
            other => Self { code: FAILED, messages: chain(&other), hint: other.hint() },
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self { code: FAILED, messages: chain(&error), hint: error.hint() }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let code = match &error {
            RestoreError::Store(error) => store_code(error),
            RestoreError::Data { .. } => DAMAGE,
            _ => FAILED,
        };
        Self { code, messages: chain(&error), hint: error.hint().map(str::to_owned) }
    }
}
