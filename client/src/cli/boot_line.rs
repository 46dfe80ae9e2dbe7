//! The command that boots what was restored of an instance anywhere else.

use std::path::Path;

use underlay_store::snapshot::PrivateMetadata;

use super::written::Written;
use crate::domain::kept::{CONFIG_DRIVE, KeptDisk, KeptDomain};
use crate::hypervisor::NovaInstance;
use crate::restore::OutputFormat;

/// Memory of a machine of which nothing is known, in MiB.
const SOME_MEMORY: u64 = 2048;

/// `virt-install` for a machine like that instance, on these disks; `None` without the one that it boots from.
pub(super) fn virt_install(
    name: &str,
    instance: &NovaInstance,
    private: &PrivateMetadata,
    written: &[Written<'_>],
) -> Option<String> {
    let kept = KeptDomain::find(private).ok()??;
    let has_data = |disk: &&KeptDisk| disk.path.file_name().is_none_or(|name| name != CONFIG_DRIVE);
    let file = |disk: &KeptDisk| {
        let written = written.iter().find(|written| written.target.disk.name == disk.target)?;
        Some((written.target.path.as_path(), written.target.format))
    };
    let mut disks = kept.disks.iter().filter(has_data);
    let first = file(disks.next()?)?;
    Some(command(name, instance, std::iter::once(first).chain(disks.filter_map(file))))
}

fn command<'a>(
    name: &str,
    instance: &NovaInstance,
    disks: impl IntoIterator<Item = (&'a Path, OutputFormat)>,
) -> String {
    let flavor = &instance.flavor;
    let memory = if flavor.memory == 0 { SOME_MEMORY } else { flavor.memory };
    let property =
        |name: &str, usual: &'static str| instance.image_properties.get(name).map_or(usual, String::as_str);
    let mut words = vec!["virt-install".to_owned(), "--import".to_owned()];
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), quoted(&value)]);
    option("--name", name.to_owned());
    option("--memory", memory.to_string());
    option("--vcpus", flavor.vcpus.max(1).to_string());
    option("--osinfo", "detect=on,require=off".to_owned());
    if property("hw_firmware_type", "bios") == "uefi" {
        option("--boot", "uefi".to_owned());
    }
    for (path, format) in disks {
        let (path, format) = (value(&path.display().to_string()), format.name());
        let bus = value(property("hw_disk_bus", "virtio"));
        option("--disk", format!("path={path},format={format},bus={bus}"));
    }
    option("--network", format!("network=default,model={}", value(property("hw_vif_model", "virtio"))));
    words.push("--noautoconsole".to_owned());
    words.join(" ")
}

/// A value among several of one option, as virt-install takes it: a comma ends it, and quotes and backslashes mean what they do in a shell.
fn value(text: &str) -> String {
    match text.contains([',', '\'', '"', '\\']) {
        true => format!("\"{}\"", text.replace('\\', r"\\").replace('"', r#"\""#)),
        false => text.to_owned(),
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::NovaFlavor;

    #[test]
    fn a_machine_like_the_instance() {
        let flavor = NovaFlavor { memory: 512, vcpus: 2, ..NovaFlavor::default() };
        let properties = [("hw_disk_bus", "scsi"), ("hw_firmware_type", "uefi")];
        let image_properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let instance = NovaInstance { flavor, image_properties, ..NovaInstance::default() };
        let disks = [
            (Path::new("/vm/it's, mine.qcow2"), OutputFormat::Qcow2),
            (Path::new("/b.raw"), OutputFormat::Raw),
        ];
        assert_eq!(
            command("web", &instance, disks),
            r#"virt-install --import --name web --memory 512 --vcpus 2 --osinfo detect=on,require=off --boot uefi --disk 'path="/vm/it'\''s, mine.qcow2",format=qcow2,bus=scsi' --disk path=/b.raw,format=raw,bus=scsi --network network=default,model=virtio --noautoconsole"#
        );
        assert_eq!(value(r#"a\b"c"#), r#""a\\b\"c""#);
        let unknown = command("x y", &NovaInstance::default(), []);
        assert!(unknown.contains("--name 'x y' --memory 2048 --vcpus 1 "), "{unknown}");
    }
}
