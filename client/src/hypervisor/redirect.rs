//! Making a definition's disk start from another layer, leaving all else as it is, to the byte.

use roxmltree::{Document, Node};

use super::{Backing, HypervisorError};

/// The definition `xml` with the disk `target` starting from `layer`.
///
/// # Errors
/// [`HypervisorError::Definition`] if there is no such disk on a file or block device.
pub fn redirect(domain: &str, xml: &str, target: &str, layer: &Backing) -> Result<String, HypervisorError> {
    let broken = |problem: String| HypervisorError::Definition { domain: domain.to_owned(), problem };
    let document = Document::parse(xml).map_err(|error| broken(error.to_string()))?;
    let child = |node: Node<'_, '_>, name: &str| {
        node.children().find(|child| child.has_tag_name(name)).map(|c| c.id())
    };
    let disk = document
        .descendants()
        .filter(|node| node.has_tag_name("disk"))
        .find(|disk| {
            let named = child(*disk, "target").and_then(|id| document.get_node(id));
            named.and_then(|named| named.attribute("dev")) == Some(target)
        })
        .ok_or_else(|| broken(format!("it has no disk {target}")))?;
    let mut edits = Vec::new();
    let source = child(disk, "source").and_then(|id| document.get_node(id));
    let path =
        source.and_then(|source| source.attribute_node("file").or_else(|| source.attribute_node("dev")));
    let path = path.ok_or_else(|| broken(format!("disk {target} is on no file or block device")))?;
    edits.push((path.range_value(), escaped(&layer.path.display().to_string())));
    let driver = child(disk, "driver").and_then(|id| document.get_node(id));
    if let Some(format) = driver.and_then(|driver| driver.attribute_node("type")) {
        edits.push((format.range_value(), escaped(&layer.format)));
    }
    // Where the layer's own chain goes is written in the layer.
    if let Some(backing) = child(disk, "backingStore").and_then(|id| document.get_node(id)) {
        edits.push((backing.range(), String::new()));
    }
    edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    let mut text = xml.to_owned();
    for (range, replacement) in edits {
        text.replace_range(range, &replacement);
    }
    Ok(text)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;").replace('"', "&quot;")
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
             &lt;b>'/><target dev='vda'/></disk><disk><source file='/c'/><target dev='vdb'/></disk></devices></domain>"
        );
        assert!(redirect("web", xml, "vdc", &layer).is_err());
        assert!(redirect("web", "<domain", "vda", &layer).is_err());
    }
}
