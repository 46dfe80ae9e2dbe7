use super::*;

#[test]
fn overlays_are_named_after_their_disk() {
    let name = |path: &str| overlay_name(Path::new(path), "vda", "5678");
    assert_eq!(name("/vm/web.qcow2"), "web.vda.underlay-5678.qcow2");
    assert_eq!(name("/vm/web.vda.underlay-1234.qcow2"), "web.vda.underlay-5678.qcow2");
    assert_eq!(name("/vm/web"), "web.vda.underlay-5678.qcow2");
    assert_eq!(name("/vm/.qcow2"), ".vda.underlay-5678.qcow2");
    assert_eq!(name("/dev/vg/root"), "root.vda.underlay-5678.qcow2");
    let long = overlay_name(Path::new(&format!("/{}.raw", "ä".repeat(120))), "vda", "5678");
    assert_eq!(long, format!("{}.vda.underlay-5678.qcow2", "ä".repeat(60)));
}

#[test]
fn overlays_of_another_state_folder_are_told_once() {
    let layer = |path: &str| Backing { path: path.into(), format: "qcow2".into() };
    let disk = SelectedDisk {
        target: "vda".into(),
        bus: None,
        active: layer("/vm/web.vda.underlay-2.qcow2"),
        below: vec![layer("/vm/web.vda.underlay-1.qcow2"), layer("/vm/web.qcow2")],
        on_device: false,
    };
    let selection = Selection { disks: vec![disk], ..Selection::default() };
    let mut record = DomainRecord::new("web", "1", "test:///double");
    let told = changes(&record, &selection);
    assert!(told.len() == 1 && told[0].contains("underlay-2.qcow2, /vm/web.vda.underlay-1"), "{told:?}");
    let known = record.disk_mut("vda");
    known.overlays.insert("/vm/web.vda.underlay-2.qcow2".into());
    let told = changes(&record, &selection);
    assert!(told.len() == 1 && told[0].contains(": /vm/web.vda.underlay-1.qcow2. Use"), "{told:?}");
    record.disk_mut("vda").layers.insert("/vm/web.vda.underlay-1.qcow2".into());
    assert_eq!(changes(&record, &selection), Vec::<String>::new());
}
