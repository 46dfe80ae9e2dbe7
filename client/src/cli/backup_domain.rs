//! `underlay backup --domain`: domains of libvirt.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use serde_json::{Value, json};
use underlay_store::progress::Progress;
use underlay_store::snapshot::validate;

use super::backup::{Backup, host_name, lines};
use super::backup_instance::{Instance, InstanceOptions};
use super::report::{FAILED, Failure, IN_PART, INTERRUPTED};
use super::text::{say, warn};
use super::{App, refuse_suspension};
use crate::domain::{
    Approach, CaptureImages, DomainOutcome, Hands, Intent, Lifecycle, LocalLayers, Observer, Patience,
    Quiesce, Wishes,
};
use crate::hypervisor::{Hypervisor, NovaInstance, Virsh};
use crate::state::{FileJournal, state_directory};

/// How to reach libvirt.
#[derive(Clone, Debug, Args)]
pub(super) struct Connection {
    /// The hypervisor, such as qemu:///system; without it, libvirt's default
    #[arg(long, env = "UNDERLAY_CONNECT", value_name = "URI")]
    pub connect: Option<String>,
}

/// Domains to back up, and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Domains of libvirt")]
pub(super) struct DomainOptions {
    /// A domain, running or not; can be given several times
    #[arg(long, value_name = "DOMAIN")]
    domain: Vec<String>,
    /// All domains that the hypervisor has, running or not
    #[arg(long, conflicts_with = "domain")]
    all: bool,
    #[command(flatten)]
    instances: InstanceOptions,
    #[command(flatten)]
    connection: Connection,
    /// How running domains are backed up; without it bitmap for --instance with qcow2 disks, pivot for others of OpenStack Nova, else
    /// rotate
    #[arg(long, value_enum)]
    strategy: Option<Approach>,
    /// Fail unless the guest's agent freezes its file systems
    #[arg(long, conflicts_with = "no_quiesce")]
    require_quiesce: bool,
    /// Do not ask the guest's agent: the backup is as consistent as after a power cut
    #[arg(long)]
    no_quiesce: bool,
    /// Leave a writable disk out, such as vdb; can be given several times
    #[arg(long, value_name = "DISK")]
    exclude_disk: Vec<String>,
    /// Where overlays go; without it, beside each disk
    #[arg(long, value_name = "DIR")]
    overlay_dir: Option<PathBuf>,
    /// How many domains are backed up at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Say what would be done, and touch nothing
    #[arg(long)]
    dry_run: bool,
}

/// What became of one domain.
struct Attempt {
    domain: String,
    result: Result<DomainOutcome, Failure>,
    /// Its snapshot is safe, and something is left to do.
    unfinished: Option<Failure>,
}

/// Everything that acts on domains.
pub(super) struct Host {
    virsh: Virsh,
    layers: LocalLayers,
    journal: FileJournal,
}

impl Host {
    pub fn new(app: &App, connection: &Connection) -> Self {
        let state = state_directory();
        Self {
            virsh: Virsh::new(connection.connect.clone(), Arc::clone(&app.cancel)),
            layers: LocalLayers::new(&state),
            journal: FileJournal::new(&state),
        }
    }

    pub fn journal(&self) -> &FileJournal {
        &self.journal
    }

    pub fn virsh(&self) -> &Virsh {
        &self.virsh
    }

    pub fn lifecycle<'a>(&'a self, observer: &'a dyn Observer, progress: &'a dyn Progress) -> Lifecycle<'a> {
        let hands = Hands::new(&self.virsh, &self.layers, &self.journal, observer);
        Lifecycle { hands, progress, patience: Patience::default() }
    }
}

impl DomainOptions {
    /// Whether domains are to be backed up.
    pub fn are_wanted(&self) -> bool {
        self.all || !self.domain.is_empty() || self.instances.are_wanted()
    }

    pub fn run(&self, app: &App, backup: &Backup) -> Result<(), Failure> {
        let host = Host::new(app, &self.connection);
        let names = self.names(&host, backup)?;
        if self.dry_run {
            return self.dry_run(app, &host, backup, &names);
        }
        let attempts = self.back_up(app, &host, backup, names)?;
        app.progress.finish();
        tell(app, attempts)
    }

    fn names(&self, host: &Host, backup: &Backup) -> Result<Vec<String>, Failure> {
        let mut names = match self.all {
            _ if self.instances.are_wanted() => self.instances.domains(host)?,
            true => host.virsh.domains()?,
            false => self.domain.clone(),
        };
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        match (backup.vm(), names.as_slice()) {
            (Some(_), [_, _, ..]) => {
                Err(Failure::usage("--vm names one machine, and several domains are given"))
            }
            (Some(vm), _) => Ok(validate::vm_name(vm).map(|()| names)?),
            (None, _) => Ok(names),
        }
    }

