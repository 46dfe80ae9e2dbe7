//! What one holder of a token cannot do to others, with the code that a client has.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use underlay_client::remote::{RemoteAuthority, RemoteOptions};
use underlay_server::tokens::Scope;
use underlay_store::Error;
use underlay_store::authority::Authority;
use underlay_store::gc::GcOptions;
use underlay_store::id::{Root, SessionHandle};
use underlay_store::key::slot::{Argon2id, Slot};
use underlay_store::key::{Key, RestoreKey};
use underlay_store::names;
use underlay_store::progress::Silent;
use underlay_store::snapshot::{Snapshot, Timestamp};
use underlay_tests::conformance::Ground;
use underlay_tests::server::Served;

const ZEROS: Root = Root { size: 4096, node: None };

fn ground(served: &Served, scopes: &[Scope], machines: &str) -> Ground {
    Ground {
        authority: served.authority(&served.token(scopes, machines)),
        key: served.key.clone(),
        descriptor: served.descriptor.clone(),
    }
}

fn is_denied<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }) && error.hint().is_some(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_backs_up_sees_and_changes_nothing_of_others() {
    let served = Served::start("").await;
    let (db, theirs) = ground(&served, &[Scope::Backup], "db").backup("db", 1).await;
    let web = ground(&served, &[Scope::Backup], "web*");
    let (own, stored) = web.backup("web-1", 2).await;
    let listed = web.authority.snapshots().await.unwrap();
    let names: Vec<&str> = listed.iter().map(|document| document.name.as_str()).collect();
    assert_eq!(names, [names::snapshot(&own)]);
    is_denied(web.authority.open_session("db").await);
    is_denied(web.authority.locate_chunks(&[theirs.chunk]).await);
    is_denied(web.authority.read_pack(theirs.pack, 0..10).await);
    is_denied(web.authority.read_pack(stored.pack, 0..10).await);
    for snapshot in [db, own] {
        is_denied(web.authority.forget(snapshot).await);
        is_denied(web.authority.protect(snapshot, true).await);
    }
    is_denied(web.authority.gc(&GcOptions::default(), &Silent).await);
    is_denied(web.authority.totals().await);
    is_denied(web.authority.put_key_slot(underlay_store::id::SlotId::random(), "{}".into()).await);
    let bound = ground(&served, &[Scope::Maintain], "web*").authority;
    let hidden = bound.forget(db).await.unwrap_err();
    assert!(matches!(hidden, Error::NoSnapshot { .. }), "{hidden}");
    is_denied(bound.gc(&GcOptions::default(), &Silent).await);
    bound.protect(own, true).await.unwrap();
    served.for_all().protect(db, true).await.unwrap();
    assert_eq!(bound.protected().await.unwrap(), [own]);
    bound.protect(own, false).await.unwrap();
    bound.forget(own).await.unwrap();
    assert_eq!(served.for_all().snapshots().await.unwrap().len(), 1);
}

/// The handle of another's session, were it known, means nothing to whoever has another token; neither does its id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_belongs_to_its_token() {
    let served = Served::start("insecure_http = true").await;
    let (token, thief) = (served.token(&[Scope::Backup], "web"), served.token(&[Scope::Backup], "web"));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let handle = SessionHandle::random();
    let sessions = format!("http://{}/v1/repositories/vms/sessions/{handle}", served.running.address);
    let open = client.put(&sessions).bearer_auth(&token).body(r#"{"vm":"web"}"#).send().await.unwrap();
    let opened: serde_json::Value = serde_json::from_slice(&open.bytes().await.unwrap()).unwrap();
    let again = client.put(&sessions).bearer_auth(&token).body(r#"{"vm":"web"}"#).send().await.unwrap();
    let again: serde_json::Value = serde_json::from_slice(&again.bytes().await.unwrap()).unwrap();
    assert_eq!(opened, again, "opening it is repeatable");
    let nothing = underlay_store::wire::encode_ids::<underlay_store::id::ChunkId>(&[]);
    let ask = async |token: &str, handle: &str, what: &str| {
        let url = sessions.replace(&handle_text(&sessions), handle);
        client.post(format!("{url}/{what}")).bearer_auth(token).body(nothing.clone()).send().await.unwrap()
    };
    let handle = handle.to_string();
    assert_eq!(ask(&token, &handle, "chunks").await.status(), 200);
    for stolen in [handle.as_str(), opened["session"].as_str().unwrap()] {
        let answer = ask(&thief, stolen, "chunks").await;
        assert_eq!(answer.status(), 409);
        assert!(answer.text().await.unwrap().contains("unknown"));
    }
    let ended = client.delete(&sessions).bearer_auth(&thief).send().await.unwrap();
    assert_eq!(ended.status(), 409, "nor can it be ended");
    assert_eq!(ask(&token, &handle, "chunks").await.status(), 200);
    served.tokens().revoke(&token[5..21]).unwrap();
    assert_eq!(
        ask(&token, &handle, "chunks").await.status(),
        401,
        "a revoked token takes its sessions along"
    );
}

fn handle_text(url: &str) -> String {
    url.rsplit('/').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_the_key_is_not_believed() {
    let served = Served::start("").await;
    let thief = Ground { key: RestoreKey::generate(), ..ground(&served, &[Scope::Backup], "web") };
    let grant = thief.authority.open_session("web").await.unwrap();
    let (id, document) = thief.snapshot("web", grant, ZEROS);
    thief.authority.commit(grant.session, document.clone()).await.unwrap();
    let listed = served.for_all().snapshots().await.unwrap();
    assert_eq!(listed[0].bytes, document);
    let believed = Snapshot::open(&id, &served.descriptor.repository, &listed[0].bytes, served.key.backup());
    assert!(matches!(believed, Err(Error::Damaged { .. })));
    let (other, stored) = ground(&served, &[Scope::Backup], "web").backup("web", 1).await;
    let again = thief.authority.open_session("web").await.unwrap();
    let (_, lie) = thief.snapshot("web", again, stored.root);
    let refused = thief.authority.commit(again.session, lie).await.unwrap_err();
    assert!(matches!(refused, Error::Unproven { .. }), "{refused}");
    assert!(
        served.for_all().snapshots().await.unwrap().iter().any(|found| found.name == names::snapshot(&other))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_backs_up_cannot_guess_the_restore_passphrase() {
    let served = Served::start("").await;
    let repository = served.descriptor.repository;
    let all = served.for_all();
    let mut slots = Vec::new();
    for key in [Key::Restore(served.key.clone()), Key::Backup(served.key.backup().clone())] {
        let slot = Slot::create(repository, &key, "x", "", Timestamp::now(), Argon2id::CHEAPEST).unwrap();
        all.put_key_slot(slot.slot, slot.seal().into()).await.unwrap();
        slots.push(names::slot(&slot.slot));
    }
    let seen = async |scope| {
        let slots = served.authority(&served.token(&[scope], "*")).key_slots().await.unwrap();
        slots.into_iter().map(|slot| slot.name).collect::<Vec<_>>()
    };
    assert_eq!(seen(Scope::Backup).await, [slots[1].clone()]);
    assert_eq!(seen(Scope::Restore).await.len(), 2);
    let foreign = Slot::create(
        underlay_store::id::RepositoryId::random(),
        &Key::Restore(served.key.clone()),
        "x",
        "",
        Timestamp::now(),
        Argon2id::CHEAPEST,
    )
    .unwrap();
    let refused = all.put_key_slot(foreign.slot, foreign.seal().into()).await.unwrap_err();
    assert!(matches!(refused, Error::Key { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_knows_its_server() {
    let served = Served::start("").await;
    let token = served.token(&Scope::ALL, "*");
    for fingerprint in [None, Some(format!("sha256:{}", "00".repeat(32)))] {
        let options = RemoteOptions { token: token.clone().into(), fingerprint, ..RemoteOptions::default() };
        let remote: Arc<dyn Authority> =
            Arc::new(RemoteAuthority::new(&served.location(), &options).unwrap());
        let started = std::time::Instant::now();
        let refused = remote.descriptor().await.unwrap_err();
        let source = std::error::Error::source(&refused).unwrap().to_string();
        assert!(matches!(refused, Error::Unreachable { .. }) && source.contains("certificate"), "{source}");
        assert!(started.elapsed().as_millis() < 500, "it is not tried again");
    }
    let plain = RemoteAuthority::new("http://192.0.2.1:1/vms", &RemoteOptions::default()).unwrap_err();
    assert!(plain.to_string().contains("plain HTTP"), "{plain}");
    let odd = RemoteOptions { fingerprint: Some("ab".into()), ..RemoteOptions::default() };
    assert!(matches!(RemoteAuthority::new(&served.location(), &odd), Err(Error::Invalid { .. })));
}
