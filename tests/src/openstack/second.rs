use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::OpenStack;
use super::compute::{daemon, reaching};
use super::site::COMPUTE_SETTINGS;
use crate::libvirt::Libvirtd;
use crate::{Error, Result};

/// Becomes a service of the second host.
const HOST: &str = include_str!("host.bash");
/// Joins two libvirtds.
const PEER: &str = include_str!("peer.py");
const SERVICE: &str = "nova-compute-2";
const SETTINGS: &str = "nova-2.conf";
/// Of the two hosts, on loopback.
const ADDRESSES: [&str; 2] = ["127.0.0.1", "127.0.0.2"];

/// Where the compute hosts have the disks of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceFolders {
    /// Each in a folder of its own.
    Own,
    /// All in one, as on NFS.
    Shared,
}

impl OpenStack {
    /// [`Self::compute`] with a second compute host, `compute-2`: another nova-compute over another libvirtd, between which and
    /// the first guests are migrated, live and cold. New instances may begin on either, unless they are told where.
    pub fn two_computes(folders: InstanceFolders) -> Result<Self> {
        let mut cloud = Self::compute()?;
        cloud.add_second(folders)?;
        Ok(cloud)
    }

    fn add_second(&mut self, folders: InstanceFolders) -> Result<()> {
        let seen = self.instances_folder();
        let own = match folders {
            InstanceFolders::Own => self.site.folder.join("instances-2"),
            InstanceFolders::Shared => seen.clone(),
        };
        let replaced: &[_] = if own == seen { &[] } else { &[(own.clone(), seen.clone())] };
        let second = Libvirtd::start_as("compute-2.test", replaced)?;
        self.write_settings(&second)?;
        for (address, libvirtd) in ADDRESSES.iter().zip([self.libvirtd()?, &second]) {
            self.write_peer(address, libvirtd)?;
        }
        // The first host's namespace is that of the first process.
        let processes = self.site.folder.join("hosts");
        fs::write(processes.join(ADDRESSES[0]), "1\n")?;
        let mut words: Vec<String> =
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", HOST, SERVICE]
                .map(str::to_owned)
                .to_vec();
        let shown = |path: &Path| path.display().to_string();
        words.extend([shown(&processes.join(ADDRESSES[1])), shown(&own), shown(&seen)]);
        words.extend(daemon(&self.site, "nova-compute", SETTINGS));
        self.services.run(SERVICE, &reaching(&self.site), &words)?;
        self.services.wait_for(SERVICE, || self.can_boot(2).unwrap_or(false))?;
        if let Some(compute) = &mut self.compute {
            compute.second = Some(second);
        }
        Ok(())
    }

    /// The program that other hosts reach a host's libvirtd by.
    fn write_peer(&self, address: &str, libvirtd: &Libvirtd) -> Result<()> {
        let (program, python) = (self.site.folder.join("peer.py"), self.site.python.display());
        fs::write(&program, PEER)?;
        let file = self.site.folder.join("peers").join(address);
        let socket = libvirtd.socket();
        fs::write(&file, format!("#!/bin/sh\nexec {python} {} {}\n", program.display(), socket.display()))?;
        Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
    }

    /// The first host's settings with what is the second one's own.
    fn write_settings(&self, second: &Libvirtd) -> Result<()> {
        let first = COMPUTE_SETTINGS.iter().find(|(name, _)| *name == "nova.conf").map(|(_, text)| *text);
        let mut text = first.unwrap_or_default().to_owned();
        let own = [
            ("my_ip = 127.0.0.1", format!("my_ip = {}", ADDRESSES[1])),
            ("host = compute\n", "host = compute-2\n".to_owned()),
            ("{folder}/nova\n", "{folder}/nova-2\n".to_owned()),
            ("{folder}/locks", "{folder}/locks-2".to_owned()),
            ("{folder}/nova.conf", format!("{{folder}}/{SETTINGS}")),
            ("{libvirt}", second.uri().to_owned()),
        ];
        for (words, instead) in own {
            if !text.contains(words) {
                return Err(Error::new(format!("the settings of nova-compute have no {words:?}")));
            }
            text = text.replace(words, &instead);
        }
        self.site.write(&[(SETTINGS, &text)])
    }

    /// The libvirtd of the second host.
    pub fn second_libvirtd(&self) -> Result<&Libvirtd> {
        self.of_compute()?.second.as_ref().ok_or_else(|| Error::new("this OpenStack has one compute host"))
    }
}
