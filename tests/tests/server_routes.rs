//! Who may not. Every route is taken from the server's own table, so that a new one cannot escape.

#![allow(clippy::unwrap_used)]

use reqwest::{Client, Method, Response, StatusCode, header};
use serde_json::Value;
use underlay_server::tokens::Scope;
use underlay_server::{Machines, REPOSITORIES, ROUTES, Route};
use underlay_store::snapshot::Timestamp;
use underlay_tests::server::{NAME, Served};

/// A path of the route, with every variable part filled in.
fn path(route: &Route, repository: &str) -> String {
    let mut path = format!("{REPOSITORIES}{}", route.path).replace("{repository}", repository);
    for (part, value) in [
        ("{slot}", "00".repeat(8)),
        ("{handle}", "11".repeat(16)),
        ("{kind}", "data".to_owned()),
        ("{name}", "22".repeat(32)),
        ("{snapshot}", "33".repeat(16)),
        ("{node}", "55".repeat(32)),
        ("{job}", "44".repeat(16)),
    ] {
        path = path.replace(part, &value);
    }
    assert!(!path.contains('{'), "{route:?}: this test does not know a part of the path");
    path
}

struct Asker {
    client: Client,
    server: String,
}

impl Asker {
    fn new(served: &Served) -> Self {
        Self {
            client: Client::builder().no_proxy().build().unwrap(),
            server: format!("http://{}", served.running.address),
        }
    }

    async fn ask(&self, method: &Method, path: &str, token: Option<&str>, body: Vec<u8>) -> Response {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.server));
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(body).send().await.unwrap()
    }
}

/// The answer's status and its body, which must be a problem.
async fn problem(answer: Response) -> (StatusCode, String) {
    let status = answer.status();
    let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
    let text = answer.text().await.unwrap();
    assert_eq!(kind.unwrap(), "application/problem+json", "{status}: {text}");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["status"], status.as_u16());
    assert!(document["type"].as_str().unwrap().starts_with("urn:underlay:problem:"), "{text}");
    (status, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_answers_without_a_valid_token() {
    let served = Served::start("insecure_http = true").await;
    let asker = Asker::new(&served);
    let soon = Timestamp::from_milliseconds(Timestamp::now().as_milliseconds() + 1).unwrap();
    let expired = served.token_for(&Scope::ALL, "*", "*", Some(soon));
    let revoked = served.token(&Scope::ALL, "*");
    served.tokens().revoke(&revoked[5..21]).unwrap();
    let good = served.token(&Scope::ALL, "*");
    let other = if good.ends_with('0') { '1' } else { '0' };
    let almost = format!("{}{other}", &good[..good.len() - 1]);
    let tokens = [None, Some(""), Some("x"), Some(&*almost), Some(&*expired), Some(&*revoked)];
    let mut told = std::collections::BTreeSet::new();
    let mut paths: Vec<(Method, String)> =
        ROUTES.iter().map(|route| (route.method.clone(), path(route, NAME))).collect();
    paths.extend(ROUTES.iter().map(|route| (route.method.clone(), path(route, "nowhere"))));
    paths.extend(ROUTES.iter().map(|route| (route.method.clone(), path(route, "%ff"))));
    paths.push((Method::GET, "/v1/nonsense".to_owned()));
    paths.push((Method::PATCH, path(&ROUTES[1], NAME)));
    paths.push((Method::GET, "/nonsense".to_owned()));
    for (method, path) in paths {
        for token in tokens {
            let (status, text) = problem(asker.ask(&method, &path, token, vec![1; 9]).await).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} {token:?}");
            told.insert(text);
        }
    }
    assert_eq!(told.len(), 1, "nothing is revealed: {told:?}");
    let (status, _) = problem(asker.ask(&Method::GET, "/v1/nonsense", Some(&good), Vec::new()).await).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_wants_its_scope_its_repository_and_its_machines() {
    let served = Served::start("insecure_http = true").await;
    let asker = Asker::new(&served);
    let elsewhere = served.token_for(&Scope::ALL, "other*", "*", None);
    let bound = served.token(&Scope::ALL, "web*");
    for route in ROUTES {
        let path = path(route, NAME);
        let refused = async |token: &str| {
            let (status, text) =
                problem(asker.ask(&route.method, &path, Some(token), Vec::new()).await).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{route:?}");
            text
        };
        for scope in Scope::ALL.into_iter().filter(|scope| !route.needs.contains(scope)) {
            refused(&served.token(&[scope], "*")).await;
        }
        let there = refused(&elsewhere).await;
        let nowhere = self::path(route, "nowhere");
        let not_there = problem(asker.ask(&route.method, &nowhere, Some(&elsewhere), Vec::new()).await).await;
        assert_eq!(not_there, (StatusCode::FORBIDDEN, there), "whether there is one is not told");
        if route.machines == Machines::All {
            refused(&bound).await;
        }
        for scope in route.needs {
            let token = served.token(&[*scope], "*");
            let answer = asker.ask(&route.method, &path, Some(&token), Vec::new()).await;
            assert!(![401, 403].contains(&answer.status().as_u16()), "{route:?} {scope}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_refused_and_nothing_breaks() {
    let served = Served::start("insecure_http = true").await;
    let asker = Asker::new(&served);
    let token = served.token(&Scope::ALL, "*");
    let head = |magic: &str, kind: u8, count: u32| {
        let mut head = magic.as_bytes().to_vec();
        head.extend_from_slice(&[1, kind, 0, 0]);
        head.extend_from_slice(&count.to_le_bytes());
        head
    };
    let bodies = [
        Vec::new(),
        b"{".to_vec(),
        b"null".to_vec(),
        br#"{"vm":"a/b"}"#.to_vec(),
        br#"{"vm":1,"kind":"gc","options":{}}"#.to_vec(),
        vec![0xff; 3000],
        head("ULid", 1, u32::MAX),
        head("ULid", 2, 7),
        format!("[{}1]", "1,".repeat(1000)).into_bytes(),
    ];
    for route in ROUTES {
        for repository in [NAME, "nowhere", "%00", "a%2fb", "%ff"] {
            for query in [
                "",
                "?offset=x&length=-1",
                "?offset=18446744073709551615&length=18446744073709551615",
                "?seen=x",
            ] {
                for body in &bodies {
                    if route.method == Method::GET && !body.is_empty() {
                        continue;
                    }
                    let path = format!("{}{query}", path(route, repository));
                    let answer = asker.ask(&route.method, &path, Some(&token), body.clone()).await;
                    let status = answer.status().as_u16();
                    assert!(status < 500, "{route:?} {path}: {}", answer.text().await.unwrap());
                    if status >= 400 {
                        problem(answer).await;
                    }
                }
            }
        }
        let broken =
            path(route, NAME).replace("11", "1x").replace("22", "").replace("33", "3").replace("44", "%20");
        let answer = asker.ask(&route.method, &broken, Some(&token), Vec::new()).await;
        assert!(answer.status().as_u16() < 500, "{broken}");
    }
    let healthy = asker.ask(&Method::GET, "/healthz", None, Vec::new()).await;
    assert_eq!(healthy.text().await.unwrap(), "ok\n");
    let ready = asker.ask(&Method::GET, "/readyz", None, Vec::new()).await;
    assert_eq!(ready.text().await.unwrap(), "ready\n");
}
