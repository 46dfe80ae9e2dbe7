//! Reading frozen disks through the backup pipeline.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use underlay_store::id::RepositoryId;
use underlay_store::snapshot::{PrivateImage, PrivateMetadata};

use crate::backup::{BackupOptions, DiskContent, DiskSource, Environment, Job, LiveDisk, Outcome, backup};
use crate::hypervisor::{Backing, DIRTY_BITMAP, NovaInstance};
use crate::image::{Chain, OpenOptions};

use super::DomainError;
use super::kept::{KeptDisk, KeptDomain, NVRAM_DISK, put_instance};
use super::layers::image_format;
use super::run::{Capture, Frozen};

/// How often a file is read until it is the same twice.
const ATTEMPTS: usize = 5;

/// Which files images may name.
#[derive(Clone, Debug, Default)]
pub struct ImageAccess {
    /// Folders besides the image's own.
    pub allow_dirs: Vec<PathBuf>,
}

/// Backs up frozen disks as a snapshot.
#[derive(Debug)]
pub struct CaptureImages<'a> {
    /// The repository, and what is known of layers.
    pub environment: Environment<'a>,
    /// How.
    pub options: &'a BackupOptions,
    /// What images may name, besides what libvirt vouches for.
    pub access: &'a ImageAccess,
    /// The VM's name in the repository; `None` is the domain's.
    pub vm: Option<&'a str>,
    /// What Nova's interface says of it, to be kept; `None` keeps what its definition says, if it is an instance.
    pub instance: Option<&'a NovaInstance>,
    /// The hypervisor's URI, to be kept.
    pub hypervisor: Option<&'a str>,
    /// This host's name, to be kept.
    pub host: &'a str,
}

impl Capture for CaptureImages<'_> {
    fn repository(&self) -> RepositoryId {
        self.environment.descriptor.repository
    }

    fn capture(&self, frozen: &Frozen<'_>) -> Result<Outcome, DomainError> {
        let variables = self.firmware_variables(frozen)?;
        let mut disks = Vec::new();
        let mut images = Vec::new();
        for disk in &frozen.disks {
            let options = OpenOptions {
                format: Some(image_format(&disk.layer)?),
                allow_dirs: self.access.allow_dirs.clone(),
                allow_files: disk.chain.iter().cloned().collect(),
                keep_writers_out: !frozen.domain.is_running(),
                ..OpenOptions::default()
            };
            images.push(image(&disk.target, &disk.layer));
            let content = match &disk.live {
                Some(live) => {
                    let since = live.since.map(|root| (root, DIRTY_BITMAP));
                    DiskContent::Live(Box::new(LiveDisk::open(&live.socket, &disk.target, since)?))
                }
                None => DiskContent::Layers(Chain::open(&disk.layer.path, &options)?),
            };
            disks.push(DiskSource { name: disk.target.clone(), content });
        }
        if let Some((copy, path)) = &variables {
            let layer = Backing { path: copy.path().to_owned(), format: "raw".into() };
            let options = OpenOptions { format: Some(image_format(&layer)?), ..OpenOptions::default() };
            images.push(image(NVRAM_DISK, &Backing { path: path.clone(), ..layer.clone() }));
            let content = DiskContent::Layers(Chain::open(&layer.path, &options)?);
            disks.push(DiskSource { name: NVRAM_DISK.into(), content });
        }
        let mut private =
            PrivateMetadata { host: self.host.to_owned(), images, ..PrivateMetadata::default() };
        self.kept(frozen, variables.map(|(_, path)| path))?.put(&mut private);
        if let Some(instance) = self.instance.or(frozen.domain.instance()) {
            put_instance(instance, &mut private);
        }
        let vm = self.vm.unwrap_or(&frozen.domain.name).to_owned();
        let job = Job { vm, disks, consistency: frozen.consistency, private };
        Ok(backup(&self.environment, job, self.options)?)
    }
}

impl CaptureImages<'_> {
    fn kept(&self, frozen: &Frozen<'_>, nvram: Option<PathBuf>) -> Result<KeptDomain, DomainError> {
        let domain = frozen.domain;
        let definition = match &domain.inactive {
            Some(inactive) => inactive,
            None => domain.current()?,
        };
        let disks = frozen.disks.iter().map(|disk| KeptDisk {
            target: disk.target.clone(),
            bus: disk.bus.clone(),
            path: disk.layer.path.clone(),
            format: disk.layer.format.clone(),
        });
        Ok(KeptDomain {
            name: domain.name.clone(),
            uuid: domain.uuid.clone(),
            hypervisor: self.hypervisor.map(str::to_owned),
            xml: definition.xml.clone(),
            disks: disks.collect(),
            excluded: frozen.excluded.to_vec(),
            nvram,
        })
    }

    /// A copy of the file with the firmware's variables, which a running guest may write to, and where it lies.
    fn firmware_variables(
        &self,
        frozen: &Frozen<'_>,
    ) -> Result<Option<(NamedTempFile, PathBuf)>, DomainError> {
        let definition = frozen.domain.current()?;
        let Some(path) = definition.firmware.as_ref().and_then(|firmware| firmware.nvram.clone()) else {
            return Ok(None);
        };
        let is_file = path.is_absolute();
        if !is_file || !fs::exists(&path).map_err(failed("look for", &path))? {
            // libvirt makes the file from its template at the first start.
            if !is_file || frozen.domain.is_running() {
                let (name, path) = (&frozen.domain.name, path.display());
                let notice =
                    format!("{name}: no file has its firmware's variables ({path}): they are not backed up");
                self.environment.progress.notice(&notice);
            }
            return Ok(None);
        }
        let read = || fs::read(&path).map_err(failed("read", &path));
        let mut bytes = read()?;
        for attempt in 0.. {
            let again = read()?;
            if again == bytes {
                break;
            }
            if attempt == ATTEMPTS {
                let source = std::io::Error::other("it changes all the time");
                return Err(failed("read", &path)(source));
            }
            bytes = again;
        }
        let mut copy = NamedTempFile::new().map_err(failed("make a copy of", &path))?;
        copy.write_all(&bytes).map_err(failed("make a copy of", &path))?;
        Ok(Some((copy, path)))
    }
}

fn image(disk: &str, layer: &Backing) -> PrivateImage {
    PrivateImage {
        disk: disk.to_owned(),
        path: layer.path.display().to_string(),
        format: layer.format.clone(),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DomainError {
    move |source| DomainError::File { action, path: path.to_owned(), source }
}
