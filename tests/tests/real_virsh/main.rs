//! virsh, driven as backups drive it, against a real libvirtd: names and paths that shells, virsh, XML and QEMU each read in
//! their own way, every step that changes a domain, and what is told when there is nothing to talk to.
//!
//! No system is on these machines' disks. Their firmware looks for one for ever, which is all that is needed.

#![allow(clippy::unwrap_used)]

mod host;

use std::fs;
use std::time::Duration;

use underlay_client::hypervisor::{Agent, Backing, BlockJob, Hypervisor, Mirror, Source};
use underlay_tests::commands::{run, wait_until};

use host::{Host, SIZE, domain_xml, expect, is_missing, layer, message, overlay, text, virsh};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A file that everybody has to be careful with.
const FILE: &str = "a,,'\"&<>=é:\\ .qcow2";

#[test]
fn an_oddly_named_domain_is_read() {
    let host = Host::start();
    let name = "3 odd,name='x' é";
    let base = host.image("base", None, &[]);
    let top = host.image(FILE, Some(&base), &[]);
    let data = host.image("data", None, &[]);
    host.define(name, &[("vda", &top), ("vdb", &data)]);

    let domain = host.virsh.domain(name).unwrap();
    assert!(!domain.is_running());
    assert!(domain.inactive.as_ref().unwrap().xml.contains("passwd='secret'"), "secrets are kept");
    assert_eq!(domain.current().unwrap().agent, Agent::Disconnected);
    assert_eq!(host.virsh.domain_job(name).unwrap(), None, "a domain that does not run has no job");
    assert_eq!(host.virsh.block_job(name, "vda").unwrap(), None);
    assert_eq!(host.virsh.capacity(name, "vda").unwrap(), SIZE);

    let uuid = host.start_domain(name);
    let domain = host.virsh.domain(name).unwrap();
    assert_eq!((domain.name.as_str(), domain.uuid.as_str()), (name, uuid.as_str()));
    let (live, inactive) = (domain.live.unwrap(), domain.inactive.unwrap());
    assert_eq!(live.agent, Agent::Disconnected);
    let targets: Vec<_> = live.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(targets, ["vda", "vdb", "hda"]);
    assert_eq!(live.disks[0].source, Source::File(top.clone()));
    assert_eq!(live.disks[0].format.as_deref(), Some("qcow2"));
    assert_eq!(live.disks[0].backing, [layer(&base)]);
    assert_eq!(live.disks[2].source, Source::Empty);
    assert_eq!(inactive.disks[0].source, Source::File(top));

    assert_eq!(host.virsh.domains().unwrap(), [name]);
    assert_eq!(host.virsh.name_of(&uuid).unwrap().as_deref(), Some(name));
    assert!(host.virsh.snapshots(name).unwrap().is_empty());
    assert!(host.virsh.checkpoints(name).unwrap().is_empty());
    assert_eq!(host.virsh.domain_job(name).unwrap(), None);
    assert_eq!(host.virsh.block_job(name, "vdb").unwrap(), None);
    assert_eq!(host.virsh.capacity(name, "vdb").unwrap(), SIZE);
    assert!(message(host.virsh.capacity(name, "vdz")).contains("vdz"));
}

#[test]
fn disks_are_frozen_together_and_merged_back() {
    let host = Host::start();
    let name = "--odd,name='x' é";
    let base = host.image("base", None, &["write -P 1 0 2M"]);
    let a = host.image(FILE, Some(&base), &["write -P 2 1M 2M"]);
    let data = host.image("data", None, &[]);
    host.define(name, &[("vda", &a), ("vdb", &data)]);
    let uuid = host.start_domain(name);

    let (b, data_b) = (host.file(&format!("b{FILE}")), host.file("data b"));
    let both = [overlay("vda", &b), overlay("vdb", &data_b)];
    host.virsh.freeze(name, &both, None).unwrap();
    assert_eq!(host.active_layers(name, ["vda", "vdb"]), [b.clone(), data_b.clone()]);
    assert!(host.virsh.snapshots(name).unwrap().is_empty(), "libvirt keeps no record");

    // One of the two: the other stays where it is.
    let c = host.file("c");
    host.virsh.freeze(name, &[overlay("vda", &c)], None).unwrap();
    assert_eq!(host.active_layers(name, ["vda", "vdb"]), [c.clone(), data_b.clone()]);
    host.virsh.commit(name, "vda", &a, &b).unwrap();
    let vda = host.live(name).disk("vda").unwrap().clone();
    assert_eq!(vda.source, Source::File(c));
    assert_eq!(vda.backing, [layer(&a), layer(&base)]);
    assert!(host.virsh.commit(name, "vda", &a, &b).is_err(), "it is in the chain no more");

    host.virsh.commit_active(name, "vda", &a).unwrap();
    host.virsh.commit_active(name, "vdb", &data).unwrap();
    assert_eq!(host.active_layers(name, ["vda", "vdb"]), [a.clone(), data]);
    assert_eq!(host.live(name).disk("vda").unwrap().backing, [layer(&base)]);
    assert_eq!(host.virsh.block_job(name, "vda").unwrap(), None);
    host.libvirtd.virsh(["destroy", &uuid]).unwrap();
    expect(&a, &["-P 1 0 1M", "-P 2 1M 2M", "-P 0 3M 1M"]);
}

