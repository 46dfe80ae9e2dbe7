//! Making a definition's disk start from another layer, leaving all else as it is, to the byte.

use roxmltree::Document;

use super::edit::Edits;
use super::parse::{self, child, elements, is};
use super::{Backing, HypervisorError, Source};

/// The definition `xml` with the disk `target` starting from `layer`.
///
/// # Errors
/// [`HypervisorError::Definition`] if there is no such disk on a file or block device.
pub fn redirect(domain: &str, xml: &str, target: &str, layer: &Backing) -> Result<String, HypervisorError> {
    let broken = |problem: String| HypervisorError::Definition { domain: domain.to_owned(), problem };
    let document = Document::parse(xml).map_err(|error| broken(error.to_string()))?;
    let devices = child(document.root_element(), "devices");
    let mut disks = devices.iter().flat_map(elements).filter(|node| is(*node, "disk"));
    let disk = disks
        .find(|disk| child(*disk, "target").and_then(|named| named.attribute("dev")) == Some(target))
        .ok_or_else(|| broken(format!("it has no disk {target}")))?;
    // Only the attribute that libvirt reads for this type of disk is its path.
    let path = match parse::source(disk) {
        Source::File(_) => Some("file"),
        Source::Block(_) => Some("dev"),
        Source::Empty | Source::Other(_) => None,
    };
    let (source, path) = child(disk, "source")
        .zip(path)
        .ok_or_else(|| broken(format!("disk {target} is on no file or block device")))?;
    let mut edits = Edits::new(xml);
    edits.set_attribute(source, path, &layer.path.display().to_string());
    if let Some(driver) = child(disk, "driver").filter(|driver| driver.has_attribute("type")) {
        edits.set_attribute(driver, "type", &layer.format);
    }
    // Where the layer's own chain goes is written in the layer.
    elements(&disk).filter(|node| is(*node, "backingStore")).for_each(|backing| edits.remove(backing));
    edits.apply().map_err(|at| broken(format!("two changes meet at byte {at}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disk_starts_from_another_layer() {
        let xml = "<domain><devices><disk type='file'><driver type='qcow2'/><source file='/a'/><backingStore \
                   type='file'><source file='/b'/></backingStore><target dev='vda'/></disk><disk><source \
                   file='/c'/><target dev='vdb'/></disk></devices></domain>";
        let layer = Backing { path: "/it's <b>".into(), format: "raw".into() };
        let changed = redirect("web", xml, "vda", &layer).unwrap();
        assert_eq!(
            changed,
            "<domain><devices><disk type='file'><driver type='raw'/><source file='/it&apos;s \
             &lt;b&gt;'/><target dev='vda'/></disk><disk><source file='/c'/><target dev='vdb'/></disk></devices></domain>"
        );
        assert!(redirect("web", xml, "vdc", &layer).is_err());
        assert!(redirect("web", "<domain", "vda", &layer).is_err());
    }

    #[test]
    fn nothing_is_left_of_the_chain() {
        let xml = "<domain><devices><disk><source file='/a'/><backingStore/><backingStore type='file'/><target \
                   dev='vda'/></disk></devices></domain>";
        let layer = Backing { path: "/c".into(), format: "raw".into() };
        let changed = redirect("web", xml, "vda", &layer).unwrap();
        assert!(changed.contains("<source file='/c'/><target"), "{changed}");
    }

    #[test]
    fn only_the_path_that_counts_is_changed() {
        let xml = |kind: &str| {
            format!(
                "<domain><devices><disk type='{kind}'><source file='/a' dev='/b'/><target \
                 dev='vda'/></disk></devices></domain>"
            )
        };
        let layer = Backing { path: "/c".into(), format: "raw".into() };
        let changed = |kind| redirect("web", &xml(kind), "vda", &layer);
        assert_eq!(changed("file").unwrap(), xml("file").replace("/a", "/c"));
        assert_eq!(changed("block").unwrap(), xml("block").replace("/b", "/c"));
        for other in ["network", "vhostuser", ""] {
            assert!(changed(other).unwrap_err().to_string().contains("no file or block device"));
        }
    }
}
