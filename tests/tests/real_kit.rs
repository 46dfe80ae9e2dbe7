//! Proof that the kit's parts are real: the guest boots, an overlay of it differs, the S3 servers store objects, and
//! restic restores what it backed up.

use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use underlay_tests::commands::{run, run_command};
use underlay_tests::qemu::{BOOT_PATIENCE, Format, Guest, Writes};
use underlay_tests::s3::S3Server;
use underlay_tests::{guest, rivals};

#[test]
fn guest_boots_to_its_login() {
    let guest = Guest::boot(&guest::image().unwrap(), Format::Qcow2, Writes::Discard).unwrap();
    assert_eq!(guest.marker().unwrap(), guest::DEFAULT_MARKER);
    guest.wait_for("underlay-guest login: ", BOOT_PATIENCE).unwrap();
}

#[test]
fn guest_in_an_overlay_shows_the_overlays_marker_and_switches_off() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("vm, with a comma.qcow2");
    guest::overlay(&guest::image().unwrap(), &disk).unwrap();
    guest::set_marker(&disk, "tuesday").unwrap();
    guest::set_power_off(&disk).unwrap();
    assert_eq!(guest::read_file(&disk, "/etc/underlay-marker").unwrap(), b"tuesday");

    let mut guest = Guest::boot(&disk, Format::Qcow2, Writes::Keep).unwrap();
    assert_eq!(guest.marker().unwrap(), "tuesday");
    guest.wait_for_exit(Duration::from_secs(120)).unwrap();

    // The running guest wrote to the overlay; its file system can still be changed from outside.
    guest::set_marker(&disk, "wednesday").unwrap();
    run("qemu-img", ["check".as_ref(), "-q".as_ref(), disk.as_os_str()]).unwrap();
    assert_eq!(guest::read_file(&guest::image().unwrap(), "/etc/underlay-marker").unwrap(), b"golden");
}

#[test]
fn a_file_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("vm.qcow2");
    guest::overlay(&guest::image().unwrap(), &disk).unwrap();
    guest::write_file(&disk, "/no/such/folder/file", b"x").unwrap_err();
    guest::read_file(&disk, "/etc/no-such-file").unwrap_err();
}

#[test]
fn garage_stores_objects_over_a_restart() {
    let mut server = S3Server::garage().unwrap();
    let key = block_on(stores_and_lists(&server)).unwrap();
    server.stop();
    server.start().unwrap();
    let client = client(&server);
    let kept = block_on(async { client.get(&key).await.unwrap().bytes().await.unwrap() });
    assert_eq!(&kept[..], b"content");
}

#[test]
fn garage_refuses_a_wrong_secret() {
    let mut server = S3Server::garage().unwrap();
    server.secret_key = "f".repeat(64);
    let client = client(&server);
    block_on(async { client.put(&Key::from("a"), PutPayload::from_static(b"x")).await.unwrap_err() });
}

#[test]
fn moto_stores_objects_and_honours_conditions() {
    let server = S3Server::moto().unwrap();
    let key = block_on(stores_and_lists(&server)).unwrap();
    let client = client(&server);
    let second = block_on(client.put_opts(&key, PutPayload::from_static(b"other"), PutMode::Create.into()));
    assert!(matches!(second, Err(object_store::Error::AlreadyExists { .. })), "{second:?}");
}

#[test]
fn restic_backs_up_and_restores() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("disk"), b"a disk").unwrap();
    let restic = |arguments: &[&str]| {
        let mut command = std::process::Command::new(rivals::restic().unwrap());
        command.args(arguments).arg("--no-cache").current_dir(folder.path());
        run_command(command.env("RESTIC_PASSWORD", "secret").env("RESTIC_REPOSITORY", path("repository")))
            .unwrap()
    };
    assert!(restic(&["version"]).contains("restic 0.18"));
    restic(&["init"]);
    restic(&["backup", "disk"]);
    restic(&["restore", "latest", "--target", "restored"]);
    assert_eq!(std::fs::read(path("restored/disk")).unwrap(), b"a disk");
}

async fn stores_and_lists(server: &S3Server) -> object_store::Result<Key> {
    let client = client(server);
    let key = Key::from("folder/object");
    client.put(&key, PutPayload::from_static(b"content")).await?;
    assert_eq!(&client.get(&key).await?.bytes().await?[..], b"content");
    let listed = client.list_with_delimiter(Some(&Key::from("folder"))).await?;
    assert_eq!(listed.objects.iter().map(|object| &object.location).collect::<Vec<_>>(), [&key]);
    Ok(key)
}

fn client(server: &S3Server) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(&server.endpoint)
        .with_bucket_name(&server.bucket)
        .with_access_key_id(&server.access_key)
        .with_secret_access_key(&server.secret_key)
        .with_region(&server.region)
        .with_allow_http(true)
        .build()
        .expect("every setting is there")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(future)
}
