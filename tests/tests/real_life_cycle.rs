//! A repository's life on servers that others wrote: what is dropped goes, what is damaged is found, marked and healed, who takes
//! over owns, and a lost catalog costs nothing.

#![allow(clippy::unwrap_used)]

use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStore, ObjectStoreExt, path};
use serde_json::Value;
use underlay_tests::program::Underlay;
use underlay_tests::s3::S3Server;

const PREFIX: &str = "life/cycle";

/// The bucket, as somebody sees it who knows nothing of repositories.
struct Bucket {
    store: AmazonS3,
    runtime: tokio::runtime::Runtime,
}

impl Bucket {
    fn of(server: &S3Server) -> Self {
        let store = AmazonS3Builder::new()
            .with_endpoint(&server.endpoint)
            .with_allow_http(true)
            .with_bucket_name(&server.bucket)
            .with_region(&server.region)
            .with_access_key_id(&server.access_key)
            .with_secret_access_key(&server.secret_key)
            .build()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { store, runtime }
    }

    /// Objects in a folder of the repository, the largest first.
    fn objects(&self, folder: &str) -> Vec<(path::Path, u64)> {
        let prefix = path::Path::from(format!("{PREFIX}/{folder}"));
        let listed = self.store.list(Some(&prefix)).map_ok(|object| (object.location, object.size));
        let mut found: Vec<_> = self.runtime.block_on(listed.try_collect()).unwrap();
        found.sort_by_key(|(name, size)| (std::cmp::Reverse(*size), name.to_string()));
        found
    }

    /// Flips a bit in the middle of an object.
    fn flip(&self, name: &path::Path) {
        self.runtime.block_on(async {
            let mut bytes = self.store.get(name).await.unwrap().bytes().await.unwrap().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            self.store.put(name, bytes.into()).await.unwrap();
        });
    }

    fn delete(&self, name: &path::Path) {
        self.runtime.block_on(self.store.delete(name)).unwrap();
    }
}

fn noise(seed: u8, mib: usize) -> Vec<u8> {
    let mut bytes = vec![0; mib << 20];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Runs a verb that ends with this exit code; its JSON answer and what it said.
#[track_caller]
fn ends<const N: usize>(underlay: &Underlay, code: i32, arguments: [&str; N]) -> (Value, String) {
    let output = underlay.command(arguments).arg("--json").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    (serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

fn life_cycle(server: &S3Server) {
    let folder = tempfile::tempdir().unwrap();
    let here = Underlay::init_s3(server, PREFIX, folder.path()).unwrap();
    let bucket = Bucket::of(server);
    let back_up = |host: &Underlay, vm: &str, content: &[u8]| {
        let image = folder.path().join(format!("{vm}.raw"));
        std::fs::write(&image, content).unwrap();
        let (outcome, _) = ends(host, 0, ["backup", "--vm", vm, image.to_str().unwrap()]);
        outcome["snapshot"].as_str().unwrap().to_owned()
    };
    let restores = |host: &Underlay, snapshot: &str, content: &[u8]| {
        let to = folder.path().join("back.raw");
        host.restore(snapshot, &to, "raw").unwrap();
        assert!(std::fs::read(&to).unwrap() == content, "{snapshot}");
        std::fs::remove_file(to).unwrap();
    };

    // What nothing needs goes; what is half needed is copied.
    let shared = noise(1, 4);
    let old = [shared.clone(), noise(2, 12)].concat();
    let web = [shared, noise(3, 1)].concat();
    let first = back_up(&here, "mail", &old);
    let kept = back_up(&here, "web", &web);
    let before: u64 = bucket.objects("packs").iter().map(|(_, size)| size).sum();
    ends(&here, 0, ["forget", &first]);
    let (collected, _) = ends(&here, 0, ["gc", "--max-unused", "0%"]);
    assert_eq!(collected["report"]["copied_from"]["packs"], 2, "data and nodes: {collected}");
    let after: u64 = bucket.objects("packs").iter().map(|(_, size)| size).sum();
    assert!(before - after > 11 << 20, "{before}, {after}");
    restores(&here, &kept, &web);
    ends(&here, 0, ["check", "--read-data", "--scrub"]);

    // Damage is found, marked and healed.
    for delete in [false, true] {
        let (pack, _) = bucket.objects("packs").remove(0);
        if delete {
            bucket.delete(&pack)
        } else {
            bucket.flip(&pack)
        }
        let (_, said) = ends(&here, 12, ["check", "--scrub"]);
        assert!(said.contains("damage"), "{said}");
        ends(&here, 12, ["repair"]);
        assert_eq!(bucket.objects("damaged").len(), 1 + usize::from(delete), "one for each snapshot");
        back_up(&here, "web", &web);
        ends(&here, 0, ["repair"]);
        assert_eq!(bucket.objects("damaged").len(), 0);
        ends(&here, 0, ["gc"]);
        ends(&here, 0, ["check", "--read-data", "--scrub"]);
        restores(&here, &kept, &web);
    }

    // Another host reads beside the owner, and owns only if it says so; then the first is shut out.
    let there = here.elsewhere(folder.path());
    restores(&there, &kept, &web);
    let (_, said) = ends(&there, 11, ["gc"]);
    assert!(said.contains("--take-over"), "{said}");
    let (_, said) = ends(&there, 0, ["gc", "--take-over"]);
    assert!(said.contains("the store: "), "{said}");
    let newest = back_up(&there, "web", &[web.clone(), noise(4, 1)].concat());
    ends(&here, 11, ["forget", &newest]);
    restores(&here, &newest, &[web.clone(), noise(4, 1)].concat());

    // Its catalog is lost.
    std::fs::remove_dir_all(there.state().join("catalogs")).unwrap();
    restores(&there, &kept, &web);
    back_up(&there, "web", &web);
    ends(&there, 0, ["gc", "--max-unused", "0%"]);
    ends(&there, 0, ["check", "--read-data", "--scrub"]);
    for snapshot in ends(&there, 0, ["list"]).0.as_array().unwrap() {
        ends(&there, 0, ["forget", snapshot["snapshot"].as_str().unwrap()]);
    }
    ends(&there, 0, ["gc"]);
    assert_eq!((bucket.objects("packs"), bucket.objects("nodes")), (Vec::new(), Vec::new()));
    back_up(&there, "web", &web);
    restores(&there, "web@latest", &web);
}

#[test]
fn on_garage() {
    life_cycle(&S3Server::garage().unwrap());
}

#[test]
fn on_moto() {
    life_cycle(&S3Server::moto().unwrap());
}
