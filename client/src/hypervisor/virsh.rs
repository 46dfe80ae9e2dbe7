//! libvirt, through its own command line.
//!
//! A user name of a domain is given to virsh only if virsh takes it for nothing else: it looks for a number and a UUID before it
//! looks for a name. The texts of errors come from libvirtd and follow *its* language, so that nothing is decided from
//! them; what virsh says itself is English here.

mod agent;
mod answers;
mod arguments;
mod pull;

use std::ffi::{OsStr, OsString};
use std::path::{self, Path};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::parse::{Subject, subject};
use super::program::{CommandLine, Wait};
use super::{
    Backing, BlockJob, Definition, Domain, Hypervisor, HypervisorError, Overlay, PullRequest, Written,
};

/// How long to wait for an answer.
const READING: Duration = Duration::from_secs(120);
/// How long to wait for what libvirtd does at once, if it does anything at all.
const PROMPT: Duration = Duration::from_secs(600);

/// libvirt, driven by `virsh`; images that nobody has open are merged by `qemu-img`.
#[derive(Clone, Debug)]
pub struct Virsh {
    connect: Option<String>,
    cancel: Arc<AtomicBool>,
}

impl Virsh {
    /// The hypervisor at the URI `connect`, else virsh's own default. Once `cancel` is set, commands that only read are waited for
    /// no longer than a few seconds each; those that change something are always waited for.
    pub fn new(connect: Option<String>, cancel: Arc<AtomicBool>) -> Self {
        Self { connect, cancel }
    }

    /// The command that defines a domain from a file, as an administrator types it.
    pub fn define_by_hand(&self, path: &Path) -> String {
        self.virsh("define").arg("--file").arg(path).to_string()
    }

    fn virsh(&self, verb: &str) -> CommandLine {
        let connect = self.connect.iter().flat_map(|uri| ["--connect", uri]);
        CommandLine::new("virsh").args(connect).arg(verb)
    }

    /// A command about one domain, which `reference` says.
    fn about(&self, verb: &str, reference: &OsStr) -> CommandLine {
        self.virsh(verb).arg("--domain").arg(reference)
    }

