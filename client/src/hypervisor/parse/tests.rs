use std::path::Path;

use proptest::prelude::*;

use super::*;

/// A running domain as libvirt 11.3 prints it, after snapshots and amid a job, shortened where backups do not look.
const RUNNING: &str = r#"<domain type='kvm' id='17'>
  <name>3 odd,name=&apos;x&apos; é</name>
  <uuid>3c923692-36d6-467c-b21b-03eb2fcd1a15</uuid>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://example.org/os/12"/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>65536</memory>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <firmware>
      <feature enabled='no' name='enrolled-keys'/>
    </firmware>
    <loader readonly='yes' type='pflash' format='raw'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd' format='raw'>/var/lib/libvirt/qemu/nvram/web &amp; co_VARS.fd</nvram>
    <boot dev='hd'/>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/srv/img dir,x=1/ov&apos;&quot;&amp;&lt;&gt;.1' index='4'>
        <seclabel model='dac' relabel='no'/>
      </source>
      <backingStore type='file' index='3'>
        <format type='qcow2'/>
        <source file='/srv/img dir,x=1/base é&apos;&quot;&amp;&lt;.qcow2'/>
        <backingStore type='block' index='2'>
          <format type='raw'/>
          <source dev='/dev/vg/base'/>
          <backingStore/>
        </backingStore>
      </backingStore>
      <mirror type='file' job='active-commit' ready='yes'>
        <format type='qcow2'/>
        <source file='/srv/img dir,x=1/base é&apos;&quot;&amp;&lt;.qcow2' index='3'/>
      </mirror>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x04' function='0x0'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source dev='/dev/vg/data' index='1'/>
      <backingStore/>
      <target dev='sdb' bus='scsi'/>
      <shareable/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'>
        <host name='ceph' port='6789'/>
      </source>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='raw'/>
      <source pool='default' volume='v1'/>
      <target dev='vdd' bus='virtio'/>
      <transient/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu'/>
      <target dev='hda' bus='ide'/>
      <readonly/>
      <alias name='ide0-0-0'/>
    </disk>
    <disk type='file' device='floppy'>
      <source file='/a.img' startupPolicy='optional'/>
      <target dev='fda'/>
    </disk>
    <channel type='spicevmc'>
      <target type='virtio' name='com.redhat.spice.0' state='connected'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/17-x/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
      <alias name='channel0'/>
    </channel>
    <graphics type='vnc' port='5900' autoport='yes' listen='127.0.0.1'>
      <listen type='address' address='127.0.0.1'/>
    </graphics>
  </devices>
</domain>
"#;

fn read(xml: &str) -> Definition {
    Definition::parse("web", xml).unwrap()
}

/// A domain with these elements in its `<devices>`.
fn with_devices(devices: &str) -> Definition {
    read(&format!("<domain><name>web</name><devices>{devices}</devices></domain>"))
}

fn with_disk(attributes: &str, inside: &str) -> DomainDisk {
    with_devices(&format!("<disk {attributes}>{inside}<target dev='vda'/></disk>")).disks.remove(0)
}

fn with_os(os: &str) -> Option<Firmware> {
    read(&format!("<domain>{os}<devices/></domain>")).firmware
}

fn problem(xml: &str) -> String {
    Definition::parse("web", xml).unwrap_err().to_string()
}