    /// Refuses a domain that cannot be called in the repository what it is called, before anything of it is touched. It keeps
    /// nobody from the others.
    fn check_name(backup: &Backup, domain: &str) -> Result<(), Failure> {
        match backup.vm() {
            Some(_) => Ok(()),
            None => validate::vm_name(domain).map_err(|error| {
                Failure::from(error).hint(format!(
                    "give it another name in the repository: `underlay backup --domain {domain:?} --vm NAME`"
                ))
            }),
        }
    }

    fn wishes(&self) -> Result<Wishes, Failure> {
        // libvirtd has a working directory of its own.
        let absolute = |folder: &PathBuf| {
            std::path::absolute(folder).map_err(|error| Failure::failed("cannot use --overlay-dir", error))
        };
        Ok(Wishes {
            strategy: self.strategy,
            overlay_folder: self.overlay_dir.as_ref().map(absolute).transpose()?,
            exclude: self.exclude_disk.clone(),
        })
    }

    fn quiesce(&self) -> Quiesce {
        match (self.require_quiesce, self.no_quiesce) {
            (true, _) => Quiesce::Required,
            (_, true) => Quiesce::Never,
            _ => Quiesce::IfPossible,
        }
    }

    /// Backs all of them up, some at a time; what became of each, in the order given.
    fn back_up(
        &self,
        app: &App,
        host: &Host,
        backup: &Backup,
        names: Vec<String>,
    ) -> Result<Vec<Attempt>, Failure> {
        let destination = backup.open(app)?;
        app.runtime.spawn(refuse_suspension(Arc::clone(&app.progress)));
        let (options, access, host_name) = (backup.options(), backup.access(), host_name());
        let quiet = NoticesOnly(&*app.progress);
        // Bars of several at a time would only overwrite each other.
        let progress: &dyn Progress =
            if self.parallel > 1 && names.len() > 1 { &quiet } else { &*app.progress };
        let instances = match self.instances.are_wanted() {
            true => Some(self.instances.prepare(app)?),
            false => None,
        };
        let lifecycle = host.lifecycle(&*app.observer, progress);
        let (wishes, quiesce) = (self.wishes()?, self.quiesce());
        let total = names.len();
        let waiting = Mutex::new(names.into_iter().enumerate().collect::<VecDeque<_>>());
        let done = Mutex::new(Vec::new());
        let work = || {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some((at, domain)) = next.filter(|_| !app.cancel.load(Ordering::Relaxed)) else { break };
                let one = |vm: Option<&str>, instance: Option<&NovaInstance>, wishes: &Wishes| {
                    let capture = CaptureImages {
                        environment: destination.environment(app, progress),
                        options: &options,
                        access: &access,
                        vm,
                        instance,
                        hypervisor: self.connection.connect.as_deref(),
                        host: &host_name,
                    };
                    lifecycle.backup(&domain, wishes, quiesce, &capture).map_err(Failure::from)
                };
                let result = match &instances {
                    None => Self::check_name(backup, &domain)
                        .and_then(|()| Ok((one(backup.vm(), None, &wishes)?, None))),
                    Some(instances) => Instance::of(host, &domain).and_then(|instance| {
                        let (vm, wishes) = (backup.vm().unwrap_or(&instance.uuid), instance.adapted(&wishes));
                        instances.guarded(host, &instance.uuid, |known| one(Some(vm), known, &wishes))
                    }),
                };
                let attempt = Attempt::new(domain, result);
                done.lock().unwrap_or_else(PoisonError::into_inner).push((at, attempt));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..usize::from(self.parallel).min(total) {
                scope.spawn(work);
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(at, _)| *at);
        Ok(done.into_iter().map(|(_, attempt)| attempt).collect())
    }

    fn dry_run(&self, app: &App, host: &Host, backup: &Backup, names: &[String]) -> Result<(), Failure> {
        let lifecycle = host.lifecycle(&*app.observer, &*app.progress);
        let wishes = self.wishes()?;
        let mut failures = Vec::new();
        let mut intents = Vec::new();
        for name in names {
            let wishes = match self.instances.are_wanted() {
                true => Instance::of(host, name).map(|instance| instance.adapted(&wishes)),
                false => Self::check_name(backup, name).map(|()| wishes.clone()),
            };
            let intent = wishes.and_then(|wishes| lifecycle.intent(name, &wishes).map_err(Failure::from));
            match intent {
                Ok(intent) => intents.push(intent),
                Err(failure) => failures.push((name, failure)),
            }
        }
        if app.global.json {
            let refused = failures.iter().map(|(name, failure)| failure.document(name));
            say(json!({ "domains": Value::from_iter(intents.iter().map(intent_document).chain(refused)) }))?;
        }
        for intent in intents.iter().filter(|_| !app.global.json) {
            say(format!("{}: {}", intent.domain, how(intent.strategy)))?;
            intent.steps.iter().try_for_each(|step| say(format!("  {step}")))?;
        }
        end(failures.into_iter().map(|(_, failure)| failure).collect(), names.len(), 0)
    }
}

fn intent_document(intent: &Intent) -> Value {
    json!({ "domain": intent.domain, "strategy": intent.strategy, "recovers": intent.recovers, "steps": intent.steps })
}

fn how(strategy: Option<Approach>) -> &'static str {
    match strategy {
        None => "stopped",
        Some(Approach::Rotate) => "running, rotate",
        Some(Approach::Pivot) => "running, pivot",
        Some(Approach::Bitmap) => "running, bitmap",
    }
}