#[test]
fn all_disks_are_frozen_or_none() {
    let host = Host::start();
    let disks = ["one", "two"].map(|name| host.image(name, None, &[]));
    host.define("web", &[("vda", &disks[0]), ("vdb", &disks[1])]);
    let [first, second] = ["first", "second"].map(|name| host.file(name));
    let both = [overlay("vda", &first), overlay("vdb", &second)];
    assert_eq!(message(host.virsh.freeze("web", &both, None)), "domain is not running");
    let defined = host.virsh.domain("web").unwrap();
    assert!(
        !first.exists()
            && defined.inactive.unwrap().disk("vda").unwrap().source == Source::File(disks[0].clone())
    );

    host.start_domain("web");
    fs::write(&second, b"somebody else's").unwrap();
    message(host.virsh.freeze("web", &both, None));
    assert!(!first.exists());
    assert_eq!(fs::read(&second).unwrap(), b"somebody else's");
    message(host.virsh.freeze("web", &[overlay("vdz", &first)], None));
    // libvirt would make a file of another name.
    let folded = host.file("two\nlines");
    assert!(message(host.virsh.freeze("web", &[overlay("vda", &folded)], None)).contains("file name"));
    assert_eq!(host.active_layers("web", ["vda", "vdb"]), disks);
}

#[test]
fn an_agent_that_is_not_there_is_told() {
    let host = Host::start();
    let disk = host.image("disk", None, &[]);
    host.define("web", &[("vda", &disk)]);
    assert!(!host.virsh.agent_answers("web", PATIENCE).unwrap(), "it is switched off");
    host.start_domain("web");
    assert!(!host.virsh.agent_answers("web", PATIENCE).unwrap());
    message(host.virsh.thaw("web", PATIENCE));
    let top = host.file("top");
    message(host.virsh.freeze("web", &[overlay("vda", &top)], Some(PATIENCE)));
    assert!(!top.exists());
    assert_eq!(host.live("web").disk("vda").unwrap().source, Source::File(disk));
}

#[test]
fn jobs_are_seen_and_ended() {
    let host = Host::start();
    let name = "-slow";
    let base = host.image("base", None, &["write -P 1 0 1M"]);
    let a = host.image("a", Some(&base), &["write -P 2 1M 20M"]);
    let b = host.image("b", Some(&a), &["write -P 3 8M 48M"]);
    let xml = host.file("slow.xml");
    fs::write(&xml, domain_xml(name, &[("vda", &b)])).unwrap();
    host.libvirtd.virsh(["create", text(&xml)]).unwrap();
    let domain = host.virsh.domain(name).unwrap();
    assert!(domain.is_running() && domain.inactive.is_none(), "it is transient");

    let job = |kind: &str, ready| Some(BlockJob { kind: kind.to_owned(), ready });
    host.start_job(name, &["--base", text(&base), "--top", text(&a)]);
    assert_eq!(host.virsh.block_job(name, "vda").unwrap(), job("Block Commit", false));
    let refused = host.virsh.freeze(name, &[overlay("vda", &host.file("c"))], None);
    assert!(message(refused).contains("block job"));
    host.let_job_run(name);
    wait_until("the commit", Duration::from_secs(60), || {
        Ok(host.virsh.block_job(name, "vda").unwrap().is_none())
    })
    .unwrap();
    assert_eq!(host.live(name).disk("vda").unwrap().backing, [layer(&base)]);

    host.start_job(name, &["--base", text(&base), "--active"]);
    assert_eq!(host.virsh.block_job(name, "vda").unwrap(), job("Active Block Commit", false));
    let mirror = |ready| Mirror { job: "active-commit".to_owned(), target: Some(base.clone()), ready };
    assert_eq!(host.live(name).disk("vda").unwrap().mirror, Some(mirror(false)));
    assert!(host.virsh.pivot(name, "vda").is_err(), "it is not ready");
    host.let_job_run(name);
    let ready = || Ok(host.virsh.block_job(name, "vda").unwrap() == job("Active Block Commit", true));
    wait_until("the job being ready", Duration::from_secs(60), ready).unwrap();
    assert_eq!(host.live(name).disk("vda").unwrap().mirror, Some(mirror(true)));
    host.virsh.pivot(name, "vda").unwrap();
    assert_eq!(host.live(name).disk("vda").unwrap().source, Source::File(base.clone()));

    host.libvirtd.virsh(["destroy", "--domain", name]).unwrap();
    assert!(is_missing(host.virsh.domain(name)), "a transient domain ends with its process");
    expect(&base, &["-P 1 0 1M", "-P 2 1M 7M", "-P 3 8M 48M", "-P 0 56M 8M"]);
}