#[test]
fn a_running_domain_is_read() {
    let definition = read(RUNNING);
    assert_eq!(definition.xml, RUNNING);
    assert_eq!(definition.agent, Agent::Connected);
    assert!(definition.nova.is_none());
    let nvram = definition.firmware.as_ref().and_then(|firmware| firmware.nvram.as_deref());
    assert_eq!(nvram, Some(Path::new("/var/lib/libvirt/qemu/nvram/web & co_VARS.fd")));
    let subject = subject("web", RUNNING).unwrap();
    assert_eq!(subject.name, "3 odd,name='x' é");
    assert_eq!(subject.uuid, "3c923692-36d6-467c-b21b-03eb2fcd1a15");
    assert!(subject.running);

    let names: Vec<_> = definition.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(names, ["vda", "sdb", "vdc", "vdd", "hda", "fda"]);
    let base = PathBuf::from("/srv/img dir,x=1/base é'\"&<.qcow2");
    assert_eq!(
        definition.disk("vda").unwrap(),
        &DomainDisk {
            target: "vda".to_owned(),
            bus: Some("virtio".to_owned()),
            kind: DiskKind::Disk,
            source: Source::File("/srv/img dir,x=1/ov'\"&<>.1".into()),
            format: Some("qcow2".to_owned()),
            read_only: false,
            shareable: false,
            transient: false,
            encrypted: false,
            backing: vec![
                Backing { path: base.clone(), format: "qcow2".to_owned() },
                Backing { path: "/dev/vg/base".into(), format: "raw".to_owned() },
            ],
            mirror: Some(Mirror { job: "active-commit".to_owned(), target: Some(base), ready: true }),
        }
    );
}

#[test]
fn each_kind_of_disk_is_told_apart() {
    let definition = read(RUNNING);
    let disk = |name| definition.disk(name).unwrap();
    assert_eq!(disk("sdb").source, Source::Block("/dev/vg/data".into()));
    assert!(disk("sdb").shareable && !disk("sdb").transient && disk("sdb").backing.is_empty());
    assert_eq!(disk("vdc").source, Source::Other("network rbd pool/image".to_owned()));
    assert_eq!(disk("vdd").source, Source::Other("volume default/v1".to_owned()));
    assert!(disk("vdd").transient);
    assert_eq!((disk("hda").kind, &disk("hda").source), (DiskKind::Cdrom, &Source::Empty));
    assert!(disk("hda").read_only);
    assert_eq!(disk("hda").format, None);
    assert_eq!((disk("fda").kind, disk("fda").bus.as_deref()), (DiskKind::Floppy, None));
    assert_eq!(with_disk("type='block' device='lun'", "<source dev='/dev/sg0'/>").kind, DiskKind::Lun);
    assert!(
        problem("<domain><devices><disk device='tape'><target dev='x'/></disk></devices></domain>")
            .contains("tape")
    );
}

#[test]
fn sources_that_are_no_whole_file_are_never_taken_for_one() {
    let told = |kind: &str, source: &str| with_disk(&format!("type='{kind}'"), source).source;
    let other = |words: &str| Source::Other(words.to_owned());
    let slice =
        "<source file='/a'><slices><slice type='storage' offset='512' size='1024'/></slices></source>";
    assert_eq!(told("file", slice), other("file part of /a"));
    assert_eq!(told("network", "<source protocol='nbd'><host name='h'/></source>"), other("network nbd"));
    assert_eq!(told("network", ""), other("network"));
    assert_eq!(told("nvme", "<source type='pci' managed='yes' namespace='1'/>"), other("nvme pci"));
    assert_eq!(
        told("vhostuser", "<source type='unix' path='/run/x.sock'/>"),
        other("vhostuser /run/x.sock/unix")
    );
    assert_eq!(told("dir", "<source dir='/a'/>"), other("dir /a"));
    assert_eq!(told("file", "<source startupPolicy='optional'/>"), Source::Empty);
    assert_eq!(told("file", "<source file=''/>"), Source::Empty);
    assert_eq!(told("block", ""), Source::Empty);
    assert_eq!(
        with_disk("", "<source file='/a'/>").source,
        Source::File("/a".into()),
        "a file if nothing is said"
    );
}

#[test]
fn only_a_disks_own_elements_count() {
    // A data file's source lies within the disk's; a backing store's is no source of the disk.
    let disk = with_disk(
        "type='file'",
        "<driver type='qcow2'/><source file='/a'><dataStore type='file'><format type='raw'/><source file='/d'/>\
         </dataStore></source><backingStore type='file'><format type='raw'/><source file='/b'/><readonly/>\
         </backingStore>",
    );
    assert_eq!(disk.source, Source::File("/a".into()));
    assert_eq!(disk.backing, [Backing { path: "/b".into(), format: "raw".to_owned() }]);
    assert!(!disk.read_only);
    let foreign = with_disk("type='file'", "<x:source xmlns:x='urn:x' file='/no'/><source file='/a'/>");
    assert_eq!(foreign.source, Source::File("/a".into()));
}

