//! Proof that the kit's Keystone and Glance are real: they know who asks, keep images, and end with the test.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use underlay_tests::commands::{output, run_command, wait_until};
use underlay_tests::openstack::{self, OpenStack};

/// Set in the process that is killed.
const HOLD: &str = "UNDERLAY_TESTS_HOLD_AN_OPENSTACK";

#[test]
fn an_image_comes_back_as_it_went() {
    let cloud = OpenStack::identity_and_images().unwrap();
    assert!(!cloud.token().unwrap().is_empty());
    assert!(cloud.images().unwrap().is_empty());

    let (file, back) = (cloud.folder().join("up load"), cloud.folder().join("back"));
    let content: Vec<_> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&file, &content).unwrap();
    let image = cloud.upload_image("first", &file, "raw", &json!({"our_note": "x"})).unwrap();
    assert_eq!((&*image.status, image.size), ("active", Some(3_000_000)));
    assert_eq!(image.properties["our_note"], "x");
    assert_eq!(image.os_hash_algo.as_deref(), Some("sha512"));
    let sum = run_command(Command::new("sha512sum").arg(&file)).unwrap();
    assert!(sum.starts_with(&image.os_hash_value.clone().unwrap()));
    cloud.download_image(&image.id, &back).unwrap();
    assert!(std::fs::read(&back).unwrap() == content);
    assert_eq!(cloud.image_named("first").unwrap().id, image.id);

    // OpenStack's own client, as a user and with an application credential.
    let list = |variables: Vec<(&str, String)>| {
        let mut client = Command::new(openstack::tools().unwrap());
        client.args(["-m", "openstackclient.shell", "image", "list", "-f", "value", "-c", "Name"]);
        client.envs(variables).env("TMPDIR", cloud.folder());
        output(&mut client).unwrap()
    };
    let credential = cloud.application_credential().unwrap();
    for variables in [cloud.variables(), cloud.variables_with(&credential)] {
        let listed = list(variables);
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "first\n", "{listed:?}");
    }
    let mut wrong = credential;
    // At its beginning: Keystone looks at 72 bytes of it only.
    wrong.secret.insert(0, 'x');
    assert!(!list(cloud.variables_with(&wrong)).status.success());

    cloud.delete_image(&image.id).unwrap();
    assert!(cloud.images().unwrap().is_empty());
    assert!(cloud.log().contains("--- keystone"));
    let folder = cloud.folder().to_owned();
    drop(cloud);
    assert!(!folder.exists());
}

/// The test starts itself once more, as a process that holds an OpenStack until it is killed.
#[test]
fn nothing_outlives_a_killed_test() {
    if std::env::var_os(HOLD).is_some() {
        return hold_an_openstack();
    }
    let mut holder = Command::new(std::env::current_exe().unwrap());
    holder.args(["--exact", "nothing_outlives_a_killed_test", "--nocapture"]).env(HOLD, "1");
    let mut holder = holder.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines().map(Result::unwrap);
    let held = lines.find_map(|line| Some(line.split_once("holds ")?.1.to_owned())).unwrap();
    let (address, folder) = held.split_once(' ').unwrap();
    assert!(processes_that_name(folder) >= 2);
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_until("the end of what a killed test held", Duration::from_secs(10), || {
        Ok(std::net::TcpStream::connect(address).is_err() && processes_that_name(folder) == 0)
    })
    .unwrap();
    // Only the folder is left: nobody was there to remove it.
    std::fs::remove_dir_all(folder).unwrap();
}

#[expect(clippy::print_stdout, reason = "the killer reads it")]
fn hold_an_openstack() {
    let cloud = OpenStack::identity_and_images().unwrap();
    let url = cloud.auth_url();
    let address = url.trim_start_matches("http://").trim_end_matches("/v3");
    println!("holds {address} {}", cloud.folder().display());
    std::thread::sleep(Duration::from_secs(60));
}

fn processes_that_name(folder: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let words = processes.map(|process| std::fs::read(process.join("cmdline")).unwrap_or_default());
    words.filter(|words| String::from_utf8_lossy(words).contains(folder)).count()
}
