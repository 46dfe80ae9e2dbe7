//! The server's pages below the surface: who gets in, for how long, and what each answer forbids the browser.

#![allow(clippy::unwrap_used)]

use reqwest::redirect::Policy;
use reqwest::{Client, Response, header};
use underlay_server::PAGES;
use underlay_server::tokens::Scope;
use underlay_tests::server::Served;

struct Browser {
    client: Client,
    server: String,
    cookie: String,
}

impl Browser {
    fn new(served: &Served) -> Self {
        let client =
            Client::builder().no_proxy().redirect(Policy::none()).pool_max_idle_per_host(0).build().unwrap();
        Self { client, server: format!("http://{}", served.running.address), cookie: String::new() }
    }

    async fn get(&self, path: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.server));
        request.header(header::COOKIE, &self.cookie).send().await.unwrap()
    }

    async fn post(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.client.post(format!("{}{path}", self.server)).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.header(header::COOKIE, &self.cookie).send().await.unwrap()
    }

    /// Signs in; the whole line that sets the cookie.
    async fn sign_in(&mut self, token: &str) -> String {
        let answer = self.post("/login", &format!("token={token}"), &[]).await;
        assert_eq!((answer.status().as_u16(), place(&answer)), (303, Some("/".to_owned())));
        let line = answer.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
        self.cookie = line.split(';').next().unwrap().to_owned();
        line
    }

    async fn is_in(&self) -> bool {
        self.get("/").await.status().is_success()
    }
}

fn place(answer: &Response) -> Option<String> {
    Some(answer.headers().get(header::LOCATION)?.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_a_page_without_a_valid_token() {
    let served = Served::start("insecure_http = true").await;
    let mut browser = Browser::new(&served);
    let mut paths = vec!["/repositories/none".to_owned(), "/repositories/vms/machine?name=vm".to_owned()];
    let private = PAGES.iter().filter(|page| !page.is_public);
    paths.extend(private.map(|page| page.path.replace("{repository}", "vms")));
    assert!(
        paths.contains(&"/".to_owned()) && PAGES.iter().all(|page| page.is_public || page.method == "GET")
    );
    for path in &paths {
        let answer = browser.get(path).await;
        assert_eq!((answer.status().as_u16(), place(&answer)), (303, Some("/login".to_owned())), "{path}");
        assert_eq!(answer.text().await.unwrap(), "");
    }
    let valid = served.token(&[Scope::Maintain], "*");
    let almost = format!("{}0", &valid[..valid.len() - 1]);
    for wrong in ["", "token=", "token=%00", "a=b", &format!("token={almost}"), &"token=x".repeat(10_000)] {
        let answer = browser.post("/login", wrong, &[]).await;
        assert_eq!(answer.status(), 401);
        assert!(answer.headers().get(header::SET_COOKIE).is_none());
        assert!(answer.text().await.unwrap().contains("This is no valid token."));
    }
    browser.cookie = format!("underlay={}", "0".repeat(64));
    assert!(!browser.is_in().await);
    let line = browser.sign_in(&valid).await;
    for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(browser.is_in().await);
    // The cookie is no token, and a token is no cookie.
    let bearer = browser.cookie.split_once('=').unwrap().1;
    let api =
        browser.client.get(format!("{}/v1/repositories/vms/totals", browser.server)).bearer_auth(bearer);
    assert_eq!(api.send().await.unwrap().status(), 401);
    browser.cookie = format!("underlay={valid}");
    assert!(!browser.is_in().await);
}

/// A machine's page does not say that there is no such page when it is the repository that cannot be shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_repository_is_said_on_every_page_of_it() {
    let served = Served::start("insecure_http = true").await;
    let mut browser = Browser::new(&served);
    browser.sign_in(&served.token(&[Scope::Maintain], "*")).await;
    let text = async |path: &str| {
        let answer = browser.get(path).await;
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let machine = "/repositories/vms/machine?name=vm";
    let (status, said) = text(machine).await;
    assert!(status == 404 && said.contains("Nothing here"), "{said}");
    std::fs::rename(served.folder.path().join("repository"), served.folder.path().join("aside")).unwrap();
    for path in ["/", "/repositories/vms", machine] {
        let (status, said) = text(path).await;
        assert!(status == 200 && said.contains("Cannot be opened"), "{path}: {said}");
        assert!(!said.contains(served.folder.path().to_str().unwrap()), "{path}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_or_signs_out_is_out_at_once() {
    let served = Served::start("insecure_http = true").await;
    let (one, two) = (served.token(&[Scope::Maintain], "*"), served.token(&[Scope::Maintain], "*"));
    let (mut first, mut second, mut third) =
        (Browser::new(&served), Browser::new(&served), Browser::new(&served));
    for (browser, token) in [(&mut first, &one), (&mut second, &one), (&mut third, &two)] {
        browser.sign_in(token).await;
        assert!(browser.is_in().await);
    }
    let answer = first.post("/logout", "", &[]).await;
    assert!(answer.headers()[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    assert!(!first.is_in().await && second.is_in().await);
    served.tokens().revoke(one.split('_').nth(1).unwrap()).unwrap();
    assert!(!second.is_in().await && third.is_in().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_sites_can_neither_frame_nor_ask() {
    let served = Served::start("insecure_http = true").await;
    let mut browser = Browser::new(&served);
    let token = served.token(&[Scope::Maintain], "*");
    let body = format!("token={token}");
    let own = browser.server.clone();
    for (headers, taken) in [
        (vec![("sec-fetch-site", "cross-site")], false),
        (vec![("sec-fetch-site", "same-site")], false),
        (vec![("origin", "https://evil.example")], false),
        (vec![("origin", "null")], false),
        (vec![("origin", own.as_str())], true),
        (vec![("sec-fetch-site", "same-origin"), ("origin", "null")], true),
    ] {
        let answer = browser.post("/login", &body, &headers).await;
        assert_eq!(answer.headers().contains_key(header::SET_COOKIE), taken, "{headers:?}");
    }
    browser.sign_in(&token).await;
    browser.post("/logout", "", &[("sec-fetch-site", "cross-site")]).await;
    assert!(browser.is_in().await);
    for path in ["/", "/repositories/vms", "/repositories/none", "/login", "/style.css"] {
        let answer = browser.get(path).await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("cache-control"), if path == "/style.css" { "max-age=300" } else { "no-store" });
    }
    let page = browser.get("/").await.text().await.unwrap();
    assert!(!page.contains("<script") && !page.contains("style=") && !page.contains("http://"), "{page}");
}
