//! The server's systemd unit, as systemd itself reads it.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use underlay_tests::commands::{output, run_command};

/// Of a hundred; the unit had 12 when this was written. A service without any of it has 96.
const MOST_EXPOSED: &str = "15";

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/packaging/underlay-server.service")
}

/// The unit in `folder`, with a program that is there. `more` goes below `[Service]`.
fn placed(folder: &Path, more: &str) -> PathBuf {
    let text = std::fs::read_to_string(unit()).unwrap();
    assert!(text.contains("ExecStart=/usr/bin/underlay-server serve --config /etc/underlay/server.toml\n"));
    let text = text.replace("/usr/bin/underlay-server", "/bin/true");
    let placed = folder.join("underlay-server.service");
    std::fs::write(&placed, text.replace("[Service]\n", &format!("[Service]\n{more}\n"))).unwrap();
    placed
}

fn verified(unit: &Path) -> (bool, String) {
    let found = output(Command::new("systemd-analyze").arg("verify").arg(unit)).unwrap();
    (found.status.success(), String::from_utf8_lossy(&found.stderr).into_owned())
}

#[test]
fn recovery_comes_before_nova_compute() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/packaging");
    let folder = tempfile::tempdir().unwrap();
    let drop_ins = folder.path().join("nova-compute.service.d");
    std::fs::create_dir(&drop_ins).unwrap();
    let recover = std::fs::read_to_string(packaging.join("underlay-recover.service")).unwrap();
    let recover = recover.replace("/usr/bin/underlay recover", "/bin/true");
    std::fs::write(folder.path().join("underlay-recover.service"), recover).unwrap();
    let compute = folder.path().join("nova-compute.service");
    std::fs::write(&compute, "[Service]\nExecStart=/bin/true\n").unwrap();
    let drop_in = std::fs::read_to_string(packaging.join("nova-compute.service.d/underlay.conf")).unwrap();
    std::fs::write(drop_ins.join("underlay.conf"), &drop_in).unwrap();
    assert_eq!(verified(&compute), (true, String::new()));
    // In both directions there is no order: systemd says so, if it has read the drop-in.
    std::fs::write(drop_ins.join("underlay.conf"), format!("{drop_in}Before=underlay-recover.service\n"))
        .unwrap();
    let (_, complaint) = verified(&compute);
    assert!(complaint.contains("cycle"), "or it would notice nothing: {complaint}");
}

#[test]
fn systemd_understands_every_line_of_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(verified(&placed(folder.path(), "")), (true, String::new()));
    let (_, complaint) = verified(&placed(folder.path(), "ProtectSistem=strict"));
    assert!(complaint.contains("ProtectSistem"), "or it would notice nothing: {complaint}");
}

#[test]
fn the_unit_is_hardened() {
    let analyze = |unit: &Path| {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=yes", "--no-pager", "--threshold", MOST_EXPOSED]).arg(unit);
        run_command(&mut command)
    };
    analyze(&unit()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let weak = placed(folder.path(), "");
    let text = std::fs::read_to_string(&weak).unwrap().replace("CapabilityBoundingSet=", "# ");
    std::fs::write(&weak, text).unwrap();
    assert!(analyze(&weak).is_err(), "with all capabilities it is over the threshold");
}
