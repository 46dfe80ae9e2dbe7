//! What keeps a backup from beginning, and how the guest's agent takes part.

use underlay_store::id::RepositoryId;
use underlay_store::snapshot::Consistency;

use super::machine::{Copying, Mood, NAME};
use super::rig::Rig;
use super::world::{Interruption, Layout, World};
use crate::backup::Outcome;
use crate::domain::{Approach, Capture, DomainError, Frozen, Lifecycle, Quiesce, Strategy, Wishes};

/// What is said, and what can be done, when a backup of a domain made like this is wanted.
fn refusal(layout: Layout, wishes: &Wishes, make: impl FnOnce(&mut World)) -> (String, String) {
    let rig = Rig::new(layout, 5);
    make(&mut rig.host.world());
    let files: Vec<_> = rig.host.world().images.files.keys().cloned().collect();
    let done = rig.run(|lifecycle| lifecycle.backup(NAME, wishes, Quiesce::Never, &rig.host)).unwrap();
    let error = done.expect_err("it is refused");
    assert!(matches!(error, DomainError::Refused { .. }), "{error:?}");
    let world = rig.host.world();
    assert!(files.iter().eq(world.images.files.keys()) && world.snapshots == 0, "something was done");
    (error.to_string(), error.hint().unwrap())
}

#[track_caller]
fn assert_refused(layout: Layout, wishes: &Wishes, make: impl FnOnce(&mut World), text: &str, hint: &str) {
    let (said, hinted) = refusal(layout, wishes, make);
    assert_eq!(said, format!("domain web: {text}"));
    assert!(hinted.contains(hint), "{hinted}");
}

fn plain(make: impl FnOnce(&mut World), text: &str, hint: &str) {
    assert_refused(Layout::default(), &Wishes::default(), make, text, hint);
}

/// A disk besides the first one, with this XML, in both definitions.
fn with_device(xml: &'static str) -> impl FnOnce(&mut World) {
    move |world| {
        world.machine.devices = xml.to_owned();
        world.machine.set_persistent(world.machine.at_first());
    }
}

#[test]
fn what_others_do_to_the_domain_is_left_alone() {
    plain(
        |world| world.known_snapshots = ["a", "b", "c", "d"].map(str::to_owned).to_vec(),
        "libvirt keeps snapshots of it (a, b, c, …), whose files must not be merged",
        "virsh snapshot-delete",
    );
    plain(
        |world| world.known_checkpoints = ["daily".to_owned()].into(),
        "libvirt keeps checkpoints of it (daily): another backup tool tracks changes in its disks",
        "virsh checkpoint-delete",
    );
    plain(
        |world| world.domain_job = Some("migration".into()),
        "a job is running on it (migration): a migration, a save or a backup by somebody else",
        "virsh domjobinfo",
    );
    plain(
        |world| {
            let disk = world.machine.disk("vda").unwrap();
            let top = disk.chain[0].clone();
            let foreign = Some("Block Copy");
            disk.job = Some(Copying { active: true, base: top.clone(), top, ready: false, foreign });
        },
        "disk vda has a block job already (Block Copy)",
        "virsh blockjob",
    );
}

#[test]
fn a_domain_that_starts_from_elsewhere_is_refused() {
    let transient = Layout { transient: true, ..Layout::default() };
    assert_refused(
        transient,
        &Wishes::default(),
        |_| {},
        "it is transient: whoever starts it again would not know of its overlay",
        "--strategy pivot",
    );
    let rotate = Wishes { strategy: Some(Approach::Rotate), ..Wishes::default() };
    assert_refused(
        Layout { nova: true, ..Layout::default() },
        &rotate,
        |_| {},
        "OpenStack Nova manages it and would start it from its original file",
        "leave --strategy out",
    );
    plain(
        |world| {
            let elsewhere =
                |layers: &mut Vec<crate::hypervisor::Backing>| layers[0].path = "/vm/other".into();
            world.machine.change_persistent("vda", elsewhere);
        },
        "disk vda writes to /vm/web-vda.qcow2 now, and to /vm/other after the next start",
        "stop and start",
    );
}

