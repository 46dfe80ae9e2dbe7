//! The command line: one file a verb. The only room that prints. stdout is the result, stderr is progress and messages.

mod backup;
mod backup_domain;
mod backup_instance;
mod beside;
mod boot_line;
mod check;
mod cloud;
mod forget;
mod gc;
mod holes;
mod init;
mod key;
mod list;
mod manual;
mod open;
mod owning;
mod progress;
mod prompt;
mod recover;
mod repair;
mod report;
mod restore;
mod restore_domain;
mod restore_image;
mod restore_instance;
mod show;
mod target_path;
mod text;
mod vouch;
mod written;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use underlay_store::Error;
use underlay_store::progress::Progress;

use crate::domain::{Observer, Unobserved};

use progress::Bars;
use report::Failure;

/// Backups of QEMU/KVM virtual machines that store every byte once.
#[derive(Debug, Parser)]
#[command(name = "underlay", version, disable_help_subcommand = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 done in part, 10 no repository, 11 owned elsewhere, \
                          12 damage found, 130 interrupted.";

/// What every verb takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
struct Global {
    /// The repository: a directory, s3://bucket/prefix (credentials and endpoint from the AWS_* variables), or
    /// https://host:port/name (with a token from --token-file or UNDERLAY_TOKEN)
    #[arg(long, env = "UNDERLAY_REPO", value_name = "URL", global = true)]
    repo: Option<String>,
    /// A file with the backup key or the restore key
    #[arg(long, env = "UNDERLAY_KEY_FILE", value_name = "FILE", global = true)]
    key_file: Option<PathBuf>,
    /// A file whose first line is the passphrase; else UNDERLAY_PASSPHRASE, else a prompt
    #[arg(long, env = "UNDERLAY_PASSPHRASE_FILE", value_name = "FILE", global = true)]
    passphrase_file: Option<PathBuf>,
    /// A file whose first line is the token for a server; else UNDERLAY_TOKEN
    #[arg(long, env = "UNDERLAY_TOKEN_FILE", value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// The fingerprint of a server's certificate, as it prints it; else the system's authorities vouch for it
    #[arg(long, env = "UNDERLAY_SERVER_FINGERPRINT", value_name = "SHA256", global = true)]
    server_fingerprint: Option<String>,
    /// Talk to a server over plain HTTP, though it is another host: everyone on the way can read the token
    #[arg(long, global = true)]
    allow_http: bool,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    json: bool,
    /// Say more on stderr
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// Show no progress bars
    #[arg(long, global = true)]
    no_progress: bool,
    /// A passphrase file named on the command line counts for more than a key file named in the environment.
    #[arg(skip)]
    passphrase_first: bool,
}

impl Global {
    /// The key file, unless the user meant a passphrase.
    fn key_file_to_use(&self) -> Option<&Path> {
        self.key_file.as_deref().filter(|_| !self.passphrase_first)
    }
}

/// Their descriptions lie with their arguments.
#[derive(Debug, Subcommand)]
enum Verb {
    Init(init::Init),
    Key(key::KeyCommand),
    Backup(backup::Backup),
    List(list::List),
    Show(show::Show),
    Restore(restore::Restore),
    Check(check::Check),
    Recover(recover::Recover),
    Repair(repair::Repair),
    Forget(forget::Forget),
    Protect(forget::Protect),
    Gc(gc::Gc),
    Completions(manual::Completions),
    Man(manual::Man),
}

/// What a verb works with.
struct App {
    global: Global,
    runtime: tokio::runtime::Runtime,
    progress: Arc<Bars>,
    /// Set by the first interrupt; the pipelines look at it.
    cancel: Arc<AtomicBool>,
    /// The same, for what waits.
    stopping: watch::Receiver<bool>,
    /// Hears of the steps that change domains.
    observer: Arc<dyn Observer>,
}

impl App {
    /// Ends the work if the user asked for that.
    fn stop_if_asked(&self) -> Result<(), Failure> {
        match self.cancel.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted.into()),
            false => Ok(()),
        }
    }

    /// Waits for the repository, unless interrupted first. Only for what may be left half-way: reading.
    fn wait<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        let mut stopping = self.stopping.clone();
        self.runtime.block_on(async {
            tokio::select! {
                result = work => Ok(result?),
                Ok(_) = stopping.wait_for(|stopping| *stopping) => Err(Error::Interrupted.into()),
            }
        })
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    main_observed(Arc::new(Unobserved))
}

