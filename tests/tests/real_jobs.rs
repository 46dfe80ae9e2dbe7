//! A job that the server began by itself, stopped while it runs. The bucket's server stands still meanwhile, so that the job cannot end.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use underlay_store::snapshot::Timestamp;
use underlay_tests::commands::{run, wait_until};
use underlay_tests::program::{Underlay, program};
use underlay_tests::s3::S3Server;
use underlay_tests::server::{NAME, ServerProgram};

/// After the server has started, so that the repository is open by then.
const DUE_IN: Duration = Duration::from_secs(8);

struct Asker {
    server: ServerProgram,
    runtime: tokio::runtime::Runtime,
    client: Client,
    token: String,
}

impl Asker {
    fn ask(&self, method: Method, path: &str) -> (StatusCode, Value) {
        let url = format!("{}/v1/repositories/{NAME}/{path}", self.server.url());
        self.runtime.block_on(async {
            let answer = self.client.request(method, url).bearer_auth(&self.token).send().await.unwrap();
            (answer.status(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
        })
    }

    /// The runs of the scheduled job, newest first, and when it is next.
    fn scrubs(&self) -> (Vec<Value>, Timestamp) {
        let (status, listed) = self.ask(Method::GET, "jobs");
        assert_eq!(status, StatusCode::OK, "{listed}");
        let runs = listed["history"].as_array().unwrap().iter().filter(|run| run["job"] == "nightly");
        let next = Timestamp::parse(listed["planned"][0]["next"].as_str().unwrap()).unwrap();
        (runs.cloned().collect(), next)
    }

    /// How the newest run stands, once it is there.
    fn once(&self, state: &str) -> Value {
        let mut found = Value::Null;
        wait_until(&format!("a scrub that is {state}"), Duration::from_secs(60), || {
            found = self.scrubs().0.first().cloned().unwrap_or_default();
            Ok(found["state"] == state)
        })
        .unwrap();
        found
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A repository in the bucket with a pack to read, and a scrub that is due soon after the server starts.
fn prepare(folder: &Path, s3: &S3Server) -> Underlay {
    let location = format!("s3://{}/vms", s3.bucket);
    ServerProgram::configure(folder, &location, "127.0.0.1:0", "insecure_http = true").unwrap();
    let mut server = ServerProgram::serve(folder, &s3.variables()).unwrap();
    let operator =
        server.client(folder, &server.token(&["--scope", "admin,backup,maintain,restore"]).unwrap());
    let operator = operator.unwrap();
    operator.run(&["init"]).unwrap();
    let image = folder.join("disk.raw");
    run("sh", ["-c", &format!("head -c 20M /dev/urandom > {image:?}")]).unwrap();
    operator.run(&["backup", "--vm", "web", "--format", "raw", text(&image)]).unwrap();
    server.terminate();
    let job = "[[repository.job]]\nkind = \"scrub\"\nname = \"nightly\"\nevery = \"1d\"\n";
    ServerProgram::configure_more(folder, job).unwrap();
    let day = 24 * 60 * 60 * 1000;
    let soon = Timestamp::now().as_milliseconds() + i64::try_from(DUE_IN.as_millis()).unwrap();
    let known_since = Timestamp::from_milliseconds(soon - day).unwrap();
    let history = json!({ "version": 1, "runs": [], "known_since": { NAME: { "nightly": known_since } } });
    std::fs::write(folder.join("server/jobs.json"), history.to_string()).unwrap();
    operator
}

#[test]
fn a_scheduled_job_is_stopped_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let s3 = S3Server::garage().unwrap();
    let operator = prepare(folder, &s3);
    let server = ServerProgram::serve(folder, &s3.variables()).unwrap();
    let token = server.token(&["--scope", "maintain"]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asker = Asker { server, runtime, client: Client::builder().no_proxy().build().unwrap(), token };
    assert!(asker.scrubs().0.is_empty(), "it is not due yet");
    s3.pause().unwrap();
    let running = asker.once("running");
    assert!(running["planned"] == true && running["ended"].is_null(), "{running}");
    let id = running["id"].as_str().unwrap().to_owned();
    let (status, standing) = asker.ask(Method::GET, &format!("jobs/{id}"));
    assert_eq!((status, &standing["state"]["state"]), (StatusCode::OK, &json!("running")), "{standing}");
    assert_eq!(asker.ask(Method::DELETE, &format!("jobs/{id}")).0, StatusCode::NO_CONTENT);
    let (runs, next) = asker.scrubs();
    assert_eq!((&runs[0]["state"], &runs[0]["id"]), (&json!("stopped"), &json!(id)), "at once: {runs:?}");
    assert!(runs[0]["ended"].is_string() && runs[0]["told"] == "somebody stopped it", "{runs:?}");
    let started = Timestamp::parse(runs[0]["started"].as_str().unwrap()).unwrap();
    assert!(next > started, "it waits for its next time: {next:?}");
    let (_, standing) = asker.ask(Method::GET, &format!("jobs/{id}?seen=1000"));
    assert_eq!(standing["state"]["outcome"]["title"], "a check was stopped", "{standing}");
    assert_eq!(asker.ask(Method::DELETE, &format!("jobs/{id}")).0, StatusCode::NO_CONTENT, "it repeats");
    s3.resume().unwrap();
    // Another of its kind may run, and ends well: nothing of the stopped one is left behind.
    let client = asker.server.client(folder, &operator_token(&asker.server)).unwrap();
    client.run(&["check", "--scrub"]).unwrap();
    drop(operator);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(asker.scrubs().0, runs, "it does not begin again, and what has ended stays as it is");
    let listed = run(
        text(&program("underlay-server").unwrap()),
        ["--config", text(&folder.join("server.toml")), "jobs"],
    )
    .unwrap();
    let line = listed.lines().find(|line| line.contains("nightly")).unwrap();
    for part in ["vms", "every day", "stopped", "somebody stopped it"] {
        assert!(line.contains(part), "{part}: {listed}");
    }
    assert!(listed.lines().any(|line| line.contains("asked for") && line.contains("done")), "{listed}");
}

fn operator_token(server: &ServerProgram) -> String {
    server.token(&["--scope", "maintain,restore"]).unwrap()
}
