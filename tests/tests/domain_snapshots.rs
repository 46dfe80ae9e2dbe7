//! What a snapshot keeps of a domain: shown, restored as files, and refused where no domain can be made of it. No
//! hypervisor is asked; `real_define.rs` does that.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use underlay_client::domain::kept::{KeptDomain, NVRAM_DISK};
use underlay_tests::kept;
use underlay_tests::program::Underlay;

/// A repository, and images to back up.
struct Place {
    folder: tempfile::TempDir,
    underlay: Underlay,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let underlay = Underlay::init(folder.path().join("repo").to_str().unwrap(), folder.path()).unwrap();
        Self { folder, underlay }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self, name: &str, length: usize) -> PathBuf {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// A domain with one disk and firmware variables.
    fn uefi_domain(&self) -> KeptDomain {
        let mut domain = kept::kept("web", &["vda"], "", "");
        domain.nvram = Some("/var/lib/libvirt/qemu/nvram/web_VARS.fd".into());
        domain
    }

    fn with_uefi_domain() -> Self {
        let place = Self::new();
        let (disk, variables) = (place.image("disk", 1 << 20), place.image("variables", 540_672));
        let images = [("vda", &*disk), (NVRAM_DISK, &*variables)];
        kept::back_up(&place.underlay, &place.uefi_domain(), &images).unwrap();
        place
    }

    /// Restores `web@latest`; never reaches a real hypervisor, for there is no `virsh` on its path.
    fn restore(&self, to: &Path, options: &[&str]) -> Output {
        let mut command = self.underlay.command(["restore", "web@latest", "--to"]);
        command.env("PATH", self.folder.path()).env("UNDERLAY_CONNECT", "qemu:///system");
        command.arg(to).args(options).output().unwrap()
    }

    #[track_caller]
    fn refused(&self, code: i32, to: &Path, options: &[&str]) -> String {
        let output = self.restore(to, options);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(!to.is_dir() || fs::read_dir(to).unwrap().next().is_none(), "{told}");
        told
    }
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).unwrap() == fs::read(b).unwrap()
}

#[test]
fn firmware_variables_are_a_raw_file_in_any_folder() {
    let place = Place::with_uefi_domain();
    for (folder, options, names) in [
        ("a", &[][..], ["nvram.fd", "vda.qcow2"]),
        ("b", &["--format", "raw"], ["nvram.fd", "vda.raw"]),
        ("c", &["--format", "qcow2"], ["nvram.fd", "vda.qcow2"]),
    ] {
        let folder = place.path(folder);
        fs::create_dir(&folder).unwrap();
        let restored = place.restore(&folder, options);
        assert!(restored.status.success(), "{restored:?}");
        let mut found: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        found.sort();
        assert_eq!(found, names);
        assert!(same(&folder.join("nvram.fd"), &place.path("variables")));
    }
    let alone = place.path("alone.fd");
    assert!(place.restore(&alone, &["--disk", "nvram"]).status.success());
    assert!(same(&alone, &place.path("variables")));
}

#[test]
fn a_disk_that_only_is_called_nvram_is_a_disk() {
    let place = Place::new();
    let image = place.image("disk.raw", 1 << 20);
    let disk = format!("nvram={}", image.display());
    place.underlay.json(["backup", "--vm", "web", &disk]).unwrap();
    assert!(place.restore(&place.path("new/"), &[]).status.success());
    assert!(place.path("new/nvram.qcow2").exists());
}

