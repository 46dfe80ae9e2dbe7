//! One suite for every way to reach a repository.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;

use underlay_store::backend::{Backend, Options};
use underlay_store::repository::{Access, Repository};
use underlay_tests::conformance::{CASES, Ground};
use underlay_tests::server::{Served, new_descriptor};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_this_process() {
    for (name, case) in CASES {
        println!("{name}");
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("repository");
        let backend = Backend::open(place.to_str().unwrap(), Options { create: true }).unwrap();
        let (key, descriptor, text) = new_descriptor();
        Repository::init(&backend, text, Vec::new()).await.unwrap();
        let repository =
            Repository::open(backend, &folder.path().join("state"), Access::Write).await.unwrap();
        case(Ground { authority: Arc::new(repository), key, descriptor }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls() {
    for (name, case) in CASES {
        println!("{name}");
        let served = Served::start("").await;
        case(ground(&served)).await;
        served.running.stop().await;
    }
}

/// With one token, which is one writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_strict_mode() {
    for (name, case) in CASES {
        println!("{name}");
        let served = Served::start_strict().await;
        case(ground(&served)).await;
        served.running.stop().await;
    }
}

fn ground(served: &Served) -> Ground {
    Ground { authority: served.for_all(), key: served.key.clone(), descriptor: served.descriptor.clone() }
}
