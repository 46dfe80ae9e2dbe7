//! Pulls and checkpoints.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::NamedTempFile;

use super::{PROMPT, Virsh, answers, arguments};
use crate::hypervisor::program::{CommandLine, Wait};
use crate::hypervisor::pull::{checkpoint_xml, socket_of, written_in};
use crate::hypervisor::{Definition, HypervisorError, PullRequest, Written};

/// Where libvirt keeps a folder for each running domain, which its QEMU may write to and which goes with it.
const PRIVATE_FOLDERS: &str = "/var/lib/libvirt/qemu";
/// Characters of a domain's name in that folder's.
const SHORT_NAME: usize = 20;

impl Virsh {
    pub(super) fn begin(&self, domain: &str, request: &PullRequest) -> Result<(), HypervisorError> {
        let targets: Vec<&str> = request.disks.iter().map(|disk| disk.target.as_str()).collect();
        let others = self.other_disks(domain, &targets)?;
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let files = [&request.socket].into_iter().chain(request.disks.iter().map(|disk| &disk.scratch));
        for path in files {
            if !arguments::is_kept_by_libvirt(path) {
                let message = format!("libvirt cannot be given the file name {path:?}");
                return Err(HypervisorError::Failed { command: "virsh backup-begin".to_owned(), message });
            }
        }
        let backup = text_file(&request.backup_xml(&others))?;
        let checkpoint = text_file(&request.checkpoint_xml(&others))?;
        let command =
            self.about("backup-begin", &self.reference(domain)?).arg("--backupxml").arg(backup.path());
        let command = command.arg("--checkpointxml").arg(checkpoint.path());
        self.change(domain, &command, Some(PROMPT))
    }

    pub(super) fn private_folder(&self, domain: &str) -> Result<Option<PathBuf>, HypervisorError> {
        let number = self.ask(domain, "domid", &[])?;
        let Ok(number) = number.trim().parse::<u32>() else { return Ok(None) };
        let name: String = domain.chars().take(SHORT_NAME).collect();
        Ok(Some(PathBuf::from(format!("{PRIVATE_FOLDERS}/domain-{number}-{name}"))))
    }

    pub(super) fn socket(&self, domain: &str) -> Result<Option<PathBuf>, HypervisorError> {
        match self.ask(domain, "backup-dumpxml", &[]) {
            // That there is none is an error, too, in a language of its own.
            Err(HypervisorError::Failed { .. }) => Ok(None),
            told => Ok(socket_of(&told?)),
        }
    }

    pub(super) fn know(
        &self,
        domain: &str,
        checkpoint: &str,
        targets: &[&str],
        options: &[&str],
    ) -> Result<(), HypervisorError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let options: Vec<&str> = ["--redefine"].iter().chain(options).copied().collect();
        self.create_checkpoint(domain, checkpoint, targets, Some(now), &options)
    }

    /// A new checkpoint; one that was `made` already is one to be known again, with the options for that.
    pub(super) fn create_checkpoint(
        &self,
        domain: &str,
        checkpoint: &str,
        targets: &[&str],
        made: Option<u64>,
        options: &[&str],
    ) -> Result<(), HypervisorError> {
        let others = self.other_disks(domain, targets)?;
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let file = text_file(&checkpoint_xml(checkpoint, targets, &others, made))?;
        let command =
            self.about("checkpoint-create", &self.reference(domain)?).arg("--xmlfile").arg(file.path());
        self.change(domain, &command.args(options), Some(PROMPT))
    }

    pub(super) fn written(&self, domain: &str, checkpoint: &str) -> Result<Written, HypervisorError> {
        let told = self.ask(domain, "checkpoint-dumpxml", &["--checkpointname", checkpoint, "--size"])?;
        Ok(written_in(&told))
    }

    /// Without validation libvirt takes a bitmap for sound that is not, and can remove it.
    pub(super) fn remove(
        &self,
        domain: &str,
        checkpoint: &str,
        targets: &[&str],
    ) -> Result<(), HypervisorError> {
        self.know(domain, checkpoint, targets, &[])?;
        let removed = self.drop_checkpoint(domain, checkpoint, &[]);
        if removed.is_err() {
            self.drop_checkpoint(domain, checkpoint, &["--metadata"])?;
        }
        removed
    }

    pub(super) fn drop_checkpoint(
        &self,
        domain: &str,
        checkpoint: &str,
        options: &[&str],
    ) -> Result<(), HypervisorError> {
        let command = self.about("checkpoint-delete", &self.reference(domain)?);
        self.change(domain, &command.args(["--checkpointname", checkpoint]).args(options), Some(PROMPT))
    }

    pub(super) fn unsound(&self, disk: &Path) -> Result<Vec<String>, HypervisorError> {
        let command =
            CommandLine::new("qemu-img").args(["info", "--output=json", "-f", "qcow2", "--"]).arg(disk);
        Ok(answers::unsound_bitmaps(&self.read(&command)?))
    }

    pub(super) fn remove_from_file(&self, disk: &Path, bitmap: &str) -> Result<(), HypervisorError> {
        let command = CommandLine::new("qemu-img").args(["bitmap", "--remove", "-f", "qcow2", "--"]);
        let command = command.arg(disk).arg(bitmap);
        command.run(Wait::Changing { limit: Some(PROMPT) }).map(drop)
    }

    /// Targets of a running domain's disks besides these.
    fn other_disks(&self, domain: &str, targets: &[&str]) -> Result<Vec<String>, HypervisorError> {
        let live = Definition::parse(domain, &self.dump(domain, &[])?.1)?;
        let others = live.disks.into_iter().map(|disk| disk.target);
        Ok(others.filter(|target| !targets.contains(&target.as_str())).collect())
    }
}

/// A file for virsh to read, gone when it is dropped.
fn text_file(text: &str) -> Result<NamedTempFile, HypervisorError> {
    let write = || {
        let mut file = NamedTempFile::new()?;
        file.write_all(text.as_bytes())?;
        Ok(file)
    };
    write().map_err(|source| HypervisorError::Program { program: "virsh".to_owned(), source })
}