#[test]
fn nobody_is_told_to_stop_a_domain_that_would_fall_back() {
    let rig = Rig::new(Layout::default(), 5);
    let back_up =
        || rig.run(|lifecycle| lifecycle.backup(NAME, &Wishes::default(), Quiesce::Never, &rig.host));
    back_up().unwrap().unwrap();
    rig.host.world().machine.change_persistent("vda", |layers| drop(layers.remove(0)));
    let error = back_up().unwrap().expect_err("it is refused");
    assert!(matches!(error, DomainError::Refused { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("do not stop it before"), "{error:?}");
}

#[test]
fn a_transient_domain_and_one_of_nova_pivot() {
    let pivot = Wishes { strategy: Some(Approach::Pivot), ..Wishes::default() };
    let transient = Layout { transient: true, ..Layout::default() };
    let nova = Layout { nova: true, ..Layout::default() };
    for (layout, wishes) in [(transient, pivot), (nova, Wishes::default())] {
        let rig = Rig::new(layout, 5);
        let done = rig.run(|lifecycle| lifecycle.backup(NAME, &wishes, Quiesce::IfPossible, &rig.host));
        let done = done.unwrap().unwrap();
        assert_eq!(done.strategy, Some(Approach::Pivot));
        assert!(done.unfinished.is_none() && rig.is_given_back());
        rig.check();
    }
}

#[test]
fn disks_that_cannot_be_read_are_refused() {
    let device = |xml, text, hint| plain(with_device(xml), text, hint);
    device(
        "<disk type='block' device='lun'><driver name='qemu' type='raw'/><source dev='/dev/sdb'/>\
         <target dev='sda' bus='scsi'/></disk>",
        "disk sda is a SCSI device passed through to the guest",
        "--exclude-disk sda",
    );
    device(
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' \
         name='pool/image'/><target dev='vdx' bus='virtio'/></disk>",
        "disk vdx is neither a file nor a block device (network rbd pool/image)",
        "--exclude-disk vdx",
    );
    device(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/vm/x'/>\
         <target dev='vdx' bus='virtio'/><shareable/></disk>",
        "disk vdx is shared with other domains that write to it, too",
        "--exclude-disk vdx",
    );
    device(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/vm/x'/>\
         <target dev='vdx' bus='virtio'/><transient/></disk>",
        "disk vdx drops what the guest writes when it stops",
        "--exclude-disk vdx",
    );
    device(
        "<disk type='file' device='disk'><driver name='qemu' type='vmdk'/><source file='/vm/x'/>\
         <target dev='vdx' bus='virtio'/></disk>",
        "disk vdx has the format vmdk, which cannot be read",
        "--exclude-disk vdx",
    );
    device(
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/x'/>\
         <target dev='vdx' bus='virtio'/></disk>",
        "disk vdx is a block device, beside which no overlay can lie",
        "--overlay-dir",
    );
}

#[test]
fn wishes_that_cannot_be_granted_are_refused() {
    let exclude = |target: &str| Wishes { exclude: vec![target.to_owned()], ..Wishes::default() };
    assert_refused(
        Layout::default(),
        &exclude("vdz"),
        |_| {},
        "it has no disk vdz to leave out",
        "its disks are vda",
    );
    assert_refused(
        Layout::default(),
        &exclude("vda"),
        |_| {},
        "it has no disk to back up",
        "virsh domblklist",
    );
    plain(
        |world| {
            world.free = 100 << 20;
            world.size_factor = 1 << 30;
        },
        "/vm has 100 MiB free, and its overlays may need 614 MiB while the backup runs",
        "--overlay-dir",
    );
}

#[test]
fn disks_with_nothing_of_the_guests_are_left_out() {
    let rig = Rig::new(Layout { disks: 2, ..Layout::default() }, 5);
    with_device(
        "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk><disk type='file' \
         device='disk'><driver name='qemu' type='raw'/><source file='/vm/iso'/><target dev='vdx' bus='virtio'/>\
         <readonly/></disk>",
    )(&mut rig.host.world());
    let wishes = Wishes { exclude: vec!["vdb".into()], ..Wishes::default() };
    let done = rig.run(|lifecycle| lifecycle.backup(NAME, &wishes, Quiesce::IfPossible, &rig.host));
    let disks: Vec<_> = done.unwrap().unwrap().outcome.disks.into_iter().map(|disk| disk.name).collect();
    assert_eq!(disks, ["vda"]);
    let notices = rig.notices.0.lock().unwrap();
    assert_eq!(*notices, ["web: disk vdx is read-only and is not backed up"]);
}

/// How a backup ends with an agent in that mood: how consistent it is, and whether the guest is known to be thawed.
fn with_agent(agent: Mood, quiesce: Quiesce) -> Result<(Consistency, bool), DomainError> {
    let rig = Rig::new(Layout { agent, ..Layout::default() }, 5);
    let done = rig.backup(Strategy::Rotate, quiesce).unwrap();
    let pending = rig.record().is_some_and(|record| record.thaw_pending);
    let done = done.inspect_err(|_| assert!(rig.is_given_back()))?;
    assert_eq!(pending, done.unfinished.is_some());
    Ok((done.consistency, !pending))
}

#[test]
fn the_agent_takes_part_if_it_can() {
    for (agent, expected) in [
        (Mood::Answers, (Consistency::Filesystem, true)),
        (Mood::Absent, (Consistency::Crash, true)),
        (Mood::Dead, (Consistency::Crash, true)),
        (Mood::Hangs, (Consistency::Crash, true)),
        (Mood::Refuses, (Consistency::Crash, true)),
        (Mood::Lies, (Consistency::Crash, true)),
        (Mood::Stuck, (Consistency::Crash, false)),
    ] {
        assert_eq!(with_agent(agent, Quiesce::IfPossible).unwrap(), expected, "{agent:?}");
    }
}

#[test]
fn without_the_agent_there_is_no_backup_if_it_is_required() {
    for agent in [Mood::Absent, Mood::Dead, Mood::Hangs, Mood::Refuses, Mood::Lies, Mood::Stuck] {
        let error = with_agent(agent, Quiesce::Required).unwrap_err();
        match agent {
            Mood::Stuck => assert!(matches!(error, DomainError::Unsound { .. }), "{error:?}"),
            _ => assert!(matches!(error, DomainError::NotQuiesced { .. }), "{agent:?}: {error:?}"),
        }
    }
    let done = with_agent(Mood::Answers, Quiesce::Required).unwrap();
    assert_eq!(done, (Consistency::Filesystem, true));
}

#[test]
fn the_agent_is_left_alone_if_that_is_wanted() {
    for agent in [Mood::Answers, Mood::Stuck, Mood::Hangs] {
        assert_eq!(with_agent(agent, Quiesce::Never).unwrap(), (Consistency::Crash, true));
    }
}

#[test]
fn a_freeze_that_comes_late_is_thawed() {
    let rig = Rig::new(Layout::default(), 5);
    rig.host.world().machine.agent = Mood::Stuck;
    let done = rig.backup(Strategy::Rotate, Quiesce::IfPossible).unwrap().unwrap();
    assert!(done.unfinished.is_some() && rig.host.world().machine.frozen());
    assert!(rig.recover().unwrap().is_err(), "it does not answer");
    rig.host.world().machine.agent = Mood::Answers;
    let recovered = rig.recover().unwrap().unwrap();
    assert_eq!(recovered, ["the guest's file systems were thawed"]);
    assert!(!rig.host.world().machine.frozen());
}

/// A repository that takes nothing.
struct Full;

impl Capture for Full {
    fn repository(&self) -> RepositoryId {
        RepositoryId::new([0; 16])
    }

    fn capture(&self, _: &Frozen<'_>) -> Result<Outcome, DomainError> {
        Err(DomainError::Busy { domain: "the repository".into() })
    }
}

#[test]
fn thawing_is_tried_again_after_a_backup_that_failed() {
    let rig = Rig::new(Layout::default(), 7);
    rig.host.world().machine.agent = Mood::Stuck;
    let backup = |lifecycle: &Lifecycle<'_>| {
        lifecycle.backup(NAME, &Wishes::default(), Quiesce::IfPossible, &Full).unwrap_err()
    };
    assert!(matches!(rig.run(backup).unwrap(), DomainError::Busy { .. }));
    let notices = rig.notices.0.lock().unwrap();
    let told = notices.iter().filter(|notice| notice.contains("file systems may be frozen"));
    assert_eq!(told.count(), 2, "{notices:?}");
}

#[test]
fn what_is_left_of_a_domain_that_is_gone_is_named_until_it_is_removed() {
    let rig = Rig::new(Layout::default(), 6);
    rig.backup(Strategy::Rotate, Quiesce::IfPossible).unwrap().unwrap();
    rig.interrupt(&[(40, Interruption::Kill)]);
    assert!(rig.backup(Strategy::Rotate, Quiesce::IfPossible).is_none());
    let recover = || rig.run(|lifecycle| lifecycle.recover(None)).unwrap().unwrap();
    let left: Vec<_> = {
        let mut world = rig.host.world();
        (world.machine.process, world.machine.inactive) = (None, None);
        world
            .images
            .files
            .keys()
            .filter(|path| path.to_str().unwrap().contains("underlay"))
            .cloned()
            .collect()
    };
    rig.host
        .world()
        .journal
        .values_mut()
        .for_each(|text| *text = text.replace("test:///double", "test:///other"));
    let elsewhere = recover().remove(0).actions.unwrap_err();
    assert_eq!(
        elsewhere.hint().unwrap(),
        "`underlay recover --connect test:///other` brings it in order",
        "{elsewhere}"
    );
    rig.host
        .world()
        .journal
        .values_mut()
        .for_each(|text| *text = text.replace("test:///other", "test:///double"));
    let error = recover().remove(0).actions.unwrap_err().to_string();
    assert!(
        left.len() > 1 && left.iter().all(|path| error.contains(path.to_str().unwrap())),
        "{error} {left:?}"
    );
    rig.host.world().images.files.retain(|path, _| !left.contains(path));
    assert_eq!(recover().remove(0).actions.unwrap().len(), 1);
    assert!(recover().is_empty());
}

#[test]
fn a_guest_that_found_no_room_is_told_of_though_its_snapshot_is_safe() {
    for strategy in [Strategy::Rotate, Strategy::Pivot] {
        let rig = Rig::new(Layout::default(), 8);
        rig.host.world().stuck = true;
        let done = rig.backup(strategy, Quiesce::IfPossible).unwrap().unwrap();
        let hint = done.unfinished.unwrap().hint().unwrap();
        assert!(hint.contains("virsh resume"), "{hint}");
        rig.host.world().stuck = false;
        assert!(rig.backup(strategy, Quiesce::IfPossible).unwrap().unwrap().unfinished.is_none());
    }
}
