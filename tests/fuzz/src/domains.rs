//! What libvirt says of domains, and what this host remembers of them.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use underlay_client::domain::Journal;
use underlay_client::domain::record::{
    Content, DiskRecord, DomainRecord, FrozenDisk, Merge, Operation, Phase, Strategy,
};
use underlay_client::hypervisor::{Adaptation, Backing, Definition, DiskKind, RestoredAs, adapt, redirect};
use underlay_client::state::FileJournal;
use underlay_store::id::Root;

use crate::documents::REPOSITORY;
use crate::{Seed, allocations, assert_names};

const DOMAIN: &str = "the domain";

fn limit(text: &str) -> usize {
    (64 << 10) + 200 * text.len()
}

/// A definition: read, made to fit where its disks were restored to, and made to start from another layer.
///
/// # Panics
/// If a restored domain would have a writable disk that is not a restored one.
pub fn definition(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let parsed = match allocations::within(limit(text), || Definition::parse(DOMAIN, text)) {
        Ok(definition) => Some(definition),
        Err(error) => {
            assert_names(DOMAIN, &error);
            None
        }
    };
    let layer =
        |name: &str| Backing { path: format!("/restored/{name} & 'co'").into(), format: "raw".into() };
    for identity in [RestoredAs::Itself, RestoredAs::Another { name: Some("a clone".into()) }] {
        let disks = ["vda", "sdb"].map(|name| (name.to_owned(), layer(name)));
        let nvram = matches!(identity, RestoredAs::Itself).then(|| PathBuf::from("/restored/nvram"));
        let adaptation = Adaptation { identity, seed: [5; 32], disks: BTreeMap::from(disks), nvram };
        match allocations::within(limit(text), || adapt(DOMAIN, text, &adaptation)) {
            Ok(adapted) if parsed.is_some() => {
                let fits = Definition::parse(DOMAIN, &adapted.xml).expect("what was changed can be read");
                assert_fits(&fits, &adaptation);
            }
            Ok(_) => {}
            Err(error) => assert_names(DOMAIN, &error),
        }
    }
    match redirect(DOMAIN, text, "vda", &layer("x")) {
        Ok(changed) if parsed.is_some() => {
            let changed = Definition::parse(DOMAIN, &changed).expect("what was changed can be read");
            let disk = changed.disk("vda").expect("the disk is still there");
            assert_eq!(disk.source.path(), Some(layer("x").path.as_path()));
        }
        Ok(_) => {}
        Err(error) => assert_names(DOMAIN, &error),
    }
}

/// Every disk that the guest can write to is a restored one.
fn assert_fits(definition: &Definition, adaptation: &Adaptation) {
    for disk in &definition.disks {
        if disk.read_only || matches!(disk.kind, DiskKind::Cdrom | DiskKind::Floppy) {
            continue;
        }
        let restored = adaptation.disks.get(&disk.target).map(|layer| layer.path.as_path());
        assert!(restored.is_some() && disk.source.path() == restored, "{disk:?}");
    }
}

/// Definitions of every kind of disk.
pub fn definition_seeds() -> Vec<Seed> {
    let domain = |rest: &str| {
        format!(
            "<domain type='kvm' id='3'><name>web</name><uuid>8ba6a0f4-0000-4000-8000-000000000001</uuid>{rest}</domain>"
        )
    };
    let file = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a &amp; b'/>\
        <backingStore type='file'><format type='raw'/><source file='/base'/><backingStore/></backingStore>\
        <mirror type='file' job='active-commit' ready='yes'><source file='/m'/></mirror>\
        <target dev='vda' bus='virtio'/></disk>";
    let others = "<disk type='block' device='lun'><source dev='/dev/x'/><target dev='sdb' bus='scsi'/><shareable/></disk>\
        <disk type='network'><source protocol='rbd' name='p/i'><host name='h'/></source><target dev='vdc'/><transient/></disk>\
        <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>\
        <disk type='file' device='floppy'><target dev='fda'/></disk>";
    let agent = "<channel type='unix'><source mode='bind' path='/run/x'/>\
        <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>\
        <interface type='bridge'><mac address='52:54:00:00:00:01'/><target dev='vnet3'/></interface>";
    let firmware = "<genid>1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed</genid><os firmware='efi'><type>hvm</type><loader \
        type='pflash'>/x</loader><nvram template='/t'>/n</nvram></os>";
    let nova = "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>";
    let entities = "<!DOCTYPE d [<!ENTITY e \"<disk><target dev='vda'/></disk>\">]><domain><devices>&e;</devices></domain>";
    [
        ("file", domain(&format!("<devices>{file}</devices>"))),
        ("others", domain(&format!("<devices>{file}{others}{agent}</devices>"))),
        ("firmware", domain(&format!("{firmware}{nova}<devices>{file}</devices>"))),
        ("entities", entities.to_owned()),
    ]
    .map(|(name, text)| (name.to_owned(), text.into_bytes()))
    .to_vec()
}

/// A record of the journal.
///
/// # Panics
/// If one is read that comes back another way when it is stored.
pub fn record(bytes: &[u8]) {
    thread_local! { static STATE: OnceCell<TempDir> = const { OnceCell::new() } }
    STATE.with(|state| {
        let state = state.get_or_init(crate::images::folder).path();
        let path = state.join("domains/1.json");
        fs::create_dir_all(state.join("domains")).expect("a folder for the record");
        fs::write(&path, bytes).expect("room for the record");
        let journal = FileJournal::new(state);
        match allocations::within((64 << 10) + 64 * bytes.len(), || journal.load("1")) {
            Ok(record) => {
                let mut record = record.expect("the record is there");
                "1".clone_into(&mut record.uuid);
                journal.store(&record).expect("what was read can be stored");
                assert_eq!(journal.load("1").expect("what was stored can be read"), Some(record));
            }
            Err(error) => assert_names("1.json", &error),
        }
    });
}

/// Records of an idle domain, and of one in the middle of a merge.
pub fn record_seeds() -> Vec<Seed> {
    let mut record = DomainRecord::new("web", "1", "qemu:///system");
    let text = |record: &DomainRecord| serde_json::to_vec_pretty(record).expect("a record serializes");
    let idle = text(&record);
    let layer = |path: &str| Backing { path: path.into(), format: "qcow2".into() };
    let disk = DiskRecord {
        anchor: Some(layer("/a")),
        overlays: BTreeSet::from(["/b".into(), "/c".into()]),
        layers: BTreeSet::from(["/a".into()]),
    };
    record.disks = BTreeMap::from([("vda".to_owned(), disk)]);
    record.thaw_pending = true;
    let content = Content {
        repository: REPOSITORY,
        layers: Vec::new(),
        root: Root { size: 1 << 30, node: None },
        below: None,
    };
    record.operation = Some(Operation {
        nonce: "0123456789abcdef".into(),
        strategy: Strategy::Rotate,
        phase: Phase::Merging,
        disks: vec![FrozenDisk {
            target: "vda".into(),
            frozen: layer("/b"),
            overlay: "/c".into(),
            merge: Some(Merge { into: layer("/a"), overlays: vec!["/b".into()] }),
            content: Some(content),
        }],
    });
    vec![("idle".into(), idle), ("merging".into(), text(&record))]
}
