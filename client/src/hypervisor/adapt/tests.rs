use proptest::prelude::*;

use super::*;

/// As `virsh dumpxml --inactive --security-info` of libvirt 11 prints it, with more in it than one machine has.
const WEB: &str = include_str!("web.xml");

fn file(path: &str, format: &str) -> Backing {
    Backing { path: path.into(), format: format.into() }
}

fn adaptation(identity: RestoredAs) -> Adaptation {
    let disks =
        [("vda", file("/new/it's <a> & \"b\"/vda.qcow2", "qcow2")), ("vdb", file("/new/vdb.raw", "raw"))];
    let disks = disks.map(|(target, file)| (target.to_owned(), file)).into();
    Adaptation { identity, seed: [7; 32], disks, nvram: Some("/new/nvram.fd".into()) }
}

fn another(name: &str) -> RestoredAs {
    RestoredAs::Another { name: Some(name.into()) }
}

/// A domain with nothing but these devices and this firmware.
fn small(os: &str, devices: &str) -> String {
    format!(
        "<domain><name>a</name><uuid>u</uuid><os><type>hvm</type>{os}</os><devices>{devices}</devices></domain>"
    )
}

fn adapted_small(os: &str, devices: &str, adaptation: &Adaptation) -> String {
    let adapted = adapt("a", &small(os, devices), adaptation).unwrap().xml;
    let (os, devices) = (adapted.find("</type>").unwrap() + 7, adapted.find("<devices>").unwrap() + 9);
    format!("{} {}", &adapted[os..devices - 14], &adapted[devices..adapted.len() - 19])
}

/// What the same text is after replacing each of these parts, which it has exactly once.
#[track_caller]
fn replaced(text: &str, parts: &[(&str, &str)]) -> String {
    parts.iter().fold(text.to_owned(), |text, (old, new)| {
        assert_eq!(text.matches(old).count(), 1, "{old}");
        text.replace(old, new)
    })
}

const DISKS: [(&str, &str); 6] = [
    (
        "<source file='/vm/it&apos;s \"web\".raw' startupPolicy='optional'>\n        <seclabel model='dac' \
         relabel='no'/>\n      </source>\n      <backingStore type='file'>\n        <format type='qcow2'/>\n        \
         <source file='/vm/base.qcow2'/>\n        <backingStore/>\n      </backingStore>",
        "<source file='/new/it&apos;s &lt;a&gt; &amp; &quot;b&quot;/vda.qcow2'/>",
    ),
    ("type='raw' cache", "type='qcow2' cache"),
    ("<disk type=\"block\"", "<disk type=\"file\""),
    (
        "type=\"qcow2\" discard_no_unref=\"on\">\n        <metadata_cache>\n          <max_size \
         unit='bytes'>1024</max_size>\n        </metadata_cache>",
        "type=\"raw\">",
    ),
    ("<source dev=\"/dev/vg/data\"/>", "<source file='/new/vdb.raw'/>"),
    (
        "\n    <disk type='network' device='disk'>\n      <driver name='qemu' type='raw'/>\n      <auth \
         username='cinder'>\n        <secret type='ceph' uuid='457eb676-33da-42ec-9a8c-9293d545c337'/>\n      \
         </auth>\n      <source protocol='rbd' name='volumes/scratch'>\n        <host name='10.0.0.1' \
         port='6789'/>\n      </source>\n      <target dev='vdc' bus='virtio'/>\n    </disk>",
        "",
    ),
];

#[test]
fn the_same_machine_changes_only_its_files_and_its_generation() {
    let adapted = adapt("web", WEB, &adaptation(RestoredAs::Itself)).unwrap();
    assert_eq!(
        (adapted.name.as_str(), adapted.uuid.as_str()),
        ("web & co", "3c923692-36d6-467c-b21b-03eb2fcd1a15")
    );
    assert_eq!((adapted.removed, adapted.has_tpm), (vec!["vdc".to_owned()], true));
    let genid = text_of(&adapted.xml, "genid");
    assert_is_random_uuid(&genid);
    let mut parts = DISKS.to_vec();
    parts.push(("/var/lib/libvirt/qemu/nvram/web_VARS.fd", "/new/nvram.fd"));
    parts.push(("43dc0cf8-809b-4adb-9bea-a9abb5f3d90e", &genid));
    assert_eq!(adapted.xml, replaced(WEB, &parts));
}