/// Runs the program, and tells `observer` of every step that changes domains.
pub fn main_observed(observer: Arc<dyn Observer>) -> ExitCode {
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { report::USAGE } else { 0 });
        }
    };
    log(cli.global.verbose);
    let json = cli.global.json;
    match run(cli, observer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    beside::check(&mut command, &matches)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let source = |id| matches.value_source(id);
    cli.global.passphrase_first = source("passphrase_file") == Some(ValueSource::CommandLine)
        && source("key_file") == Some(ValueSource::EnvVariable);
    Ok(cli)
}

fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "underlay_client=info,underlay_store=info,warn",
        _ => "underlay_client=debug,underlay_store=debug,info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("UNDERLAY_LOG").unwrap_or_else(|_| level.into());
    let colours = std::io::stderr().is_terminal();
    let messages = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    messages.with_target(false).with_ansi(colours).init();
}

fn run(cli: Cli, observer: Arc<dyn Observer>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("cannot start worker threads", error))?;
    let cancel = Arc::new(AtomicBool::new(false));
    let (stop, stopping) = watch::channel(false);
    let progress = Arc::new(Bars::new(!cli.global.no_progress && !cli.global.json));
    runtime.spawn(stop_on_interrupt(Arc::clone(&cancel), stop, Arc::clone(&progress)));
    let app = App { global: cli.global, runtime, progress, cancel, stopping, observer };
    let result = match cli.verb {
        Verb::Init(init) => init.run(&app),
        Verb::Key(key) => key.run(&app),
        Verb::Backup(backup) => backup.run(&app),
        Verb::List(list) => list.run(&app),
        Verb::Show(show) => show.run(&app),
        Verb::Restore(restore) => restore.run(&app),
        Verb::Check(check) => check.run(&app),
        Verb::Recover(recover) => recover.run(&app),
        Verb::Repair(repair) => repair.run(&app),
        Verb::Forget(forget) => forget.run(&app),
        Verb::Protect(protect) => protect.run(&app),
        Verb::Gc(gc) => gc.run(&app),
        Verb::Completions(completions) => completions.run(),
        Verb::Man(man) => man.run(),
    };
    app.progress.finish();
    result
}

/// Ctrl-Z, and writing to a terminal in the background, do not suspend the program from here on: QEMU waits for whoever has asked it for a
/// block, and the guest with it.
async fn refuse_suspension(progress: Arc<Bars>) {
    let stop = |stop: rustix::process::Signal| signal(SignalKind::from_raw(stop.as_raw()));
    let (Ok(mut suspensions), Ok(_writing)) =
        (stop(rustix::process::Signal::TSTP), stop(rustix::process::Signal::TTOU))
    else {
        tracing::warn!("signals cannot be handled: suspending the program can suspend guests");
        return;
    };
    while suspensions.recv().await.is_some() {
        progress
            .notice("not suspended, because guests would be with it; interrupt the backup instead (Ctrl-C)");
    }
}

