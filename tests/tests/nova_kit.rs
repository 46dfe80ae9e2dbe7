//! Proof that the kit's Nova is real: it boots guests under the kit's libvirtd, does with them what users ask for, and
//! ends with the test.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use underlay_tests::guest::{DEFAULT_MARKER, MARKER_PREFIX};
use underlay_tests::openstack::OpenStack;

#[test]
fn an_instance_lives_and_goes() {
    let begun = Instant::now();
    let cloud = OpenStack::compute().unwrap();
    say("ready", begun);
    let marker = format!("{MARKER_PREFIX}{DEFAULT_MARKER}");
    let web = cloud.boot("web").unwrap();
    say("active", begun);
    assert_eq!(cloud.status(web.uuid()).unwrap(), ("ACTIVE".into(), None));
    let libvirtd = cloud.libvirtd().unwrap();
    let machine = libvirtd.machine(web.domain()).unwrap();
    assert_eq!(machine.uuid(), web.uuid());
    assert_eq!(machine.chain("vda").unwrap()[0], web.folder().join("disk"));
    assert!(web.folder().starts_with(cloud.instances_folder()));
    web.wait_for_text(&marker).unwrap();
    say("booted", begun);
    machine.wait_for_agent().unwrap();
    say("agent", begun);
    machine.exec("echo kept > /root/note; sync").unwrap();

    let image = web.create_image("copy").unwrap();
    say("image", begun);
    assert_eq!((&*image.status, &*image.disk_format), ("active", "qcow2"));

    let report = cloud.report_of_compute();
    assert!(report.contains("Green Threads") && report.contains("nova/service.py"), "{report}");
    cloud.kill_compute().unwrap();
    assert!(machine.is_running().unwrap());
    cloud.start_compute().unwrap();
    say("compute again", begun);

    web.hard_reboot().unwrap();
    say("rebooted", begun);
    machine.wait_for_agent().unwrap();
    assert_eq!(machine.exec("cat /root/note").unwrap(), "kept\n");
    say("agent", begun);
    web.stop().unwrap();
    say("stopped", begun);
    assert!(!machine.is_running().unwrap());
    web.start().unwrap();
    say("started", begun);

    web.delete().unwrap();
    say("deleted", begun);
    assert!(!web.folder().exists());
    let copy = cloud.boot_image("copy", &image.id).unwrap();
    copy.wait_for_text(&marker).unwrap();
    say("copy booted", begun);
    let folder = cloud.folder().to_owned();
    drop(cloud);
    say("ended", begun);
    assert!(!folder.exists());
}

/// How long each step takes is what a change of this kit is judged by: `--no-capture` shows it.
#[expect(clippy::print_stderr, reason = "for who reads the log")]
fn say(what: &str, since: Instant) {
    eprintln!("{:6.1} s: {what}", since.elapsed().as_secs_f64());
}
