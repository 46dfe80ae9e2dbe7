//! What OpenStack Nova writes into the definitions of the domains that it makes.

use std::collections::BTreeMap;

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::parse::elements;

/// Nova's namespace, without its version.
const NAMESPACE: &str = "http://openstack.org/xmlns/libvirt/nova/";

/// An instance, as far as its domain's definition tells, or Nova's API, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NovaInstance {
    /// What its owner calls it.
    pub name: String,
    /// The project's UUID.
    pub project: Option<String>,
    /// The UUID of the user who made it.
    pub user: Option<String>,
    /// How large it is.
    pub flavor: NovaFlavor,
    /// UUID of the image that it was made from.
    pub image: Option<String>,
    /// UUIDs of its ports.
    pub ports: Vec<String>,
    /// UUIDs of the volumes attached to it. Only the API tells.
    pub volumes: Vec<String>,
    /// What its owner noted. Only the API tells.
    pub metadata: BTreeMap<String, String>,
    /// Properties of its image that say how it is to be run (`hw_*`, `os_*`). Only the API tells.
    pub image_properties: BTreeMap<String, String>,
}

/// How large an instance is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NovaFlavor {
    /// Its name.
    pub name: String,
    /// Memory in MiB.
    pub memory: u64,
    /// Virtual processors.
    pub vcpus: u64,
    /// The root disk in GiB; 0 is as large as the image.
    pub disk: u64,
    /// Further disks in GiB, all together.
    pub ephemeral: u64,
    /// The swap disk in MiB.
    pub swap: u64,
}

/// Whether an element of a domain's `<metadata>` is Nova's.
pub(super) fn is_novas(metadata: Node) -> bool {
    metadata.tag_name().namespace().is_some_and(|namespace| namespace.starts_with(NAMESPACE))
}

/// Reads Nova's element. What is not there, or is not a number where one belongs, is left empty.
pub(super) fn instance(element: Node) -> NovaInstance {
    let flavor = child(element, "flavor");
    let number = |name: &str| {
        let text = flavor.and_then(|flavor| child(flavor, name)).and_then(|node| node.text());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    };
    let owner = child(element, "owner");
    let owned = |name| uuid(owner.and_then(|owner| child(owner, name)));
    let root = child(element, "root").filter(|root| root.attribute("type") == Some("image"));
    let ports = child(element, "ports");
    NovaInstance {
        name: child(element, "name").and_then(|name| name.text()).unwrap_or_default().to_owned(),
        project: owned("project"),
        user: owned("user"),
        flavor: NovaFlavor {
            name: flavor.and_then(|flavor| flavor.attribute("name")).unwrap_or_default().to_owned(),
            memory: number("memory"),
            vcpus: number("vcpus"),
            disk: number("disk"),
            ephemeral: number("ephemeral"),
            swap: number("swap"),
        },
        image: uuid(root),
        ports: ports.iter().flat_map(elements).filter_map(|port| uuid(Some(port))).collect(),
        ..NovaInstance::default()
    }
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    elements(&node).find(|child| is_novas(*child) && child.tag_name().name() == name)
}

fn uuid(node: Option<Node>) -> Option<String> {
    node.and_then(|node| node.attribute("uuid")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::Definition;
    use super::*;

    /// As Nova 34 writes it.
    const XML: &str = r#"<domain type='qemu'><name>instance-00000001</name><metadata>
        <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
          <nova:package version="34.0.0"/>
          <nova:name>web</nova:name>
          <nova:creationTime>2026-11-27 22:10:11</nova:creationTime>
          <nova:flavor name="m1" id="1">
            <nova:memory>512</nova:memory>
            <nova:disk>3</nova:disk>
            <nova:swap>0</nova:swap>
            <nova:ephemeral>1</nova:ephemeral>
            <nova:vcpus>2</nova:vcpus>
          </nova:flavor>
          <nova:owner><nova:user uuid="u-1">admin</nova:user><nova:project uuid="p-1">admin</nova:project></nova:owner>
          <nova:root type="image" uuid="i-1"/>
          <nova:ports><nova:port uuid="port-1"><nova:ip type="fixed" address="10.0.0.5" ipVersion="4"/></nova:port></nova:ports>
        </nova:instance></metadata><devices/></domain>"#;

    fn read(xml: &str) -> Option<NovaInstance> {
        Definition::parse("x", xml).unwrap().nova
    }

    #[test]
    fn what_nova_writes_is_read() {
        let instance = read(XML).unwrap();
        let flavor = NovaFlavor { name: "m1".into(), memory: 512, vcpus: 2, disk: 3, ephemeral: 1, swap: 0 };
        let expected = NovaInstance {
            name: "web".into(),
            project: Some("p-1".into()),
            user: Some("u-1".into()),
            flavor,
            image: Some("i-1".into()),
            ports: vec!["port-1".into()],
            ..NovaInstance::default()
        };
        assert_eq!(instance, expected);
    }

    #[test]
    fn what_is_not_there_is_empty() {
        let volume = XML.replace("type=\"image\"", "type=\"volume\"").replace(">3<", ">much<");
        let instance = read(&volume).unwrap();
        assert_eq!((instance.image, instance.flavor.disk), (None, 0));
        let empty = "<domain><metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.0'/></metadata></domain>";
        assert_eq!(read(empty), Some(NovaInstance::default()));
        assert_eq!(read("<domain><metadata><instance/></metadata></domain>"), None);
    }

    #[test]
    fn what_a_snapshot_keeps_is_read_again() {
        let instance = read(XML).unwrap();
        let text = serde_json::to_string(&instance).unwrap();
        assert_eq!(serde_json::from_str::<NovaInstance>(&text).unwrap(), instance);
        // Written by a version that knew less, or more.
        let other: NovaInstance = serde_json::from_str(r#"{"name": "web", "colour": "red"}"#).unwrap();
        assert_eq!(other, NovaInstance { name: "web".into(), ..NovaInstance::default() });
    }
}