#[test]
fn another_machine_shares_nothing_that_must_be_unique() {
    let adapted = adapt("web", WEB, &adaptation(another("<new> & 'old'"))).unwrap();
    assert_eq!(adapted.name, "<new> & 'old'");
    assert_is_random_uuid(&adapted.uuid);
    let genid = text_of(&adapted.xml, "genid");
    assert_is_random_uuid(&genid);
    let document = Document::parse(&adapted.xml).unwrap();
    let all = |name: &'static str, attribute: &'static str| -> Vec<_> {
        let nodes = document.descendants().filter(|node| node.has_tag_name(name));
        nodes.filter_map(|node| node.attribute(attribute)).collect()
    };
    let (macs, ports) = (all("mac", "address"), all("parameters", "interfaceid"));
    assert!(
        macs[0] != macs[1] && macs.iter().all(|mac| mac.len() == 17 && mac.starts_with("52:54:00:")),
        "{macs:?}"
    );
    assert_is_random_uuid(ports[0]);
    assert!(ports[0] != adapted.uuid && genid != adapted.uuid);
    let (uuid, told) = (format!("<uuid>{}", adapted.uuid), format!("'uuid'>{}", adapted.uuid));
    let mut parts = DISKS.to_vec();
    parts.extend_from_slice(&[
        ("<name>web &amp; co<", "<name>&lt;new&gt; &amp; &apos;old&apos;<"),
        ("<uuid>3c923692-36d6-467c-b21b-03eb2fcd1a15", &uuid),
        ("'uuid'>3c923692-36d6-467c-b21b-03eb2fcd1a15", &told),
        ("/var/lib/libvirt/qemu/nvram/web_VARS.fd", "/new/nvram.fd"),
        ("43dc0cf8-809b-4adb-9bea-a9abb5f3d90e", &genid),
        ("52:54:00:a1:b2:c3", macs[0]),
        ("fa:16:3e:00:00:01", macs[1]),
        ("5ea3e1aa-0b9d-4ac8-a1ff-5cbb6d8e0ee6", ports[0]),
        ("\n      <target dev='vnet7'/>", ""),
        ("\n      <source mode='bind' path='/var/lib/libvirt/qemu/org.qemu.guest_agent.0.web.sock'/>", ""),
        (
            "\n    <nova:instance xmlns:nova=\"http://openstack.org/xmlns/libvirt/nova/1.1\">\n      \
             <nova:name>web</nova:name>\n    </nova:instance>",
            "",
        ),
    ]);
    assert_eq!(adapted.xml, replaced(WEB, &parts));
    let same_name = adapt("web", WEB, &adaptation(RestoredAs::Another { name: None })).unwrap();
    assert_eq!((same_name.name.as_str(), same_name.uuid), ("web & co", adapted.uuid));
}

#[test]
fn the_same_seed_makes_the_same_machine() {
    let first = adaptation(another("b"));
    let second = Adaptation { seed: [8; 32], ..first.clone() };
    assert_eq!(adapt("web", WEB, &first).unwrap(), adapt("web", WEB, &first).unwrap());
    let (first, second) = (adapt("web", WEB, &first).unwrap(), adapt("web", WEB, &second).unwrap());
    assert_ne!(first.uuid, second.uuid);
    assert_ne!(text_of(&first.xml, "genid"), text_of(&second.xml, "genid"));
}