    fn read(&self, command: &CommandLine) -> Result<String, HypervisorError> {
        let output = command.run(Wait::Reading { limit: READING, cancel: &self.cancel })?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// What virsh finds this domain by, and nothing else. Costs nothing unless virsh could misread the name.
    fn reference(&self, domain: &str) -> Result<OsString, HypervisorError> {
        let missing = || HypervisorError::NoDomain { domain: domain.to_owned() };
        if domain.is_empty() || domain.contains('\0') {
            return Err(missing());
        }
        if !arguments::is_misread(domain) {
            return Ok(domain.into());
        }
        answers::uuid_of(domain, &self.uuids_and_names()?).map(OsString::from).ok_or_else(missing)
    }

    fn uuids_and_names(&self) -> Result<String, HypervisorError> {
        self.read(&self.virsh("list").args(["--all", "--uuid", "--name"]))
    }

    /// Says so if the domain is not there, whatever else a command complained about.
    fn explain(&self, domain: &str, error: HypervisorError) -> HypervisorError {
        if !matches!(error, HypervisorError::Failed { .. }) {
            return error;
        }
        match self.domains() {
            Ok(all) if all.iter().any(|name| name == domain) => error,
            Ok(_) => HypervisorError::NoDomain { domain: domain.to_owned() },
            Err(error) => error,
        }
    }

    /// Runs a command that reads something about a domain.
    fn ask(&self, domain: &str, verb: &str, options: &[&str]) -> Result<String, HypervisorError> {
        let command = self.about(verb, &self.reference(domain)?).args(options);
        self.read(&command).map_err(|error| self.explain(domain, error))
    }

    /// Runs a command that changes a domain.
    fn change(
        &self,
        domain: &str,
        command: &CommandLine,
        limit: Option<Duration>,
    ) -> Result<(), HypervisorError> {
        let done = command.run(Wait::Changing { limit });
        done.map(drop).map_err(|error| self.explain(domain, error))
    }

    /// The domain's XML with its secrets, and who it is about: nobody but `domain`.
    fn dump(&self, domain: &str, options: &[&str]) -> Result<(Subject, String), HypervisorError> {
        let options: Vec<_> = ["--security-info"].iter().chain(options).copied().collect();
        let xml = self.ask(domain, "dumpxml", &options)?;
        let subject = subject(domain, &xml)?;
        if subject.name != domain {
            return Err(HypervisorError::NoDomain { domain: domain.to_owned() });
        }
        Ok((subject, xml))
    }

    /// Whether a process runs it.
    fn is_running(&self, domain: &str) -> Result<bool, HypervisorError> {
        Ok(self.dump(domain, &[])?.0.running)
    }

    /// Refuses what would not be frozen where it is asked to be: libvirt would make the snapshot of a stopped domain, too, and
    /// turn line ends in file names into blanks.
    fn check_freeze(
        &self,
        command: &CommandLine,
        running: bool,
        overlays: &[Overlay],
    ) -> Result<(), HypervisorError> {
        let refuse = |message: String| Err(HypervisorError::Failed { command: command.to_string(), message });
        if !running {
            return refuse("domain is not running".to_owned());
        }
        match overlays.iter().find(|overlay| !arguments::is_kept_by_libvirt(&overlay.path)) {
            Some(overlay) => refuse(format!("libvirt cannot be given the file name {:?}", overlay.path)),
            None => Ok(()),
        }
    }

    /// The format of its backing file that an image records, `None` if it records none.
    fn recorded_format(&self, overlay: &Path) -> Result<Option<String>, HypervisorError> {
        let command =
            CommandLine::new("qemu-img").args(["info", "--output=json", "-f", "qcow2", "--"]).arg(overlay);
        Ok(answers::backing_format(&self.read(&command)?))
    }
}

impl Hypervisor for Virsh {
    fn uri(&self) -> Result<String, HypervisorError> {
        Ok(self.read(&self.virsh("uri"))?.trim().to_owned())
    }

    fn domains(&self) -> Result<Vec<String>, HypervisorError> {
        let listed = self.read(&self.virsh("list").args(["--all", "--name"]))?;
        Ok(answers::names(&listed))
    }

    fn domain(&self, name: &str) -> Result<Domain, HypervisorError> {
        let (subject, current) = self.dump(name, &[])?;
        let live = if subject.running { Some(Definition::parse(name, &current)?) } else { None };
        // Of a transient domain, this is its live definition again.
        let (_, inactive) = self.dump(name, &["--inactive"])?;
        let persistent = answers::is_persistent(&self.ask(name, "dominfo", &[])?);
        let inactive = if persistent { Some(Definition::parse(name, &inactive)?) } else { None };
        Ok(Domain { name: subject.name, uuid: subject.uuid, live, inactive })
    }

    fn name_of(&self, uuid: &str) -> Result<Option<String>, HypervisorError> {
        Ok(answers::name_of(uuid, &self.uuids_and_names()?).map(str::to_owned))
    }

    fn is_saved(&self, domain: &str) -> Result<bool, HypervisorError> {
        Ok(answers::is_saved(&self.ask(domain, "dominfo", &[])?))
    }

    fn is_stuck(&self, domain: &str) -> Result<bool, HypervisorError> {
        Ok(answers::is_stuck(&self.ask(domain, "domstate", &["--reason"])?))
    }

    fn snapshots(&self, domain: &str) -> Result<Vec<String>, HypervisorError> {
        Ok(answers::names(&self.ask(domain, "snapshot-list", &["--name"])?))
    }

    fn checkpoints(&self, domain: &str) -> Result<Vec<String>, HypervisorError> {
        match self.ask(domain, "checkpoint-list", &["--name"]) {
            Err(HypervisorError::Failed { message, .. }) if message.contains("not supported") => {
                Ok(Vec::new())
            }
            listed => Ok(answers::names(&listed?)),
        }
    }

