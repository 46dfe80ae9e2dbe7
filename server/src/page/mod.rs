//! Pages for people: what there is, what runs, what failed. Without scripts, and nothing that the visitor's token could not ask for.

mod gather;
mod html;
mod machine;
mod shown;
mod timeline;
mod visits;
mod words;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use futures::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use underlay_store::snapshot::Timestamp;
use zeroize::Zeroizing;

use crate::connection::Connection;
use crate::hosted::Hosted;
use crate::limits::Reserved;
use crate::routes::problem_answer;
use crate::server::Server;
use crate::tokens::Token;
use gather::{Facts, gather};
use html::{Around, Index, Login, Nothing, RepositoryPage, go_to, page};
use machine::machine_page;
use shown::shown;
pub(crate) use visits::Visits;
use words::moment;

/// The form with a token, in bytes.
const FORM: usize = 4096;
/// The form comes within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// What making a page counts as, in bytes.
const MEMORY: u64 = 32 << 20;
/// Snapshots of a machine in its list.
const ROWS: u32 = 500;

/// A page, or something that a form of one asks for.
pub struct Page {
    /// The method.
    pub method: Method,
    /// The path; variable parts in braces.
    pub path: &'static str,
    /// It is for everyone; others lead to the form to sign in.
    pub is_public: bool,
    pub(crate) run: fn(Arc<Server>, Request) -> BoxFuture<'static, Response>,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

macro_rules! page {
    ($method:ident $path:literal, $public:literal, $run:path) => {
        Page {
            method: Method::$method,
            path: $path,
            is_public: $public,
            run: |server, request| Box::pin($run(server, request)),
        }
    };
}

/// Every page.
pub static PAGES: &[Page] = &[
    page!(GET "/", false, index),
    page!(GET "/repositories/{repository}", false, repository),
    page!(GET "/repositories/{repository}/machine", false, machine),
    page!(GET "/login", true, login),
    page!(POST "/login", true, sign_in),
    page!(POST "/logout", true, sign_out),
    page!(GET "/style.css", true, style),
];

async fn style(_: Arc<Server>, _: Request) -> Response {
    html::style()
}

/// Who asks for a page, as long as it is made.
struct Visitor {
    token: Arc<Token>,
    around: Around,
    now_ms: i64,
    /// Of the page.
    uri: Uri,
    _used: Option<crate::connection::Request>,
    _permit: OwnedSemaphorePermit,
    _reserved: Reserved,
}

/// A page that is not the one that was asked for.
type Instead = Box<Response>;

/// Who is signed in; others are asked who they are.
async fn enter(server: &Server, request: Request) -> Result<Visitor, Instead> {
    let now = Timestamp::now();
    let token = cookie(server, &request).and_then(|cookie| server.visits.token(cookie, &server.tokens, now));
    let Some(token) = token else { return Err(Box::new(go_to("/login"))) };
    let used = request.extensions().get::<Arc<Connection>>().map(Connection::request);
    let uri = request.uri().clone();
    drop(request);
    let refused = |problem| Box::new(problem_answer(&problem));
    let share = server.shares.of(token.id.0);
    let permit = share.request().map_err(refused)?;
    let reserved = server.shares.reserve(&share, MEMORY).await.map_err(refused)?;
    let now_ms = now.as_milliseconds();
    let around = Around { now: moment(now_ms), visitor: token.label.clone() };
    Ok(Visitor { token, around, now_ms, uri, _used: used, _permit: permit, _reserved: reserved })
}

/// A cookie that only ever goes back over TLS, and to no other server of this host, says so in its name.
fn cookie_name(server: &Server) -> &'static str {
    if server.is_plain { "underlay" } else { "__Host-underlay" }
}

fn cookie<'a>(server: &Server, request: &'a Request) -> Option<&'a str> {
    let cookies = request.headers().get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == cookie_name(server)).map(|(_, value)| value)
}

/// Sets the cookie, or removes it.
fn with_cookie(server: &Server, mut answer: Response, value: &str, seconds: u32) -> Response {
    let (name, secure) = (cookie_name(server), if server.is_plain { "" } else { "; Secure" });
    let cookie = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    answer
}

/// Whether a page of another server made the browser ask.
fn comes_from_elsewhere(request: &Request) -> bool {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    match (header("sec-fetch-site"), header("origin")) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            let host = request.uri().authority().map(|host| host.as_str()).or_else(|| header("host"));
            origin.split_once("://").map(|(_, origin)| origin) != host
        }
        (None, None) => false,
    }
}

