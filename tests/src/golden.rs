//! Makes a golden repository: one of every thing that the format knows, written once by the code of its day and kept for ever.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use underlay_client::backup::{BackupOptions, DiskContent, DiskSource, Environment, Job, backup};
use underlay_client::image::{Chain, Format, OpenOptions};
use underlay_store::authority::Authority;
use underlay_store::backend::{Backend, Options};
use underlay_store::gc::GcOptions;
use underlay_store::id::OwnerId;
use underlay_store::key::slot::{Argon2id, Slot};
use underlay_store::key::{Key, file};
use underlay_store::names;
use underlay_store::pack::name_of;
use underlay_store::progress::Silent;
use underlay_store::snapshot::{Claim, Consistency, PrivateImage, PrivateMetadata, Timestamp};

use crate::images::{Random, Workshop, flatten};
use crate::lab::Lab;
use crate::{Error, Result, kept};

/// What opens the slot that holds the restore key.
pub const PASSPHRASE: &str = "golden hours, slowly kept";
/// What opens the slot that holds the backup key.
pub const BACKUP_PASSPHRASE: &str = "silver minutes";

/// One disk of one snapshot: its name and its image in the workshop.
type Image = (&'static str, &'static str);

/// Writes the repository `folder/repository`, its keys and `manifest.json`, which says what must come out of it. `folder` must not
/// be there.
///
/// # Errors
/// If `folder` is there already, or anything fails on the way.
pub fn write(folder: &Path) -> Result<()> {
    if folder.exists() {
        return Err(Error::new(format!(
            "{} is there already: nothing golden is overwritten",
            folder.display()
        )));
    }
    made(folder).map_err(|error| Error::new(format!("{}: {error}", folder.display())))
}

fn made(folder: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all(folder)?;
    let place = folder.join("repository");
    let lab = Lab::on(Backend::open(&place.display().to_string(), Options { create: true })?);
    let workshop = Workshop { dir: lab.path("images") };
    fs::create_dir(&workshop.dir)?;
    write_keys(&lab, folder)?;
    let mut writer = Writer { lab: &lab, workshop: &workshop, snapshots: Vec::new() };
    writer.all()?;
    let manifest = json!({
        "version": 1,
        "repository": lab.descriptor.repository,
        "passphrase": PASSPHRASE,
        "backup_passphrase": BACKUP_PASSPHRASE,
        "snapshots": writer.snapshots,
    });
    fs::write(folder.join("manifest.json"), serde_json::to_string_pretty(&manifest)? + "\n")?;
    let claim = Claim {
        repository: lab.descriptor.repository,
        generation: 1,
        owner: OwnerId::random(),
        catalog: None,
        host: "a golden host".into(),
        created: lab.descriptor.created,
    };
    fs::write(place.join(names::claim(1)), claim.seal())?;
    drop(lab);
    // It is made again from what the objects say.
    fs::remove_dir_all(place.join("catalog"))?;
    Ok(())
}

fn write_keys(lab: &Lab, folder: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let id = lab.descriptor.repository;
    let (restore, backup) = (Key::Restore(lab.key.clone()), Key::Backup(lab.key.backup().clone()));
    fs::write(folder.join("restore.key"), file::to_json(&id, &restore).as_bytes())?;
    fs::write(folder.join("backup.key"), file::to_json(&id, &backup).as_bytes())?;
    fs::write(folder.join("restore.paper"), file::to_paper(&id, &restore).as_bytes())?;
    let slots = [(&restore, PASSPHRASE, "the safe"), (&backup, BACKUP_PASSPHRASE, "h\u{f6}st \"one\"")];
    for (key, passphrase, label) in slots {
        let slot = Slot::create(id, key, passphrase, label, Timestamp::now(), Argon2id::CHEAPEST)?;
        lab.runtime.block_on(lab.repository.put_key_slot(slot.slot, slot.seal().into()))?;
    }
    Ok(())
}

struct Writer<'a> {
    lab: &'a Lab,
    workshop: &'a Workshop,
    snapshots: Vec<Value>,
}