fn tell(app: &App, attempts: Vec<Attempt>) -> Result<(), Failure> {
    if app.global.json {
        say(json!({ "domains": Value::from_iter(attempts.iter().map(Attempt::document)) }))?;
    }
    let (total, mut failures, mut unfinished) = (attempts.len(), Vec::new(), 0);
    for Attempt { domain, result, unfinished: left } in attempts {
        match result {
            Err(failure) => failures.push(failure),
            Ok(done) => {
                if !app.global.json {
                    lines(&done.outcome).into_iter().try_for_each(say)?;
                    say(format!("{}, {}-consistent", how(done.strategy), done.consistency.as_str()))?;
                }
                if let Some(left) = left {
                    unfinished += 1;
                    warn(format_args!(
                        "underlay: {domain}: the snapshot is safe, but something is left to do"
                    ));
                    left.explain();
                }
            }
        }
    }
    match app.cancel.load(Ordering::Relaxed) {
        true if failures.is_empty() => {
            Err(Failure::from(underlay_store::Error::Interrupted).keep_stdout_clean())
        }
        _ => end(failures, total, unfinished),
    }
}

/// The exit code of work on several domains: that of the only one, or done in part.
fn end(mut failures: Vec<Failure>, total: usize, unfinished: usize) -> Result<(), Failure> {
    if total == 1 && failures.len() == 1 {
        return Err(failures.remove(0).keep_stdout_clean());
    }
    failures.iter().for_each(Failure::explain);
    let (failed, code) = (failures.len(), if failures.len() == total { FAILED } else { IN_PART });
    if let Some(interrupted) = failures.into_iter().find(|failure| failure.exit_code() == INTERRUPTED) {
        return Err(interrupted.keep_stdout_clean());
    }
    match (failed, unfinished) {
        (0, 0) => Ok(()),
        (0, _) => {
            let message =
                format!("{unfinished} of {total} domains were backed up, with something left to do");
            Err(Failure::after_result(IN_PART, message))
        }
        _ => Err(Failure::after_result(code, format!("{failed} of {total} domains could not be backed up"))),
    }
}

impl Attempt {
    /// The second part of a success is what its caller could not do.
    fn new(domain: String, result: Result<(DomainOutcome, Option<Failure>), Failure>) -> Self {
        match result {
            Err(failure) => Self { domain, result: Err(failure), unfinished: None },
            Ok((mut done, left)) => {
                let unfinished = match (done.unfinished.take().map(Failure::from), left) {
                    (Some(unfinished), Some(left)) => {
                        left.explain();
                        Some(unfinished)
                    }
                    (unfinished, left) => unfinished.or(left),
                };
                Self { domain, result: Ok(done), unfinished }
            }
        }
    }

    fn document(&self) -> Value {
        match &self.result {
            Err(failure) => failure.document(&self.domain),
            Ok(done) => {
                let mut document = json!(done.outcome);
                document["domain"] = json!(self.domain);
                document["strategy"] = json!(done.strategy);
                document["consistency"] = json!(done.consistency);
                document["unfinished"] =
                    json!(self.unfinished.as_ref().map(|failure| failure.document(&self.domain)));
                document
            }
        }
    }
}

/// Passes notices on, and no bars.
struct NoticesOnly<'a>(&'a dyn Progress);

impl Progress for NoticesOnly<'_> {
    fn phase(&self, _: &'static str, _: Option<u64>) {}

    fn advance(&self, _: u64) {}

    fn notice(&self, text: &str) {
        self.0.notice(text);
    }
}