async fn login(server: Arc<Server>, request: Request) -> Response {
    let known = cookie(&server, &request)
        .and_then(|cookie| server.visits.token(cookie, &server.tokens, Timestamp::now()));
    match known {
        Some(_) => go_to("/"),
        None => page(StatusCode::OK, &Login { wrong: false }),
    }
}

async fn sign_in(server: Arc<Server>, request: Request) -> Response {
    if comes_from_elsewhere(&request) {
        return go_to("/login");
    }
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let body = timeout(PATIENCE, axum::body::to_bytes(request.into_body(), FORM)).await;
    let form = body.ok().and_then(Result::ok).unwrap_or_default();
    let mut fields = form_urlencoded::parse(&form);
    let text = fields.find(|(name, _)| name == "token").map(|(_, text)| Zeroizing::new(text.into_owned()));
    let now = Timestamp::now();
    let Some(token) = text.and_then(|text| server.tokens.authenticate(text.trim(), now)) else {
        let peer = connection.map(|connection| connection.peer());
        tracing::info!(?peer, "no valid token to sign in with");
        return page(StatusCode::UNAUTHORIZED, &Login { wrong: true });
    };
    let _used = connection.as_ref().map(Connection::request);
    tracing::info!(token = %token.id, "signed in");
    let cookie = server.visits.begin(token, now);
    with_cookie(&server, go_to("/"), &cookie, visits::LASTS_SECONDS)
}

async fn sign_out(server: Arc<Server>, request: Request) -> Response {
    if comes_from_elsewhere(&request) {
        return go_to("/");
    }
    if let Some(cookie) = cookie(&server, &request) {
        server.visits.end(cookie);
    }
    with_cookie(&server, go_to("/login"), "", 0)
}

async fn index(server: Arc<Server>, request: Request) -> Response {
    let visitor = match enter(&server, request).await {
        Ok(visitor) => visitor,
        Err(instead) => return *instead,
    };
    let mut repositories = Vec::new();
    for hosted in server.all_hosted().filter(|hosted| visitor.token.covers_repository(hosted.name())) {
        repositories.push(shown(&gather(&server, hosted, &visitor.token).await, visitor.now_ms));
    }
    let alarms = repositories.iter_mut().flat_map(|shown| std::mem::take(&mut shown.alarms)).collect();
    page(StatusCode::OK, &Index { around: visitor.around, alarms, repositories })
}

/// The repository of the path, if the visitor may see it and there is one.
fn visible<'a>(server: &'a Server, visitor: &Visitor) -> Option<&'a Arc<Hosted>> {
    let name = visitor.uri.path().split('/').nth(2).unwrap_or_default();
    server.hosted(name).filter(|_| visitor.token.covers_repository(name))
}

fn nothing(around: Around) -> Response {
    page(StatusCode::NOT_FOUND, &Nothing { around })
}

async fn repository(server: Arc<Server>, request: Request) -> Response {
    let visitor = match enter(&server, request).await {
        Ok(visitor) => visitor,
        Err(instead) => return *instead,
    };
    let Some(hosted) = visible(&server, &visitor) else { return nothing(visitor.around) };
    let shown = shown(&gather(&server, hosted, &visitor.token).await, visitor.now_ms);
    page(StatusCode::OK, &RepositoryPage { around: visitor.around, shown })
}

async fn machine(server: Arc<Server>, request: Request) -> Response {
    let visitor = match enter(&server, request).await {
        Ok(visitor) => visitor,
        Err(instead) => return *instead,
    };
    let query = visitor.uri.query().unwrap_or_default();
    let vm = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "name");
    let vm = vm.map(|(_, vm)| vm.into_owned()).unwrap_or_default();
    let hosted = visible(&server, &visitor).filter(|_| visitor.token.covers_machine(&vm));
    let Some(hosted) = hosted else { return nothing(visitor.around) };
    let Visitor { around, now_ms, .. } = visitor;
    match gather::machine(hosted, &vm, ROWS).await {
        Ok(known) => match machine_page(&around, now_ms, hosted.name(), &vm, &known) {
            Some(machine) => page(StatusCode::OK, &machine),
            None => nothing(around),
        },
        // What is wrong with the repository.
        Err(unavailable) => {
            let facts = Facts { name: hosted.name().to_owned(), known: Err(unavailable) };
            page(StatusCode::OK, &RepositoryPage { around, shown: shown(&facts, now_ms) })
        }
    }
}
