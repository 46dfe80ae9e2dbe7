//! Pages for people: what there is, what runs, what failed. Without scripts, and nothing that the visitor's token could not ask for.

mod gather;
mod html;
mod shown;
mod timeline;
mod visits;
mod words;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use underlay_store::snapshot::{Snapshot, Timestamp};
use zeroize::Zeroizing;

use crate::connection::Connection;
use crate::hosted::Hosted;
use crate::limits::Reserved;
use crate::routes::problem_answer;
use crate::server::Server;
use crate::text::{bytes, count};
use crate::tokens::Token;
use gather::{Known, gather};
use html::{Around, Index, Login, MachinePage, Nothing, RepositoryPage, Row, go_to, page};
use shown::{Figure, shown};
use timeline::{Kind, days_since, timeline};
pub(crate) use visits::Visits;
use words::{ago, moment};

/// The form with a token, in bytes.
const FORM: usize = 4096;
/// The form comes within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// What making a page may take: 100,000 snapshots take half of it.
const MEMORY: u64 = 32 << 20;
/// Snapshots of a machine in its list.
const ROWS: u32 = 500;

/// The same routes, and those of the pages.
pub(crate) fn add_to(router: Router<Arc<Server>>) -> Router<Arc<Server>> {
    router
        .route("/", get(index))
        .route("/login", get(login).post(sign_in))
        .route("/logout", post(sign_out))
        .route("/style.css", get(async || html::style()))
        .route("/repositories/{repository}", get(repository))
        .route("/repositories/{repository}/machine", get(machine))
}

/// Who asks for a page, as long as it is made.
struct Visitor {
    token: Arc<Token>,
    around: Around,
    now_ms: i64,
    /// Of the page.
    query: String,
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
    let query = request.uri().query().unwrap_or_default().to_owned();
    drop(request);
    let refused = |problem| Box::new(problem_answer(&problem));
    let share = server.shares.of(token.id.0);
    let permit = share.request().map_err(refused)?;
    let reserved = server.shares.reserve(&share, MEMORY).await.map_err(refused)?;
    let now_ms = now.as_milliseconds();
    let around = Around { now: moment(now_ms), visitor: token.label.clone() };
    Ok(Visitor { token, around, now_ms, query, _used: used, _permit: permit, _reserved: reserved })
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

async fn login(State(server): State<Arc<Server>>, request: Request) -> Response {
    let known = cookie(&server, &request)
        .and_then(|cookie| server.visits.token(cookie, &server.tokens, Timestamp::now()));
    match known {
        Some(_) => go_to("/"),
        None => page(StatusCode::OK, &Login { wrong: false }),
    }
}

async fn sign_in(State(server): State<Arc<Server>>, request: Request) -> Response {
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

async fn sign_out(State(server): State<Arc<Server>>, request: Request) -> Response {
    if comes_from_elsewhere(&request) {
        return go_to("/");
    }
    if let Some(cookie) = cookie(&server, &request) {
        server.visits.end(cookie);
    }
    with_cookie(&server, go_to("/login"), "", 0)
}

async fn index(State(server): State<Arc<Server>>, request: Request) -> Response {
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

/// The repository, if the visitor may see it and there is one.
fn visible<'a>(server: &'a Server, visitor: &Visitor, name: &str) -> Option<&'a Arc<Hosted>> {
    server.hosted(name).filter(|_| visitor.token.covers_repository(name))
}

fn nothing(visitor: Visitor) -> Response {
    page(StatusCode::NOT_FOUND, &Nothing { around: visitor.around })
}

async fn repository(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let visitor = match enter(&server, request).await {
        Ok(visitor) => visitor,
        Err(instead) => return *instead,
    };
    let Some(hosted) = visible(&server, &visitor, &name) else { return nothing(visitor) };
    let shown = shown(&gather(&server, hosted, &visitor.token).await, visitor.now_ms);
    page(StatusCode::OK, &RepositoryPage { around: visitor.around, shown })
}

async fn machine(State(server): State<Arc<Server>>, Path(name): Path<String>, request: Request) -> Response {
    let visitor = match enter(&server, request).await {
        Ok(visitor) => visitor,
        Err(instead) => return *instead,
    };
    let vm = form_urlencoded::parse(visitor.query.as_bytes()).find(|(key, _)| key == "name");
    let vm = vm.map(|(_, vm)| vm.into_owned()).unwrap_or_default();
    let hosted = visible(&server, &visitor, &name).filter(|_| visitor.token.covers_machine(&vm));
    let Some(hosted) = hosted else { return nothing(visitor) };
    let (facts, repository) = (gather(&server, hosted, &visitor.token).await, hosted.repository().await);
    let (Ok(known), Ok(repository)) = (facts.known, repository) else { return nothing(visitor) };
    match gather::machine(&repository, &vm, ROWS).await {
        Ok(snapshots) if !snapshots.is_empty() => {
            page(StatusCode::OK, &machine_page(visitor, facts.name, vm, &known, &snapshots))
        }
        _ => nothing(visitor),
    }
}

/// `snapshots` are the newest of the machine, newest first.
fn machine_page(
    visitor: Visitor,
    repository: String,
    vm: String,
    known: &Known,
    snapshots: &[Snapshot],
) -> MachinePage {
    let Visitor { around, now_ms, .. } = visitor;
    let kind = |snapshot| match () {
        () if known.damaged.contains(snapshot) => Kind::Damaged,
        () if known.protected.contains(snapshot) => Kind::Protected,
        () => Kind::Plain,
    };
    let of_it = known.snapshots.iter().filter(|head| head.vm == vm);
    let places: Vec<_> = of_it.map(|head| (head.time_ms, kind(&head.snapshot))).collect();
    let now = Timestamp::now();
    let days = places.first().map_or(7, |(oldest, _)| days_since(*oldest, now));
    let figure = |name, value: String, note: String| Figure { name, value, note };
    let newest = &snapshots[0];
    let figures = vec![
        figure(
            "Snapshots",
            places.len().to_string(),
            places.first().map_or_else(String::new, |(oldest, _)| format!("since {}", moment(*oldest))),
        ),
        figure(
            "Last backup",
            ago(newest.time.as_milliseconds(), now_ms),
            moment(newest.time.as_milliseconds()),
        ),
        figure(
            "Disks",
            bytes(newest.statistics.disk_bytes),
            newest.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", "),
        ),
        figure("Last increment", bytes(newest.statistics.bytes_new), "new to the repository".to_owned()),
    ];
    let rows: Vec<Row> =
        snapshots.iter().map(|snapshot| row(snapshot, kind(&snapshot.snapshot), now_ms)).collect();
    MachinePage {
        around,
        link: shown::repository_link(&repository),
        repository,
        name: vm,
        line: timeline(&places, days, now_ms),
        figures,
        more: places.len().saturating_sub(rows.len()),
        rows,
    }
}

fn row(snapshot: &Snapshot, kind: Kind, now_ms: i64) -> Row {
    let (time, took) = (snapshot.time.as_milliseconds(), snapshot.statistics);
    Row {
        id: snapshot.snapshot.to_string(),
        time: moment(time),
        ago: ago(time, now_ms),
        disks: count(snapshot.disks.len() as u64, "disk"),
        size: bytes(took.disk_bytes),
        read: bytes(took.bytes_read),
        new: bytes(took.bytes_new),
        uploaded: bytes(took.bytes_uploaded),
        consistency: snapshot.consistency.as_str(),
        kind: kind.class(),
    }
}