#[test]
fn show_tells_of_the_domain_and_keeps_its_definition_for_programs() {
    let place = Place::new();
    let domain = KeptDomain {
        hypervisor: Some("qemu:///system".into()),
        excluded: vec!["vdc".into()],
        ..place.uefi_domain()
    };
    let (disk, variables) = (place.image("disk", 1 << 20), place.image("variables", 1024));
    kept::back_up(&place.underlay, &domain, &[("vda", &disk), (NVRAM_DISK, &variables)]).unwrap();
    let shown = place.underlay.output(["show", "web@latest"]).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let told = shown.lines().skip_while(|line| !line.starts_with("domain")).collect::<Vec<_>>().join("\n");
    let lines = domain.xml.lines().count();
    let expected = format!(
        "domain       web\n  uuid       {}\n  on         qemu:///system\n  disk       vda on virtio: \
         /gone/vda.qcow2 (qcow2)\n  left out   vdc\n  firmware   /var/lib/libvirt/qemu/nvram/web_VARS.fd, kept as \
         disk nvram\n  definition {lines} lines: --json shows it",
        kept::UUID
    );
    assert_eq!(told, expected);
    let shown = place.underlay.json(["show", "web@latest"]).unwrap();
    assert_eq!(shown["private"]["domain"]["xml"], domain.xml);
    let key = place.path("backup.key");
    place.underlay.json(["key", "export", key.to_str().unwrap()]).unwrap();
    let sealed = place.underlay.output(["show", "web@latest", "--key-file", key.to_str().unwrap()]).unwrap();
    let sealed = String::from_utf8(sealed.stdout).unwrap();
    assert!(sealed.contains("sealed") && !sealed.contains(kept::UUID), "{sealed}");
}

#[test]
fn what_cannot_become_a_domain_is_refused_before_anything_is_written() {
    let place = Place::with_uefi_domain();
    let new = place.path("new");
    fs::write(place.path("file"), "").unwrap();
    assert!(place.refused(2, &place.path("file"), &["--define"]).contains("is no folder"));
    assert!(place.refused(2, Path::new("-"), &["--define"]).contains("is no folder"));
    for name in ["", " ", "a/b", "a\nb"] {
        assert!(place.refused(2, &new, &["--define", "--name", name]).contains("cannot have the name"));
    }
    assert!(place.refused(1, &place.path("no/such"), &["--define"]).contains("cannot use"));
    // Nothing else is in the way.
    assert!(place.refused(1, &new, &["--define"]).contains("`virsh` cannot be started"));
    let odd = place.path("odd\nfolder");
    assert!(place.refused(1, &odd, &["--define"]).contains("cannot name the file"));
    let key = place.path("backup.key");
    place.underlay.json(["key", "export", key.to_str().unwrap()]).unwrap();
    let with_key = ["--define", "--key-file", key.to_str().unwrap()];
    assert!(place.refused(1, &new, &with_key).contains("needs the restore key"));

    let disk = place.path("disk");
    kept::back_up(&place.underlay, &place.uefi_domain(), &[("vda", &disk)]).unwrap();
    assert!(
        place.refused(12, &new, &["--define"]).contains("disk nvram of its domain is not among its disks")
    );
    let encryption = "<encryption format='luks'><secret type='passphrase' uuid='x'/></encryption>";
    let mut domain = kept::kept("web", &["vda"], "", "");
    domain.xml = domain
        .xml
        .replace("type='qcow2'/>", "type='raw'/>")
        .replace("</disk>", &format!("{encryption}</disk>"));
    kept::back_up(&place.underlay, &domain, &[("vda", &disk)]).unwrap();
    let told = place.refused(1, &new, &["--define"]);
    assert!(told.contains("QEMU decrypts disk vda") && told.contains("--format raw"), "{told}");
    assert!(place.refused(1, &new, &["--define", "--format", "raw"]).contains("`virsh`"));
    domain.xml = "<domain>".into();
    kept::back_up(&place.underlay, &domain, &[("vda", &disk)]).unwrap();
    assert!(place.refused(1, &new, &["--define"]).contains("cannot be understood"));
    let image = place.image("disk.raw", 4096);
    place.underlay.json(["backup", "--vm", "web", image.to_str().unwrap()]).unwrap();
    assert!(place.refused(2, &new, &["--define"]).contains("was made of images"));
    assert!(!new.exists());
}
