//! What Prometheus is told, as its own tools read it; and the dashboard over it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use reqwest::{Client, StatusCode};
use serde_json::Value;
use underlay_server::tokens::Scope;
use underlay_tests::commands::run_command;
use underlay_tests::conformance::Ground;
use underlay_tests::server::{NAME, Served};

const CONFIG: &str = "insecure_http = true\n[[repository.job]]\nkind = \"check\"\nevery = \"1d\"\n";
const LONG_AGO: &str = "2026-01-01T00:00:00.000Z";

async fn scrape(served: &Served, token: Option<&str>) -> (StatusCode, String) {
    let client = Client::builder().no_proxy().build().unwrap();
    let mut request = client.get(format!("http://{}/metrics", served.running.address));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

/// A server that has stored snapshots of a machine and has run a job.
async fn busy(config: &str) -> Served {
    let served = Served::start("insecure_http = true").await;
    let token = served.token(&Scope::ALL, "*");
    let (key, descriptor) = (served.key.clone(), served.descriptor.clone());
    Ground { authority: served.authority(&token), key, descriptor }.backup("we\"b", 1).await;
    let due = |folder: &Path| {
        let history = format!(
            "{{\"version\":1,\"runs\":[],\"known_since\":{{\"{NAME}\":{{\"check\":\"{LONG_AGO}\"}}}}}}"
        );
        std::fs::write(folder.join("state/jobs.json"), history).unwrap();
    };
    let served = served.restarted(config, due).await;
    let (key, descriptor) = (served.key.clone(), served.descriptor.clone());
    Ground { authority: served.authority(&token), key, descriptor }.backup("db", 2).await;
    for _ in 0..600 {
        if scrape(&served, Some(&token)).await.1.contains("underlay_job_last_success_timestamp_seconds{") {
            return served;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the check has not ended: {}", scrape(&served, Some(&token)).await.1);
}

/// The value of the only sample that begins so.
fn value(text: &str, sample: &str) -> f64 {
    let found: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(sample)).collect();
    assert_eq!(found.len(), 1, "{sample}: {text}");
    found[0].trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_understands_what_it_is_told_and_it_is_true() {
    let served = busy(CONFIG).await;
    let (status, text) = scrape(&served, Some(&served.token(&[Scope::Maintain], "*"))).await;
    assert_eq!(status, StatusCode::OK);
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && said.is_empty(), "{said}\n{text}");
    for (sample, expected) in [
        ("underlay_repository_up{repository=\"vms\"}", 1.0),
        ("underlay_vm_snapshots{repository=\"vms\",vm=\"we\\\"b\"}", 1.0),
        ("underlay_packs{repository=\"vms\"}", 4.0),
        ("underlay_packs_stored_total", 2.0),
        ("underlay_sessions_open{repository=\"vms\"}", 0.0),
        ("underlay_job_failed{repository=\"vms\",job=\"check\",kind=\"check\"}", 0.0),
        (
            "underlay_http_requests_total{method=\"POST\",route=\"/sessions/{handle}/commit\",status=\"204\"}",
            1.0,
        ),
    ] {
        assert!((value(&text, sample) - expected).abs() < 1e-9, "{sample} is not {expected}: {text}");
    }
    assert!(value(&text, "underlay_http_received_bytes_total") > 1000.0);
    let newest = value(&text, "underlay_vm_newest_snapshot_timestamp_seconds{repository=\"vms\",vm=\"db\"}");
    assert!(newest > 1_700_000_000.0, "in seconds: {newest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_maintains_reads_it_unless_it_is_public() {
    let served = Served::start("insecure_http = true").await;
    assert_eq!(scrape(&served, None).await.0, StatusCode::UNAUTHORIZED);
    for (scope, machines) in [(Scope::Backup, "*"), (Scope::Admin, "*"), (Scope::Maintain, "web*")] {
        let (status, text) = scrape(&served, Some(&served.token(&[scope], machines))).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(!text.contains("underlay_"), "{text}");
    }
    let elsewhere = served.token_for(&[Scope::Maintain], "other", "*", None);
    let (status, text) = scrape(&served, Some(&elsewhere)).await;
    assert!(status == StatusCode::OK && !text.contains(NAME), "{text}");
    let public = Served::start("insecure_http = true\n[metrics]\npublic = true").await;
    let (status, text) = scrape(&public, None).await;
    assert!(
        status == StatusCode::OK && text.contains("underlay_repository_up{repository=\"vms\"} 1"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_asks_for_what_there_is() {
    let served = busy(CONFIG).await;
    let (_, text) = scrape(&served, Some(&served.token(&[Scope::Maintain], "*"))).await;
    let samples: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/grafana/underlay.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(queries.len() > 15);
    let mut asked = BTreeSet::new();
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, query) in queries.iter().enumerate() {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        asked.extend(words.filter(|word| word.starts_with("underlay_")));
        let query = query.replace("$__rate_interval", "5m").replace("$repository", ".*");
        rules.push_str(&format!("  - record: query_{number}\n    expr: {}\n", Value::from(query)));
    }
    let missing: Vec<&&str> = asked.difference(&samples).collect();
    assert!(missing.is_empty(), "the server tells nothing of {missing:?}: {text}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yml");
    std::fs::write(&file, rules).unwrap();
    run_command(Command::new("promtool").args(["check", "rules"]).arg(&file)).unwrap();
}
