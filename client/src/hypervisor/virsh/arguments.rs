//! What virsh is given.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use crate::hypervisor::{Definition, Overlay};

/// Characters of a UUID in the usual notation.
const UUID_LENGTH: usize = 36;

/// Whether virsh could take a domain's name for a number or a UUID, which it looks for first.
pub(super) fn is_misread(name: &str) -> bool {
    let number = name.trim_start();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let in_uuids = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-' || byte.is_ascii_whitespace();
    is_number || name.len() == UUID_LENGTH && name.bytes().all(in_uuids)
}

/// Whether libvirt keeps a file's name as it is: in its XML a line end would become a blank.
pub(super) fn is_kept_by_libvirt(path: &Path) -> bool {
    path.is_absolute() && path.to_str().is_some_and(|path| !path.contains(char::is_control))
}

/// What `--diskspec` takes for each disk: its overlay, or that it is left alone. Every disk is named, because
/// libvirt makes a snapshot of the ones that are not.
pub(super) fn disks(definition: &Definition, overlays: &[Overlay]) -> Vec<OsString> {
    let with_overlay = overlays.iter().map(|overlay| {
        let mut argument = format!("{},snapshot=external,driver=qcow2,file=", overlay.target).into_bytes();
        argument.extend(commas_doubled(overlay.path.as_os_str().as_bytes()));
        OsString::from_vec(argument)
    });
    let left_alone =
        definition.disks.iter().filter(|disk| overlays.iter().all(|overlay| overlay.target != disk.target));
    with_overlay.chain(left_alone.map(|disk| format!("{},snapshot=no", disk.target).into())).collect()
}

/// A comma ends a value of `--diskspec` unless there are two.
fn commas_doubled(value: &[u8]) -> impl Iterator<Item = u8> {
    value.iter().flat_map(|&byte| std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }))
}

/// Whole seconds, at least one.
pub(super) fn seconds(patience: Duration) -> String {
    let rounded_up = patience.as_secs() + u64::from(patience.subsec_nanos() > 0);
    rounded_up.clamp(1, i32::MAX as u64).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn names_that_look_like_ids_are_misread() {
        for name in ["3", "007", "+3", "-3", " 3", "3c923692-36d6-467c-b21b-03eb2fcd1a15"] {
            assert!(is_misread(name), "{name:?}");
        }
        for name in
            ["web", "3 odd", "3a", "-x", "--help", "+", "", "3c923692-36d6-467c-b21b-03eb2fcd1a1g", "٣"]
        {
            assert!(!is_misread(name), "{name:?}");
        }
    }

    #[test]
    fn every_disk_is_named_and_commas_are_doubled() {
        let xml = "<domain><devices><disk><target dev='vda'/></disk><disk><target dev='vdb'/></disk>\
                   <disk device='cdrom'><target dev='sda'/></disk></devices></domain>";
        let definition = Definition::parse("web", xml).unwrap();
        let overlays = [Overlay { target: "vdb".to_owned(), path: PathBuf::from("/a b/x,y='z',,é=") }];
        assert_eq!(
            disks(&definition, &overlays),
            [
                "vdb,snapshot=external,driver=qcow2,file=/a b/x,,y='z',,,,é=",
                "vda,snapshot=no",
                "sda,snapshot=no"
            ]
        );
    }

    #[test]
    fn file_names_that_xml_changes_are_told() {
        assert!(is_kept_by_libvirt(Path::new("/a b/'\"<&é")));
        for path in ["/a\nb", "/a\tb", "relative", "/\u{7f}"] {
            assert!(!is_kept_by_libvirt(Path::new(path)), "{path:?}");
        }
        assert!(!is_kept_by_libvirt(Path::new(std::ffi::OsStr::from_bytes(b"/\xff"))));
    }

    #[test]
    fn patience_is_whole_seconds() {
        assert_eq!(seconds(Duration::ZERO), "1");
        assert_eq!(seconds(Duration::from_millis(1500)), "2");
        assert_eq!(seconds(Duration::MAX.saturating_sub(Duration::from_secs(9))), "2147483647");
    }
}