#[test]
fn a_chain_that_leaves_the_host_says_so() {
    let network = "<source file='/a'/><backingStore type='network'><format type='raw'/><source protocol='nbd' \
                   name='base'><host name='h'/></source><backingStore/></backingStore>";
    let disk = with_disk("type='file'", network);
    assert_eq!(disk.backing, [Backing { path: "network nbd base".into(), format: "raw".to_owned() }]);
    assert!(disk.backing[0].path.is_relative());
}

#[test]
fn an_inactive_chain_may_stop_early() {
    assert!(with_disk("type='file'", "<source file='/a'/>").backing.is_empty());
    let one = "<source file='/a'/><backingStore type='file'><format type='qcow2'/><source file='/b'/></backingStore>";
    assert_eq!(with_disk("type='file'", one).backing.len(), 1);
}

#[test]
fn broken_chains_are_refused() {
    let xml =
        |store: &str| format!("<domain><devices><disk><target dev='vda'/>{store}</disk></devices></domain>");
    let without_format = xml("<backingStore type='file'><source file='/b'/></backingStore>");
    assert_eq!(
        problem(&without_format),
        "the definition of domain \"web\" cannot be understood: disk vda: layer /b has no format"
    );
    let without_source = xml("<backingStore type='file'><format type='raw'/></backingStore>");
    assert!(problem(&without_source).ends_with("disk vda: a layer below it has no source"));
    assert!(problem("<domain><devices><disk/></devices></domain>").ends_with("a disk has no target"));
}

#[test]
fn mirrors_are_read_in_every_stage() {
    let mirror = |text: &str| with_disk("type='file'", text).mirror.unwrap();
    let copying = mirror("<mirror type='file' job='active-commit'><source file='/b' index='5'/></mirror>");
    assert_eq!(copying, Mirror { job: "active-commit".to_owned(), target: Some("/b".into()), ready: false });
    assert!(!mirror("<mirror type='file' job='copy' ready='pivot'><source file='/b'/></mirror>").ready);
    assert!(!mirror("<mirror type='file' job='copy' ready='abort'><source file='/b'/></mirror>").ready);
    let old = mirror("<mirror file='/b' format='qcow2' ready='yes'/>");
    assert_eq!(old, Mirror { job: "copy".to_owned(), target: Some("/b".into()), ready: true });
    let remote = mirror("<mirror type='network' job='copy'><source protocol='nbd' name='x'/></mirror>");
    assert_eq!(remote.target, None);
}

#[test]
fn the_agents_channel_is_found() {
    let agent = |target: &str| with_devices(&format!("<channel type='unix'>{target}</channel>")).agent;
    assert_eq!(agent("<target type='virtio' name='org.qemu.guest_agent.0'/>"), Agent::Disconnected);
    assert_eq!(
        agent("<target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/>"),
        Agent::Disconnected
    );
    assert_eq!(
        agent("<target type='virtio' name='org.libguestfs.channel.0' state='connected'/>"),
        Agent::Absent
    );
    assert_eq!(with_devices("").agent, Agent::Absent);
}

#[test]
fn firmware_with_variables_is_found() {
    let at = |path: &str| Some(Firmware { nvram: Some(path.into()) });
    let nowhere = Some(Firmware { nvram: None });
    assert_eq!(with_os("<os><type>hvm</type></os>"), None);
    assert_eq!(with_os("<os><loader type='rom'>/bios</loader></os>"), None);
    assert_eq!(with_os("<os firmware='bios'/>"), None);
    assert_eq!(with_os("<os firmware='efi'><type>hvm</type></os>"), nowhere);
    assert_eq!(with_os("<os><loader readonly='yes' type='pflash'>/code</loader></os>"), nowhere);
    assert_eq!(with_os("<os firmware='efi'><nvram template='/t'/></os>"), nowhere);
    assert_eq!(with_os("<os firmware='efi'><loader stateless='yes'/></os>"), None);
    assert_eq!(with_os("<os><loader type='pflash'>/c</loader><nvram>/v</nvram></os>"), at("/v"));
    let as_source = "<os><loader type='pflash'>/c</loader><nvram type='file' template='/t'>\n  <source file='/v'/>\n</nvram></os>";
    assert_eq!(with_os(as_source), at("/v"));
    assert_eq!(with_os(&as_source.replace("file", "block").replace("block='", "dev='")), at("/v"));
    let remote =
        "<os><nvram type='network'><source protocol='nbd' name='v'><host name='h'/></source></nvram></os>";
    assert_eq!(with_os(remote), at("network nbd v"));
}