    fn domain_job(&self, domain: &str) -> Result<Option<String>, HypervisorError> {
        match self.ask(domain, "domjobinfo", &[]) {
            Err(HypervisorError::Failed { .. }) if !self.is_running(domain)? => Ok(None),
            told => Ok(answers::domain_job(&told?)),
        }
    }

    fn block_job(&self, domain: &str, target: &str) -> Result<Option<BlockJob>, HypervisorError> {
        let told = match self.ask(domain, "blockjob", &["--path", target, "--raw"]) {
            Err(HypervisorError::Failed { .. }) if !self.is_running(domain)? => return Ok(None),
            told => told?,
        };
        let Some(kind) = answers::block_job_kind(&told) else { return Ok(None) };
        let now = Definition::parse(domain, &self.dump(domain, &[])?.1)?;
        let mirror = now.disk(target).and_then(|disk| disk.mirror.as_ref());
        Ok(Some(BlockJob { kind, ready: mirror.is_some_and(|mirror| mirror.ready) }))
    }

    fn capacity(&self, domain: &str, target: &str) -> Result<u64, HypervisorError> {
        let told = self.ask(domain, "domblkinfo", &["--device", target])?;
        answers::capacity(&told).ok_or_else(|| HypervisorError::Failed {
            command: format!("virsh domblkinfo --device {target}"),
            message: format!("the size of disk {target} is not told"),
        })
    }

