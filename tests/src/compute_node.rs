//! A compute node of a real OpenStack with a repository for its instances, which most tests of Nova start from.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::commands::run;
use crate::host::answer;
use crate::libvirt::{Libvirtd, Machine};
use crate::openstack::{Instance, InstanceFolders, OpenStack};
use crate::program::Underlay;
use crate::{Error, Result};

/// A compute node, and a repository for its instances.
#[derive(Debug)]
pub struct ComputeNode {
    /// The program, with repository, key, state, connection and the administrator's login set.
    pub underlay: Underlay,
    /// The OpenStack. Dropped after the above.
    pub cloud: OpenStack,
    folder: tempfile::TempDir,
}

/// One compute host as a backup sees it.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// The program, with what is remembered on this host.
    pub underlay: &'a Underlay,
    /// The libvirtd that instances run under there.
    pub libvirtd: &'a Libvirtd,
}

impl ComputeNode {
    /// A node without instances.
    pub fn start() -> Result<Self> {
        Self::of(OpenStack::compute()?)
    }

    /// A node without instances, beside a second one.
    pub fn start_two(folders: InstanceFolders) -> Result<Self> {
        Self::of(OpenStack::two_computes(folders)?)
    }

    fn of(cloud: OpenStack) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let underlay = Underlay::init(&folder.path().join("repo").display().to_string(), folder.path())?;
        let underlay = cloud
            .administrator_variables()
            .iter()
            .fold(underlay, |underlay, (name, value)| underlay.with_variable(name, value));
        let underlay = underlay.with_variable("UNDERLAY_CONNECT", cloud.libvirtd()?.uri());
        Ok(Self { underlay, cloud, folder })
    }

    /// A path in the node's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The libvirtd that instances run under.
    pub fn libvirtd(&self) -> Result<&Libvirtd> {
        self.cloud.libvirtd()
    }

    /// This node as a host among others.
    pub fn host(&self) -> Result<Host<'_>> {
        Ok(Host { underlay: &self.underlay, libvirtd: self.libvirtd()? })
    }

    /// The program on the second host. It remembers what it does there, and shares the repository.
    pub fn second_underlay(&self) -> Result<Underlay> {
        let libvirtd = self.cloud.second_libvirtd()?;
        let underlay = self.underlay.elsewhere(self.folder.path());
        Ok(underlay.with_variable("UNDERLAY_CONNECT", libvirtd.uri()).inside(libvirtd.process()?))
    }

    /// An instance's domain, once its guest answers.
    pub fn machine(&self, instance: &Instance) -> Result<Machine> {
        self.host()?.machine(instance)
    }

    /// Backs an instance up; what the program says of it.
    pub fn backup<const N: usize>(&self, instance: &Instance, options: [&str; N]) -> Result<Value> {
        Ok(self.host()?.backup(instance, options)?.0)
    }

    /// See [`Host::expect_exact`].
    pub fn expect_exact(&self, instance: &Instance) -> Result<Value> {
        Ok(self.host()?.expect_exact(instance)?.0)
    }

    /// What the disks of a backup's snapshot hold.
    pub fn roots(&self, backup: &Value) -> Result<Value> {
        self.host()?.roots(backup)
    }

    /// Fails unless Nova's view, its locks and libvirt's records are as if there were no backups.
    pub fn expect_untouched(&self, instance: &Instance) -> Result<()> {
        let status = instance.status()?;
        if status != ("ACTIVE".into(), None) || instance.is_locked()? {
            let locked = instance.is_locked()?;
            return Err(Error::new(format!("the instance is {status:?}, locked: {locked}")));
        }
        let checkpoints = self.libvirtd()?.virsh(["checkpoint-list", instance.domain(), "--name"])?;
        if !checkpoints.trim().is_empty() {
            return Err(Error::new(format!("libvirt knows {checkpoints}")));
        }
        let strays = fs::read_dir(instance.folder())?.map(|entry| Ok(entry?.path()));
        let strays: Vec<PathBuf> = strays.collect::<Result<_>>()?;
        match strays.iter().find(|path| path.to_string_lossy().contains("underlay-")) {
            Some(stray) => Err(Error::new(format!("{} is left behind", stray.display()))),
            None => Ok(()),
        }
    }

    /// The one layer that instances of one image share.
    pub fn base(&self) -> Result<PathBuf> {
        let bases = fs::read_dir(self.cloud.instances_folder().join("_base"))?;
        let files: Vec<PathBuf> = bases.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        match files.as_slice() {
            [base] => Ok(base.clone()),
            _ => Err(Error::new(format!("the shared layers are {files:?}"))),
        }
    }
}

impl Host<'_> {
    /// An instance's domain, once its guest answers.
    pub fn machine(&self, instance: &Instance) -> Result<Machine> {
        let machine = self.libvirtd.machine(instance.domain())?;
        machine.wait_for_agent()?;
        Ok(machine)
    }

    /// Backs an instance up; what the program says of it, and what it tells the user.
    pub fn backup<const N: usize>(&self, instance: &Instance, options: [&str; N]) -> Result<(Value, String)> {
        let mut command = self.underlay.command(["backup", "--json", "--instance", instance.uuid()]);
        let output = crate::commands::output(command.args(options))?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(Error::new(format!("backup: {}\n{told}", output.status)));
        }
        Ok((answer(&output)?, told))
    }

    /// Backs an instance up while it stands still, by its bitmap and all of it, and fails unless both find the same. The first
    /// one's answer, and what it tells the user.
    pub fn expect_exact(&self, instance: &Instance) -> Result<(Value, String)> {
        self.libvirtd.virsh(["suspend", instance.domain()])?;
        let one = self.backup(instance, ["--no-quiesce"])?;
        let (other, _) = self.backup(instance, ["--no-quiesce", "--no-memo"])?;
        self.libvirtd.virsh(["resume", instance.domain()])?;
        let (of_one, of_other) = (self.roots(&one.0)?, self.roots(&other)?);
        if of_one != of_other {
            return Err(Error::new(format!("the bitmap's backup has {of_one}, a whole one {of_other}")));
        }
        Ok(one)
    }

    /// What the disks of a backup's snapshot hold.
    pub fn roots(&self, backup: &Value) -> Result<Value> {
        let snapshot =
            backup["snapshot"].as_str().ok_or_else(|| Error::new(format!("no snapshot: {backup}")))?;
        Ok(self.underlay.json(["show", snapshot])?["roots"].take())
    }
}

/// A file's SHA-256, as `sha256sum` tells it.
pub fn sha256(path: &Path) -> Result<String> {
    run("sha256sum", [path])
}

/// The guest writes a file in its home, and notes what is in it.
pub fn scribble(machine: &Machine, name: &str) -> Result<()> {
    let write = format!(
        "cd /root; dd if=/dev/urandom of={name} bs=64k count=20 2>/dev/null; sha256sum {name} >>sums; sync"
    );
    machine.exec(&write).map(drop)
}

/// Reads all that was ever scribbled back from the disk, and compares.
pub fn expect_intact(machine: &Machine) -> Result<()> {
    machine.exec("sync; echo 3 >/proc/sys/vm/drop_caches; cd /root && sha256sum --quiet -c sums").map(drop)
}
