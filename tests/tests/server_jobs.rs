//! What a server does by itself: on time, once, and again after it was cut off.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use underlay_server::tokens::Scope;
use underlay_store::authority::Authority;
use underlay_store::id::SnapshotId;
use underlay_store::names;
use underlay_tests::conformance::Ground;
use underlay_tests::server::{NAME, Served};

const JOBS: &str = "insecure_http = true\n\
    [[repository.job]]\nkind = \"forget\"\nevery = \"1d\"\nkeep_last = 1\nkeep_within = \"1ms\"\n\
    [[repository.job]]\nkind = \"check\"\nevery = \"1d\"\n\
    [[repository.job]]\nkind = \"gc\"\nevery = \"1d\"\n";
const LONG_AGO: &str = "2026-01-01T00:00:00.000Z";

async fn jobs(served: &Served, token: &str) -> (StatusCode, Value) {
    let url = format!("http://{}/v1/repositories/{NAME}/jobs", served.running.address);
    let client = Client::builder().no_proxy().build().unwrap();
    let answer = client.get(url).bearer_auth(token).send().await.unwrap();
    (answer.status(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

/// The list, once this many runs of planned jobs have ended.
async fn once_ended(served: &Served, runs: usize) -> Value {
    let (token, start) = (served.token(&[Scope::Maintain], "*"), Instant::now());
    loop {
        let (status, listed) = jobs(served, &token).await;
        assert_eq!(status, StatusCode::OK, "{listed}");
        let history = listed["history"].as_array().unwrap();
        if history.iter().filter(|run| run["planned"] == true && run["state"] != "running").count() >= runs {
            return listed;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{listed}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Three snapshots of one machine, oldest first.
async fn three_snapshots(served: &Served) -> Vec<SnapshotId> {
    let token = served.token(&Scope::ALL, "*");
    let (key, descriptor) = (served.key.clone(), served.descriptor.clone());
    let ground = Ground { authority: served.authority(&token), key, descriptor };
    let mut snapshots = Vec::new();
    for n in 1..=3 {
        snapshots.push(ground.backup("vm", n).await.0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    snapshots
}

async fn stored(served: &Served) -> Vec<String> {
    served.for_all().snapshots().await.unwrap().into_iter().map(|document| document.name).collect()
}

/// Both jobs were seen long ago; a check began and did not end.
fn write_history(folder: &Path) {
    let run = json!({
        "repository": NAME, "job": "check", "kind": "check", "id": "ab".repeat(16), "planned": true,
        "state": "running", "started": LONG_AGO, "ended": null, "told": "",
    });
    let since = json!({ NAME: { "forget": LONG_AGO, "check": LONG_AGO } });
    let document = json!({ "version": 1, "runs": [run], "known_since": since });
    std::fs::write(folder.join("state/jobs.json"), document.to_string()).unwrap();
}

fn of<'a>(listed: &'a Value, part: &str, job: &str) -> Vec<&'a Value> {
    listed[part].as_array().unwrap().iter().filter(|entry| entry["job"] == job).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_runs_once_and_what_was_cut_off_runs_again() {
    let served = Served::start("insecure_http = true").await;
    let snapshots = three_snapshots(&served).await;
    let served = served.restarted(JOBS, write_history).await;
    let listed = once_ended(&served, 3).await;
    let forget = of(&listed, "history", "forget");
    assert_eq!((forget.len(), &forget[0]["state"]), (1, &json!("done")), "{listed}");
    assert_eq!(forget[0]["told"], "1 snapshot dropped, 2 kept", "what came last has no say");
    let left: Vec<String> = snapshots[1..].iter().map(names::snapshot).collect();
    assert_eq!(stored(&served).await, left);
    let check = of(&listed, "history", "check");
    assert_eq!([&check[0]["state"], &check[1]["state"]], ["done", "cut-off"], "newest first: {listed}");
    assert!(check[0]["told"].as_str().unwrap().contains("sound"), "{listed}");
    assert!(of(&listed, "history", "gc").is_empty(), "its first time comes tomorrow");
    for planned in listed["planned"].as_array().unwrap() {
        assert!(planned["next"].as_str().unwrap() > LONG_AGO && planned["when"] == "every day", "{planned}");
    }
    // Nothing is due any more, after another restart neither.
    let served = served.restarted(JOBS, |_| {}).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let (_, again) = jobs(&served, &served.token(&[Scope::Maintain], "*")).await;
    assert_eq!(again["history"], listed["history"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_catalog_did_not_commit_is_neither_counted_nor_dropped() {
    let served = Served::start("insecure_http = true").await;
    let snapshots = three_snapshots(&served).await;
    let lose_the_catalog = |folder: &Path| {
        std::fs::remove_dir_all(folder.join("repository/catalog")).unwrap();
        write_history(folder);
    };
    let served = served.restarted(JOBS, lose_the_catalog).await;
    let listed = once_ended(&served, 3).await;
    let told = of(&listed, "history", "forget")[0]["told"].as_str().unwrap();
    assert!(told.starts_with("0 snapshots dropped, 0 kept, 3 passed over"), "{listed}");
    assert_eq!(stored(&served).await.len(), snapshots.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_asked_for_is_listed_too_and_only_who_maintains_all_sees_it() {
    let served = Served::start("insecure_http = true").await;
    served.for_all().check(&Default::default(), &underlay_store::progress::Silent).await.unwrap();
    let (_, listed) = jobs(&served, &served.token(&[Scope::Maintain], "*")).await;
    let run = of(&listed, "history", "check")[0];
    assert_eq!((&run["planned"], &run["state"]), (&json!(false), &json!("done")), "{listed}");
    assert!(run["ended"].as_str() >= run["started"].as_str());
    for (scope, machines) in [(Scope::Maintain, "web*"), (Scope::Backup, "*"), (Scope::Restore, "*")] {
        let (status, _) = jobs(&served, &served.token(&[scope], machines)).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
}
