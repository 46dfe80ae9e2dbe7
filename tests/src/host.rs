use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::commands::run;
use crate::libvirt::{DomainSpec, Libvirtd, Machine};
use crate::program::Underlay;
use crate::qemu::Format;
use crate::{Error, Result, guest};

/// Where the guest has its second disk mounted.
const DATA: &str = "/data";

/// A libvirt host with one guest of two disks, and a repository for its backups.
///
/// `vda` is the Debian guest, an overlay of the shared image; `vdb` holds a file system of its own. Both are qcow2 files in
/// [`Host::disks`].
#[derive(Debug)]
pub struct Host {
    /// The guest's domain.
    pub web: Machine,
    /// The program, with repository, key, state and connection set.
    pub underlay: Underlay,
    /// The libvirtd. Dropped after the above.
    pub libvirtd: Libvirtd,
    folder: tempfile::TempDir,
}

impl Host {
    /// A host whose guest `web` has booted and answers.
    pub fn with_guest() -> Result<Self> {
        Self::with(|spec| spec)
    }

    /// The same, with a domain that `change` makes different.
    pub fn with(change: impl FnOnce(DomainSpec) -> DomainSpec) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let libvirtd = Libvirtd::start()?;
        let disks = folder.path().join("disks");
        fs::create_dir(&disks)?;
        let (root, data) = (disks.join("web.qcow2"), disks.join("data.qcow2"));
        guest::overlay(&guest::image()?, &root)?;
        run("qemu-img", ["create", "-q", "-f", "qcow2", &data.display().to_string(), "256M"])?;
        let spec = DomainSpec::new("web").disk("vda", &root, Format::Qcow2);
        let web = libvirtd.define(&change(spec.disk("vdb", &data, Format::Qcow2)))?;
        let repository = folder.path().join("repo").display().to_string();
        let underlay = Underlay::init(&repository, folder.path())?;
        let underlay = underlay.with_variable("UNDERLAY_CONNECT", libvirtd.uri());
        let host = Self { web, underlay, libvirtd, folder };
        host.web.start()?;
        host.web.wait_for_agent()?;
        host.web.exec(&format!("mke2fs -q -t ext4 /dev/vdb && mkdir {DATA} && mount /dev/vdb {DATA}"))?;
        Ok(host)
    }

    /// A path in the host's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder with the guest's disks and their overlays.
    #[must_use]
    pub fn disks(&self) -> PathBuf {
        self.path("disks")
    }

    /// Starts the guest again, with its second disk mounted.
    pub fn start_guest(&self) -> Result<()> {
        self.web.start()?;
        self.web.wait_for_agent()?;
        self.web.exec(&format!("mount /dev/vdb {DATA}")).map(drop)
    }

    /// Writes a new file to each of the guest's disks, and remembers its checksum inside.
    pub fn scribble(&self, name: &str) -> Result<()> {
        let script = format!(
            "for d in /root {DATA}; do cd $d; dd if=/dev/urandom of={name} bs=16k count=12 2>/dev/null; sha256sum {name} >>sums; done; sync"
        );
        self.web.exec(&script).map(drop)
    }

    /// Reads all that was ever scribbled back from the disks, and compares.
    pub fn expect_intact(&self) -> Result<()> {
        let script = format!(
            "sync; echo 3 >/proc/sys/vm/drop_caches; for d in /root {DATA}; do cd $d && sha256sum --quiet -c sums || exit 1; done"
        );
        self.web.exec(&script).map(drop)
    }

    /// Backs the guest up; what the program says of it.
    pub fn backup<const N: usize>(&self, options: [&str; N]) -> Result<Value> {
        let output = self.try_backup(options)?;
        if !output.status.success() {
            return Err(Error::new(format!(
                "backup: {}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )));
        }
        answer(&output)
    }

    /// Backs the guest up, whatever the exit code.
    pub fn try_backup<const N: usize>(&self, options: [&str; N]) -> Result<Output> {
        let mut command = self.underlay.command(["backup", "--domain", "web", "--json"]);
        crate::commands::output(command.args(options))
    }

    /// Brings the guest's disks in order; what was done, a line each.
    pub fn recover(&self) -> Result<Vec<String>> {
        let said = self.underlay.json(["recover", "--domain", "web"])?;
        let actions = said["domains"][0]["actions"].as_array().cloned().unwrap_or_default();
        Ok(actions.iter().filter_map(|action| action.as_str().map(str::to_owned)).collect())
    }

    /// Restores one disk of the newest snapshot to a qcow2 file.
    pub fn restore_newest(&self, disk: &str) -> Result<PathBuf> {
        let path = self.path(&format!("newest-{disk}.qcow2"));
        let mut command = self.underlay.command(["restore", "web@latest", "--disk", disk, "--force", "--to"]);
        crate::commands::run_command(command.arg(&path))?;
        Ok(path)
    }

    /// Compares the newest snapshot, which a rotating backup has just made, with what QEMU sees below the guest's overlays.
    pub fn expect_newest_equals_frozen(&self) -> Result<()> {
        for disk in ["vda", "vdb"] {
            let chain = self.web.chain(disk)?;
            let frozen =
                chain.get(1).ok_or_else(|| Error::new(format!("{disk} is not frozen: {chain:?}")))?;
            self.expect_newest_equals(disk, frozen)?;
        }
        Ok(())
    }

    /// Compares a disk of the newest snapshot with a qcow2 image that nobody writes.
    pub fn expect_newest_equals(&self, disk: &str, image: &Path) -> Result<()> {
        let restored = self.restore_newest(disk)?;
        let compare = ["compare", "-U", "-f", "qcow2", "-F", "qcow2"].map(Path::new);
        run("qemu-img", compare.into_iter().chain([restored.as_path(), image])).map(drop)
    }

    /// Files beside the guest's disks that belong to no chain and were not set aside, other than the originals.
    pub fn strays(&self) -> Result<Vec<PathBuf>> {
        let chains = [self.web.chain("vda")?, self.web.chain("vdb")?].concat();
        let mut strays = Vec::new();
        for entry in fs::read_dir(self.disks())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let known = ["web.qcow2", "data.qcow2"].contains(&name.as_str()) || name.contains(".stale");
            if !known && !chains.contains(&path) {
                strays.push(path);
            }
        }
        Ok(strays)
    }

    /// The journal's record of the guest.
    pub fn record(&self) -> Result<Value> {
        let path = self.underlay.state().join("domains").join(format!("{}.json", self.web.uuid()));
        serde_json::from_slice(&fs::read(&path)?)
            .map_err(|error| Error::new(format!("{}: {error}", path.display())))
    }
}

/// What the program said of the only domain it was asked for.
pub fn answer(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let document: Value = serde_json::from_str(&text).map_err(|error| {
        Error::new(format!("{error} in {text:?}; stderr: {}", String::from_utf8_lossy(&output.stderr)))
    })?;
    Ok(document["domains"][0].clone())
}