impl Writer<'_> {
    fn all(&mut self) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let w = self.workshop;
        fs::write(w.dir.join("base.raw"), base())?;
        fs::write(w.dir.join("short.raw"), [text(40_000, 5), noise(30_003, 6)].concat())?;
        w.img("create -f qcow2 -b base.raw -F raw web.qcow2 4M")?;
        w.img("create -f raw empty.raw 3M")?;
        // Dropped in the end: its packs go, and what others need of them is copied.
        w.img("create -f qcow2 gone.qcow2 4M")?;
        w.io("gone.qcow2", &["write -P 0x61 1M 64k", "write -P 0x54 2M 64k"])?;
        let gone = self.snapshot("gone", Consistency::Offline, &[("vda", "gone.qcow2")])?;
        self.snapshots.clear();
        w.io("web.qcow2", &["write -P 0x31 1M 100k", "write -z 64k 64k"])?;
        let web = [("vda", "web.qcow2"), ("vdb", "empty.raw")];
        self.snapshot("web", Consistency::Offline, &web)?;
        w.io("web.qcow2", &["write -P 0x32 3M 8k", "write -P 0x33 17k 3k"])?;
        self.snapshot("web", Consistency::Crash, &web)?;
        // A layer above what was read, as after a rotation.
        w.img("create -f qcow2 -b web.qcow2 -F qcow2 web2.qcow2")?;
        w.io("web2.qcow2", &["write -P 0x34 2M 4k", "discard 1M 64k"])?;
        self.snapshot("web", Consistency::Filesystem, &[("vda", "web2.qcow2"), ("vdb", "empty.raw")])?;

        w.img("create -f qcow2 -b base.raw -F raw db.qcow2 6M")?;
        w.io("db.qcow2", &["write -P 0x41 5M 64k"])?;
        let db = [("vda", "db.qcow2"), ("data", "short.raw")];
        self.snapshot("d\u{e4}tabase 1", Consistency::Crash, &db)?;
        fs::write(w.dir.join("short.raw"), [text(40_000, 5), noise(20_000, 7), text(10_003, 8)].concat())?;
        let last = self.snapshot("d\u{e4}tabase 1", Consistency::Filesystem, &db)?;
        self.lab.runtime.block_on(self.lab.repository.protect(last, true))?;

        // Three levels of nodes: 200 regions.
        w.img("create -f qcow2 big.qcow2 400M")?;
        w.io("big.qcow2", &["write -P 0x51 0 4k", "write -P 0x52 135M 12k", "write -P 0x53 419426304 4k"])?;
        self.snapshot("big", Consistency::Offline, &[("vda", "big.qcow2")])?;
        w.io("big.qcow2", &["write -P 0x54 260M 64k"])?;
        self.snapshot("big", Consistency::Offline, &[("vda", "big.qcow2")])?;
        let (repository, runtime) = (&self.lab.repository, &self.lab.runtime);
        runtime.block_on(repository.forget(gone))?;
        let options = GcOptions { max_unused: 0.0, ..GcOptions::default() };
        let report = runtime.block_on(repository.gc(&options, &Silent))?;
        assert!(report.copied_from.packs > 0, "{report:?}");
        Ok(())
    }

    fn snapshot(
        &mut self,
        vm: &str,
        consistency: Consistency,
        images: &[Image],
    ) -> std::result::Result<underlay_store::id::SnapshotId, Box<dyn std::error::Error>> {
        let (lab, mut disks, mut private) = (self.lab, Vec::new(), metadata(vm, images));
        if vm == "web" {
            kept::kept(vm, &["vda"], "", "").put(&mut private);
        }
        for (name, image) in images {
            let options = OpenOptions { format: Some(format(image)), ..OpenOptions::default() };
            let chain = Chain::open(&self.workshop.dir.join(image), &options)?;
            disks.push(DiskSource { name: (*name).to_owned(), content: DiskContent::Layers(chain) });
        }
        let environment = Environment {
            authority: Arc::clone(&lab.repository) as Arc<dyn Authority>,
            descriptor: &lab.descriptor,
            key: lab.key.backup(),
            memos: &lab.memos,
            runtime: lab.runtime.handle().clone(),
            progress: &Silent,
            cancel: &AtomicBool::new(false),
        };
        let job = Job { vm: vm.to_owned(), disks, consistency, private: private.clone() };
        let outcome = backup(&environment, job, &BackupOptions::default())?;
        let snapshot = lab.snapshot(outcome.snapshot);
        let mut contents = Vec::new();
        for ((_, image), disk) in images.iter().zip(&snapshot.disks) {
            // What QEMU reads, not what came through the repository.
            let flat = lab.path("flat.raw");
            let name = if format(image) == Format::Raw { "raw" } else { "qcow2" };
            flatten(&self.workshop.dir.join(image), name, &flat)?;
            let bytes = fs::read(&flat)?;
            contents.push(json!({
                "name": disk.name,
                "size": bytes.len(),
                "sha256": name_of(&bytes).to_string(),
                "root": disk.root,
                "layers": disk.layers,
            }));
        }
        self.snapshots.push(json!({
            "snapshot": snapshot.snapshot,
            "vm": vm,
            "time": snapshot.time,
            "consistency": consistency,
            "disks": contents,
            "private": private,
            "protected": vm != "web" && vm != "big" && consistency == Consistency::Filesystem,
        }));
        Ok(outcome.snapshot)
    }
}

fn format(image: &str) -> Format {
    if image.ends_with("raw") { Format::Raw } else { Format::Qcow2 }
}

fn metadata(vm: &str, images: &[Image]) -> PrivateMetadata {
    let image = |(disk, image): &Image| PrivateImage {
        disk: (*disk).to_owned(),
        path: format!("/images/{vm}/{image}"),
        format: if format(image) == Format::Raw { "raw".into() } else { "qcow2".into() },
    };
    PrivateMetadata {
        host: "a golden host".into(),
        images: images.iter().map(image).collect(),
        extra: [("note".to_owned(), json!("kept from those without the restore key"))].into(),
    }
}

/// 4 MiB: what compresses, what does not, and zeros, in blocks and within them.
fn base() -> Vec<u8> {
    let mut disk = vec![0; 4 << 20];
    disk[..100_000].copy_from_slice(&text(100_000, 1));
    disk[300 << 10..][..40_000].copy_from_slice(&noise(40_000, 2));
    disk[(2 << 20) + 5000..][..50_000].copy_from_slice(&text(50_000, 3));
    let end = disk.len() - 9000;
    disk[end..].copy_from_slice(&noise(9000, 4));
    disk
}

/// Numbers with blanks between them.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut text = String::with_capacity(length + 8);
    while text.len() < length {
        text += &format!("{} ", random.below(10_000));
    }
    text.truncate(length);
    text.into_bytes()
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..length).map(|_| random.word() as u8).collect()
}
