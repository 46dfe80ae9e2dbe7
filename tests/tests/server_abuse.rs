//! Clients that take too much or too long: they are turned away, and others are served.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use underlay_server::tokens::Scope;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::id::SessionHandle;
use underlay_tests::server::{NAME, Served};

const LIMITS: &str = "insecure_http = true\n[limits]\nhead_seconds = 1\nstall_seconds = 1\nidle_seconds = 2\n\
                      sessions_per_token = 2\nconnections = 8";

fn connect(served: &Served) -> TcpStream {
    let stream = TcpStream::connect(served.running.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// What comes until the server closes the connection.
fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

fn head(method: &str, path: &str, token: &str, more: &str) -> String {
    format!(
        "{method} /v1/repositories/{NAME}{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_too_long_are_not_read() {
    let served = Served::start(LIMITS).await;
    let token = served.token(&Scope::ALL, "*");
    let handle = SessionHandle::random();
    for (method, path, length) in [
        ("PUT", format!("/sessions/{handle}"), 4 << 10),
        ("POST", "/nodes/read".to_owned(), 2 << 20),
        ("PUT", format!("/keys/{}", "00".repeat(8)), 64 << 10),
    ] {
        let mut announced = connect(&served);
        let more = format!("Content-Length: {}\r\n", length + 1);
        announced.write_all(head(method, &path, &token, &more).as_bytes()).unwrap();
        assert!(rest(&mut announced).starts_with("HTTP/1.1 413"), "{path}");
        let mut unannounced = connect(&served);
        let more = "Transfer-Encoding: chunked\r\n";
        unannounced.write_all(head(method, &path, &token, more).as_bytes()).unwrap();
        let piece = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
        // The server stops listening somewhere in the middle.
        let written = (0..=length >> 16).all(|_| unannounced.write_all(piece.as_bytes()).is_ok());
        let answer = rest(&mut unannounced);
        assert!(!written || answer.starts_with("HTTP/1.1 413"), "{path}: {answer}");
    }
    let mut long_head = connect(&served);
    let more = format!("X: {}\r\n", "y".repeat(200 << 10));
    let _ = long_head.write_all(head("GET", "/descriptor", &token, &more).as_bytes());
    let answer = rest(&mut long_head);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    served.for_all().descriptor().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_is_turned_away() {
    let served = Served::start(LIMITS).await;
    let token = served.token(&Scope::ALL, "*");
    let started = Instant::now();
    let mut silent = connect(&served);
    let mut half_a_head = connect(&served);
    half_a_head.write_all(b"GET /v1/repositories/vms/desc").unwrap();
    let mut stranger = connect(&served);
    stranger.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut half_a_body = connect(&served);
    let path = format!("/sessions/{}", SessionHandle::random());
    let more = "Content-Length: 100\r\n";
    half_a_body.write_all(head("PUT", &path, &token, more).as_bytes()).unwrap();
    half_a_body.write_all(b"{").unwrap();
    let mut known = connect(&served);
    known.write_all(head("GET", "/descriptor", &token, "").as_bytes()).unwrap();
    // Others are served meanwhile.
    served.for_all().descriptor().await.unwrap();
    tokio::task::spawn_blocking(move || {
        assert_eq!(rest(&mut silent), "");
        let answer = rest(&mut half_a_head);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(rest(&mut stranger).contains("ok\n"), "it is answered, and then closed");
        assert!(rest(&mut half_a_body).starts_with("HTTP/1.1 408"));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(rest(&mut known).starts_with("HTTP/1.1 200"));
        assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_there_may_be_wait_for_their_turn() {
    let served = Served::start(LIMITS).await;
    let silent: Vec<TcpStream> = (0..20).map(|_| connect(&served)).collect();
    served.for_all().descriptor().await.unwrap();
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_has_only_so_many_sessions() {
    let served = Served::start(LIMITS).await;
    let token = served.token(&[Scope::Backup], "*");
    let (greedy, other) = (served.authority(&token), served.for_all());
    let first = greedy.open_session("a").await.unwrap();
    greedy.open_session("b").await.unwrap();
    let third = tokio::time::timeout(Duration::from_secs(2), greedy.open_session("c")).await;
    assert!(third.is_err(), "it is asked again and again: {third:?}");
    other.open_session("c").await.unwrap();
    greedy.abandon(first.session).await.unwrap();
    greedy.open_session("c").await.unwrap();
    let unknown = greedy.have_chunks(first.session, &[]).await.unwrap_err();
    assert!(matches!(unknown, Error::Session { .. }), "{unknown}");
}