#[test]
fn firmware_variables_of_every_form() {
    let mut adaptation = adaptation(RestoredAs::Itself);
    adaptation.disks.clear();
    let mut adapted = |os: &str, identity, nvram: Option<&str>| {
        (adaptation.identity, adaptation.nvram) = (identity, nvram.map(PathBuf::from));
        adapted_small(os, "", &adaptation).trim_end().to_owned()
    };
    let path = "<nvram template='/t' format='qcow2'>/old</nvram>";
    let source = "<nvram type='file' template='/t'>\n <source file='/old'/>\n</nvram>";
    let device = "<nvram type='block' format='raw'><source dev='/dev/old'/></nvram>";
    let empty = "<nvram template='/t'/>";
    let itself = || RestoredAs::Itself;
    assert_eq!(
        adapted(path, itself(), Some("/a'b")),
        "<nvram template='/t' format='qcow2'>/a&apos;b</nvram>"
    );
    assert_eq!(
        adapted(source, itself(), Some("/n")),
        "<nvram type='file' template='/t'><source file='/n'/></nvram>"
    );
    assert_eq!(
        adapted(device, itself(), Some("/n")),
        "<nvram type='file' format='raw'><source file='/n'/></nvram>"
    );
    assert_eq!(adapted(empty, itself(), Some("/n")), "<nvram template='/t'>/n</nvram>");
    for unchanged in [path, source, device, empty] {
        assert_eq!(adapted(unchanged, itself(), None), unchanged);
    }
    // Those of the old machine are never another's.
    assert_eq!(adapted(path, another("b"), None), "<nvram template='/t' format='qcow2'></nvram>");
    assert_eq!(adapted(source, another("b"), None), "<nvram template='/t'></nvram>");
    assert_eq!(adapted(device, another("b"), None), "<nvram format='raw'></nvram>");
    assert_eq!(adapted(empty, another("b"), None), empty);
    let unwritten =
        adapt("a", &small("<loader/>", ""), &Adaptation { nvram: Some("/n".into()), ..adaptation });
    assert!(unwritten.unwrap().xml.contains("<os><nvram>/n</nvram><type>hvm</type><loader/></os>"));
}

#[test]
fn what_is_encrypted_stays_so_or_is_refused() {
    let key = "<encryption format='luks'><secret type='passphrase' uuid='x'/></encryption>";
    let disk = |format: &str, in_source: &str, beside: &str| {
        format!(
            "<disk><driver type='{format}'/><source file='/o'>{in_source}</source>{beside}<target dev='vda'/></disk>"
        )
    };
    let mut adaptation = adaptation(RestoredAs::Itself);
    (adaptation.disks, adaptation.nvram) = ([("vda".to_owned(), file("/n", "raw"))].into(), None);
    let adapted = |devices: &str| adapted_small("", devices, &adaptation).trim_start().to_owned();
    let in_source = disk("raw", key, "");
    assert_eq!(adapted(&in_source), in_source.replace("/o", "/n"));
    let beside = disk("raw", "", key);
    assert_eq!(adapted(&beside), beside.replace("/o'></source>", "/n'/>"));
    let hint = |format: &str, devices: &str| {
        let disks = [("vda".to_owned(), file("/n", format))].into();
        let error = adapt("a", &small("", devices), &Adaptation { disks, ..adaptation.clone() }).unwrap_err();
        assert!(error.to_string().contains("QEMU decrypts disk vda"), "{error}");
        error.hint()
    };
    assert_eq!(hint("qcow2", &in_source), Some("give --format raw"));
    assert_eq!(hint("qcow2", &beside), Some("give --format raw"));
    assert_eq!(hint("raw", &disk("qcow2", "", &format!("<backingStore>{key}</backingStore>"))), None);
}

