//! One suite for every kind of backend, then what the wrappers add.

use std::error::Error as _;
use std::time::{Duration, Instant};

use super::*;

const NAME: &str = "packs/5f/5f3a";

fn local() -> (tempfile::TempDir, Backend) {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::open(dir.path().to_str().unwrap(), Options::default()).unwrap();
    (dir, backend)
}

/// What the rest of the store relies on. `backend` is empty.
async fn conforms(backend: &Backend) {
    assert_eq!(backend.list("").await.unwrap(), []);
    assert_eq!(backend.list("packs").await.unwrap(), []);
    assert_eq!(backend.size(NAME).await.unwrap(), None);
    assert!(!backend.exists(NAME).await.unwrap());
    for error in [backend.get(NAME).await, backend.get_range(NAME, 0..1).await] {
        assert!(matches!(error, Err(Error::Missing { object }) if object == NAME));
    }
    backend.delete(NAME).await.unwrap();

    let content = Bytes::from((0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    backend.put(NAME, content.clone()).await.unwrap();
    assert_eq!(backend.size(NAME).await.unwrap(), Some(400_000));
    assert!(backend.exists(NAME).await.unwrap());
    assert_eq!(backend.get(NAME).await.unwrap(), content);
    reads_ranges(backend, &content).await;

    // Again the same: fine. Something else: refused, and the object stays.
    backend.put(NAME, content.clone()).await.unwrap();
    let error = backend.put(NAME, content.slice(1..)).await.unwrap_err();
    assert!(error.source().unwrap().is::<NameTaken>(), "{error:?}");
    assert_eq!(backend.get(NAME).await.unwrap(), content);

    for name in ["underlay.json", "packs/ff/ff00", "packs/00/00ff", "nodes/aa/aa", "packs-not/x"] {
        backend.put(name, Bytes::from_static(b"x")).await.unwrap();
    }
    backend.put("empty", Bytes::new()).await.unwrap();
    assert_eq!(backend.get("empty").await.unwrap(), Bytes::new());
    let pack = |name: &str, size| (name.to_owned(), size);
    let packs = [pack("packs/00/00ff", 1), pack(NAME, 400_000), pack("packs/ff/ff00", 1)];
    assert_eq!(backend.list("packs").await.unwrap(), packs);
    assert_eq!(backend.list("packs/").await.unwrap(), packs);
    assert_eq!(backend.list("").await.unwrap().len(), 7);
    assert_eq!(backend.list("nothing").await.unwrap(), []);

    backend.delete(NAME).await.unwrap();
    assert_eq!(backend.size(NAME).await.unwrap(), None);
    assert_eq!(backend.list("packs").await.unwrap().len(), 2);
    for odd in ["a//b", "../up", "/a//", "a/./b"] {
        assert!(matches!(backend.get(odd).await, Err(Error::Invalid { .. })), "{odd}");
    }
}

async fn reads_ranges(backend: &Backend, content: &Bytes) {
    assert_eq!(backend.get_range(NAME, 17..4113).await.unwrap(), content.slice(17..4113));
    assert_eq!(backend.get_range(NAME, 399_999..400_000).await.unwrap(), content.slice(399_999..));
    assert_eq!(backend.get_range(NAME, 5..5).await.unwrap(), Bytes::new());
    for beyond in [399_999..400_001, 400_000..400_001, 1 << 40..1 << 41] {
        let error = backend.get_range(NAME, beyond).await.unwrap_err();
        assert!(matches!(&error, Error::Damaged { object, .. } if object == NAME), "{error:?}");
    }
}

#[tokio::test]
async fn a_directory_conforms() {
    let (dir, backend) = local();
    conforms(&backend).await;
    let shut = tempfile::tempdir().unwrap();
    conforms(&Backend::open(&format!("file://{}", shut.path().display()), Options::default()).unwrap()).await;
    drop(dir);
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&Backend::memory()).await;
}

#[tokio::test]
async fn wrappers_conform() {
    conforms(&Backend::memory().with_recording().0).await;
    conforms(&Backend::memory().with_faults(Faults::none())).await;
    let (_dir, backend) = local();
    conforms(&backend.with_faults(Faults::none()).with_recording().0).await;
}

#[tokio::test]
async fn recording_counts_by_folder() {
    let (backend, recording) = Backend::memory().with_recording();
    backend.put("packs/a", Bytes::from_static(b"12345")).await.unwrap();
    backend.put("packs/b", Bytes::from_static(b"12345")).await.unwrap();
    backend.put("underlay.json", Bytes::from_static(b"{}")).await.unwrap();
    backend.get("packs/a").await.unwrap();
    backend.get_range("packs/a", 0..5).await.unwrap();
    backend.size("packs/a").await.unwrap();
    backend.list("packs").await.unwrap();
    backend.delete("packs/b").await.unwrap();
    let packs =
        Traffic { puts: 2, put_bytes: 10, gets: 2, get_bytes: 10, heads: 1, lists: 1, listed: 2, deletes: 1 };
    assert_eq!(recording.folder("packs"), packs);
    assert_eq!(recording.folder(""), Traffic { puts: 1, put_bytes: 2, ..Traffic::default() });
    assert_eq!(recording.total().requests(), 8);
    assert_eq!(recording.take().len(), 2);
    assert_eq!(recording.total(), Traffic::default());
}

#[tokio::test]
async fn a_lost_answer_is_repaired_by_repeating() {
    let faults = Faults::script([Rule::once(Operation::Put, "packs/", Fault::After)]);
    let backend = Backend::memory().with_faults(faults);
    let error = backend.put(NAME, Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(&error, Error::Backend { action: "write", object, .. } if object == NAME), "{error:?}");
    assert_eq!(backend.size(NAME).await.unwrap(), Some(1));
    backend.put(NAME, Bytes::from_static(b"x")).await.unwrap();
}

#[tokio::test]
async fn scripts_choose_by_kind_name_and_count() {
    let sound = Backend::memory();
    let faults = Faults::script([
        Rule { skip: 1, ..Rule::once(Operation::Put, "nodes/", Fault::NoSpace) },
        Rule::always(Operation::Delete, "", Fault::Before),
    ]);
    let backend = sound.with_faults(faults.clone());
    backend.put("nodes/a", Bytes::new()).await.unwrap();
    backend.put("packs/a", Bytes::new()).await.unwrap();
    let error = backend.put("nodes/b", Bytes::new()).await.unwrap_err();
    let reason = error.source().unwrap().downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(reason.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(sound.size("nodes/b").await.unwrap(), None);
    backend.put("nodes/b", Bytes::new()).await.unwrap();
    assert!(backend.delete("nodes/b").await.is_err());
    faults.clear();
    backend.delete("nodes/b").await.unwrap();
    assert_eq!(faults.calls(), 6);
}

#[tokio::test]
async fn short_answers_are_errors() {
    let faults = Faults::script([Rule::always(Operation::Get, "", Fault::Short(3))]);
    let backend = Backend::memory().with_faults(faults);
    backend.put("a", Bytes::from_static(b"12345678")).await.unwrap();
    assert!(matches!(backend.get("a").await, Err(Error::Backend { .. })));
    assert!(matches!(backend.get_range("a", 2..6).await, Err(Error::Backend { .. })));
}

#[tokio::test]
async fn a_listing_that_ends_early_is_an_error() {
    for fault in [Fault::Before, Fault::Short(0), Fault::Short(1), Fault::After] {
        let backend =
            Backend::memory().with_faults(Faults::script([Rule::once(Operation::List, "packs", fault)]));
        backend.put("packs/a", Bytes::new()).await.unwrap();
        backend.put("packs/b", Bytes::new()).await.unwrap();
        assert!(
            matches!(backend.list("packs").await, Err(Error::Backend { action: "list", .. })),
            "{fault:?}"
        );
        assert_eq!(backend.list("packs").await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn flips_and_delays() {
    let delay = Fault::Delay(Duration::from_millis(30));
    let faults = Faults::script([
        Rule::once(Operation::Get, "", Fault::Flip(6)),
        Rule::once(Operation::Get, "", delay),
    ]);
    let backend = Backend::memory().with_faults(faults);
    backend.put("a", Bytes::from_static(b"abcd")).await.unwrap();
    assert_eq!(backend.get("a").await.unwrap(), Bytes::from_static(b"abbd"));
    let start = Instant::now();
    assert_eq!(backend.get("a").await.unwrap(), Bytes::from_static(b"abcd"));
    assert!(start.elapsed() >= Duration::from_millis(30));
}

#[tokio::test]
async fn after_a_crash_nothing_works() {
    for (last_lands, expected) in [(false, 2), (true, 3)] {
        let sound = Backend::memory();
        let faults = Faults::none();
        let backend = sound.with_faults(faults.clone());
        backend.put("a", Bytes::new()).await.unwrap();
        faults.crash_after(1, last_lands);
        backend.put("b", Bytes::new()).await.unwrap();
        assert!(!faults.crashed());
        for name in ["c", "d", "e"] {
            assert!(backend.put(name, Bytes::new()).await.is_err());
            assert!(faults.crashed());
        }
        assert!(backend.get("a").await.is_err());
        assert!(backend.list("").await.is_err());
        assert_eq!(sound.list("").await.unwrap().len(), expected);
    }
}

#[tokio::test]
async fn a_seed_decides_without_regard_to_order() {
    let outcome = async |seed, reversed: bool| {
        let backend = Backend::memory().with_faults(Faults::seeded(seed, 300));
        let mut names: Vec<_> = (0..200).map(|n| format!("packs/{n:03}")).collect();
        if reversed {
            names.reverse();
        }
        let mut failed = Vec::new();
        for name in names {
            if backend.put(&name, Bytes::new()).await.is_err() {
                failed.push(name);
            }
        }
        failed.sort();
        failed
    };
    let first = outcome(1, false).await;
    assert!((30..90).contains(&first.len()), "{}", first.len());
    assert_eq!(first, outcome(1, true).await);
    assert_ne!(first, outcome(2, false).await);
}

#[tokio::test]
async fn a_staged_write_that_was_left_behind_is_not_listed() {
    let (dir, backend) = local();
    std::fs::create_dir(dir.path().join("packs")).unwrap();
    std::fs::write(dir.path().join("packs/5f3a#1"), b"half").unwrap();
    assert_eq!(backend.list("packs").await.unwrap(), []);
    backend.put("packs/5f3a", Bytes::from_static(b"whole")).await.unwrap();
    assert_eq!(backend.list("packs").await.unwrap().len(), 1);
}