#[test]
fn layers_of_a_stopped_domain_are_merged() {
    let host = Host::start();
    let base = host.image("base,:", None, &["write -P 1 0 2M"]);
    let top = host.image(FILE, Some(&base), &["write -P 2 1M 2M", "write -z 0 64k"]);
    host.define("--help", &[("vda", &top)]);

    let raw = Backing { format: "raw".to_owned(), ..layer(&base) };
    assert!(message(host.virsh.commit_stopped(&top, &raw)).contains("records qcow2"));
    let other = host.image("other", None, &[]);
    assert!(message(host.virsh.commit_stopped(&top, &layer(&other))).contains("Did not find"));
    host.virsh.commit_stopped(&top, &layer(&base)).unwrap();
    let merged = ["-P 0 0 64k", "-P 1 64k 960k", "-P 2 1M 2M", "-P 0 3M 61M"];
    expect(&base, &merged);
    expect(&top, &merged);
    assert!(
        run("qemu-img", ["map", "--output=json", text(&top)]).unwrap().contains("\"depth\": 0"),
        "not emptied"
    );

    let defined = host.virsh.domain("--help").unwrap().inactive.unwrap();
    let xml = underlay_client::hypervisor::redirect("--help", &defined.xml, "vda", &layer(&base)).unwrap();
    host.virsh.define(&xml).unwrap();
    let now = host.virsh.domain("--help").unwrap().inactive.unwrap();
    assert_eq!(now.disk("vda").unwrap().source, Source::File(base));
    assert!(now.xml.contains("passwd='secret'"));
    assert!(message(host.virsh.define("<domain/>")).contains("define"));
}

#[test]
fn a_domain_whose_memory_is_saved_is_told() {
    let host = Host::start();
    let disk = host.image("disk", None, &[]);
    host.define("web", &[("vda", &disk)]);
    assert!(!host.virsh.is_saved("web").unwrap());
    let uuid = host.start_domain("web");
    assert!(!host.virsh.is_saved("web").unwrap());
    host.libvirtd.virsh(["managedsave", &uuid]).unwrap();
    assert!(!host.virsh.domain("web").unwrap().is_running());
    assert!(host.virsh.is_saved("web").unwrap());
}

#[test]
fn names_are_never_taken_for_ids() {
    let host = Host::start();
    let disk = host.image("disk", None, &[]);
    host.define("web & co", &[("vda", &disk)]);
    let uuid = host.start_domain("web & co");
    let id = host.libvirtd.virsh(["domid", &uuid]).unwrap().trim().to_owned();
    for name in [&id, &uuid, "", "web", "WEB & CO", "web & co ", "a\0b", "a\nb", "*"] {
        assert!(is_missing(host.virsh.domain(name)), "{name:?}");
        assert!(is_missing(host.virsh.block_job(name, "vda")), "{name:?}");
        assert!(is_missing(host.virsh.agent_answers(name, PATIENCE)), "{name:?}");
        assert!(is_missing(host.virsh.thaw(name, PATIENCE)), "{name:?}");
        assert!(is_missing(host.virsh.freeze(name, &[], None)), "{name:?}");
        assert!(is_missing(host.virsh.commit_active(name, "vda", &disk)), "{name:?}");
    }
    // Domains whose names are another's number and UUID.
    for name in [&id, &uuid] {
        host.define(name, &[]);
        let found = host.virsh.domain(name).unwrap();
        assert!(found.name == *name && found.uuid != uuid && !found.is_running());
        assert_eq!(host.virsh.domain_job(name).unwrap(), None);
        assert!(message(host.virsh.freeze(name, &[], None)).contains("not running"));
    }
    assert!(host.virsh.domain("web & co").unwrap().is_running());
}

#[test]
fn a_hypervisor_that_cannot_be_reached_is_no_missing_domain() {
    let mut host = Host::start();
    let disk = host.image("disk", None, &[]);
    host.define("web", &[("vda", &disk)]);
    host.start_domain("web");
    host.libvirtd.kill().unwrap();
    let hint = host.virsh.domains().unwrap_err().hint();
    assert!(hint.unwrap().contains("is libvirtd running"));
    for virsh in [&host.virsh, &virsh("qemu+unix:///system?socket=/nowhere")] {
        let top = overlay("vda", &host.file("top"));
        for told in [
            message(virsh.domains()),
            message(virsh.domain("web")),
            message(virsh.domain("3")),
            message(virsh.checkpoints("web")),
            message(virsh.domain_job("web")),
            message(virsh.block_job("web", "vda")),
            message(virsh.agent_answers("web", PATIENCE)),
            message(virsh.thaw("web", PATIENCE)),
            message(virsh.freeze("web", &[top], None)),
            message(virsh.commit_active("web", "vda", &disk)),
        ] {
            assert!(told.starts_with("failed to connect to the hypervisor; "), "{told}");
        }
    }
    host.libvirtd.start_again().unwrap();
    assert_eq!(host.live("web").disk("vda").unwrap().source, Source::File(disk));
}
