//! `underlay completions` and `underlay man`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::Cli;
use super::report::Failure;
use super::text::say_bytes;

/// Print shell completions.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  underlay completions bash > /etc/bash_completion.d/underlay")]
pub(super) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

/// Print the manual page, or write all of them to a folder.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// An existing folder for underlay.1 and a page for each verb
    folder: Option<PathBuf>,
}

impl Completions {
    pub fn run(self) -> Result<(), Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "underlay", &mut text);
        say_bytes(&text)
    }
}

impl Man {
    pub fn run(self) -> Result<(), Failure> {
        match self.folder {
            Some(folder) => clap_mangen::generate_to(Cli::command(), &folder).map_err(|error| {
                Failure::failed(format!("cannot write manual pages to {}", folder.display()), error)
            }),
            None => {
                let mut text = Vec::new();
                clap_mangen::Man::new(Cli::command())
                    .render(&mut text)
                    .map_err(|error| Failure::failed("cannot make the manual page", error))?;
                say_bytes(&text)
            }
        }
    }
}
