//! The command line of `underlay-server`. The only room that prints: stdout is the result, stderr is messages.

use std::error::Error as StdError;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use jiff::{SignedDuration, Span, SpanRelativeTo};
use tokio::signal::unix::{SignalKind, signal};
use underlay_store::snapshot::Timestamp;

use crate::config::{Config, is_repository_name};
use crate::jobs::{Entry, History};
use crate::openapi;
use crate::serve;
use crate::tls;
use crate::tokens::{NewToken, Scope, Token, TokenFile};

/// The authority over underlay repositories for many hosts.
#[derive(Debug, Parser)]
#[command(name = "underlay-server", version, disable_help_subcommand = true)]
struct Cli {
    /// The configuration
    #[arg(
        long,
        env = "UNDERLAY_SERVER_CONFIG",
        value_name = "FILE",
        global = true,
        default_value = "/etc/underlay/server.toml"
    )]
    config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the repositories, until SIGTERM or SIGINT
    Serve(Serve),
    /// Make, list and revoke tokens. The server need not be restarted
    Token(TokenCommand),
    /// List scheduled jobs, what runs and what ran
    Jobs,
    /// Print the certificate's fingerprint, for clients to pin
    Fingerprint,
    /// Print the OpenAPI document of everything the server answers
    Openapi,
}

#[derive(Debug, Args)]
struct Serve {
    /// Become this repository's owner, whoever was: only if nobody else writes to it any more. Can be given several times
    #[arg(long, value_name = "REPOSITORY")]
    take_over: Vec<String>,
}

#[derive(Debug, Args)]
struct TokenCommand {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Make a token, and print it: it cannot be printed again
    Create(Create),
    /// List the tokens
    List,
    /// Make a token worthless, and give up the backups it has under way
    Revoke {
        /// Its id, as `token list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// What it may do: backup, restore, maintain, admin. Can be given several times
    #[arg(long, required = true, value_delimiter = ',')]
    scope: Vec<Scope>,
    /// The repositories it is for; `*` stands for any text, `?` for one character
    #[arg(long, required = true, value_name = "PATTERN", value_delimiter = ',')]
    repository: Vec<String>,
    /// The machines it is for
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', default_value = "*")]
    vm: Vec<String>,
    /// For how long it is valid, such as 90d or 12h. Without it, until it is revoked
    #[arg(long, value_name = "TIME", value_parser = end_of)]
    expires: Option<Timestamp>,
    /// What to call it in `token list`
    #[arg(long, default_value = "")]
    label: String,
}

fn end_of(text: &str) -> Result<Timestamp, String> {
    let span: Span = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    let length: SignedDuration =
        span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|error| error.to_string())?;
    let milliseconds = i64::try_from(length.as_millis()).ok().filter(|length| *length > 0);
    let end = milliseconds.and_then(|length| Timestamp::now().as_milliseconds().checked_add(length));
    end.and_then(|end| Timestamp::from_milliseconds(end).ok())
        .ok_or_else(|| "expected a time to come, such as 90d".to_owned())
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut line = format!("underlay-server: {error}");
            let mut source = error.source();
            while let Some(next) = source {
                line = format!("{line}: {next}");
                source = next.source();
            }
            let _ = writeln!(io::stderr(), "{line}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Box<dyn StdError>> {
    let config = || Config::read(&cli.config);
    match cli.verb {
        Verb::Serve(serve) => serve.run(&config()?),
        Verb::Token(command) => command.run(&TokenFile::new(&config()?.state)),
        Verb::Jobs => list_jobs(&config()?),
        Verb::Fingerprint => match config()? {
            config if config.insecure_http => Err("there is no TLS, and no certificate".into()),
            config => Ok(say(tls::identity(&config)?.fingerprint)?),
        },
        // The same whatever is configured.
        Verb::Openapi => Ok(say(format!("{:#}", openapi::document()))?),
    }
}

impl Serve {
    fn run(self, config: &Config) -> Result<(), Box<dyn StdError>> {
        let filter = tracing_subscriber::EnvFilter::try_from_env("UNDERLAY_LOG")
            .unwrap_or_else(|_| "underlay_server=info,underlay_store=info,warn".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
            let running = serve::start(config, &self.take_over).await?;
            let scheme = if running.fingerprint.is_some() { "https" } else { "http" };
            say(format!("listening on {scheme}://{}", running.address))?;
            if let Some(fingerprint) = &running.fingerprint {
                say(format!("fingerprint {fingerprint}"))?;
            }
            let [terminate, interrupt] = &mut ends;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("ending");
            running.stop().await;
            Ok(())
        })
    }
}

