//! The OpenAPI document of a real server: valid to others' programs, closed where it says so, and true.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod ruined;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use reqwest::{Client, Method, StatusCode, header};
use serde_json::{Value, json};
use underlay_server::tokens::{Scope, TokenFile};
use underlay_store::snapshot::Timestamp;
use underlay_tests::openapi::{self, Run};
use underlay_tests::s3::S3Server;
use underlay_tests::server::{NAME, ServerProgram, new_token};

use ruined::{EMPTY, Ruined};

/// A name that the server's configuration does not have.
const NOWHERE: &str = "nowhere";

/// The program on loopback, and its document.
struct Described {
    folder: tempfile::TempDir,
    server: ServerProgram,
    client: Client,
    document: Value,
}

/// One operation of the document, with a path to ask for.
struct Operation<'a> {
    method: Method,
    path: String,
    about: &'a Value,
}

impl Described {
    async fn start() -> Self {
        Self::start_on(None).await
    }

    /// On a bucket, if there is one: then packs can go there directly.
    async fn start_on(bucket: Option<&S3Server>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("repository").display().to_string();
        let location = bucket.map_or(directory, |s3| format!("s3://{}/ruined", s3.bucket));
        let direct = if bucket.is_some() { "direct = true\n" } else { "" };
        let variables = bucket.map_or_else(Vec::new, |s3| s3.variables().to_vec());
        ServerProgram::configure(folder.path(), &location, "127.0.0.1:0", "insecure_http = true").unwrap();
        let another =
            format!("\n[[repository]]\nname = {EMPTY:?}\nlocation = {:?}\n", folder.path().join("empty"));
        ServerProgram::configure_more(folder.path(), &format!("{direct}{another}")).unwrap();
        let server = ServerProgram::serve(folder.path(), &variables).unwrap();
        let client = Client::builder().no_proxy().build().unwrap();
        let mut described = Self { folder, server, client, document: Value::Null };
        let token = described.token(&[Scope::Backup], NAME, "web*", None);
        let (status, text) = described.ask(&Method::GET, "/v1/openapi.json", Some(&token)).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        described.document = serde_json::from_str(&text).unwrap();
        described
    }

    fn tokens(&self) -> TokenFile {
        TokenFile::new(&self.folder.path().join("server"))
    }

    fn token(
        &self,
        scopes: &[Scope],
        repository: &str,
        machines: &str,
        expires: Option<Timestamp>,
    ) -> String {
        new_token(&self.tokens(), scopes, repository, machines, expires)
    }

    async fn ask(&self, method: &Method, path: &str, token: Option<&str>) -> (StatusCode, String) {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.server.url()));
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let answer = request.send().await.unwrap();
        let (status, kind) = (answer.status(), answer.headers().get(header::CONTENT_TYPE).cloned());
        let text = answer.text().await.unwrap();
        if status.is_client_error() {
            assert_eq!(kind.unwrap(), "application/problem+json", "{method} {path}: {text}");
            let problem: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(problem["status"], status.as_u16(), "{text}");
        }
        (status, text)
    }

    /// All that need a token. Variable parts of paths are filled in as their schemas ask.
    fn operations(&self, repository: &str) -> Vec<Operation<'_>> {
        let mut all = Vec::new();
        for (path, item) in self.document["paths"].as_object().unwrap() {
            for (method, about) in item.as_object().unwrap() {
                if about["security"] == json!([]) {
                    continue;
                }
                let mut path = path.clone();
                for parameter in about["parameters"].as_array().into_iter().flatten() {
                    let name = parameter["name"].as_str().unwrap();
                    let value =
                        if name == "repository" { repository.to_owned() } else { self.example(parameter) };
                    path = path.replace(&format!("{{{name}}}"), &value);
                }
                let method = method.to_uppercase().parse().unwrap();
                all.push(Operation { method, path, about });
            }
        }
        assert!(all.len() > 30, "{}", all.len());
        all
    }

    fn example(&self, parameter: &Value) -> String {
        let mut schema = &parameter["schema"];
        if let Some(reference) = schema["$ref"].as_str() {
            schema = self.document.pointer(reference.trim_start_matches('#')).unwrap();
        }
        if let Some(word) = schema["enum"][0].as_str() {
            return word.to_owned();
        }
        let Some(pattern) = schema["pattern"].as_str() else { return "7".to_owned() };
        let digits = pattern.strip_prefix("^[0-9a-f]{").and_then(|rest| rest.strip_suffix("}$"));
        "5".repeat(digits.unwrap().parse().unwrap())
    }

    fn write(&self, name: &str, document: &Value) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, document.to_string()).unwrap();
        path
    }
}