#[test]
fn novas_domains_are_recognised_by_their_namespace() {
    let with =
        |metadata: &str| read(&format!("<domain><metadata>{metadata}</metadata></domain>")).nova.is_some();
    for version in ["1.0", "1.1"] {
        let uri = format!("http://openstack.org/xmlns/libvirt/nova/{version}");
        assert!(with(&format!("<nova:instance xmlns:nova='{uri}'><nova:name>x</nova:name></nova:instance>")));
        assert!(with(&format!("<a/><n:instance xmlns:n=\"{uri}\"/>")), "the prefix does not matter");
    }
    assert!(!with("<nova:instance xmlns:nova='http://example.org/nova/1.1'/>"));
    assert!(!with("<nova>http://openstack.org/xmlns/libvirt/nova/1.1</nova>"));
    assert!(read("<domain/>").nova.is_none());
}

#[test]
fn an_inactive_domain_has_no_number() {
    let subject = subject("web", "<domain><name>web</name><uuid>u</uuid></domain>").unwrap();
    assert!(!subject.running);
    assert!(super::subject("web", "<domain><name>web</name></domain>").is_err());
}

#[test]
fn what_is_no_domain_is_refused() {
    assert_eq!(
        problem("<domainsnapshot><domain/></domainsnapshot>"),
        "the definition of domain \"web\" cannot be understood: it is a <domainsnapshot>"
    );
    for text in [
        "",
        "nonsense",
        "<domain>",
        "<domain></domain><domain/>",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><domain>&a;</domain>",
    ] {
        assert!(Definition::parse("web", text).is_err(), "{text:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".*") {
        drop(Definition::parse("web", &text));
        drop(subject("web", &text));
    }

    /// A real definition with some of its characters replaced, removed or said twice.
    #[test]
    fn a_changed_definition_is_read_or_refused(
        changes in prop::collection::vec((0..RUNNING.len(), 0..40_usize, "[<>/='\"&;a-z \u{e9}]{0,6}"), 1..6)
    ) {
        let mut text = RUNNING.to_owned();
        for (at, length, replacement) in changes {
            let start = text.floor_char_boundary(at.min(text.len()));
            let end = text.floor_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end.max(start), &replacement);
        }
        drop(Definition::parse("web", &text));
        drop(subject("web", &text));
    }

    /// Whatever a path holds comes back, if it is what XML can hold.
    #[test]
    fn paths_come_back(path in "/[^\u{0}-\u{1f}\u{7f}-\u{9f}\u{fffe}\u{ffff}]{1,40}") {
        let escaped = path.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;");
        let disk = with_disk("type='file'", &format!("<source file='{escaped}'/>"));
        prop_assert_eq!(disk.source, Source::File(path.into()));
    }
}

#[test]
fn encryption_is_found_wherever_libvirt_puts_it() {
    for inside in [
        "<source file='/a'><encryption format='luks'/></source>",
        "<source file='/a'/><encryption format='luks'/>",
        "<source file='/a'/><backingStore type='file'><format type='raw'/><source file='/b'><encryption \
         format='luks'/></source></backingStore>",
    ] {
        let xml = format!(
            "<domain><name>a</name><uuid>1</uuid><devices><disk><driver type='qcow2'/>{inside}<target \
             dev='vda'/></disk></devices></domain>"
        );
        assert!(Definition::parse("a", &xml).unwrap().disk("vda").unwrap().encrypted, "{inside}");
    }
}