impl TokenCommand {
    fn run(self, file: &TokenFile) -> Result<(), Box<dyn StdError>> {
        match self.verb {
            TokenVerb::Create(create) => create.run(file),
            TokenVerb::List => {
                say(
                    "ID                SCOPES                         REPOSITORIES  VMS  VALID UNTIL  LABEL",
                )?;
                for token in file.list()? {
                    say(line(&token))?;
                }
                Ok(())
            }
            TokenVerb::Revoke { id } => {
                let token = file.revoke(&id)?;
                Ok(say(format!("token {} is worthless now", token.id))?)
            }
        }
    }
}

impl Create {
    fn run(self, file: &TokenFile) -> Result<(), Box<dyn StdError>> {
        let plain = |pattern: &str| is_repository_name(&pattern.replace(['*', '?'], "a"));
        if let Some(wrong) = self.repository.iter().find(|pattern| !plain(pattern)) {
            return Err(format!("no repository can be called {wrong:?}").into());
        }
        let mut scopes = self.scope;
        scopes.sort_unstable();
        scopes.dedup();
        let (_, secret) = file.create(NewToken {
            label: self.label,
            scopes,
            repositories: self.repository,
            machines: self.vm,
            expires: self.expires,
        })?;
        Ok(say(secret.expose())?)
    }
}

fn list_jobs(config: &Config) -> Result<(), Box<dyn StdError>> {
    let runs = History::look(&config.state)?;
    say(
        "REPOSITORY    JOB           WHEN                  STATE     STARTED                   WHAT CAME OF IT",
    )?;
    let (none, mut lines) = ("-".to_owned(), Vec::new());
    for repository in &config.repositories {
        for job in &repository.jobs {
            let when = job.schedule.to_string();
            let of_job =
                |run: &&Entry| run.planned && (&run.repository, &run.job) == (&repository.name, &job.name);
            let (state, started, told) = match runs.iter().rev().find(of_job) {
                Some(run) => (run.state.name(), run.started.to_string(), run.told.clone()),
                None => ("-", none.clone(), "not run yet".to_owned()),
            };
            lines.push((repository.name.clone(), job.name.clone(), when, state, started, told));
        }
    }
    for run in runs.iter().rev().filter(|run| !run.planned) {
        let (state, started) = (run.state.name(), run.started.to_string());
        let when = "asked for".to_owned();
        lines.push((run.repository.clone(), run.job.clone(), when, state, started, run.told.clone()));
    }
    for (repository, job, when, state, started, told) in lines {
        say(format!("{repository:12}  {job:12}  {when:20}  {state:8}  {started:24}  {told}"))?;
    }
    Ok(())
}

fn line(token: &Token) -> String {
    let scopes: Vec<&str> = token.scopes.iter().map(|scope| scope.name()).collect();
    let until = match (token.revoked, token.expires) {
        (Some(when), _) => format!("revoked {when}"),
        (None, Some(end)) if end <= Timestamp::now() => format!("expired {end}"),
        (None, Some(end)) => end.to_string(),
        (None, None) => "-".to_owned(),
    };
    let (scopes, repositories) = (scopes.join(","), token.repositories.join(","));
    format!(
        "{}  {scopes:29}  {repositories:12}  {:3}  {until}  {}",
        token.id,
        token.machines.join(","),
        token.label
    )
}

fn say(text: impl AsRef<str>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", text.as_ref())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        for line in [
            "underlay-server serve --config /x",
            "underlay-server serve --take-over vms",
            "underlay-server token create --scope backup,restore --repository vms --vm web* --expires 90d",
            "underlay-server token create --scope backup --scope maintain --repository * --label x",
            "underlay-server token revoke 00112233",
            "underlay-server fingerprint",
            "underlay-server jobs --config /x",
            "underlay-server openapi",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "underlay-server",
            "underlay-server token create --scope all --repository vms",
            "underlay-server token create --scope backup",
            "underlay-server token create --scope backup --repository vms --expires -1d",
            "underlay-server token revoke",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