    fn agent_answers(&self, domain: &str, patience: Duration) -> Result<bool, HypervisorError> {
        // Never cut short: whoever cleans up after an interrupt has to know whether a guest is frozen.
        let answer = self.with_patience(domain, patience, |reference| {
            let limit = patience.saturating_mul(3).saturating_add(READING);
            self.about("domtime", reference).run(Wait::Changing { limit: Some(limit) })
        });
        match answer {
            Ok(_) => Ok(true),
            Err(HypervisorError::Failed { .. } | HypervisorError::TimedOut { .. }) => {
                // The domain can be asked about: it is its agent that does not answer.
                self.dump(domain, &[])?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn freeze(
        &self,
        domain: &str,
        overlays: &[Overlay],
        quiesce: Option<Duration>,
    ) -> Result<(), HypervisorError> {
        let (subject, xml) = self.dump(domain, &[])?;
        let live = Definition::parse(domain, &xml)?;
        let number = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let specifications = arguments::disks(&live, overlays);
        let command = |reference: &OsStr| {
            self.about("snapshot-create-as", reference)
                .args(["--name", &format!("underlay-{number}"), "--disk-only", "--atomic", "--no-metadata"])
                .args(quiesce.map(|_| "--quiesce"))
                .args(specifications.iter().flat_map(|disk| [OsStr::new("--diskspec"), disk]))
        };
        let reference = self.reference(domain)?;
        self.check_freeze(&command(&reference), subject.running, overlays)?;
        let limit = PROMPT.saturating_add(quiesce.unwrap_or_default().saturating_mul(3));
        let freeze = |reference: &OsStr| self.change(domain, &command(reference), Some(limit));
        match quiesce {
            Some(patience) => self.with_patience(domain, patience, freeze),
            None => freeze(&reference),
        }
    }

    fn quiesce(&self, domain: &str, patience: Duration) -> Result<(), HypervisorError> {
        self.with_patience(domain, patience, |reference| {
            let limit = PROMPT.saturating_add(patience.saturating_mul(3));
            self.change(domain, &self.about("domfsfreeze", reference), Some(limit))
        })
    }

    fn begin_pull(&self, domain: &str, request: &PullRequest) -> Result<(), HypervisorError> {
        self.begin(domain, request)
    }

    fn run_folder(&self, domain: &str) -> Result<Option<path::PathBuf>, HypervisorError> {
        self.private_folder(domain)
    }

    fn pull_socket(&self, domain: &str) -> Result<Option<path::PathBuf>, HypervisorError> {
        self.socket(domain)
    }

    fn end_pull(&self, domain: &str) -> Result<(), HypervisorError> {
        self.change(domain, &self.about("domjobabort", &self.reference(domain)?), Some(PROMPT))
    }

    fn begin_checkpoint(&self, domain: &str, name: &str, targets: &[&str]) -> Result<(), HypervisorError> {
        self.create_checkpoint(domain, name, targets, None, &[])
    }

    fn written_since(&self, domain: &str, checkpoint: &str) -> Result<Written, HypervisorError> {
        self.written(domain, checkpoint)
    }

    fn forget_checkpoint(&self, domain: &str, checkpoint: &str) -> Result<(), HypervisorError> {
        self.drop_checkpoint(domain, checkpoint, &["--metadata"])
    }

    fn know_checkpoint(
        &self,
        domain: &str,
        checkpoint: &str,
        targets: &[&str],
    ) -> Result<(), HypervisorError> {
        self.know(domain, checkpoint, targets, &["--redefine-validate"])
    }

    fn resume(&self, domain: &str) -> Result<(), HypervisorError> {
        self.change(domain, &self.about("resume", &self.reference(domain)?), Some(PROMPT))
    }

    fn remove_checkpoint(
        &self,
        domain: &str,
        checkpoint: &str,
        targets: &[&str],
    ) -> Result<(), HypervisorError> {
        self.remove(domain, checkpoint, targets)
    }

    fn unsound_bitmaps(&self, disk: &Path) -> Result<Vec<String>, HypervisorError> {
        self.unsound(disk)
    }

    fn remove_bitmap(&self, disk: &Path, bitmap: &str) -> Result<(), HypervisorError> {
        self.remove_from_file(disk, bitmap)
    }

    fn thaw(&self, domain: &str, patience: Duration) -> Result<(), HypervisorError> {
        self.with_patience(domain, patience, |reference| {
            let limit = PROMPT.saturating_add(patience.saturating_mul(3));
            self.change(domain, &self.about("domfsthaw", reference), Some(limit))
        })
    }

    fn commit(&self, domain: &str, target: &str, base: &Path, top: &Path) -> Result<(), HypervisorError> {
        let command = self.about("blockcommit", &self.reference(domain)?).args(["--path", target]);
        let command = command.arg("--base").arg(base).arg("--top").arg(top).arg("--wait");
        self.change(domain, &command, None)
    }

    fn commit_active(&self, domain: &str, target: &str, base: &Path) -> Result<(), HypervisorError> {
        let command = self.about("blockcommit", &self.reference(domain)?).args(["--path", target]);
        let command = command.arg("--base").arg(base).args(["--active", "--wait", "--pivot"]);
        self.change(domain, &command, None)
    }

    fn pivot(&self, domain: &str, target: &str) -> Result<(), HypervisorError> {
        let command = self.about("blockjob", &self.reference(domain)?).args(["--path", target, "--pivot"]);
        self.change(domain, &command, Some(PROMPT))
    }

    fn commit_stopped(&self, overlay: &Path, base: &Backing) -> Result<(), HypervisorError> {
        let unusable = |source| HypervisorError::Program { program: "qemu-img".to_owned(), source };
        // qemu-img takes what stands before a colon for a protocol, unless the path is absolute.
        let overlay = path::absolute(overlay).map_err(unusable)?;
        let base_path = path::absolute(&base.path).map_err(unusable)?;
        // With a base the overlay keeps its content, and a base that is not in its chain is refused.
        let command = CommandLine::new("qemu-img").args(["commit", "-f", "qcow2", "-b"]).arg(&base_path);
        let command = command.arg("--").arg(&overlay);
        let recorded = self.recorded_format(&overlay)?;
        if recorded.as_ref() != Some(&base.format) {
            let recorded = recorded.as_deref().unwrap_or("no format at all");
            let message = format!(
                "{} records {recorded} for the layer below it, not {}",
                overlay.display(),
                base.format
            );
            return Err(HypervisorError::Failed { command: command.to_string(), message });
        }
        command.run(Wait::Changing { limit: None }).map(drop)
    }

    fn define(&self, xml: &str) -> Result<(), HypervisorError> {
        // No file ever holds the definition's secrets.
        let command = self.virsh("define").args(["--file", "/dev/stdin"]).input(xml);
        command.run(Wait::Changing { limit: Some(PROMPT) }).map(drop)
    }
}