#[test]
fn disks_of_odd_forms() {
    let mut adaptation = adaptation(RestoredAs::Itself);
    (adaptation.disks, adaptation.nvram) = ([("vda".to_owned(), file("/n", "qcow2"))].into(), None);
    let adapted = |devices: &str| adapted_small("", devices, &adaptation).trim_start().to_owned();
    assert_eq!(
        adapted("<disk><source file='/o'/><source file='/p'/><target dev='vda'/></disk>"),
        "<disk><driver name='qemu' type='qcow2'/><source file='/n'/><target dev='vda'/></disk>"
    );
    assert_eq!(
        adapted("<disk type='file'><source file='/o'></source><driver/><mirror/><target dev='vda'/></disk>"),
        "<disk type='file'><source file='/n'/><driver type='qcow2'/><target dev='vda'/></disk>"
    );
    let refused = |devices: &str| adapt("a", &small("", devices), &adaptation).unwrap_err().to_string();
    let disk = "<disk><source file='/o'/><target dev='vda'/></disk>";
    assert!(refused("<disk><target dev='vda'/></disk>").contains("disk vda has no source"));
    assert!(refused("").contains("no disk vda"));
    assert!(refused(&disk.repeat(2)).contains("two disks are called vda"));
    for path in ["relative", "/with\nline"] {
        let disks = [("vda".to_owned(), file(path, "raw"))].into();
        let error = adapt("a", &small("", disk), &Adaptation { disks, ..adaptation.clone() }).unwrap_err();
        assert!(matches!(error, HypervisorError::NotAdaptable { .. }), "{error}");
    }
    let named = Adaptation { identity: another("\0"), ..adaptation.clone() };
    assert!(adapt("a", &small("", disk), &named).is_err());
    for broken in [
        "",
        "<network/>",
        "<domain/>",
        "<domain><name>a</name></domain>",
        "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>",
    ] {
        assert!(
            matches!(adapt("a", broken, &adaptation), Err(HypervisorError::Definition { .. })),
            "{broken}"
        );
    }
}

fn text_of(xml: &str, name: &str) -> String {
    let document = Document::parse(xml).unwrap();
    let node = document.descendants().find(|node| node.has_tag_name(name)).unwrap();
    node.text().unwrap().to_owned()
}

#[track_caller]
fn assert_is_random_uuid(uuid: &str) {
    let shape: String = uuid.chars().map(|c| if c.is_ascii_hexdigit() { 'x' } else { c }).collect();
    assert_eq!(shape, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx");
    assert!(&uuid[14..15] == "4" && "89ab".contains(&uuid[19..20]), "{uuid}");
}

proptest! {
    /// A real definition with some of its characters replaced, removed or said twice.
    #[test]
    fn a_damaged_definition_is_adapted_or_refused(
        places in prop::collection::vec((0..WEB.len(), 0usize..60, "[<>/'\" a-z=&;!\\[\\]-]{0,3}", any::<bool>()), 0..6),
        new in any::<bool>(),
    ) {
        let mut text = WEB.to_owned();
        for (at, length, replacement, twice) in places {
            let (start, end) = (at.min(text.len()), (at + length).min(text.len()));
            let again = if twice { text[start..end].repeat(2) } else { replacement };
            text.replace_range(start..end, &again);
        }
        let adaptation = adaptation(if new { another("b") } else { RestoredAs::Itself });
        if let Ok(adapted) = adapt("web", &text, &adaptation) {
            prop_assert!(Document::parse(&adapted.xml).is_ok());
        }
    }

    /// Whatever folder the user has, the definition names its files.
    #[test]
    fn any_path_and_name_come_through(folder in "/[^/\\pC]{1,40}", name in "[^/\\pC]{1,20}") {
        let mut adaptation = adaptation(another(&name));
        let path = Path::new(&folder).join("vda.qcow2");
        adaptation.disks.insert("vda".into(), Backing { path: path.clone(), format: "qcow2".into() });
        adaptation.nvram = Some(path.clone());
        let adapted = adapt("web", WEB, &adaptation).unwrap();
        let definition = crate::hypervisor::Definition::parse("web", &adapted.xml).unwrap();
        prop_assert_eq!(definition.disk("vda").unwrap().source.path(), Some(path.as_path()));
        prop_assert_eq!(definition.firmware.unwrap().nvram, Some(path));
        prop_assert_eq!(text_of(&adapted.xml, "name"), name);
    }
}