fn said(output: &std::process::Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_told_without_a_valid_token() {
    let described = Described::start().await;
    let soon = Timestamp::from_milliseconds(Timestamp::now().as_milliseconds() + 1).unwrap();
    let expired = described.token(&Scope::ALL, "*", "*", Some(soon));
    let revoked = described.token(&Scope::ALL, "*", "*", None);
    described.tokens().revoke(&revoked[5..21]).unwrap();
    let good = described.token(&Scope::ALL, "*", "*", None);
    let almost = format!("{}{}", &good[..good.len() - 1], if good.ends_with('0') { '1' } else { '0' });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut told = BTreeSet::new();
    for repository in [NAME, NOWHERE] {
        for Operation { method, path, .. } in described.operations(repository) {
            for token in [None, Some(""), Some("x"), Some(&*almost), Some(&*expired), Some(&*revoked)] {
                let (status, text) = described.ask(&method, &path, token).await;
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} {token:?}");
                told.insert(text);
            }
        }
    }
    assert_eq!(told.len(), 1, "the same to all: {told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_operation_wants_the_scope_the_repository_and_the_machines_it_says() {
    let described = Described::start().await;
    let of_scope = |scope: Scope| described.token(&[scope], "*", "*", None);
    let scopes = Scope::ALL.map(|scope| (scope.name(), of_scope(scope)));
    let elsewhere = described.token(&Scope::ALL, "other*", "*", None);
    let bound = described.token(&Scope::ALL, "*", "web*", None);
    let known = described.operations(NAME);
    for (operation, nowhere) in known.iter().zip(described.operations(NOWHERE)) {
        let Operation { method, path, about } = operation;
        let refused = async |token: &str| {
            let (status, here) = described.ask(method, path, Some(token)).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {here}");
            let (status, there) = described.ask(method, &nowhere.path, Some(token)).await;
            assert_eq!(
                (status, there),
                (StatusCode::FORBIDDEN, here),
                "whether there is one is not told: {path}"
            );
        };
        let needed: Vec<&str> = about["x-underlay-scopes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|scope| scope.as_str().unwrap())
            .collect();
        for (scope, token) in &scopes {
            if needed.is_empty() || needed.contains(scope) {
                let (status, text) = described.ask(method, path, Some(token)).await;
                assert!(![401, 403].contains(&status.as_u16()), "{method} {path} {scope}: {text}");
            } else {
                refused(token).await;
            }
        }
        if path.contains(NAME) {
            refused(&elsewhere).await;
        }
        if about["x-underlay-machines"] == "all" {
            refused(&bound).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_prints_what_the_server_serves_and_a_validator_finds_it_valid() {
    let described = Described::start().await;
    let program = underlay_tests::program::program("underlay-server").unwrap();
    let printed = underlay_tests::commands::run(program.to_str().unwrap(), ["openapi"]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), described.document);
    let valid = openapi::validate(&described.write("openapi.json", &described.document)).unwrap();
    assert!(valid.status.success(), "{}", said(&valid));
    let mut wrong = described.document.clone();
    wrong["paths"]["/healthz"]["get"]["responses"] = json!("none");
    let invalid = openapi::validate(&described.write("wrong.json", &wrong)).unwrap();
    assert!(!invalid.status.success(), "it would find out: {}", said(&invalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_generated_from_the_document_is_answered_as_it_says() {
    let s3 = S3Server::garage().unwrap();
    let described = Described::start_on(Some(&s3)).await;
    let ruined = Ruined::fill(&described).await;
    let (document, known) =
        (described.write("openapi.json", &described.document), described.write("known.json", &ruined.known));
    let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_openapi/known.py");
    let run = Run {
        document: &document,
        server: &described.server.url(),
        token: &ruined.token,
        repository: NAME,
        hooks: Some((&hooks, &known)),
        only: None,
        examples: 80,
    };
    let output = run.start(described.folder.path()).unwrap();
    let log = std::fs::read_to_string(described.folder.path().join("server.log")).unwrap();
    let complaints: Vec<&str> = log.lines().filter(|line| !line.contains(" INFO ")).collect();
    assert!(output.status.success(), "{}\n{}", said(&output), complaints.join("\n"));
    assert!(!log.contains("panicked"), "{}", complaints.join("\n"));
    // It was not all turned away: every operation of a repository was done at least once.
    let (_, metrics) = described.ask(&Method::GET, "/metrics", Some(&ruined.token)).await;
    let counted: Vec<&str> =
        metrics.lines().filter(|line| line.starts_with("underlay_http_requests_total")).collect();
    let undone: Vec<String> = described
        .operations(NAME)
        .iter()
        .filter_map(|Operation { method, about, .. }| {
            let route = ruined::route_of(&described.document, about)?;
            Some(format!("method=\"{method}\",route=\"{route}\",status=\"20"))
        })
        .filter(|sample| !counted.iter().any(|line| line.contains(sample.as_str())))
        .collect();
    assert!(undone.is_empty(), "never done: {undone:#?}\n{}", counted.join("\n"));
    println!("{}", said(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_lies_is_found_out() {
    let described = Described::start().await;
    let ruined = Ruined::fill(&described).await;
    let path = "/v1/repositories/{repository}/protected";
    let check = async |name: &str, change: fn(&mut Value)| {
        let mut document = described.document.clone();
        change(&mut document["paths"][path]["get"]["responses"]);
        let document = described.write(name, &document);
        let server = described.server.url();
        let (token, repository) = (ruined.token.as_str(), NAME);
        let only = Some("snapshots_protected");
        let run =
            Run { document: &document, server: &server, token, repository, hooks: None, only, examples: 5 };
        let output = run.start(described.folder.path()).unwrap();
        (output.status.success(), said(&output))
    };
    let (passes, text) = check("true.json", |_| {}).await;
    assert!(passes, "{text}");
    let (passes, text) = check("kind.json", |responses| {
        responses["200"]["content"]["application/json"]["schema"] = json!({ "type": "array", "maxItems": 0 });
    })
    .await;
    assert!(!passes && text.contains("violates schema"), "{text}");
    let (passes, text) = check("status.json", |responses| {
        let answer = responses.as_object_mut().unwrap().remove("200").unwrap();
        responses["202"] = answer;
    })
    .await;
    assert!(!passes && text.contains("Undocumented status code"), "{text}");
}