/// The first interrupt asks the work to stop in order; the second ends the program.
async fn stop_on_interrupt(cancel: Arc<AtomicBool>, stop: watch::Sender<bool>, progress: Arc<Bars>) {
    let (Ok(mut interrupts), Ok(mut terminations)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("signals cannot be handled: an interrupt ends the program at once");
        return;
    };
    for first in [true, false] {
        tokio::select! {
            _ = interrupts.recv() => {}
            _ = terminations.recv() => {}
        }
        cancel.store(true, Ordering::Relaxed);
        stop.send_replace(true);
        let asked = prompt::give_terminal_back();
        if asked || !first {
            text::warn("");
            std::process::exit(i32::from(report::INTERRUPTED));
        }
        progress.notice("stopping; interrupt again to stop at once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parses(line: &str) -> bool {
        parse(line.split(' ').map(OsString::from)).is_ok()
    }

    #[test]
    fn what_is_taken() {
        for line in [
            "underlay init --key-file /k --chunk-size fixed-64k",
            "underlay backup --vm web /web.qcow2",
            "underlay backup --vm web vda=/a vdb=/b --format raw --allow-dir /x --allow-dir /y",
            "underlay --repo /r list",
            "underlay list web --repo s3://bucket/vms --json",
            "underlay show web@latest -vv",
            "underlay backup --domain web --domain mail --require-quiesce --strategy pivot --dry-run",
            "underlay backup --all --parallel 4 --connect qemu:///system --exclude-disk vdb",
            "underlay backup --domain a@b --vm a",
            "underlay forget web@latest 5f3a9c",
            "underlay forget --keep-last 3 --keep-within 30d --vm web --vm db --dry-run",
            "underlay protect --off web@latest",
            "underlay recover",
            "underlay gc",
            "underlay gc --dry-run --max-unused 0% --fence-after 2h --json",
            "underlay recover --domain web --json",
            "underlay restore 5f3a --to - --format raw",
            "underlay restore web@latest --to /x --define",
            "underlay restore web@latest --to /x --define --name new --connect qemu:///system",
            "underlay restore web@latest --to /x --define --new-identity --format raw --force --json",
            "underlay check --read-data=5% --scrub --no-progress",
            "underlay check --scrub --budget 10GiB --restore web@latest --restore 5f3a9c",
            "underlay repair --dry-run",
            "underlay repair --read-data --json",
            "underlay repair catalog --dry-run",
            "underlay repair claim",
            "underlay repair descriptor --key-file /k",
            "underlay restore web@latest --to /x --allow-holes",
            "underlay key add --holds backup --label office",
            "underlay backup --instance u --instance v --os-cloud home --parallel 2 --exclude-disk vdb",
            "underlay backup --instance u --vm web --no-api",
            "underlay backup --all-instances",
            "underlay restore web@latest --to-glance web --disk vda --format raw --json",
            "underlay restore web@latest --to-instance u --disk vda --os-cloud home",
            "underlay restore web@latest --to-instance u --connect qemu:///system",
            "underlay restore web@latest --to-glance web --boot web-2 --flavor m1 --network none",
            "underlay key paper /file",
            "underlay list --repo https://host:7443/vms --token-file /t --server-fingerprint sha256:00 --allow-http",
        ] {
            assert!(parses(line), "{line}");
        }
    }

    #[test]
    fn what_is_refused() {
        for line in [
            "underlay",
            "underlay prune",
            "underlay init --chunk-size 3",
            "underlay backup --vm web",
            "underlay backup /web.qcow2",
            "underlay backup --domain web /web.qcow2",
            "underlay backup --domain web --all",
            "underlay backup --all --vm web",
            "underlay backup --domain web --require-quiesce --no-quiesce",
            "underlay backup --domain web --parallel 0",
            "underlay backup --domain web --format raw",
            "underlay backup --vm web --compression 20 /web.qcow2",
            "underlay restore web@latest",
            "underlay restore --to /x",
            "underlay restore web@latest --to /x --format vmdk",
            "underlay restore web@latest --to /x --to-glance web",
            "underlay restore web@latest --to-instance u --to /x",
            "underlay restore web@latest --to-instance u --to-glance web",
            "underlay restore web@latest --to-instance u --format raw",
            "underlay restore web@latest --boot web",
            "underlay restore web@latest --to-glance web --flavor m1",
            "underlay restore web@latest --to-glance web --force",
            "underlay backup --instance u --domain web",
            "underlay backup --all-instances --vm web",
            "underlay backup --instance u --no-api --os-cloud home",
            "underlay backup --instance u /web.qcow2",
            "underlay restore web@latest --define",
            "underlay restore web@latest --to /x --name new",
            "underlay restore web@latest --to /x --new-identity",
            "underlay restore web@latest --to /x --define --disk vda",
            "underlay forget",
            "underlay forget --vm web",
            "underlay forget --keep-last -1",
            "underlay forget --keep-within soon",
            "underlay forget --keep-last 3 web@latest",
            "underlay protect",
            "underlay gc --max-unused -1%",
            "underlay gc --fence-after soon",
            "underlay check --read-data=0%",
            "underlay check --read-data 5%",
            "underlay check --budget 10GiB",
            "underlay check --scrub --budget much",
            "underlay repair snapshots",
            "underlay repair --dry-run catalog",
            "underlay repair --dry-run --read-data",
            "underlay restore web@latest --to /x --define --allow-holes",
            "underlay key export",
            "underlay completions dos",
        ] {
            assert!(!parses(line), "{line}");
        }
    }
}
