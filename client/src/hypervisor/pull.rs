//! Reading a running domain's disks as they were at one moment, without a new layer: libvirt's backups in pull mode. QEMU keeps what the
//! guest overwrites meanwhile in scratch files, and exports the disks over NBD.

use std::path::{Path, PathBuf};

use roxmltree::Document;

use super::Written;
use super::edit::escaped;
use super::parse::child;

/// The name under which every export's dirty bitmap is asked for.
pub const DIRTY_BITMAP: &str = "dirty";

/// A pull: which disks, from where to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    /// The checkpoint that begins with it: a dirty bitmap of that name in every one of these disks.
    pub checkpoint: String,
    /// The checkpoint before, since which the exports tell what was written.
    pub since: Option<String>,
    /// Where the exports are offered, each by its disk's target.
    pub socket: PathBuf,
    /// The disks.
    pub disks: Vec<PulledDisk>,
}

/// One disk of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledDisk {
    /// The disk, such as `vda`.
    pub target: String,
    /// Keeps what the guest overwrites meanwhile. Does not exist yet.
    pub scratch: PathBuf,
}

impl PullRequest {
    /// What `backup-begin` takes. `others` are the domain's other disks: each is named, because libvirt takes those that are not.
    pub(super) fn backup_xml(&self, others: &[&str]) -> String {
        let since = self.since.as_ref().map(|since| format!("<incremental>{}</incremental>", escaped(since)));
        let bitmap = if since.is_some() { format!(" exportbitmap='{DIRTY_BITMAP}'") } else { String::new() };
        let disks = self.disks.iter().map(|disk| {
            let (target, scratch) = (escaped(&disk.target), path(&disk.scratch));
            format!(
                "<disk name='{target}' backup='yes' type='file' exportname='{target}'{bitmap}><scratch file='{scratch}'/></disk>"
            )
        });
        let others = others.iter().map(|target| format!("<disk name='{}' backup='no'/>", escaped(target)));
        format!(
            "<domainbackup mode='pull'>{}<server transport='unix' socket='{}'/><disks>{}</disks></domainbackup>",
            since.unwrap_or_default(),
            path(&self.socket),
            disks.chain(others).collect::<String>()
        )
    }

    fn targets(&self) -> Vec<&str> {
        self.disks.iter().map(|disk| disk.target.as_str()).collect()
    }

    /// What `backup-begin` takes for the checkpoint that begins with it.
    pub(super) fn checkpoint_xml(&self, others: &[&str]) -> String {
        checkpoint_xml(&self.checkpoint, &self.targets(), others, None)
    }
}

/// A checkpoint of that name, whose bitmaps in disks are called like it. `made` is for one that libvirt is to know again: in seconds since 1970,
/// any time will do.
pub(super) fn checkpoint_xml(name: &str, targets: &[&str], others: &[&str], made: Option<u64>) -> String {
    let name = escaped(name);
    let disks = targets
        .iter()
        .map(|target| format!("<disk name='{}' checkpoint='bitmap' bitmap='{name}'/>", escaped(target)));
    let others = others.iter().map(|target| format!("<disk name='{}' checkpoint='no'/>", escaped(target)));
    let made = made.map(|made| format!("<creationTime>{made}</creationTime>")).unwrap_or_default();
    let disks: String = disks.chain(others).collect();
    format!("<domaincheckpoint><name>{name}</name>{made}<disks>{disks}</disks></domaincheckpoint>")
}

/// Where the pull that libvirt describes by this XML offers its exports; `None` if it is none, or pushes.
pub(super) fn socket_of(xml: &str) -> Option<PathBuf> {
    let document = Document::parse(xml).ok()?;
    let server = child(document.root_element(), "server")?;
    server.attribute("socket").map(PathBuf::from)
}

/// The bytes that libvirt says each disk of a checkpoint has noted as written; none of those that it does not say.
pub(super) fn written_in(xml: &str) -> Written {
    let Ok(document) = Document::parse(xml) else { return Written::new() };
    let disks = child(document.root_element(), "disks").into_iter().flat_map(|disks| disks.children());
    let written = |disk: roxmltree::Node<'_, '_>| {
        Some((disk.attribute("name")?.to_owned(), disk.attribute("size")?.parse().ok()?))
    };
    disks.filter_map(written).collect()
}

fn path(path: &Path) -> String {
    escaped(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_disk_is_named_and_odd_names_stay_what_they_are() {
        let disk = PulledDisk { target: "vda".into(), scratch: "/vm/it's & <x>.scratch".into() };
        let mut request = PullRequest {
            checkpoint: "underlay-2".into(),
            since: None,
            socket: "/run/a&b.sock".into(),
            disks: vec![disk],
        };
        let xml = request.backup_xml(&["hda"]);
        assert!(!xml.contains("incremental") && !xml.contains("exportbitmap"), "{xml}");
        assert_eq!(socket_of(&xml).unwrap(), Path::new("/run/a&b.sock"));
        let parsed = Document::parse(&xml).unwrap();
        let scratch = parsed.descendants().find(|node| node.has_tag_name("scratch")).unwrap();
        assert_eq!(scratch.attribute("file"), Some("/vm/it's & <x>.scratch"));
        assert!(xml.contains("<disk name='hda' backup='no'/>"), "{xml}");
        request.since = Some("underlay-1".into());
        let xml = request.backup_xml(&[]);
        assert!(
            xml.contains("<incremental>underlay-1</incremental>") && xml.contains("exportbitmap='dirty'"),
            "{xml}"
        );
        let checkpoint = request.checkpoint_xml(&["hda"]);
        assert_eq!(
            checkpoint,
            "<domaincheckpoint><name>underlay-2</name><disks><disk name='vda' checkpoint='bitmap' bitmap='underlay-2'/>\
             <disk name='hda' checkpoint='no'/></disks></domaincheckpoint>"
        );
    }

    #[test]
    fn what_a_checkpoint_has_noted_is_told_where_libvirt_says_it() {
        let xml = "<domaincheckpoint><name>a</name><disks>\
                   <disk name='vda' checkpoint='bitmap' bitmap='a' size='196608'/><disk name='vdb' checkpoint='bitmap'/>\
                   </disks><domain><devices><disk name='vdc' size='7'/></devices></domain></domaincheckpoint>";
        assert_eq!(written_in(xml), [("vda".to_owned(), 196_608)].into());
        assert_eq!(written_in("nothing"), Written::new());
    }

    #[test]
    fn what_is_no_pull_has_no_socket() {
        for xml in [
            "",
            "<domainbackup mode='push'/>",
            "<domainbackup><server transport='tcp' name='x'/></domainbackup>",
        ] {
            assert_eq!(socket_of(xml), None, "{xml}");
        }
    }
}
