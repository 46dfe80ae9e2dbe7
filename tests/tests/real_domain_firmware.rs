//! A guest that UEFI firmware has started is backed up while it runs: what it told the firmware to remember comes back with it.

#![allow(clippy::unwrap_used)]

use underlay_tests::commands::output;
use underlay_tests::host::Host;

/// A variable of the firmware, as the guest's kernel shows it: four bytes of attributes, then the value.
const VARIABLE: &str = "/sys/firmware/efi/efivars/Underlay-5e1b6c0a-0000-4000-8000-000000000001";

#[test]
fn guest_started_by_uefi_keeps_what_the_firmware_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let nvram = folder.path().join("web's vars.fd");
    let host = Host::with(|spec| spec.uefi(&nvram)).unwrap();
    let mount = "mountpoint -q /sys/firmware/efi/efivars || mount -t efivarfs none /sys/firmware/efi/efivars";
    host.web.exec(mount).unwrap();
    for (at, value) in ["first", "second"].into_iter().enumerate() {
        if at > 0 {
            // The kernel protects variables that it does not know.
            host.web.exec(&format!("chattr -i {VARIABLE}; rm {VARIABLE}")).unwrap();
        }
        host.web.exec(&format!("printf '\\007\\000\\000\\000{value}' >{VARIABLE} && sync")).unwrap();
        host.scribble(value).unwrap();
        let done = host.backup(["--require-quiesce"]).unwrap();
        assert!(done["strategy"] == "rotate" && done["unfinished"].is_null(), "{done}");
        host.expect_newest_equals_frozen().unwrap();
    }
    host.expect_intact().unwrap();
    host.web.destroy().unwrap();
    let kept = std::fs::read(&nvram).unwrap();

    let restored = host.path("copy");
    let mut restore = host.underlay.command(["restore", "web@latest", "--define", "--name", "copy", "--to"]);
    let done = output(restore.arg(format!("{}/", restored.display()))).unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let copy = host.libvirtd.machine("copy").unwrap();
    copy.start().unwrap();
    copy.wait_for_agent().unwrap();
    assert!(copy.exec(&format!("{mount}; cat {VARIABLE} | tail -c +5")).unwrap() == "second");
    copy.exec("mount /dev/vdb /data; cd /root && sha256sum --quiet -c sums && cd /data && sha256sum --quiet -c sums").unwrap();
    assert!(std::fs::read(&nvram).unwrap() == kept, "the copy has variables of its own");
}
